//! What goes: by a list, by scores, by losses, or by a goal.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::healed;
use super::measured::{self, Request, Target as Wanted};
use super::shorten::planned_files;
use super::{Asked, Calibrated, calibrate, eval, goal};
use crate::error::Hint;
use crate::importance::Importance;
use crate::input::Input;
use crate::model::{BlockId, Model};
use crate::options::{Choice, Shorten};
use crate::plan::{AttentionCut, Constraints, Method, Plan, Provenance, attention, removal};
use crate::report::goal::{Figure, GoalReport, StepReport};
use crate::report::stability::{ConfidenceReport, Rating};
use crate::report::{CalibrationReport, SearchReport, block_list};
use crate::search::Goal;
use crate::search::journal::Journal;
use crate::stability::{self, edge::Chosen};
use crate::tasks;

/// What goes, and why.
pub(super) struct Selection {
    pub(super) removed: BTreeSet<BlockId>,
    /// Sets that may be better once they are healed.
    pub(super) shortlist: Vec<BTreeSet<BlockId>>,
    pub(super) method: String,
    pub(super) attention: Option<AttentionCut>,
    pub(super) importance: Option<Importance>,
    pub(super) calibration: Option<CalibrationReport>,
    pub(super) search: Option<SearchReport>,
    pub(super) goal: Option<GoalReport>,
    pub(super) journal: Option<Journal>,
    pub(super) rating: Option<Rating>,
    pub(super) confidence: Option<ConfidenceReport>,
}

impl Selection {
    /// Windows, from the first, among which are all that the choice has seen: a calibration that may end early takes them
    /// in random order.
    pub(super) fn n_windows(&self) -> usize {
        let Some(text) = &self.calibration else {
            return 0;
        };
        let allowed = (self.confidence.as_ref()).map_or(0, |sure| sure.tokens_allowed);
        text.windows.max(allowed / text.window.max(1))
    }
}

/// Decides what goes.
///
/// # Errors
/// Nothing that is asked for may go; whatever keeps the model from being measured.
pub(super) fn select(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Shorten,
) -> Result<Selection> {
    let at_path = || options.model.display().to_string();
    let n_trunk = model.n_trunk_blocks();
    // All that can be refused is refused before anything is measured.
    let listed = listed_attention(model, &options.attention).with_context(at_path)?;
    let mut keep = kept_by_hand(model, constraints, options).with_context(at_path)?;
    keep.extend(&listed);
    let mut removed = BTreeSet::new();
    let n_removed = match &options.choice {
        Choice::Nothing { .. } => 0,
        Choice::Blocks(list) => {
            removed = list
                .blocks(model.n_blocks(), "remove")
                .with_context(at_path)?;
            constraints
                .check(&removed)
                .map_err(|error| with_nearest(error, constraints, &removed))
                .with_context(at_path)?;
            removed.len()
        }
        Choice::Best { budget, .. } => {
            let n = budget.n_removed(n_trunk);
            removal::check(constraints, &keep, n).with_context(at_path)?;
            n
        }
        Choice::Goal { .. } => 0,
    };
    let mut wanted = None;
    if let Choice::Goal {
        goal, most, method, ..
    } = &options.choice
    {
        let bytes_of = |removed: &BTreeSet<BlockId>, method: &str| {
            n_bytes(model, constraints, input, options, removed, method)
        };
        let most = most.map_or(n_trunk.saturating_sub(1), |budget| {
            budget.n_removed(n_trunk).min(n_trunk.saturating_sub(1))
        });
        let mut first = 1;
        if let Goal::Size(limit) = goal {
            if options.drop_mtp {
                let n_bytes = bytes_of(&removed, "blocks").with_context(at_path)?;
                if n_bytes <= *limit {
                    return Ok(without_trunk_blocks(*limit, n_bytes));
                }
            }
            ensure!(
                model.n_bytes() > *limit,
                "{}: has {} bytes, which is within --target-size, so no block has to go",
                at_path(),
                model.n_bytes()
            );
            let bytes_of = |removed: &_| bytes_of(removed, &method.to_string());
            first = goal::fewest_of_size(model, constraints, &keep, &bytes_of, *limit)
                .with_context(at_path)?;
        }
        wanted = Some(Wanted::Goal {
            goal: *goal,
            first,
            most,
        });
    }
    let task_file = options.tasks.as_ref();
    let task_file = task_file.map(|(path, n)| eval::read_tasks(path, *n, tasks::any));
    let task_file = task_file.transpose()?;
    if !listed.is_empty() {
        attention::check(model, &removed, &listed).with_context(at_path)?;
    }
    if let Choice::Best { budget, .. } = &options.attention {
        let n_may = n_trunk.saturating_sub(n_removed + 1);
        attention::check_number(budget.n_removed(n_trunk), n_may).with_context(at_path)?;
    }
    let needs_scores = |choice: &Choice| matches!(choice, Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_scores());
    let calibrated = if needs_scores(&options.choice) || needs_scores(&options.attention) {
        let goal = match (&options.choice, options.confidence) {
            (Choice::Best { method, .. }, Some(confidence)) => Some(stability::Goal {
                method: *method,
                n: n_removed,
                keep: &keep,
                confidence,
            }),
            _ => None,
        };
        Some(calibrate(
            model,
            constraints,
            input,
            &options.calibration,
            &options.printing,
            Asked {
                sub_blocks: needs_scores(&options.attention),
                goal,
                ..Asked::default()
            },
        )?)
    } else {
        None
    };
    let importance = calibrated.as_ref().map(|calibrated| &calibrated.importance);
    let mut calibration = calibrated
        .as_ref()
        .map(|calibrated| calibrated.report.clone());
    let mut search = None;
    let mut goal_report = None;
    let mut journal = None;
    let mut shortlist = Vec::new();
    let method = match &options.choice {
        Choice::Nothing { .. } if options.drop_mtp => "blocks".to_owned(),
        Choice::Nothing { .. } => attention::NO_WHOLE_BLOCK.to_owned(),
        Choice::Blocks(_) => "blocks".to_owned(),
        Choice::Best { method, .. } | Choice::Goal { method, .. }
            if method.needs_losses() || *method == Method::Run || wanted.is_some() =>
        {
            let name = method.to_string();
            let bytes_of =
                |removed: &_| n_bytes(model, constraints, input, options, removed, &name);
            let request = Request {
                method: *method,
                objective: options.objective,
                target: wanted.unwrap_or(Wanted::Exactly(n_removed)),
                keep: &keep,
                importance,
                tasks: task_file.as_ref().map(|(path, tasks)| (*path, &tasks[..])),
                n_bytes: &bytes_of,
                scratch: options.scratch.as_deref(),
                heals: healed::may_choose(&options.heal, options.objective),
            };
            let chosen = measured::choose(
                model,
                constraints,
                input,
                &request,
                &options.calibration,
                &options.printing,
            )?;
            removed = chosen.removed;
            // Scores that were measured first have the same text.
            calibration = calibration.or(chosen.calibration);
            search = chosen.search;
            goal_report = chosen.goal;
            journal = chosen.journal;
            shortlist = chosen.shortlist;
            name
        }
        Choice::Goal { .. } => bail!("bug: a goal that is not wanted"),
        Choice::Best { method, .. } => {
            removed = removal::choose(constraints, *method, importance, &keep, n_removed)
                .with_context(at_path)?;
            method.to_string()
        }
    };
    let attention = match &options.attention {
        Choice::Nothing { .. } | Choice::Goal { .. } => None,
        Choice::Blocks(_) => Some(AttentionCut {
            blocks: listed,
            method: "blocks".to_owned(),
        }),
        Choice::Best { budget, method, .. } => {
            let n = budget.n_removed(n_trunk);
            let blocks = attention::choose(model, *method, importance, &removed, &keep, n)
                .with_context(at_path)?;
            Some(AttentionCut {
                blocks,
                method: method.to_string(),
            })
        }
    };
    if let Some(cut) = &attention {
        // The blocks that were chosen to go as a whole may have made another one the first.
        attention::check(model, &removed, &cut.blocks).with_context(at_path)?;
    }
    let rating = (calibrated.as_ref())
        .map(|calibrated| rate(calibrated, constraints, options, &keep, &removed));
    let confidence = match (&rating, &calibrated) {
        (Some(rating), Some(calibrated)) => {
            let allowed = calibrated.n_tokens_allowed;
            let stopped = options
                .confidence
                .map(|_| calibrated.report.tokens < allowed);
            Some(rating.report(allowed, stopped))
        }
        _ => None,
    };
    Ok(Selection {
        removed,
        shortlist,
        method,
        attention,
        importance: calibrated.map(|calibrated| calibrated.importance),
        calibration,
        search,
        goal: goal_report,
        journal,
        rating,
        confidence,
    })
}

/// How sure the scores are by which `removed` was chosen; where it was not, the scores alone.
fn rate(
    calibrated: &Calibrated,
    constraints: &Constraints,
    options: &Shorten,
    keep: &BTreeSet<BlockId>,
    removed: &BTreeSet<BlockId>,
) -> Rating {
    let chosen = Chosen {
        constraints,
        keep,
        removed,
    };
    let (method, chosen) = match &options.choice {
        Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_scores() => {
            (*method, Some(chosen))
        }
        _ => (Method::Bi, None),
    };
    let confidence = options.confidence.unwrap_or_default();
    Rating::new(&calibrated.importance, method, confidence, chosen)
}

/// A size that is reached without any block but those for prediction.
fn without_trunk_blocks(limit: u64, n_bytes: u64) -> Selection {
    let value = Figure::Bytes(n_bytes);
    let step = StepReport::of_size(&BTreeSet::new(), value, Some(true));
    Selection {
        removed: BTreeSet::new(),
        shortlist: Vec::new(),
        method: "blocks".to_owned(),
        attention: None,
        importance: None,
        calibration: None,
        search: None,
        goal: Some(GoalReport::of_sizes(limit, n_bytes, vec![step])),
        journal: None,
        rating: None,
        confidence: None,
    }
}

/// The bytes of all files of the output without `removed`, which `method` chose.
fn n_bytes(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Shorten,
    removed: &BTreeSet<BlockId>,
    method: &str,
) -> Result<u64> {
    let plan = Plan::new(
        model,
        constraints,
        removed.clone(),
        &Provenance::draft(method),
    )?;
    let files = planned_files(model, &plan, input, options)?;
    Ok(files.iter().map(|file| file.bytes).sum())
}

/// The blocks whose attention goes by a list; checks that the model can lose attention if any may be asked for.
fn listed_attention(model: &Model<'_>, choice: &Choice) -> Result<BTreeSet<BlockId>> {
    match choice {
        Choice::Nothing { .. } | Choice::Goal { .. } => Ok(BTreeSet::new()),
        Choice::Best { .. } => attention::check_model(model).map(|()| BTreeSet::new()),
        Choice::Blocks(list) => {
            attention::check_model(model)?;
            list.blocks(model.n_blocks(), "remove the attention of")
        }
    }
}

/// The blocks that stay as they are, by a list.
fn kept_by_hand(
    model: &Model<'_>,
    constraints: &Constraints,
    options: &Shorten,
) -> Result<BTreeSet<BlockId>> {
    let mut kept = BTreeSet::new();
    for choice in [&options.choice, &options.attention] {
        if let Choice::Best {
            keep: Some(list), ..
        }
        | Choice::Goal {
            keep: Some(list), ..
        }
        | Choice::Nothing { keep: Some(list) } = choice
        {
            kept.extend(list.blocks(model.n_blocks(), "keep")?);
        }
    }
    if let Some(block) = kept.intersection(&constraints.dropped).next() {
        let why = match options.drop_mtp {
            true => "--drop-mtp removes it",
            false => "it has no tensors",
        };
        bail!("cannot keep block {block}: {why}");
    }
    Ok(kept)
}

/// Names the nearest set that is allowed, where there is one.
fn with_nearest(
    error: anyhow::Error,
    constraints: &Constraints,
    removed: &BTreeSet<BlockId>,
) -> anyhow::Error {
    match removal::nearest(constraints, removed) {
        Some(nearest) if error.downcast_ref::<Hint>().is_none() => {
            let nearest: Vec<usize> = nearest.iter().map(|block| block.index()).collect();
            error.context(Hint(format!(
                "the nearest allowed set is --blocks {}",
                block_list(&nearest)
            )))
        }
        _ => error,
    }
}
