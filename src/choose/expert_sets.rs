//! The experts that stay, by scores or by `auto`: the best of the sets that several scores name, by their loss on text that
//! chose nothing.
//!
//! Each set is evaluated as the model that would be written, beside the whole one. Equal sets are measured once, and a set
//! without a rival not at all. Where nothing can be measured, REAP chooses, and that is said.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::auto::{budget, kept, n_by_whole_models, new_first, text_after};
use super::experts::highest;
use super::loaded::Loaded;
use crate::choose::outcome::{ExpertCandidateReport, ExpertsAutoReport, SetCost};
use crate::engine::memory_file::MemoryFile;
use crate::engine::segment::{Subsets, Whole};
use crate::engine::settings::Calibration;
use crate::error;
use crate::measure::blockwise;
use crate::measure::experts::BlockOfExperts;
use crate::measure::loss::{Loss, Objective};
use crate::output::Parent;
use crate::plan::experts::{ExpertBudget, ExpertMethod};
use crate::plan::{Cut, ExpertCut};
use crate::watch::{Unit, Watch};

/// The scores whose sets are compared. Of sets that cost the same the first.
const CANDIDATES: [ExpertMethod; 3] =
    [ExpertMethod::Reap, ExpertMethod::Frequency, ExpertMethod::Contribution];

/// The means to choose experts.
pub(crate) struct Experts<'e> {
    pub(crate) parent: Parent<'e>,
    pub(crate) method: ExpertMethod,
    pub(crate) objective: Objective,
    pub(crate) scores: &'e [BlockOfExperts],
    /// All that goes beside experts.
    pub(crate) cut: &'e Cut,
    pub(crate) text: &'e Calibration,
    /// First windows of the text, which had a part in a choice.
    pub(crate) n_seen: usize,
    /// Tokens of a window, as the scores had them.
    pub(crate) window: usize,
    pub(crate) watch: &'e dyn Watch,
}

/// The experts that stay, and what the sets cost where `auto` chose.
pub(crate) struct ChosenExperts {
    pub(crate) cut: ExpertCut,
    pub(crate) auto: Option<ExpertsAutoReport>,
}

/// A set, and the scores that name it.
struct Candidate {
    methods: Vec<ExpertMethod>,
    cut: ExpertCut,
}

/// Losses of the sets of several budgets, as measured.
#[derive(Default)]
struct Losses {
    /// Of each budget, set and window; of a budget without rivals of no set.
    of: Vec<Vec<Vec<Loss>>>,
    /// The first windows, which had no part in a choice.
    n_new: usize,
    window: usize,
    n_block_evaluations: u64,
    seconds: f64,
    fallback: Option<String>,
}

impl Experts<'_> {
    /// The experts that stay for each of `budgets`.
    pub(crate) fn choose(&self, budgets: &[ExpertBudget]) -> Vec<Result<ChosenExperts>> {
        if self.method != ExpertMethod::Auto {
            let chosen = budgets.iter().map(|budget| self.by(self.method, *budget));
            return chosen.map(|cut| Ok(ChosenExperts { cut: cut?, auto: None })).collect();
        }
        let found: Vec<Result<Vec<Candidate>>> =
            budgets.iter().map(|budget| self.candidates(*budget)).collect();
        let rivals: Vec<Vec<Cut>> = found.iter().map(|found| self.rivals(found)).collect();
        let losses = match rivals.iter().all(Vec::is_empty) {
            true => Losses::default(),
            false => self.measure(&rivals).unwrap_or_else(|error| {
                let why = error::message(&error);
                let name = self.parent.name();
                self.watch.note(&format!("{name}: experts are chosen by reap alone, since {why}"));
                Losses { fallback: Some(why), ..Losses::default() }
            }),
        };
        let found = found.into_iter().enumerate();
        found.map(|(number, candidates)| Ok(losses.best(number, candidates?, self.objective))).collect()
    }

    fn by(&self, method: ExpertMethod, budget: ExpertBudget) -> Result<ExpertCut> {
        let gone = self.cut.blocks.union(&self.parent.constraints.dropped).copied().collect();
        highest(self.parent.model, budget, method, &gone, self.scores)
    }

    /// The different sets, that of REAP first.
    fn candidates(&self, budget: ExpertBudget) -> Result<Vec<Candidate>> {
        let mut found: Vec<Candidate> = Vec::new();
        for method in CANDIDATES {
            let cut = self.by(method, budget)?;
            match found.iter_mut().find(|candidate| candidate.cut.kept == cut.kept) {
                Some(same) => same.methods.push(method),
                None => found.push(Candidate { methods: vec![method], cut }),
            }
        }
        Ok(found)
    }

    /// The cuts that are to be measured: none without a rival.
    fn rivals(&self, found: &Result<Vec<Candidate>>) -> Vec<Cut> {
        let found = found.iter().filter(|candidates| candidates.len() > 1).flatten();
        found.map(|one| Cut { experts: Some(one.cut.clone()), ..self.cut.clone() }).collect()
    }

    /// Measures the cuts of each budget. If there are enough, windows had no part in a choice.
    fn measure(&self, rivals: &[Vec<Cut>]) -> Result<Losses> {
        let Self { parent, text, watch, .. } = *self;
        ensure!(text.rpc.is_empty(), "servers evaluate whole models alone");
        let beside = MemoryFile::loading_bytes(parent.model.n_bytes());
        ensure!(
            blockwise::fits_whole(parent, text, beside),
            "there is no memory for the whole model and a smaller one beside it"
        );
        let n_blocks = parent.constraints.n_trunk_blocks;
        let budget = budget(text.tokens, self.window, n_blocks);
        let n_wanted = |cuts: &Vec<Cut>| {
            let blocks: Vec<_> = cuts.iter().map(|cut| cut.blocks.clone()).collect();
            n_by_whole_models(budget, n_blocks, &kept(n_blocks, &blocks))
        };
        let n_wanted: Vec<usize> = rivals.iter().map(n_wanted).collect();
        let most = n_wanted.iter().copied().max().unwrap_or(0);
        let (text, n_seen) = text_after(text, self.n_seen, most);
        let loaded = Loaded::for_losses(parent, &text, watch)?;
        let (windows, n_new) = new_first(&loaded.set, n_seen, most);
        let start = Instant::now();
        let mut whole =
            Whole::new(parent.model, parent.constraints, &loaded.engine, &windows, &loaded.threads);
        let numbers: Vec<usize> = (0..windows.len()).collect();
        let n_windows: Vec<usize> = n_wanted.iter().map(|n| (*n).min(windows.len())).collect();
        let n_losses: usize = rivals.iter().zip(&n_windows).map(|(cuts, n)| cuts.len() * n).sum();
        let bar = watch.begin("comparing sets of experts".into(), Unit::Losses, n_losses as u64);
        let mut of = Vec::new();
        for (cuts, n) in rivals.iter().zip(n_windows) {
            let mut losses = vec![vec![Loss::default(); n]; cuts.len()];
            if !cuts.is_empty() {
                whole.visit_cuts(&numbers[..n], cuts, &mut |outcome| {
                    let loss = Loss::of(outcome.tokens, outcome.parent, outcome.logits);
                    losses[outcome.set][outcome.window] = loss?;
                    bar.advance(1);
                    Ok(())
                })?;
            }
            of.push(losses);
        }
        drop(bar);
        Ok(Losses {
            of,
            n_new,
            window: loaded.set.window,
            n_block_evaluations: whole.n_block_evaluations(),
            seconds: start.elapsed().as_secs_f64(),
            fallback: None,
        })
    }
}

impl Losses {
    /// The candidate for the budget of this number that costs least. Without losses the first.
    fn best(&self, number: usize, candidates: Vec<Candidate>, objective: Objective) -> ChosenExperts {
        let of = self.of.get(number).map_or(&[][..], |losses| &losses[..]);
        let sum = |i: usize| of.get(i).map(|losses| losses.iter().copied().sum::<Loss>());
        let cost = |i: &usize| sum(*i).map_or(f64::INFINITY, |loss| loss.mean(objective));
        // Of equals the first.
        let best = (0..candidates.len()).min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
        let report = |(i, candidate): (usize, &Candidate)| ExpertCandidateReport {
            methods: candidate.methods.iter().map(ToString::to_string).collect(),
            kept: candidate.cut.kept.iter().map(|(block, kept)| (block.index(), kept.clone())).collect(),
            cost: of.get(i).map(|losses| SetCost::of(losses)).unwrap_or_default(),
            chosen: i == best,
        };
        let n_windows = of.first().map_or(0, Vec::len);
        let report = ExpertsAutoReport {
            windows: n_windows,
            seen_windows: n_windows.saturating_sub(self.n_new),
            tokens: n_windows * self.window,
            block_evaluations: self.n_block_evaluations,
            seconds: self.seconds,
            fallback: self.fallback.clone(),
            candidates: candidates.iter().enumerate().map(report).collect(),
        };
        let cut = candidates.into_iter().nth(best).map(|candidate| candidate.cut);
        let empty = || ExpertCut { kept: Default::default(), method: ExpertMethod::Reap.to_string() };
        ChosenExperts { cut: cut.unwrap_or_else(empty), auto: Some(report) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BlockId;

    #[test]
    fn the_set_that_costs_least_is_chosen_and_of_equals_the_first() {
        let candidates = || {
            let one = |methods: &[ExpertMethod], kept: &[usize]| Candidate {
                methods: methods.to_vec(),
                cut: ExpertCut {
                    kept: [(BlockId::new(0), kept.to_vec())].into(),
                    method: methods[0].to_string(),
                },
            };
            vec![
                one(&[ExpertMethod::Reap, ExpertMethod::Contribution], &[0, 1]),
                one(&[ExpertMethod::Frequency], &[1, 2]),
            ]
        };
        let loss = |kl: f64, nll: f64| Loss { n_tokens: 10, kl, nll, ..Loss::default() };
        let losses = Losses {
            of: vec![
                vec![],
                vec![vec![loss(3.0, 1.0), loss(5.0, 1.0)], vec![loss(2.0, 1.0), loss(2.0, 1.0)]],
            ],
            n_new: 1,
            window: 20,
            ..Losses::default()
        };
        let found = losses.best(1, candidates(), Objective::Kl);
        let report = found.auto.unwrap();
        assert_eq!(
            (found.cut.method.as_str(), &found.cut.kept[&BlockId::new(0)]),
            ("frequency", &vec![1, 2])
        );
        assert_eq!((report.windows, report.seen_windows, report.tokens), (2, 1, 40));
        let [reap, frequency] = &report.candidates[..] else { panic!() };
        assert_eq!(reap.methods, ["reap", "contribution"]);
        assert!((reap.cost.kl_divergence.unwrap() - 0.4).abs() < 1e-12 && !reap.chosen);
        assert!((reap.cost.kl_divergence_stderr.unwrap() - 0.1).abs() < 1e-12);
        assert!((frequency.cost.kl_divergence.unwrap() - 0.2).abs() < 1e-12 && frequency.chosen);
        assert_eq!(frequency.kept[&0], [1, 2]);
        // Perplexities are equal.
        assert_eq!(losses.best(1, candidates(), Objective::Ppl).cut.method, "reap");
        // Nothing was measured.
        let found = losses.best(0, candidates(), Objective::Kl);
        let report = found.auto.unwrap();
        assert_eq!((found.cut.method.as_str(), report.windows, report.candidates.len()), ("reap", 0, 2));
        assert_eq!(report.candidates[0].cost.kl_divergence, None);
    }
}
