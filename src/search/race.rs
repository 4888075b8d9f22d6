//! Candidates against one another: all on a few windows, fewer on more, and the best on all.

use std::ops::Range;

use anyhow::Result;

use super::{Measure, Measured, Objective, Removed, Settings};

/// Candidates that do tasks: those with the lowest KL divergence.
pub(super) const SHORTLIST: usize = 4;

/// A share of the candidates that goes on to more windows is one in so many.
const RACE: usize = 3;

/// The candidates with the smallest loss over all windows, best first, `n` at most, of a race: each round measures those
/// that are left on more windows and keeps a third.
///
/// # Errors
/// Those of `measure`.
pub fn race(
    measure: &mut dyn Measure,
    objective: Objective,
    candidates: Vec<Removed>,
    n: usize,
) -> Result<Vec<Measured>> {
    let n_windows = measure.n_windows();
    let mut left = candidates;
    let mut n_seen = n_windows.div_ceil(RACE * RACE).max(1);
    loop {
        let is_last = n_seen == n_windows || left.len() <= n.max(1);
        let n_now = if is_last { n_windows } else { n_seen };
        let losses = measure.losses(n_now, &left)?;
        let mut measured: Vec<Measured> = left
            .into_iter()
            .zip(losses)
            .map(|(removed, loss)| Measured {
                removed,
                loss,
                tasks: None,
            })
            .collect();
        // Sets come in ascending order, and the sort is stable: of equals the first. A share of tokens has equals.
        measured.sort_by(|a, b| {
            let mean = |measured: &Measured, objective| measured.loss.mean(objective);
            let by = |objective| mean(a, objective).total_cmp(&mean(b, objective));
            by(objective).then(by(Objective::Kl))
        });
        if is_last {
            measured.truncate(n.max(1));
            return Ok(measured);
        }
        let n_left = measured.len().div_ceil(RACE).max(n).max(2);
        left = measured
            .into_iter()
            .take(n_left)
            .map(|measured| measured.removed)
            .collect();
        n_seen = (n_seen * RACE).min(n_windows);
    }
}

/// Losses that removing blocks one by one takes, from as many as `n` begins with to as many as it ends with, of `n_free`
/// that may go, with the exchanges at the end: what is to be expected if every one of them may go alone.
#[must_use]
pub fn expected_losses(
    settings: &Settings,
    n_free: usize,
    n: Range<usize>,
    n_windows: usize,
) -> u64 {
    let n_best = match settings.objective {
        Objective::Task => settings.beam.max(SHORTLIST),
        _ => settings.beam,
    };
    let steps = n.clone().map(|gone| {
        let n_candidates = n_free.saturating_sub(gone) * settings.beam.min(gone.max(1));
        race_losses(n_candidates, n_windows, n_best)
    });
    let exchanges = race_losses(n.end * n_free.saturating_sub(n.end), n_windows, n_best);
    steps.sum::<u64>() + exchanges * settings.swaps as u64
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
        left = left.div_ceil(RACE).max(n).max(2);
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
    candidates: Vec<Removed>,
    n: usize,
) -> Result<Vec<Measured>> {
    if objective != Objective::Task {
        return race(measure, objective, candidates, n);
    }
    let mut found = race(measure, objective, candidates, n.max(SHORTLIST))?;
    let sets: Vec<Removed> = found.iter().map(|set| set.removed.clone()).collect();
    for (measured, tasks) in found.iter_mut().zip(measure.tasks(&sets)?) {
        measured.tasks = Some(tasks);
    }
    found.sort_by(|a, b| a.cost(objective).total_cmp(&b.cost(objective)));
    found.truncate(n.max(1));
    Ok(found)
}
