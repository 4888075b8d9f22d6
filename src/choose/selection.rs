//! What goes: by a list, by scores, by losses, or by a goal.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::goals as goal;
use super::measured::{self};
use crate::choose::outcome::SearchReport;
use crate::choose::outcome::{Figure, GoalReport, StepReport};
use crate::choose::rating::{ConfidenceReport, Rating};
use crate::choose::removal;
use crate::choose::request::{Request, Target as Wanted};
use crate::choose::scorer::Scorer;
use crate::choose::search::Goal;
use crate::choose::search::journal::Journal;
use crate::choose::settings::{Choice, Choosing};
use crate::choose::stability;
use crate::choose::stability::Stopping;
use crate::choose::stability::edge::Chosen;
use crate::engine::outcome::CalibrationReport;
use crate::error::Hint;
use crate::measure::calibrate::Until;
use crate::measure::calibrate::{Calibrated, Extras};
use crate::measure::importance::Importance;
use crate::measure::tasks;
use crate::model::block::block_list;
use crate::model::input::Input;
use crate::model::{BlockId, Model};
use crate::plan::{AttentionCut, ChosenBy, Constraints, Method, attention};
use crate::watch::Watch;

/// What goes, and why.
pub(crate) struct Selection {
    pub(crate) removed: BTreeSet<BlockId>,
    /// Sets that may be better once they are healed.
    pub(crate) shortlist: Vec<BTreeSet<BlockId>>,
    pub(crate) method: String,
    pub(crate) attention: Option<AttentionCut>,
    pub(crate) importance: Option<Importance>,
    pub(crate) calibration: Option<CalibrationReport>,
    pub(crate) search: Option<SearchReport>,
    pub(crate) goal: Option<GoalReport>,
    pub(crate) journal: Option<Journal>,
    pub(crate) rating: Option<Rating>,
    pub(crate) confidence: Option<ConfidenceReport>,
}

impl Selection {
    /// Windows, from the first, among which are all that the choice has seen: a calibration that may end early takes them
    /// in random order.
    pub(crate) fn n_windows(&self) -> usize {
        let Some(text) = &self.calibration else {
            return 0;
        };
        let allowed = (self.confidence.as_ref()).map_or(0, |sure| sure.tokens_allowed);
        text.windows.max(allowed / text.window.max(1))
    }
}

/// Bytes of all files of the output without a set of blocks, which the method of that name chose.
pub(crate) type OutputBytes<'o> = dyn Fn(&BTreeSet<BlockId>, &str) -> Result<u64> + 'o;

/// Decides what goes.
///
/// # Errors
/// Nothing that is asked for may go; whatever keeps the model from being measured.
pub(crate) fn select(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Choosing,
    output_bytes: &OutputBytes<'_>,
    watch: &dyn Watch,
) -> Result<Selection> {
    let at_path = || input.path().display().to_string();
    let n_trunk = model.n_trunk_blocks();
    // All that can be refused is refused before anything is measured.
    let listed = listed_attention(model, &options.attention).with_context(at_path)?;
    let mut keep = kept_by_hand(model, constraints, options).with_context(at_path)?;
    keep.extend(&listed);
    let mut removed = BTreeSet::new();
    let n_removed = match &options.choice {
        Choice::Nothing { .. } => 0,
        Choice::Blocks(list) => {
            removed = list.blocks(model.n_blocks(), "remove").with_context(at_path)?;
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
    if let Choice::Goal { goal, most, method, .. } = &options.choice {
        let most = most.map_or(n_trunk.saturating_sub(1), |budget| {
            budget.n_removed(n_trunk).min(n_trunk.saturating_sub(1))
        });
        let mut first = 1;
        if let Goal::Size(limit) = goal {
            if options.drop_mtp {
                let n_bytes = output_bytes(&removed, &ChosenBy::List.to_string()).with_context(at_path)?;
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
            let bytes_of = |removed: &_| output_bytes(removed, &method.to_string());
            first =
                goal::fewest_of_size(model, constraints, &keep, &bytes_of, *limit).with_context(at_path)?;
        }
        wanted = Some(Wanted::Goal { goal: *goal, first, most });
    }
    let task_file = options.tasks.as_ref();
    let task_file = task_file.map(|(path, n)| tasks::read_tasks(path, *n, tasks::any));
    let task_file = task_file.transpose()?;
    if !listed.is_empty() {
        attention::check(model, &removed, &listed).with_context(at_path)?;
    }
    if let Choice::Best { budget, .. } = &options.attention {
        let n_may = n_trunk.saturating_sub(n_removed + 1);
        crate::choose::attention::check_number(budget.n_removed(n_trunk), n_may).with_context(at_path)?;
    }
    let needs_scores = |choice: &Choice| matches!(choice, Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_scores());
    let calibrated = if needs_scores(&options.choice) || needs_scores(&options.attention) {
        let goal = match (&options.choice, options.confidence) {
            (Choice::Best { method, .. }, Some(confidence)) => {
                Some(stability::Goal { method: *method, n: n_removed, keep: &keep, confidence })
            }
            _ => None,
        };
        let until = goal.map(|goal| Stopping::rule(constraints, goal));
        let method = match &options.choice {
            Choice::Best { method, .. } | Choice::Goal { method, .. } => *method,
            // Of the attention alone: that goes by scores of halves.
            Choice::Nothing { .. } | Choice::Blocks(_) => Method::Bi,
        };
        let scorer = Scorer { model, constraints, input, method, watch };
        Some(scorer.calibrate(
            &options.calibration,
            Extras {
                sub_blocks: needs_scores(&options.attention),
                until: until.as_ref().map(|until| until as &Until<'_>),
                ..Extras::default()
            },
        )?)
    } else {
        None
    };
    let importance = calibrated.as_ref().map(|calibrated| &calibrated.importance);
    let mut calibration = calibrated.as_ref().map(|calibrated| calibrated.report.clone());
    let mut search = None;
    let mut goal_report = None;
    let mut journal = None;
    let mut shortlist = Vec::new();
    let method = match &options.choice {
        Choice::Nothing { .. } if options.drop_mtp => ChosenBy::List.to_string(),
        Choice::Nothing { .. } => ChosenBy::NoBlock.to_string(),
        Choice::Blocks(_) => ChosenBy::List.to_string(),
        Choice::Best { method, .. } | Choice::Goal { method, .. }
            if method.needs_losses() || *method == Method::Run || wanted.is_some() =>
        {
            let name = method.to_string();
            let bytes_of = |removed: &_| output_bytes(removed, &name);
            let request = Request {
                method: *method,
                objective: options.objective,
                target: wanted.unwrap_or(Wanted::Exactly(n_removed)),
                keep: &keep,
                importance,
                tasks: task_file.as_ref().map(|(path, tasks)| (*path, &tasks[..])),
                n_bytes: &bytes_of,
                scratch: options.scratch.as_deref(),
                heals: options.heals,
            };
            let chosen = measured::choose(model, constraints, input, &request, &options.calibration, watch)?;
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
            removed =
                removal::choose(constraints, *method, importance, &keep, n_removed).with_context(at_path)?;
            method.to_string()
        }
    };
    let attention = match &options.attention {
        Choice::Nothing { .. } | Choice::Goal { .. } => None,
        Choice::Blocks(_) => Some(AttentionCut { blocks: listed, method: ChosenBy::List.to_string() }),
        Choice::Best { budget, method, .. } => {
            let n = budget.n_removed(n_trunk);
            let blocks = crate::choose::attention::choose(model, *method, importance, &removed, &keep, n)
                .with_context(at_path)?;
            Some(AttentionCut { blocks, method: method.to_string() })
        }
    };
    if let Some(cut) = &attention {
        // The blocks that were chosen to go as a whole may have made another one the first.
        attention::check(model, &removed, &cut.blocks).with_context(at_path)?;
    }
    let rating =
        (calibrated.as_ref()).map(|calibrated| rate(calibrated, constraints, options, &keep, &removed));
    let confidence = match (&rating, &calibrated) {
        (Some(rating), Some(calibrated)) => {
            let allowed = calibrated.n_tokens_allowed;
            let stopped = options.confidence.map(|_| calibrated.report.tokens < allowed);
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
    options: &Choosing,
    keep: &BTreeSet<BlockId>,
    removed: &BTreeSet<BlockId>,
) -> Rating {
    let chosen = Chosen { constraints, keep, removed };
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
        method: ChosenBy::List.to_string(),
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
    options: &Choosing,
) -> Result<BTreeSet<BlockId>> {
    let mut kept = BTreeSet::new();
    for choice in [&options.choice, &options.attention] {
        if let Choice::Best { keep: Some(list), .. }
        | Choice::Goal { keep: Some(list), .. }
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
            error.context(Hint(format!("the nearest allowed set is --blocks {}", block_list(&nearest))))
        }
        _ => error,
    }
}
