//! Choices that rest on more than the scores of a single pass: the angle of runs, and the measured loss of removals.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ggml::ThreadPool;

use super::known::Known;
use super::load_and_cut;
use crate::angular;
use crate::cache::{Entry, Scored};
use crate::calibration::CalibrationSet;
use crate::hidden_state::Token;
use crate::input::Input;
use crate::llama::{self, Course, LlamaHiddenStates};
use crate::model::{BlockId, Model};
use crate::options::{Calibration, Printing};
use crate::plan::{Constraints, Method, removal};
use crate::progress::{self, Unit};
use crate::quality::MIN_WINDOW;
use crate::report::{CalibrationReport, SearchReport, block_list};
use crate::search::{Loss, Measure, Measured, Memo, Objective, Removed, Search, Settings};
use crate::segment::{Chain, Subsets, Whole};

/// What is to be chosen, and how.
pub(super) struct Request<'r> {
    pub(super) method: Method,
    pub(super) objective: Objective,
    /// Blocks that go.
    pub(super) n: usize,
    pub(super) keep: &'r BTreeSet<BlockId>,
}

/// What was chosen.
pub(super) struct Chosen {
    pub(super) removed: Removed,
    pub(super) calibration: CalibrationReport,
    pub(super) search: Option<SearchReport>,
}

/// Chooses as `request` says: by the angle of runs, or by losses.
///
/// # Errors
/// Whatever keeps the model from being measured; no set that is allowed.
pub(super) fn choose(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    options: &Calibration,
    printing: &Printing,
) -> Result<Chosen> {
    match request.method {
        Method::Run => run(model, constraints, input, request, options, printing),
        _ => search(model, constraints, input, request, options, printing),
    }
}

/// The best consecutive run by angular distance.
fn run(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    options: &Calibration,
    printing: &Printing,
) -> Result<Chosen> {
    let path = input.path();
    let at_path = || path.display().to_string();
    llama::check_ends(model).with_context(at_path)?;
    let known = Known::look(input, options, printing, Scored::Runs(request.n))?;
    if let Some((entry, report)) = known.as_ref().and_then(Known::found)
        && let Some(distances) = entry.runs(model.n_trunk_blocks())
    {
        let removed = removal::best_run(constraints, &distances, request.keep, request.n);
        return Ok(Chosen {
            removed: removed.with_context(at_path)?,
            calibration: report,
            search: None,
        });
    }
    let (engine, set) = load_and_cut(input, options, printing)?;
    let threads = Rc::new(ThreadPool::new(options.threads)?);
    let mut states = LlamaHiddenStates::with_threads(
        &engine,
        set.window,
        &threads,
        constraints.rules.stream,
        Course::of(model, constraints.rules.stream)?,
    )?;
    let bar = progress::bar(
        "calibrating",
        Unit::Tokens,
        set.n_tokens() as u64,
        printing.quiet,
    );
    let start = Instant::now();
    let distances = angular::measure(&mut states, set.windows(), request.n, &mut |n_tokens| {
        bar.inc(n_tokens as u64);
    });
    bar.finish_and_clear();
    let distances = distances.with_context(at_path)?;
    let mut calibration = CalibrationReport::new(&set, start.elapsed().as_secs_f64());
    if let Some(known) = known {
        calibration.scored = Some(known.model());
        known.keep(input, &calibration, |key, path, source, measured| {
            Entry::of_runs(key, path, source, measured, &distances)
        });
    }
    let removed = removal::best_run(constraints, &distances, request.keep, request.n);
    Ok(Chosen {
        removed: removed.with_context(at_path)?,
        calibration,
        search: None,
    })
}

/// The set whose removal costs least, measured: block by block (`ablate`), or one after another (`search`).
fn search(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    request: &Request<'_>,
    options: &Calibration,
    printing: &Printing,
) -> Result<Chosen> {
    let path = input.path();
    let at_path = || path.display().to_string();
    llama::check_ends(model).with_context(at_path)?;
    let (engine, set) = load_and_cut(input, options, printing)?;
    ensure!(
        set.window >= MIN_WINDOW,
        "{}: a window has {} tokens, but {MIN_WINDOW} or more are needed to score predictions",
        path.display(),
        set.window
    );
    let threads = Rc::new(ThreadPool::new(options.threads)?);
    let windows = spread(&set);
    let start = Instant::now();
    let mut chain;
    let mut whole;
    let (subsets, way): (&mut dyn Subsets, _) = match Chain::new(
        model,
        constraints,
        &engine,
        &windows,
        &threads,
    ) {
        Ok(made) => {
            chain = made;
            (&mut chain, "segments")
        }
        Err(why) => {
            if !printing.quiet {
                eprintln!(
                    "gguf-shorten: note: blocks of this model are not evaluated one by one ({why:#}); every \
                         candidate is evaluated whole, which takes longer"
                );
            }
            whole = Whole::new(model, constraints, &engine, &windows, &threads);
            (&mut whole, "whole")
        }
    };
    let found = {
        let n_measured = Cell::new(0u64);
        let bar = progress::bar("searching", Unit::Losses, 0, printing.quiet);
        let mut record = |_: &(Removed, usize, Loss)| {
            n_measured.set(n_measured.get() + 1);
            bar.set_position(n_measured.get());
            Ok(())
        };
        let mut memo = Memo::new(subsets, model.n_trunk_blocks(), Vec::new(), &mut record);
        let found = lowest(&mut memo, constraints, request, &mut |measured| {
            bar.set_message(format!(
                "searching: {} of {} blocks",
                measured.removed.len(),
                request.n
            ));
        });
        bar.finish_and_clear();
        found.with_context(at_path)?
    };
    let seconds = start.elapsed().as_secs_f64();
    Ok(Chosen {
        calibration: CalibrationReport::new(&set, seconds),
        search: Some(SearchReport::new(
            request.objective,
            way,
            subsets.n_block_evaluations(),
            seconds,
            &found.loss,
        )),
        removed: found.removed,
    })
}

fn lowest(
    measure: &mut dyn Measure,
    constraints: &Constraints,
    request: &Request<'_>,
    progress: &mut dyn FnMut(&Measured),
) -> Result<Measured> {
    if request.method == Method::Ablate {
        let singles: Vec<Removed> = (0..constraints.n_trunk_blocks)
            .map(|block| Removed::from([BlockId::new(block)]))
            .collect();
        if let Some(single) = singles.iter().find(|set| constraints.check(set).is_err()) {
            constraints.check(single).with_context(|| {
                let blocks: Vec<usize> = single.iter().map(|block| block.index()).collect();
                format!(
                    "method 'ablate' removes each block alone, but block {} may not go alone",
                    block_list(&blocks)
                )
            })?;
        }
        let n_windows = measure.n_windows();
        let losses = measure.losses(n_windows, &singles)?;
        let scores: Vec<f64> = losses
            .iter()
            .map(|loss| loss.mean(request.objective))
            .collect();
        let removed = removal::lowest(constraints, &scores, request.keep, request.n)?;
        let losses = measure.losses(n_windows, std::slice::from_ref(&removed))?;
        return Ok(Measured {
            removed,
            loss: losses.into_iter().sum(),
        });
    }
    let settings = Settings {
        objective: request.objective,
        keep: request.keep.clone(),
        beam: 1,
        swaps: 2,
    };
    Search::new(constraints, settings).remove(measure, request.n, progress)
}

/// The windows in an order in which the first few stand for all of the text: one from each of ever finer parts of it.
fn spread(set: &CalibrationSet) -> Vec<&[Token]> {
    let windows: Vec<&[Token]> = set.windows().collect();
    let mut order: Vec<usize> = (0..windows.len()).collect();
    // The number in binary with its digits reversed: 0, 1/2, 1/4, 3/4, 1/8, ...
    order.sort_by_key(|&i| (i as u64).reverse_bits());
    order.into_iter().map(|i| windows[i]).collect()
}
