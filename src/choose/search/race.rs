//! Candidates against one another: all on a few windows, fewer on more, and the best on all.

use std::ops::Range;

use anyhow::Result;

use super::{Measure, Measured, Settings};
use crate::measure::loss::Objective;
use crate::model::block::BlockSet;

/// Candidates that do tasks: those with the lowest KL divergence.
pub(super) const SHORTLIST: usize = 4;

/// One in so many candidates goes on to more windows.
const RACE: usize = 3;

/// The outcome of a race.
#[derive(Clone, Debug, Default)]
pub struct Raced {
    /// The candidates with the smallest loss over all windows, best first.
    pub best: Vec<Measured>,
    /// All candidates, best first. Those that fell out by their cost on the windows they were measured on, after those that
    /// were measured on more.
    pub ranking: Vec<BlockSet>,
}

/// A race for the `n` candidates of least loss over all windows. Each round measures those that are left on more windows and
/// keeps a third.
///
/// # Errors
/// Those of `measure`.
pub fn race(
    measure: &mut dyn Measure,
    objective: Objective,
    candidates: Vec<BlockSet>,
    n: usize,
) -> Result<Raced> {
    let n_windows = measure.n_windows();
    let mut left = candidates;
    // Worst first, until the end.
    let mut fallen: Vec<BlockSet> = Vec::new();
    let mut n_seen = n_windows.div_ceil(RACE * RACE).max(1);
    loop {
        let is_last = n_seen == n_windows || left.len() <= n.max(1);
        let n_now = if is_last { n_windows } else { n_seen };
        let losses = measure.losses(n_now, &left)?;
        let mut measured: Vec<Measured> = left
            .into_iter()
            .zip(losses)
            .map(|(removed, loss)| Measured { removed, loss, tasks: None })
            .collect();
        // Sets come in ascending order, and the sort is stable: of equals the first. A share of tokens has equals.
        measured.sort_by(|a, b| {
            let mean = |measured: &Measured, objective| measured.loss.mean(objective);
            let by = |objective| mean(a, objective).total_cmp(&mean(b, objective));
            by(objective).then(by(Objective::Kl))
        });
        let mut ranking: Vec<BlockSet> = measured.iter().map(|set| set.removed.clone()).collect();
        if is_last {
            measured.truncate(n.max(1));
            ranking.extend(fallen.into_iter().rev());
            return Ok(Raced { best: measured, ranking });
        }
        let n_left = n_survivors(ranking.len(), n);
        fallen.extend(ranking.drain(n_left..).rev());
        left = ranking;
        n_seen = (n_seen * RACE).min(n_windows);
    }
}

/// How many of `n` blocks are tried. It is the half that cost least when they were measured last, but 8 at least.
pub(super) fn n_contenders(n: usize) -> usize {
    n.div_ceil(2).max(8).min(n)
}

/// Expected loss evaluations to go from `n.start` to `n.end` removed blocks. Of `n_free` that may go, every one may go alone.
/// The exchanges at the end are counted.
#[must_use]
pub fn expected_losses(settings: &Settings, n_free: usize, n: Range<usize>, n_windows: usize) -> u64 {
    let n_best = match settings.objective {
        Objective::Task => settings.beam.max(SHORTLIST),
        _ => settings.beam,
    };
    let contenders = |gone: usize| match n_free.saturating_sub(gone) {
        n_left if gone == 0 => n_left,
        n_left => n_contenders(n_left),
    };
    let steps = n.clone().map(|gone| {
        let n_candidates = contenders(gone) * settings.beam.min(gone.max(1));
        race_losses(n_candidates, n_windows, n_best)
    });
    let exchanges = race_losses(n.end * contenders(n.end), n_windows, n_best);
    steps.sum::<u64>() + exchanges * settings.swaps as u64
}

/// How many of `n_candidates` go on where `n` are wanted.
fn n_survivors(n_candidates: usize, n: usize) -> usize {
    n_candidates.div_ceil(RACE).max(n).max(2).min(n_candidates)
}

/// Losses that a [`race`] takes, each measured once.
fn race_losses(n_candidates: usize, n_windows: usize, n: usize) -> u64 {
    let (mut left, mut n_before) = (n_candidates, 0);
    let mut n_seen = n_windows.div_ceil(RACE * RACE).max(1);
    let mut sum = 0;
    loop {
        let is_last = n_seen == n_windows || left <= n.max(1);
        let n_now = if is_last { n_windows } else { n_seen };
        sum += left * (n_now - n_before);
        if is_last {
            return sum as u64;
        }
        n_before = n_now;
        left = n_survivors(left, n);
        n_seen = (n_seen * RACE).min(n_windows);
    }
}

/// As [`race`]; where tasks are the objective, the best by KL divergence do them.
///
/// # Errors
/// Those of `measure`.
pub(super) fn best_of(
    measure: &mut dyn Measure,
    objective: Objective,
    candidates: Vec<BlockSet>,
    n: usize,
) -> Result<Raced> {
    if objective != Objective::Task {
        return race(measure, objective, candidates, n);
    }
    let mut found = race(measure, objective, candidates, n.max(SHORTLIST))?;
    let best = &mut found.best;
    let sets: Vec<BlockSet> = best.iter().map(|set| set.removed.clone()).collect();
    for (measured, tasks) in best.iter_mut().zip(measure.tasks(&sets)?) {
        measured.tasks = Some(tasks);
    }
    best.sort_by(|a, b| a.cost(objective).total_cmp(&b.cost(objective)));
    best.truncate(n.max(1));
    Ok(found)
}
