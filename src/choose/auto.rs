//! Method `auto`: the best of the sets that cheap methods name. It goes by their loss on text that chose nothing.
//!
//! One pass over the calibration text scores every block and every run. The sets that follow from it are evaluated on windows
//! of the text after that; where the text ends, on scored windows, too. They are evaluated by segments, so that what sets have
//! in common is evaluated once. Equal sets are measured once, and a set without a rival not at all. Where nothing can be
//! measured, `bi` chooses, and that is said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context, Result};

use super::loaded::Loaded;
use super::measured::{self, Auto, Chosen};
use crate::choose::outcome::{AutoReport, CandidateReport, SetCost};
use crate::choose::request::{Request, Target};
use crate::choose::search::Goal;
use crate::engine::hidden_state::Token;
use crate::engine::order::order;
use crate::engine::settings::Calibration;
use crate::engine::text::{CalibrationSet, DEFAULT_TOKENS, Source};
use crate::error;
use crate::measure::blockwise;
use crate::measure::loss::{Loss, Objective};
use crate::model::BlockId;
use crate::model::block::{BlockSet, numbers};
use crate::output::Parent;
use crate::plan::Method;
use crate::watch::Unit;

/// The methods whose sets are compared. Of sets that cost the same the first.
const CANDIDATES: [Method; 5] =
    [Method::Bi, Method::RelativeMagnitude, Method::Safe, Method::Run, Method::Lorp];

/// Passes over the calibration text beside the scoring one, as a fraction.
const PASSES: (usize, usize) = (3, 2);

/// Why sets cannot be compared under such settings; `None` if they can. `stops`: scores end early.
pub(crate) fn why_not(
    parent: Parent<'_>,
    text: &Calibration,
    goal: Option<&Goal>,
    stops: bool,
) -> Option<&'static str> {
    match goal {
        _ if stops => Some("--confidence is about the scores of one method"),
        Some(Goal::Perplexity(_) | Goal::Kl(_) | Goal::SpeedUp) => {
            Some("the goal says by the losses of one method how many blocks go")
        }
        _ if !text.rpc.is_empty() => Some("servers evaluate whole models alone"),
        _ if !blockwise::fits_whole(parent, text, blockwise::losses_bytes(parent, text)) => Some(
            "there is no memory for the whole model and each of its blocks, which are evaluated one by one",
        ),
        _ => None,
    }
}

/// Chooses as `request` says, by any method.
///
/// # Errors
/// Those of [`measured::choose`].
pub(crate) fn choose(request: &Request<'_>) -> Result<Chosen> {
    let mut chosen = choose_each(request, &[request.target]);
    chosen.pop().context("bug: nothing was chosen")?
}

/// The same for each of `targets`. What their sets have in common is evaluated once.
pub(crate) fn choose_each(request: &Request<'_>, targets: &[Target]) -> Vec<Result<Chosen>> {
    let of = |method| move |&target: &Target| Request { method, target, ..*request };
    if request.method != Method::Auto {
        return targets.iter().map(of(request.method)).map(|each| measured::choose(&each)).collect();
    }
    let say = |why: &str| {
        request.watch.note(&format!("{}: blocks are chosen by bi alone, since {why}", request.parent.name()));
    };
    if let Some(why) = request.why_not_auto {
        say(why);
        let alone = |chosen| by(Method::Bi, AutoReport::fallen_back(why.to_owned()), chosen);
        let chosen = targets.iter().map(of(Method::Bi)).map(|each| measured::choose(&each));
        return chosen.map(|chosen| chosen.map(alone)).collect();
    }
    let found: Vec<Result<Vec<Candidate>>> =
        targets.iter().map(of(Method::Auto)).map(|each| candidates(&each)).collect();
    let rivals: Vec<Vec<BlockSet>> = found.iter().map(rivals).collect();
    let losses = match rivals.iter().all(Vec::is_empty) {
        true => Losses::default(),
        false => Losses::measure(request, &rivals).unwrap_or_else(|error| {
            let why = error::message(&error);
            say(&why);
            Losses { fallback: Some(why), ..Losses::default() }
        }),
    };
    let found = found.into_iter().enumerate();
    found.map(|(target, found)| Ok(losses.best(target, found?, request.objective))).collect()
}

/// The sets of a target that are to be measured: none without a rival.
fn rivals(found: &Result<Vec<Candidate>>) -> Vec<BlockSet> {
    let found = found.iter().filter(|candidates| candidates.len() > 1).flatten();
    found.map(|candidate| candidate.chosen.removed.clone()).collect()
}

fn by(method: Method, report: AutoReport, chosen: Chosen) -> Chosen {
    Chosen { auto: Some(Auto { method, report }), ..chosen }
}

/// A set, and the methods that name it.
struct Candidate {
    methods: Vec<Method>,
    chosen: Chosen,
}

/// The different sets, that of `bi` first. A method without a set has no part.
///
/// # Errors
/// Why `bi` has none.
fn candidates(request: &Request<'_>) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = Vec::new();
    for method in CANDIDATES {
        let chosen = match measured::choose(&Request { method, ..*request }) {
            Ok(chosen) => chosen,
            Err(error) if found.is_empty() => return Err(error),
            Err(_) => continue,
        };
        match found.iter_mut().find(|candidate| candidate.chosen.removed == chosen.removed) {
            Some(same) => same.methods.push(method),
            None => found.push(Candidate { methods: vec![method], chosen }),
        }
    }
    Ok(found)
}

/// The losses of sets, and how they were measured.
#[derive(Default)]
struct Losses {
    /// Of each window.
    of: BTreeMap<BlockSet, Vec<Loss>>,
    /// For each target how many of the windows count. 0 where nothing was measured. They do not depend on other targets.
    n_windows: Vec<usize>,
    /// The first windows, which had no part in the scores.
    n_new: usize,
    /// Tokens of a window.
    window: usize,
    evaluated: Option<&'static str>,
    n_block_evaluations: u64,
    seconds: f64,
    fallback: Option<String>,
}

impl Losses {
    /// Measures the sets of each target. If there are enough, windows had no part in their scores.
    fn measure(request: &Request<'_>, rivals: &[Vec<BlockSet>]) -> Result<Self> {
        let (parent, watch) = (request.parent, request.watch);
        let importance = request.importance.context("bug: no scores")?;
        let n_blocks = parent.constraints.n_trunk_blocks;
        let window = importance.n_tokens / importance.n_windows.max(1);
        let budget = budget(request.text.tokens, window, n_blocks);
        let n_wanted = |sets: &Vec<BlockSet>| n_by_segments(budget, n_blocks, &kept(n_blocks, sets));
        let n_wanted = rivals.iter().map(n_wanted).max().unwrap_or(0);
        let (text, n_seen) = text_after(request.text, importance.n_windows, n_wanted);
        let loaded = Loaded::for_losses(parent, &text, watch)?;
        let (windows, n_new) = new_first(&loaded.set, n_seen, n_wanted);
        let start = Instant::now();
        let (mut subsets, evaluated) = loaded.evaluator(parent, &windows, watch);
        let n_of = |sets: &Vec<BlockSet>| {
            let kept = kept(n_blocks, sets);
            let n = match evaluated {
                "whole" => n_by_whole_models(budget, n_blocks, &kept),
                _ => n_by_segments(budget, n_blocks, &kept),
            };
            n.min(windows.len())
        };
        let n_windows: Vec<usize> = rivals.iter().map(n_of).collect();
        let numbers: Vec<usize> = (0..n_windows.iter().copied().max().unwrap_or(0)).collect();
        let sets: BTreeSet<BlockSet> = rivals.iter().flatten().cloned().collect();
        let sets: Vec<BlockSet> = sets.into_iter().collect();
        let n_losses = (sets.len() * numbers.len()) as u64;
        let bar = watch.begin("comparing candidates".into(), Unit::Losses, n_losses);
        let mut losses = vec![vec![Loss::default(); numbers.len()]; sets.len()];
        subsets.visit(&numbers, &kept(n_blocks, &sets), &mut |outcome| {
            let loss = Loss::of(outcome.tokens, outcome.parent, outcome.logits);
            losses[outcome.set][outcome.window] = loss?;
            bar.advance(1);
            Ok(())
        })?;
        drop(bar);
        Ok(Self {
            of: sets.into_iter().zip(losses).collect(),
            n_windows,
            n_new,
            window,
            evaluated: Some(evaluated),
            n_block_evaluations: subsets.n_block_evaluations(),
            seconds: start.elapsed().as_secs_f64(),
            fallback: None,
        })
    }

    /// The candidate for the target of this number that costs least. Without losses the first.
    fn best(&self, target: usize, candidates: Vec<Candidate>, objective: Objective) -> Chosen {
        let n_windows = self.n_windows.get(target).copied().unwrap_or(0);
        let of = |candidate: &Candidate| self.of.get(&candidate.chosen.removed)?.get(..n_windows);
        let losses: Vec<Option<&[Loss]>> =
            candidates.iter().map(|candidate| of(candidate).filter(|losses| !losses.is_empty())).collect();
        let cost = |i: &usize| {
            losses[*i].map_or(f64::INFINITY, |losses| losses.iter().copied().sum::<Loss>().mean(objective))
        };
        // Of equals the first.
        let best = (0..candidates.len()).min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
        let reports = candidates.iter().zip(&losses).enumerate();
        let report = AutoReport {
            windows: n_windows,
            seen_windows: n_windows.saturating_sub(self.n_new),
            tokens: n_windows * self.window,
            evaluated: self.evaluated,
            block_evaluations: self.n_block_evaluations,
            seconds: self.seconds,
            fallback: self.fallback.clone(),
            candidates: reports
                .map(|(i, (candidate, losses))| candidate.report(*losses, i == best))
                .collect(),
        };
        match candidates.into_iter().nth(best) {
            Some(Candidate { methods, chosen }) => by(methods[0], report, chosen),
            None => Chosen::default(),
        }
    }
}

impl Candidate {
    fn report(&self, losses: Option<&[Loss]>, chosen: bool) -> CandidateReport {
        CandidateReport {
            methods: self.methods.iter().map(ToString::to_string).collect(),
            removed: numbers(&self.chosen.removed),
            cost: losses.map(SetCost::of).unwrap_or_default(),
            chosen,
        }
    }
}

/// `n_windows` of the text's windows, those after the first `n_seen` before these, and how many there are after. Of the seen
/// ones some from everywhere.
pub(super) fn new_first(set: &CalibrationSet, n_seen: usize, n_windows: usize) -> (Vec<&[Token]>, usize) {
    let windows: Vec<&[Token]> = set.windows().collect();
    let (seen, new) = windows.split_at(n_seen.min(windows.len()));
    let seen = order(seen.len(), set.blake3).into_iter().map(|number| seen[number]);
    (new.iter().copied().chain(seen).take(n_windows).collect(), new.len())
}

/// The text with `n_windows` more, and its number of seen windows. The seen ones are the first `n_seen`. What a model writes
/// goes on with another seed.
pub(super) fn text_after(text: &Calibration, n_seen: usize, n_windows: usize) -> (Calibration, usize) {
    let n_tokens = n_windows.saturating_mul(text.window);
    match text.source {
        Source::Own { seed } => {
            let source = Source::Own { seed: seed.wrapping_add(1) };
            (Calibration { source, tokens: n_tokens, ..text.clone() }, 0)
        }
        _ => (Calibration { tokens: text.tokens.saturating_add(n_tokens), ..text.clone() }, n_seen),
    }
}

/// Evaluations of a block on a window that measuring may take. So many tokens at most are scored.
pub(super) fn budget(n_tokens: usize, window: usize, n_blocks: usize) -> usize {
    let n_windows = n_tokens.min(DEFAULT_TOKENS) / window.max(1);
    n_windows * n_blocks * PASSES.0 / PASSES.1
}

/// The blocks that stay without each of `sets`.
pub(super) fn kept(n_blocks: usize, sets: &[BlockSet]) -> Vec<Vec<BlockId>> {
    let all = || (0..n_blocks).map(BlockId::new);
    sets.iter().map(|set| all().filter(|block| !set.contains(block)).collect()).collect()
}

/// Windows on which sets of kept blocks can be evaluated by segments. One at least. 0 of no set.
fn n_by_segments(budget: usize, n_blocks: usize, kept: &[Vec<BlockId>]) -> usize {
    // The first window is evaluated both by segments and whole. Each window has a head for the parent.
    let prefixes = |set: &Vec<BlockId>| (1..set.len()).map(|n| set[..n].to_vec()).collect::<Vec<_>>();
    let shared: BTreeSet<Vec<BlockId>> = kept.iter().flat_map(prefixes).collect();
    let each = n_blocks + 1 + shared.len() + kept.len();
    let n = (budget.saturating_sub(2 * n_blocks + 1) / each).max(1);
    if kept.is_empty() { 0 } else { n }
}

/// Windows on which they can be evaluated as whole models. One at least. The parent is evaluated beside each. 0 of no set.
pub(super) fn n_by_whole_models(budget: usize, n_blocks: usize, kept: &[Vec<BlockId>]) -> usize {
    let each: usize = kept.iter().map(|set| n_blocks + set.len()).sum();
    if kept.is_empty() { 0 } else { (budget / each.max(1)).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::block::blocks;

    #[test]
    fn no_more_is_evaluated_than_passes_allow() {
        for (n_blocks, removed) in [
            (30, &[&[12, 13, 14][..], &[12, 13, 25], &[3, 4, 5], &[27, 28, 29], &[1, 2, 3]][..]),
            (6, &[&[1, 2], &[1, 3]]),
            (80, &[&[1], &[2], &[3], &[4], &[5]]),
        ] {
            let kept = kept(n_blocks, &removed.iter().map(|set| blocks(set)).collect::<Vec<_>>());
            let budget = budget(8192, 512, n_blocks);
            assert_eq!(budget, 24 * n_blocks);
            let n = n_by_segments(budget, n_blocks, &kept);
            // Walked block by block, as the chain does it.
            let mut of_a_window = n_blocks + 1 + kept.len();
            let mut seen = BTreeSet::new();
            for set in &kept {
                for n in 1..set.len() {
                    of_a_window += usize::from(seen.insert(set[..n].to_vec()));
                }
            }
            assert!(n >= 3 && n * of_a_window + 2 * n_blocks < budget, "{n_blocks}: {n}");
            let n = n_by_whole_models(budget, n_blocks, &kept);
            assert!(n >= 2 && n * kept.iter().map(|set| n_blocks + set.len()).sum::<usize>() <= budget);
        }
        assert_eq!(n_by_segments(0, 6, &kept(6, &[blocks(&[1]), blocks(&[2])])), 1);
        assert_eq!((n_by_segments(9, 6, &[]), n_by_whole_models(9, 6, &[])), (0, 0));
        // More text than by default is scored, not compared on.
        assert_eq!(budget(1 << 20, 512, 30), budget(8192, 512, 30));
    }

    #[test]
    fn the_set_that_costs_least_is_chosen_and_of_equals_the_first() {
        let candidate = |methods: &[Method], set: &[usize]| Candidate {
            methods: methods.to_vec(),
            chosen: Chosen { removed: blocks(set), ..Chosen::default() },
        };
        let candidates = || {
            vec![
                candidate(&[Method::Bi, Method::Lorp], &[1]),
                candidate(&[Method::Safe], &[2]),
                candidate(&[Method::Run], &[3]),
            ]
        };
        let loss = |kl: f64, nll: f64| Loss { n_tokens: 10, kl, nll, ..Loss::default() };
        let of = [(1, [3.0, 5.0], 1.0), (2, [2.0, 2.0], 2.0), (3, [1.0, 3.0], 2.0)];
        let of = of.map(|(block, kl, nll)| (blocks(&[block]), kl.map(|kl| loss(kl, nll)).to_vec()));
        let losses = Losses { of: of.into_iter().collect(), n_windows: vec![2], ..Losses::default() };
        let method = |chosen: &Chosen| chosen.auto.as_ref().unwrap().method;
        let best = losses.best(0, candidates(), Objective::Kl);
        assert_eq!((method(&best), best.removed), (Method::Safe, blocks(&[2])));
        let report = best.auto.unwrap().report;
        let chosen: Vec<bool> = report.candidates.iter().map(|candidate| candidate.chosen).collect();
        assert_eq!(chosen, [false, true, false]);
        assert_eq!(report.candidates[0].methods, ["bi", "lorp"]);
        let kl = |i: usize| {
            let of: &CandidateReport = &report.candidates[i];
            (of.cost.kl_divergence.unwrap(), of.cost.kl_divergence_stderr.unwrap())
        };
        assert!((kl(0).0 - 0.4).abs() < 1e-12 && (kl(0).1 - 0.1).abs() < 1e-12);
        assert!((kl(1).0 - 0.2).abs() < 1e-12 && kl(1).1.abs() < 1e-12);
        assert_eq!(method(&losses.best(0, candidates(), Objective::Ppl)), Method::Bi);
        // Without losses it is bi.
        assert_eq!(method(&Losses::default().best(0, candidates(), Objective::Kl)), Method::Bi);
    }
}
