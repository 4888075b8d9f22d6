//! The entry of this room: the choice of types and blocks, measured and made.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::alone::{Alone, Measured, Probe};
use super::candidate::{Candidate, Factors, Problem};
use super::corrected::Measuring;
use super::maker::Maker;
use super::matrix::Matrix;
use super::notebook::{Ground, Notebook};
use super::outcome::{CurvePoint, FitReport};
use super::reach::{MORE_MAY_GO, check_size};
use super::recipe::Recipe;
use super::removal::Removal;
use super::removed::{Sets, may_lose_attention, may_lose_experts};
use super::report;
use super::rungs::{Ladder, Rules, ladders};
use super::settings::{Aim, Fit};
use super::whole::Whole;
use crate::choose::loaded::Loaded;
use crate::choose::scored::scored;
use crate::engine::hidden_state::Token;
use crate::engine::imatrix::Gathers;
use crate::engine::outcome::CalibrationReport;
use crate::engine::settings::Calibration;
use crate::engine::text::{DEFAULT_TOKENS, Source};
use crate::error::Hint;
use crate::measure::blockwise;
use crate::measure::calibrate::{Calibrated, Extras};
use crate::measure::experts;
use crate::measure::importance::Importance;
use crate::measure::pairs::Pairs;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::model::hashes;
use crate::output::Parent;
use crate::output::rounding::needs_importance;
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::plan::{ChosenBy, Cut, Method};
use crate::watch::Watch;

/// Most passes over the default text for single losses, and for corrections.
const PASSES: (f64, f64) = (12.0, 6.0);

/// The start of the names of embeddings, which the first block reads.
const EMBEDDINGS: &str = "token_embd";

/// Least loss of a rung, over that of the block's nudge.
const LEAST_SHARE: f64 = 0.1;

/// Share of bytes near which single losses are measured, without a size.
const SHARE: f64 = 0.6;

/// Windows on which choices are measured as a whole.
const N_WHOLE: usize = 6;

/// The divergence below which no removal is tried, in nats: none costs less.
const WORTH_REMOVING: f64 = 0.02;

/// Removals that are measured with types.
const N_REMOVALS: usize = 3;

/// Changes of a choice that are measured at most.
const MAX_TRIALS: usize = 16;

/// Sizes that are tried for a divergence.
const N_SIZES: usize = 7;

/// Points of the curve.
const N_POINTS: u64 = 24;

/// A fit that was found.
pub struct Fitted {
    /// The blocks to remove, and the tensors in other types.
    pub cut: Cut,
    /// How it was found.
    pub report: FitReport,
    /// The choice as a file.
    pub recipe: Recipe,
    /// The scores of the blocks.
    pub importance: Option<Importance>,
    /// The text.
    pub calibration: Option<CalibrationReport>,
    /// The unchanged model's importance matrix, where it was to be measured.
    pub imatrix: Option<MeasuredImatrix>,
}

/// Finds the types and blocks of `parent` that `settings` ask for.
///
/// # Errors
/// A size that cannot be reached; a model that cannot be measured; an importance matrix of another model.
pub fn fit(parent: Parent<'_>, settings: &Fit, watch: &dyn Watch) -> Result<Fitted> {
    let start = Instant::now();
    check(parent, settings)?;
    let beside = blockwise::candidate_bytes(parent, &settings.calibration);
    let why = "beside it are each of its blocks and a candidate";
    blockwise::check_whole(parent, &settings.calibration, beside, why)?;
    let keep = kept(parent, settings)?;
    check_size(parent, settings, &keep)?;
    let mut pairs = Pairs::lenient();
    // Other shares would change blocks that are kept as they are.
    let with_experts = settings.may_remove() && keep.is_empty() && may_lose_experts(parent);
    let gathers = Gathers { imatrix: true, experts: with_experts };
    let sub_blocks = settings.may_remove() && may_lose_attention(parent);
    let extras = Extras { pairs: Some(&mut pairs), gathers, sub_blocks, ..Extras::default() };
    let calibrated = scored(parent, Method::Auto, &settings.calibration, watch, extras)?;
    let sums = calibrated.imatrix.as_ref().context("bug: no sums of inputs")?;
    let weights = Matrix::measured(sums).with_context(|| parent.name())?;
    let file = settings.imatrix.as_deref().map(|path| Matrix::open(path, parent.model)).transpose()?;
    let rounding = file.as_ref().or(settings.measures_imatrix.then_some(&weights));

    let text = text_after(&settings.calibration);
    let loaded = Loaded::for_losses(parent, &text, watch)?;
    let windows = Windows::of(&loaded, calibrated.importance.n_windows);
    let whole = Whole::new(parent, &loaded, &windows.whole, &settings.calibration)?;
    let maker = Maker::new(parent.model, rounding, settings.calibration.threads)?;
    let with_cache = settings.calibration.cache;
    let hash = hashes::of(parent.input, with_cache, watch);
    let imatrix = rounding.map(Matrix::blake3);
    let ground = windows.ground(hash, imatrix, settings);
    let mut notebook = Notebook::open(ground, settings.scratch.as_deref(), with_cache, watch);

    let job = Job { parent, settings, keep: &keep, rounding, weights: &weights };
    let ladders = job.ladders()?;
    let single = job.single(&ladders, job.share(&ladders), &windows, &loaded)?;
    let alone = Alone {
        parent,
        loaded: &loaded,
        windows: &single.windows,
        whole: &whole,
        maker: &maker,
        notebook: &mut notebook,
        watch,
    };
    let measured = alone.measure(&single.probes)?;
    let losses = single.losses(&ladders, &measured);
    let problem = Problem { parent, ladders: &ladders, losses: &losses, maker: &maker, imatrix };
    let n_known = notebook.n_known;
    let measuring =
        Measuring { problem: &problem, whole: &whole, notebook: &mut notebook, watch, tried: Vec::new() };
    let scores = experts::scores(&calibrated.experts);
    let sets = Sets {
        parent,
        importance: &calibrated.importance,
        pairs: &pairs,
        keep: &keep,
        experts: &scores,
        text: &settings.calibration,
        watch,
    };
    let mut choosing = Choosing { settings, parent, sets, measuring, removals: None };
    let best = choosing.choose()?;
    let tried = std::mem::take(&mut choosing.measuring.tried);
    let n_evaluations = measured.n_block_evaluations * single.windows.first().map_or(0, |w| w.len()) as u64
        + whole.n_block_evaluations() * loaded.set.window as u64
        + (calibrated.importance.n_tokens * parent.model.n_trunk_blocks()) as u64;
    let pass = (DEFAULT_TOKENS * parent.model.n_trunk_blocks()).max(1) as f64;
    let report = FitReport {
        evaluated: Some(measured.evaluated),
        known_losses: n_known,
        curve: curve(&problem)?,
        passes: n_evaluations as f64 / pass,
        seconds: start.elapsed().as_secs_f64(),
        ..report::of(&problem, Some(settings.aim), &best, &tried)
    };
    finish(&problem, best, report, hash, settings, calibrated)
}

/// The cut, with what the output says of it.
fn finish(
    problem: &Problem<'_, '_>,
    best: Candidate,
    report: FitReport,
    hash: blake3::Hash,
    settings: &Fit,
    calibrated: Calibrated,
) -> Result<Fitted> {
    let cut = said(problem.cut(&best)?, [Some(best.expected), Some(best.kl())]);
    let recipe = Recipe {
        imatrix_blake3: problem.imatrix.map(|hash| hash.to_hex().to_string()),
        method: best.removal.method.clone(),
        bytes: best.bytes,
        expected_kl: Some(best.expected),
        kl_divergence: Some(best.kl()),
        ..Recipe::new(problem.parent.model, hash, &best.removal, &best.types)
    }
    .measured()?;
    Ok(Fitted {
        cut,
        report,
        recipe,
        importance: Some(calibrated.importance),
        calibration: Some(calibrated.report),
        imatrix: calibrated.imatrix.filter(|_| settings.measures_imatrix),
    })
}

/// The cut, whose output says these divergences: as a sum, and as measured.
fn said(mut cut: Cut, divergences: [Option<f64>; 2]) -> Cut {
    if let Some(types) = &mut cut.types {
        #[expect(clippy::cast_possible_truncation, reason = "written as floats")]
        let float = |divergence: Option<f64>| divergence.map_or(f32::NAN, |divergence| divergence as f32);
        types.loss = divergences.map(float);
    }
    cut
}

/// Applies `recipe` to `parent`, rounding by the importance matrix at a path.
///
/// # Errors
/// A recipe for another model, or one that cannot be applied; a set of blocks that may not go.
pub fn apply(
    parent: Parent<'_>,
    recipe: Recipe,
    imatrix: Option<&Path>,
    threads: usize,
    watch: &dyn Watch,
) -> Result<Fitted> {
    let start = Instant::now();
    let matrix = imatrix.map(|path| Matrix::open(path, parent.model)).transpose()?;
    let imatrix = matrix.as_ref().map(Matrix::blake3);
    let checked = recipe.check(parent.model, parent.input.blake3_once(), imatrix)?;
    parent.constraints.check(&checked.removal.blocks)?;
    let maker = Maker::new(parent.model, matrix.as_ref(), threads)?;
    let problem = Problem { parent, ladders: &[], losses: &[], maker: &maker, imatrix };
    let candidate = problem.of_types(&checked.removal, checked.types)?;
    let divergences = recipe.divergences()?;
    if divergences == [None; 2] && recipe.kl_divergence.is_some() {
        watch.note("the plan was edited after it was measured: its divergences are not those of this file");
    }
    let report = FitReport {
        expected_kl: divergences[0],
        kl_divergence: None,
        perplexity: None,
        parent_perplexity: None,
        same_top: None,
        seconds: start.elapsed().as_secs_f64(),
        ..report::of(&problem, None, &candidate, &[])
    };
    let cut = said(problem.cut(&candidate)?, divergences);
    Ok(Fitted { cut, report, recipe, importance: None, calibration: None, imatrix: None })
}

/// Checks what can be checked before anything is measured.
fn check(parent: Parent<'_>, settings: &Fit) -> Result<()> {
    let at_path = || parent.name();
    let n_bytes = parent.model.n_bytes();
    if let Aim::Size(limit) = settings.aim
        && n_bytes <= limit
    {
        return Err(anyhow::anyhow!(
            "has {n_bytes} bytes, which is within --target-size, so nothing is to be made smaller"
        ))
        .with_context(at_path);
    }
    let has_matrix = settings.imatrix.is_some() || settings.measures_imatrix;
    if let Some(of) = settings.types.iter().find(|of| needs_importance(**of) && !has_matrix) {
        return Err(anyhow::anyhow!("type {of} needs an importance matrix")
            .context(Hint("--imatrix names one, --imatrix-out measures it".to_owned())));
    }
    ensure!(parent.model.n_trunk_blocks() > 0, "{}: has no block", at_path());
    parent.constraints.check(&BlockSet::new()).with_context(at_path)
}

/// The blocks that stay as they are.
fn kept(parent: Parent<'_>, settings: &Fit) -> Result<BlockSet> {
    match &settings.keep {
        Some(list) => list.blocks(parent.model.n_blocks(), "keep").with_context(|| parent.name()),
        None => Ok(BlockSet::new()),
    }
}

/// The text with windows after those that are scored.
fn text_after(text: &Calibration) -> Calibration {
    let more = N_WHOLE * text.window;
    match text.source {
        // Another part would be written anew.
        Source::Own { .. } => text.clone(),
        _ => Calibration { tokens: text.tokens.saturating_add(more), ..text.clone() },
    }
}

/// The windows of single losses and those of whole choices.
struct Windows<'t> {
    /// In an order in which the first few stand for all.
    single: Vec<&'t [Token]>,
    whole: Vec<&'t [Token]>,
}

impl<'t> Windows<'t> {
    /// Of the text of `loaded`, whose first `n_seen` windows were scored.
    fn of(loaded: &'t Loaded, n_seen: usize) -> Self {
        let windows: Vec<&[Token]> = loaded.set.windows().collect();
        let (seen, new) = windows.split_at(n_seen.min(windows.len()));
        let order = crate::engine::order::order(seen.len(), loaded.set.blake3);
        let single: Vec<&[Token]> = order.into_iter().map(|number| seen[number]).collect();
        // Where the text ends, the last of those that were scored.
        let whole: Vec<&[Token]> =
            new.iter().copied().chain(single.iter().rev().copied()).take(N_WHOLE).collect();
        Self { single: if single.is_empty() { whole.clone() } else { single }, whole }
    }

    fn ground(&self, parent: blake3::Hash, imatrix: Option<blake3::Hash>, settings: &Fit) -> Ground {
        let mut hasher = blake3::Hasher::new();
        for window in self.single.iter().chain(&self.whole) {
            hasher.update(&(window.len() as u64).to_le_bytes());
            window.iter().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        Ground {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            llama_cpp: ggml::backend::llama_cpp_version().to_owned(),
            parent: parent.to_hex().to_string(),
            imatrix: imatrix.map(|hash| hash.to_hex().to_string()),
            windows: hasher.finalize().to_hex().to_string(),
            gpu_layers: settings.calibration.gpu_layers,
        }
    }
}

/// What ladders are made of.
struct Job<'j, 'm> {
    parent: Parent<'m>,
    settings: &'j Fit,
    keep: &'j BlockSet,
    rounding: Option<&'j Matrix>,
    weights: &'j Matrix,
}

/// The rungs that are measured alone, and on what.
struct Single<'t> {
    /// One of each ladder, then the least change of each block.
    probes: Vec<Probe>,
    /// The rung of each ladder's.
    rungs: Vec<usize>,
    /// The probe of the least change before each ladder's; `None` for what only the head reads.
    nudges: Vec<Option<usize>>,
    windows: Vec<&'t [Token]>,
}

impl Job<'_, '_> {
    fn ladders(&self) -> Result<Vec<Ladder>> {
        let types = self.settings.types();
        let rules = Rules { types: &types, keep: self.keep, rounding: self.rounding, weights: self.weights };
        let found = ladders(self.parent.model, &rules).with_context(|| self.parent.name())?;
        ensure!(
            !found.is_empty(),
            "{}: has no tensor that any of these types makes smaller",
            self.parent.name()
        );
        Ok(found)
    }

    /// The share of the ladders' bytes that may be left.
    fn share(&self, ladders: &[Ladder]) -> f64 {
        let Aim::Size(target) = self.settings.aim else {
            return SHARE;
        };
        let own: u64 = ladders.iter().map(|ladder| ladder.rungs[0].bytes).sum();
        let rest = self.parent.model.n_bytes().saturating_sub(own);
        target.saturating_sub(rest) as f64 / own.max(1) as f64
    }

    /// One rung of each ladder, on as much text as may be.
    fn single<'t>(
        &self,
        ladders: &[Ladder],
        share: f64,
        windows: &Windows<'t>,
        loaded: &Loaded,
    ) -> Result<Single<'t>> {
        let found = ladders.iter().map(|ladder| Probe::of(ladder, share)).collect::<Result<Vec<_>>>()?;
        let (rungs, mut probes): (Vec<usize>, Vec<Probe>) = found.into_iter().unzip();
        let nudges = nudges(ladders, &mut probes);
        let n_blocks = self.parent.model.n_trunk_blocks();
        let after = |probe: &Probe| probe.block.map_or(0, |block| n_blocks - block.index());
        let of_a_token: usize = probes.iter().map(after).sum::<usize>() + 2 * n_blocks;
        let n_tokens = PASSES.0 * (DEFAULT_TOKENS * n_blocks) as f64 / of_a_token.max(1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        let n_tokens = n_tokens as usize;
        let window = loaded.set.window;
        let n_windows = (n_tokens / window).clamp(1, windows.single.len());
        // Of a model with many tensors less than a window.
        let length = n_tokens.clamp(window.min(64), window);
        let windows = windows.single[..n_windows].iter().map(|tokens| &tokens[..length.min(tokens.len())]);
        Ok(Single { probes, rungs, nudges, windows: windows.collect() })
    }
}

/// Adds the nudge of each block's first tensor to `probes`. Returns that of each ladder.
fn nudges(ladders: &[Ladder], probes: &mut Vec<Probe>) -> Vec<Option<usize>> {
    let mut of_blocks: BTreeMap<BlockId, usize> = BTreeMap::new();
    for ladder in ladders {
        let Some(block) = ladder.block else { continue };
        of_blocks.entry(block).or_insert_with(|| {
            probes.push(Probe::nudge(ladder));
            probes.len() - 1
        });
    }
    let first = of_blocks.values().next().copied();
    let of = |ladder: &Ladder| match ladder.block {
        Some(block) => of_blocks.get(&block).copied(),
        None => first.filter(|_| ladder.kind.starts_with(EMBEDDINGS)),
    };
    ladders.iter().map(of).collect()
}

impl Single<'_> {
    /// The loss of each rung, in proportion to its weights' error. What the least change of the block costs is taken off: any
    /// change lets activations round otherwise, once for all tensors.
    fn losses(&self, ladders: &[Ladder], measured: &Measured) -> Vec<Vec<f64>> {
        let of = |(i, ladder): (usize, &Ladder)| -> Vec<f64> {
            let floor = self.nudges[i].map_or(0.0, |nudge| measured.kl[nudge].max(0.0));
            let kl = (measured.kl[i] - floor).max(LEAST_SHARE * floor).max(0.0);
            let error = ladder.rungs[self.rungs[i]].error;
            let loss = |error_of: f64| if error > 0.0 { kl * error_of / error } else { 0.0 };
            ladder.rungs.iter().map(|rung| loss(rung.error)).collect()
        };
        ladders.iter().enumerate().map(of).collect()
    }
}

/// Finds the best choice.
struct Choosing<'c, 'r, 'p, 'a, 'w> {
    settings: &'c Fit,
    parent: Parent<'a>,
    sets: Sets<'c>,
    measuring: Measuring<'r, 'p, 'a, 'w>,
    /// The sets of blocks that may go, once they are measured.
    removals: Option<Vec<Removal>>,
}

impl Choosing<'_, '_, '_, '_, '_> {
    fn choose(&mut self) -> Result<Candidate> {
        match self.settings.aim {
            Aim::Size(target) => {
                let best = self.at_size(target)?;
                self.corrected(best, target)
            }
            Aim::Kl(limit) => self.within(limit),
        }
    }

    fn corrected(&mut self, best: Candidate, target: u64) -> Result<Candidate> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some tens")]
        let n_trials = (PASSES.1 * DEFAULT_TOKENS as f64
            / (self.measuring.whole.n_windows() * self.settings.calibration.window).max(1) as f64)
            as usize;
        self.measuring.correct(best, target, n_trials.min(MAX_TRIALS))
    }

    /// The best choice of a size, with or without removed blocks.
    fn at_size(&mut self, target: u64) -> Result<Candidate> {
        let none = Removal { method: ChosenBy::NoBlock.to_string(), ..Removal::default() };
        let plain = self.measuring.problem.within(target, &none, &Factors::default())?;
        let plain = plain.map(|plain| self.measuring.measure(plain)).transpose()?;
        let most = self.settings.most_removed.unwrap_or(usize::MAX);
        if let Some(plain) = plain.as_ref().filter(|plain| most == 0 || plain.kl() < WORTH_REMOVING) {
            return Ok(plain.clone());
        }
        let mut found: Vec<Candidate> = plain.into_iter().collect();
        for candidate in self.removals(target, most)? {
            let least = found.iter().map(Candidate::kl).fold(f64::INFINITY, f64::min);
            if candidate.removal.kl < least && candidate.expected < 1.5 * least {
                found.push(self.measuring.measure(candidate)?);
            }
        }
        let best = found.into_iter().min_by(|a, b| a.kl().total_cmp(&b.kl()));
        match best {
            Some(best) => Ok(best),
            None => self.unreachable(target, most),
        }
    }

    /// The choices for `target` with removed blocks, the least sum first.
    fn removals(&mut self, target: u64, most: usize) -> Result<Vec<Candidate>> {
        let n_blocks = self.parent.model.n_trunk_blocks();
        let most = most.min(n_blocks.saturating_sub(1));
        if self.removals.is_none() {
            let first = self.fewest(target, most)?;
            let limit = most.min(first.max(n_blocks / 2));
            let mut removals = self.sets.measured(first, limit)?;
            removals.extend(self.sets.of_experts());
            for removal in self.sets.of_attention() {
                removals.push(self.measuring.removal(removal)?);
            }
            self.removals = Some(removals);
        }
        let mut found = Vec::new();
        for removal in self.removals.iter().flatten() {
            found.extend(self.measuring.problem.within(target, removal, &Factors::default())?);
        }
        found.sort_by(|a, b| a.expected.total_cmp(&b.expected));
        found.truncate(N_REMOVALS);
        Ok(found)
    }

    /// The fewest blocks whose removal makes `target` possible, by the largest ones; 1 where types alone do.
    fn fewest(&self, target: u64, most: usize) -> Result<usize> {
        let problem = self.measuring.problem;
        let smallest = problem.smallest(&Removal::default())?;
        let Some(mut left) = smallest.checked_sub(target).filter(|left| *left > 0) else {
            return Ok(1);
        };
        let mut blocks: Vec<u64> = (0..self.parent.model.n_trunk_blocks())
            .map(|block| {
                let of_block =
                    problem.ladders.iter().filter(|ladder| ladder.block == Some(BlockId::new(block)));
                of_block.map(|ladder| ladder.rungs.last().map_or(0, |rung| rung.bytes)).sum()
            })
            .collect();
        blocks.sort_unstable();
        let mut n = 0;
        while left > 0 && n < most {
            left = left.saturating_sub(blocks.pop().unwrap_or(0).max(1));
            n += 1;
        }
        Ok(n)
    }

    fn unreachable(&self, target: u64, most: usize) -> Result<Candidate> {
        let smallest = self.measuring.problem.smallest(&Removal::default())?;
        let name = self.parent.name();
        if most == 0 {
            let error = anyhow::anyhow!(
                "{name}: {target} bytes cannot be reached by types alone; the smallest file has about {smallest} bytes"
            );
            return Err(error.context(Hint(MORE_MAY_GO.to_owned())));
        }
        bail!(
            "{name}: no set of blocks or experts that may be removed was found with which {target} bytes are reached; the smallest file with \
             all blocks has about {smallest} bytes"
        )
    }

    /// The smallest choice within a divergence.
    fn within(&mut self, limit: f64) -> Result<Candidate> {
        let problem = self.measuring.problem;
        let (mut low, mut high) =
            (problem.smallest(&Removal::default())? as f64, self.parent.model.n_bytes() as f64);
        let mut best: Option<Candidate> = None;
        for _ in 0..N_SIZES {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two sizes")]
            let middle = ((low + high) / 2.0) as u64;
            let found = self.at_size(middle)?;
            if found.kl() <= limit {
                high = found.bytes as f64;
                best = Some(found);
            } else {
                low = middle as f64;
            }
        }
        let Some(best) = best else {
            bail!(
                "{}: no smaller file was found with a KL divergence within {limit} nats",
                self.parent.name()
            );
        };
        Ok(best)
    }
}

/// The least sum of losses over the size, without removed blocks.
fn curve(problem: &Problem<'_, '_>) -> Result<Vec<CurvePoint>> {
    let none = Removal::default();
    let (low, high) = (problem.smallest(&none)?, problem.parent.model.n_bytes());
    let mut points = Vec::new();
    for i in 0..N_POINTS {
        let target = low + (high.saturating_sub(low)) * i / N_POINTS;
        if let Some((bytes, expected_kl)) = problem.sum_within(target)? {
            points.push(CurvePoint { bytes, expected_kl });
        }
    }
    Ok(points)
}
