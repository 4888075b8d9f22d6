//! The choice of blocks by each method. By scores, by the angle of runs, by the measured loss of removals.

use super::goals;
use super::job::{Found, Job, Progress};
use super::loaded::Loaded;
use super::runs::Runs;
use super::tasked::{self, Candidates};
use crate::choose::outcome::{AutoReport, GoalReport, SearchReport};
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::resume::{close_journal, key, open_journal};
use crate::choose::search::draft::BytesPerToken;
use crate::choose::search::goal::draft;
use crate::choose::search::journal::{Extent, Journal};
use crate::choose::search::measure::Tasks;
use crate::choose::search::{Goal, Memo, Record, Settings};
use crate::engine::llama;
use crate::engine::outcome::CalibrationReport;
use crate::measure::blockwise;
use crate::measure::cache::cached::CachedScores;
use crate::measure::cache::{Entry, Scored};
use crate::measure::loss::Objective;
use crate::model::block::BlockSet;
use crate::model::{hashes, warning};
use crate::output::Parent;
use crate::plan::Method;
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Instant;

/// The blocks that were chosen, and the measurements of the choice.
#[derive(Default)]
pub(crate) struct Chosen {
    pub(crate) removed: BlockSet,
    /// Unless nothing was measured for the choice.
    pub(crate) calibration: Option<CalibrationReport>,
    pub(crate) search: Option<SearchReport>,
    pub(crate) goal: Option<GoalReport>,
    /// The measurements on disk, to be removed once the output is there.
    pub(crate) journal: Option<Journal>,
    /// Which method `auto` chose.
    pub(crate) auto: Option<Auto>,
    /// Sets of that size that may be better healed, `removed` first. Empty unless that is asked for.
    pub(crate) shortlist: Vec<BlockSet>,
}

/// The method of the best of several sets, and their losses.
pub(crate) struct Auto {
    pub(crate) method: Method,
    pub(crate) report: AutoReport,
}

/// Chooses as `request` says, by one method.
///
/// # Errors
/// Whatever keeps the model from being measured; no set that is allowed; a goal that cannot be reached.
pub(crate) fn choose(request: &Request<'_>) -> Result<Chosen> {
    match (request.method, request.target) {
        (Method::Run, Target::Exactly(n)) => best_run(request, n),
        (Method::Run, Target::Goal { goal: Goal::Size(limit), first, most }) => {
            first_run_of_size(request, first..=most, limit)
        }
        (method, Target::Exactly(n)) if !method.needs_losses() => {
            let Request { parent, importance, keep, .. } = *request;
            let removed = removal::choose(parent.constraints, method, importance, keep, n);
            Ok(Chosen { removed: removed.with_context(|| parent.name())?, ..Chosen::default() })
        }
        (method, Target::Goal { goal: Goal::Size(limit), first, most }) if !method.needs_losses() => {
            let constraints = request.parent.constraints;
            let scores = method.scores(request.importance, constraints.n_trunk_blocks)?;
            let mut sets = |n| Ok(removal::lowest_if_any(constraints, &scores, request.keep, n));
            let found = goals::first_of_size(&mut sets, first..=most, request, limit);
            let (removed, report) = found.with_context(|| request.parent.name())?;
            Ok(Chosen { removed, goal: Some(report), ..Chosen::default() })
        }
        _ => by_losses(request),
    }
}

/// The best run of `n` consecutive blocks by angular distance.
fn best_run(request: &Request<'_>, n: usize) -> Result<Chosen> {
    let Parent { input, model, constraints } = request.parent;
    let at_path = || request.parent.name();
    llama::check_ends(model).with_context(at_path)?;
    let best = |distances: &[f64]| removal::best_run(constraints, distances, request.keep, n);
    if let Some(pairs) = request.pairs {
        let removed = best(&pairs.angles(n).context("the stream has no angle")?).with_context(at_path)?;
        return Ok(Chosen { removed, ..Chosen::default() });
    }
    let hash = request.text.cache.then(|| hashes::remembered(input, request.watch));
    let known = CachedScores::look(hash, request.text, request.watch, Scored::Runs(n))?;
    if let Some((entry, report)) = known.as_ref().and_then(CachedScores::found)
        && let Some(distances) = entry.runs(model.n_trunk_blocks())
    {
        warning::of_tokenizer(input, model, request.watch);
        let removed = best(&distances).with_context(at_path)?;
        return Ok(Chosen { removed, calibration: Some(report), ..Chosen::default() });
    }
    let loaded = Loaded::for_states(request.parent, request.text, request.watch)?;
    let ((removed, distances), mut calibration) =
        Runs { request, loaded: &loaded }.calibrate(|runs, bar| {
            let distances = runs.distances(n, bar)?;
            Ok((best(&distances)?, distances))
        })?;
    if let (Some(known), Some(hash)) = (known, hash) {
        calibration.scored = Some(hash);
        known.keep(input, hash, &calibration, |key, path, measured| {
            Entry::of_runs(key, path, measured, &distances)
        });
    }
    Ok(Chosen { removed, calibration: Some(calibration), ..Chosen::default() })
}

/// The best run of the fewest blocks that reach `limit` bytes. Their number is within `n`. Runs of each length would be an
/// entry of the cache of their own, so none is kept.
fn first_run_of_size(request: &Request<'_>, n: RangeInclusive<usize>, limit: u64) -> Result<Chosen> {
    llama::check_ends(request.parent.model).with_context(|| request.parent.name())?;
    if let Some(pairs) = request.pairs {
        let Request { parent, keep, .. } = *request;
        let run = |n| removal::best_run(parent.constraints, &pairs.angles(n)?, keep, n).ok();
        let (removed, goal) = goals::first_of_size(&mut |n| Ok(run(n)), n, request, limit)?;
        return Ok(Chosen { removed, goal: Some(goal), ..Chosen::default() });
    }
    let loaded = Loaded::for_states(request.parent, request.text, request.watch)?;
    let ((removed, goal), calibration) = Runs { request, loaded: &loaded }.calibrate(|runs, bar| {
        let mut sets = |n| {
            bar.set_position(0);
            runs.best_if_any(n, bar)
        };
        goals::first_of_size(&mut sets, n, request, limit)
    })?;
    Ok(Chosen { removed, calibration: Some(calibration), goal: Some(goal), ..Chosen::default() })
}

/// Sets by their measured loss: those with the lowest, or those that another method names.
fn by_losses(request: &Request<'_>) -> Result<Chosen> {
    let (parent, watch) = (request.parent, request.watch);
    let n_blocks = parent.model.n_trunk_blocks();
    if request.tasks.is_some() {
        let why = "each candidate does the tasks as a model of its own";
        blockwise::check_whole(parent, request.text, blockwise::candidate_bytes(parent, request.text), why)?;
    }
    let loaded = Loaded::for_losses(parent, request.text, watch)?;
    let windows = loaded.windows();
    let start = Instant::now();
    let (mut subsets, evaluated) = loaded.evaluator(parent, &windows, watch);
    let extent = Extent { n_blocks, n_windows: windows.len() };
    let (journal, known) =
        open_journal(request.scratch, &|| key(request, &windows, evaluated), extent, watch);
    let n_resumed = known.len() as u64;
    let settings = Settings { objective: request.objective, keep: request.keep.clone(), beam: 1, swaps: 2 };
    let progress = Progress::new(request, &settings, windows.len());
    let journal = RefCell::new(journal);
    let mut record = |record: &Record| {
        progress.measured();
        let mut journal = journal.borrow_mut();
        if let Some(Err(error)) = journal.as_mut().map(|journal| journal.add(record)) {
            watch.note(&format!("the search will not be resumable: {error:#}"));
            *journal = None;
        }
        Ok(())
    };
    let mut candidates = Candidates { request, engine: &loaded.engine, n_models: 0 };
    let mut memo = Memo::new(&mut *subsets, n_blocks, known, &mut record)
        .with_tasks(Some(&mut candidates as &mut dyn Tasks));
    let runs = Runs { request, loaded: &loaded };
    let found = Job { request, settings: &settings, runs: &runs, progress: &progress }.run(&mut memo);
    drop(progress);
    if found.as_ref().is_err_and(|error| error.is::<goals::Unreachable>()) {
        // There is nothing to go on with.
        close_journal(journal.take(), watch);
    }
    let Found { chosen, goal, shortlist, parent_tasks } = found.with_context(|| parent.name())?;
    let seconds = start.elapsed().as_secs_f64();
    let objective = request.method.needs_losses().then_some(request.objective);
    let mut report = SearchReport::new(objective, evaluated, subsets.n_block_evaluations(), seconds, &chosen);
    report.resumed_losses = n_resumed;
    if let (Some((source, tasks)), Some(parent)) = (request.tasks, parent_tasks) {
        report.task = tasked::report(source, tasks, &chosen, &parent, candidates.n_models);
    }
    if request.objective == Objective::Draft {
        report.draft = Some(draft(&chosen, &BytesPerToken::of(parent.model)?).into());
    }
    Ok(Chosen {
        removed: chosen.removed,
        calibration: Some(CalibrationReport::new(&loaded.set, seconds)),
        search: Some(report),
        goal,
        journal: journal.into_inner(),
        shortlist,
        auto: None,
    })
}
