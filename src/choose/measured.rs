//! Choices that rest on more than the scores of a single pass: the angle of runs, the measured loss of removals, and goals.

use super::goals as goal;
use super::job::{Job, Progress};
use super::runs::Runs;
use super::tasked::{self, Candidates};
use crate::choose::outcome::GoalReport;
use crate::choose::outcome::SearchReport;
use crate::choose::removal;
use crate::choose::request::Request;
use crate::choose::request::Target;
use crate::choose::resume::{close_journal, key, open_journal};
use crate::choose::search::draft::BytesPerToken;
use crate::choose::search::goal::draft;
use crate::choose::search::journal::{Extent, Journal};
use crate::choose::search::measure::Tasks;
use crate::choose::search::{Goal, Measure, Memo, Record, Removed, Settings, race};
use crate::engine::hidden_state::Token;
use crate::engine::llama;
use crate::engine::load::load_and_cut;
use crate::engine::logits as evaluator;
use crate::engine::order;
use crate::engine::outcome::CalibrationReport;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::segment::{Chain, Subsets, Whole};
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::measure::cache::cached::CachedScores;
use crate::measure::cache::{Entry, Scored};
use crate::measure::loss::Objective;
use crate::model::Model;
use crate::model::input::Input;
use crate::model::warning;
use crate::plan::{Constraints, Method};
use crate::watch::{Unit, Watch};
use anyhow::{Context, Result, ensure};
use ggml::ThreadPool;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// Sets of a search that are healed, beside the best one: of those that it measured on all windows, and of the runs of
/// consecutive blocks, whose single cut is healed best, so many each.
const SHORTLISTED: usize = 3;

/// What was chosen.
pub(crate) struct Chosen {
    pub(crate) removed: Removed,
    /// Unless nothing was measured for the choice.
    pub(crate) calibration: Option<CalibrationReport>,
    pub(crate) search: Option<SearchReport>,
    pub(crate) goal: Option<GoalReport>,
    /// What was measured, to be removed once the output is there.
    pub(crate) journal: Option<Journal>,
    /// Sets of as many blocks that may be better once they are healed, `removed` first; empty unless that is asked for.
    pub(crate) shortlist: Vec<Removed>,
}

/// Chooses as `request` says: by the angle of runs, by losses, or by sizes.
///
/// # Errors
/// Whatever keeps the model from being measured; no set that is allowed; a goal that cannot be reached.
pub(crate) fn choose(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    options: &Calibration,
    watch: &dyn Watch,
) -> Result<Chosen> {
    let by_angle = |target| run(model, constraints, input, request, target, options, watch);
    match (request.method, request.target) {
        (Method::Run, Target::Exactly(n)) => by_angle((n, n, None)),
        (Method::Run, Target::Goal { goal: Goal::Size(limit), first, most }) => {
            by_angle((first, most, Some(limit)))
        }
        (method, Target::Goal { goal: Goal::Size(limit), first, most }) if !method.needs_losses() => {
            let scores = method.scores(request.importance, constraints.n_trunk_blocks)?;
            let mut sets = |n| Ok(removal::lowest_if_any(constraints, &scores, request.keep, n));
            let (removed, report) = goal::first_of_size(&mut sets, first..=most, request.n_bytes, limit)
                .with_context(|| input.path().display().to_string())?;
            Ok(Chosen {
                removed,
                calibration: None,
                search: None,
                goal: Some(report),
                journal: None,
                shortlist: Vec::new(),
            })
        }
        _ => search(model, constraints, input, request, options, watch),
    }
}

/// The best run of `first` consecutive blocks by angular distance; with a limit of bytes the shortest one, up to `most`
/// blocks, whose removal meets it.
fn run(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    (first, most, limit): (usize, usize, Option<u64>),
    options: &Calibration,
    watch: &dyn Watch,
) -> Result<Chosen> {
    let path = input.path();
    let at_path = || path.display().to_string();
    llama::check_ends(model).with_context(at_path)?;
    let known = match limit {
        None => CachedScores::look(input, options, watch, Scored::Runs(first))?,
        // Runs of several lengths, each of which is an entry of its own.
        Some(_) => None,
    };
    if let Some((entry, report)) = known.as_ref().and_then(CachedScores::found)
        && let Some(distances) = entry.runs(model.n_trunk_blocks())
    {
        warning::of_tokenizer(input, model, watch);
        let removed = removal::best_run(constraints, &distances, request.keep, first);
        return Ok(Chosen {
            removed: removed.with_context(at_path)?,
            calibration: Some(report),
            shortlist: Vec::new(),
            search: None,
            goal: None,
            journal: None,
        });
    }
    let (engine, set) = load_and_cut(input, model, options, watch, true)?;
    let threads = Rc::new(ThreadPool::new(options.threads)?);
    let bar = watch.begin("calibrating".into(), Unit::Tokens, set.n_tokens() as u64);
    let runs = Runs { model, constraints, keep: request.keep, engine: &engine, set: &set, threads: &threads };
    let start = Instant::now();
    let mut found = None;
    let chosen = match limit {
        None => runs.distances(first, &*bar).and_then(|distances| {
            let removed = removal::best_run(constraints, &distances, request.keep, first)?;
            found = Some(distances);
            Ok((removed, None))
        }),
        Some(limit) => {
            let mut sets = |n| {
                bar.set_position(0);
                runs.best_if_any(n, &*bar)
            };
            goal::first_of_size(&mut sets, first..=most, request.n_bytes, limit)
                .map(|(removed, report)| (removed, Some(report)))
        }
    };
    drop(bar);
    let (removed, goal) = chosen.with_context(at_path)?;
    let mut calibration = CalibrationReport::new(&set, start.elapsed().as_secs_f64());
    if let (Some(known), Some(distances)) = (known, found) {
        calibration.scored = Some(known.model());
        known
            .keep(input, &calibration, |key, path, measured| Entry::of_runs(key, path, measured, &distances));
    }
    Ok(Chosen {
        removed,
        calibration: Some(calibration),
        search: None,
        goal,
        journal: None,
        shortlist: Vec::new(),
    })
}

/// Sets by their loss, measured: that without which least is lost, or those that another method names.
fn search(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    options: &Calibration,
    watch: &dyn Watch,
) -> Result<Chosen> {
    let path = input.path();
    let at_path = || path.display().to_string();
    evaluator::check_causal(model).with_context(at_path)?;
    let (engine, set) = load_and_cut(input, model, options, watch, false)?;
    evaluator::check_predicts(&engine).with_context(at_path)?;
    check_window(&set, path)?;
    let threads = Rc::new(ThreadPool::new(options.threads)?);
    let windows = at_random(&set);
    let start = Instant::now();
    let (mut subsets, way) = evaluator(model, constraints, &engine, &windows, &threads, watch);
    let extent = Extent { n_blocks: model.n_trunk_blocks(), n_windows: windows.len() };
    let key = || key(input, constraints, request, options, &windows, way);
    let (journal, known) = open_journal(request.scratch, &key, extent, watch);
    let n_resumed = known.len() as u64;
    let mut candidates = Candidates {
        model,
        constraints,
        engine: &engine,
        path,
        tasks: request.tasks.map_or(&[], |(_, tasks)| tasks),
        threads: options.threads,
        n_models: 0,
    };
    let runs = Runs { model, constraints, keep: request.keep, engine: &engine, set: &set, threads: &threads };
    let settings = Settings { objective: request.objective, keep: request.keep.clone(), beam: 1, swaps: 2 };
    let progress = Progress::new(constraints, request, &settings, windows.len(), watch);
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
    let mut memo = Memo::new(&mut *subsets, model.n_trunk_blocks(), known, &mut record)
        .with_tasks(Some(&mut candidates as &mut dyn Tasks));
    let job = Job { model, constraints, request, settings: &settings, runs: &runs, progress: &progress };
    let decided = job.decide(&mut memo);
    let shortlist = match (&decided, request.target) {
        (Ok((chosen, _)), Target::Exactly(n)) if request.heals => {
            let runs = race(&mut memo, request.objective, job.consecutive(n), SHORTLISTED);
            runs.map(|runs| {
                let all_windows = memo.best_known(n, request.objective, SHORTLISTED);
                let others = all_windows.into_iter().chain(runs.best.into_iter().map(|run| run.removed));
                let mut sets = vec![chosen.removed.clone()];
                for set in others {
                    if !sets.contains(&set) {
                        sets.push(set);
                    }
                }
                sets
            })
        }
        _ => Ok(Vec::new()),
    };
    let parent_tasks = match (&decided, request.tasks) {
        (Ok(_), Some(_)) => memo.tasks(&[Removed::new()]).map(|found| found.first().copied()),
        _ => Ok(None),
    };
    drop(progress);
    let decided = decided.with_context(at_path);
    if decided.as_ref().is_err_and(|error| error.is::<goal::Unreachable>()) {
        // There is nothing to go on with.
        close_journal(journal.take(), watch);
    }
    let (chosen, goal) = decided?;
    let shortlist = shortlist.with_context(at_path)?;
    let parent_tasks = parent_tasks.with_context(at_path)?;
    let seconds = start.elapsed().as_secs_f64();
    let objective = (request.method.needs_losses()).then_some(request.objective);
    let mut report = SearchReport::new(objective, way, subsets.n_block_evaluations(), seconds, &chosen);
    report.resumed_losses = n_resumed;
    if let (Some((source, tasks)), Some(parent)) = (request.tasks, parent_tasks) {
        report.task = tasked::report(source, tasks, &chosen, &parent, candidates.n_models);
    }
    if request.objective == Objective::Draft {
        report.draft = Some(draft(&chosen, &BytesPerToken::of(model)?).into());
    }
    Ok(Chosen {
        calibration: Some(CalibrationReport::new(&set, seconds)),
        search: Some(report),
        removed: chosen.removed,
        goal,
        journal: journal.into_inner(),
        shortlist,
    })
}

/// Checks that windows are long enough to have tokens whose predictions are scored.
pub(crate) fn check_window(set: &CalibrationSet, path: &Path) -> Result<()> {
    ensure!(
        set.window >= MIN_WINDOW,
        "{}: a window has {} tokens, but {MIN_WINDOW} or more are needed to score predictions",
        path.display(),
        set.window
    );
    Ok(())
}

/// What evaluates sets of blocks on `windows`, and how it is called in results.
pub(crate) fn evaluator<'m>(
    model: &'m Model<'_>,
    constraints: &'m Constraints,
    engine: &'m ggml::Model,
    windows: &[&[Token]],
    threads: &Rc<ThreadPool>,
    watch: &dyn Watch,
) -> (Box<dyn Subsets + 'm>, &'static str) {
    let bar = watch.begin("evaluating the whole model".into(), Unit::Time, 0);
    let chain = Chain::new(model, constraints, engine, windows, threads);
    drop(bar);
    match chain {
        Ok(chain) => (Box::new(chain), "segments"),
        Err(why) => {
            watch.note(&format!(
                "blocks of this model are not evaluated one by one ({why:#}); every candidate is \
                     evaluated whole, which takes longer"
            ));
            let whole = Whole::new(model, constraints, engine, windows, threads);
            (Box::new(whole), "whole")
        }
    }
}

/// The windows in an order in which the first few stand for all of the text, and for all texts where there are several.
pub(crate) fn at_random(set: &CalibrationSet) -> Vec<&[Token]> {
    let windows: Vec<&[Token]> = set.windows().collect();
    order::order(windows.len(), set.blake3).into_iter().map(|number| windows[number]).collect()
}
