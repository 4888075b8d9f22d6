//! Goals: whether they can be reached, sets by the size of their output, and their reports.

use std::fmt;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail};

use crate::choose::outcome::{Figure, GoalReport, StepReport, figure, named};
use crate::choose::removal;
use crate::choose::request::Request;
use crate::choose::search::draft::{BytesPerToken, Draft};
use crate::choose::search::goal::{Trajectory, draft};
use crate::choose::search::{Goal, Measured};
use crate::model::block::{BlockSet, numbers};
use crate::output::Parent;

/// A goal that no set reaches, with the nearest that was found.
#[derive(Debug)]
pub(crate) struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

fn unreachable_size(limit: u64, steps: &[(BlockSet, u64)]) -> Unreachable {
    let smallest = steps.iter().min_by_key(|(_, n_bytes)| *n_bytes);
    let nearest = match smallest {
        Some((removed, n_bytes)) => {
            format!("the smallest output has {n_bytes} bytes, without {}", named(&numbers(removed)))
        }
        None => "no set of blocks may be removed".to_owned(),
    };
    Unreachable(format!("--target-size of {limit} bytes cannot be reached: {nearest}"))
}

/// The fewest blocks that may bring the output to `limit` bytes. Those of the most bytes go first.
///
/// # Errors
/// [`Unreachable`], which names the smallest size.
pub(crate) fn fewest_of_size(
    parent: Parent<'_>,
    keep: &BlockSet,
    n_bytes: &dyn Fn(&BlockSet) -> Result<u64>,
    limit: u64,
) -> Result<usize> {
    let Parent { model, constraints, .. } = parent;
    let mut scores = vec![0.0; constraints.n_trunk_blocks];
    for tensor in model.tensors() {
        let Some((block, _)) = tensor.block else {
            continue;
        };
        if let Some(score) = scores.get_mut(block.index()) {
            let info = &tensor.info;
            let padded = info.n_bytes().next_multiple_of(model.first().alignment());
            // Its entry in the tensor table: lengths, dimensions, type, offset.
            let entry = 24 + info.name().len() as u64 + 8 * info.n_dims() as u64;
            let n_bytes = (padded + entry) as f64;
            *score -= n_bytes;
        }
    }
    let mut steps = Vec::new();
    for n in 1..constraints.n_trunk_blocks {
        if let Some(removed) = removal::lowest_if_any(constraints, &scores, keep, n) {
            let n_bytes = n_bytes(&removed)?;
            if n_bytes <= limit {
                return Ok(n);
            }
            steps.push((removed, n_bytes));
        }
    }
    bail!(unreachable_size(limit, &steps))
}

/// The first of `sets` whose removal brings the output to `limit` bytes. Sets come by their number of blocks.
///
/// # Errors
/// [`Unreachable`]; those of `sets`; a set that cannot be planned.
pub(crate) fn first_of_size(
    sets: &mut dyn FnMut(usize) -> Result<Option<BlockSet>>,
    n: RangeInclusive<usize>,
    request: &Request<'_>,
    limit: u64,
) -> Result<(BlockSet, GoalReport)> {
    let mut steps = Vec::new();
    for n in n {
        let Some(removed) = sets(n)? else {
            continue;
        };
        let n_bytes = request.n_bytes(&removed)?;
        steps.push((removed.clone(), n_bytes));
        if n_bytes <= limit {
            let report = |(removed, n_bytes): &(BlockSet, u64)| {
                StepReport::of_size(removed, Figure::Bytes(*n_bytes), Some(*n_bytes <= limit))
            };
            let report = GoalReport::of_sizes(limit, n_bytes, steps.iter().map(report).collect());
            return Ok((removed, report));
        }
    }
    bail!(unreachable_size(limit, &steps))
}

/// The result of a search for a size.
///
/// # Errors
/// [`Unreachable`]; those of `n_bytes`.
pub(crate) fn sizes_report(
    trajectory: Trajectory,
    n_bytes: &dyn Fn(&BlockSet) -> Result<u64>,
    limit: u64,
) -> Result<(Measured, Option<GoalReport>)> {
    let sizes = trajectory.steps.iter().map(|step| n_bytes(&step.removed));
    let sizes: Vec<u64> = sizes.collect::<Result<_>>()?;
    let Some(chosen) = trajectory.chosen else {
        let removed = trajectory.steps.into_iter().map(|step| step.removed);
        bail!(unreachable_size(limit, &removed.zip(sizes).collect::<Vec<_>>()));
    };
    let steps = trajectory
        .steps
        .iter()
        .zip(sizes)
        .map(|(step, n_bytes)| StepReport::of(step, Figure::Bytes(n_bytes), Some(n_bytes <= limit)));
    let report = GoalReport::of_sizes(limit, n_bytes(&chosen.removed)?, steps.collect());
    Ok((chosen, Some(report)))
}

/// The result of a search for a loss.
///
/// # Errors
/// [`Unreachable`]
pub(crate) fn losses_report(trajectory: Trajectory, goal: &Goal) -> Result<(Measured, Option<GoalReport>)> {
    if let Some(chosen) = trajectory.chosen {
        let report = GoalReport::of_losses(goal, &trajectory.steps, &chosen);
        return Ok((chosen, Some(report)));
    }
    let figures = trajectory.steps.iter().filter_map(|step| {
        let (value, limit) = goal.figure(step)?;
        Some((value, limit, step))
    });
    let nearest = figures.min_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let (value, limit, step) = nearest.context("no set of blocks may be removed")?;
    let (what, parent) = match goal {
        Goal::Perplexity(_) => ("perplexity", format!(" (whole model {:.4})", step.loss.parent_perplexity())),
        _ => ("KL divergence", String::new()),
    };
    let number = |number| figure(Figure::Number(number));
    bail!(Unreachable(format!(
        "--{} cannot be reached: {what} may be {} at most{parent}, and the nearest that was found has {}, without {}",
        goal.flag(),
        number(limit),
        number(value),
        named(&numbers(&step.removed))
    )))
}

/// The result of a search for a draft model.
///
/// # Errors
/// No set that may be removed.
pub(crate) fn draft_report(
    trajectory: Trajectory,
    bytes: &BytesPerToken,
) -> Result<(Measured, Option<GoalReport>)> {
    let chosen = trajectory.chosen.context("no set of blocks may be removed")?;
    let best: Draft = draft(&chosen, bytes);
    let step = |step: &Measured| {
        let speed_up = draft(step, bytes).speed_up;
        StepReport::of(step, Figure::Number(speed_up), None)
    };
    let report = GoalReport::of_draft(&best, trajectory.steps.iter().map(step).collect());
    Ok((chosen, Some(report)))
}
