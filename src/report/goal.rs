//! What a goal made of a search: the sets on the way to it, and the worth of a draft model.

use indicatif::HumanCount;
use serde::Serialize;

use super::block_list;
use crate::quality::choice::Accuracy;
use crate::search::draft::Draft;
use crate::search::{Goal, Measured, Removed, TaskLoss};

/// A goal, and how it was reached.
#[derive(Clone, Debug, Serialize)]
pub struct GoalReport {
    /// The flag: `target-size`, `max-ppl`, `max-kl`, or `draft` for the objective of that name.
    pub goal: &'static str,
    /// What was asked for, such as `+10%`; null for a draft model.
    pub given: Option<String>,
    /// The most that the figure may be: bytes, perplexity, or nats; null for a draft model.
    pub limit: Option<Figure>,
    /// The figure of the output: bytes, perplexity, nats, or the expected speed-up.
    pub value: Figure,
    /// Every set on the way, in order.
    pub steps: Vec<StepReport>,
}

/// A set on the way to a goal.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The blocks that would go.
    pub removed: Vec<usize>,
    /// The figure that the goal is about.
    pub value: Figure,
    /// Whether it is within the limit; null where there is none.
    pub holds: Option<bool>,
    /// On the calibration text; null where nothing was measured for it.
    pub perplexity: Option<f64>,
    /// From the whole model's predictions, in nats.
    pub kl_divergence: Option<f64>,
    /// Share of tokens whose likeliest successor is the whole model's.
    pub same_top: Option<f64>,
}

/// A number of bytes, or a measured number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// Bytes.
    Bytes(u64),
    /// Anything else.
    Number(f64),
}

/// The worth of the output as a draft model for its parent, computed from what was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DraftReport {
    /// The share of its tokens that the parent takes: that of tokens whose likeliest successor is the parent's.
    pub acceptance: f64,
    /// The bytes of weights that a token reads, over the parent's.
    pub cost_ratio: f64,
    /// How many tokens are best proposed at once.
    pub tokens: u32,
    /// Decoding with it over decoding without.
    pub speed_up: f64,
}

/// How the chosen set does in tasks.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// The file.
    pub source: String,
    /// Tasks done, from its start.
    pub tasks: u64,
    /// Mean cross entropy of the right answer among the answers, in nats.
    pub cross_entropy: f64,
    /// The whole model's.
    pub parent_cross_entropy: f64,
    /// Share of tasks that are right.
    pub accuracy: f64,
    /// Its standard error; null for a single task.
    pub accuracy_stderr: Option<f64>,
    /// The whole model's.
    pub parent_accuracy: f64,
    /// The share that guessing gets right on average.
    pub chance: f64,
    /// Models that did them.
    pub models: u64,
}

impl GoalReport {
    /// Of losses: `steps` were measured, `chosen` is the last that is within the limit.
    #[must_use]
    pub fn of_losses(goal: &Goal, steps: &[Measured], chosen: &Measured) -> Self {
        let figure = |measured: &Measured| {
            goal.figure(measured)
                .map_or((f64::NAN, f64::NAN), |found| found)
        };
        let (value, limit) = figure(chosen);
        Self {
            goal: goal.flag(),
            given: Some(match goal {
                Goal::Perplexity(limit) => limit.to_string(),
                _ => limit.to_string(),
            }),
            limit: Some(Figure::Number(limit)),
            value: Figure::Number(value),
            steps: (steps.iter())
                .map(|step| {
                    let (value, limit) = figure(step);
                    StepReport::of(step, Figure::Number(value), Some(value <= limit))
                })
                .collect(),
        }
    }

    /// Of a size: `steps` are sets with the bytes of their output, the last is the first that is small enough.
    #[must_use]
    pub fn of_sizes(limit: u64, value: u64, steps: Vec<StepReport>) -> Self {
        Self {
            goal: Goal::Size(limit).flag(),
            given: Some(limit.to_string()),
            limit: Some(Figure::Bytes(limit)),
            value: Figure::Bytes(value),
            steps,
        }
    }

    /// Of a draft model: the best of `steps`.
    #[must_use]
    pub fn of_draft(best: &Draft, steps: Vec<StepReport>) -> Self {
        Self {
            goal: Goal::SpeedUp.flag(),
            given: None,
            limit: None,
            value: Figure::Number(best.speed_up),
            steps,
        }
    }
}

impl StepReport {
    /// Of a set that was measured.
    #[must_use]
    pub fn of(measured: &Measured, value: Figure, holds: Option<bool>) -> Self {
        Self {
            perplexity: Some(measured.loss.perplexity()),
            kl_divergence: Some(measured.loss.kl_divergence()),
            same_top: Some(measured.loss.same_top()),
            ..Self::of_size(&measured.removed, value, holds)
        }
    }

    /// Of a set of which only the figure is known.
    #[must_use]
    pub fn of_size(removed: &Removed, value: Figure, holds: Option<bool>) -> Self {
        Self {
            removed: numbers(removed),
            value,
            holds,
            perplexity: None,
            kl_divergence: None,
            same_top: None,
        }
    }
}

impl From<Draft> for DraftReport {
    fn from(draft: Draft) -> Self {
        Self {
            acceptance: draft.acceptance,
            cost_ratio: draft.cost_ratio,
            tokens: draft.n_tokens,
            speed_up: draft.speed_up,
        }
    }
}

impl TaskReport {
    /// Of `loss` beside the parent's, in tasks of the file `source`; `found` is the first as accuracy.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn new(
        source: String,
        loss: &TaskLoss,
        parent: &TaskLoss,
        found: &Accuracy,
        models: u64,
    ) -> Self {
        Self {
            source,
            tasks: loss.n_tasks,
            cross_entropy: loss.mean(),
            parent_cross_entropy: parent.mean(),
            accuracy: found.share.mean,
            accuracy_stderr: found.share.stderr,
            parent_accuracy: parent.n_correct as f64 / parent.n_tasks.max(1) as f64,
            chance: found.chance,
            models,
        }
    }
}

/// The numbers of `blocks`.
#[must_use]
pub fn numbers(blocks: &Removed) -> Vec<usize> {
    blocks.iter().map(|block| block.index()).collect()
}

/// `block 3`, or `blocks 3-5`.
#[must_use]
pub fn named(blocks: &[usize]) -> String {
    match blocks {
        [block] => format!("block {block}"),
        blocks => format!("blocks {}", block_list(blocks)),
    }
}

/// A goal on one line.
pub(super) fn line(goal: &GoalReport) -> String {
    let value = figure(goal.value);
    let Some(limit) = goal.limit else {
        return String::new();
    };
    let limit = figure(limit);
    let broken = goal.steps.iter().find(|step| step.holds == Some(false));
    match (goal.goal, broken) {
        ("target-size", _) => format!("at most {limit} bytes: {value}"),
        (flag, broken) => {
            let what = if flag == "max-ppl" {
                "perplexity"
            } else {
                "KL divergence"
            };
            let next = match broken {
                Some(step) => format!(
                    "; without {} it would be {}",
                    named(&step.removed),
                    figure(step.value)
                ),
                None => ", and no more blocks may go".to_owned(),
            };
            format!("{what} at most {limit}: {value}{next}")
        }
    }
}

/// A draft model's worth on one line.
pub(super) fn draft_line(draft: &DraftReport) -> String {
    let verdict = if draft.speed_up < 1.0 {
        ": slower than the model alone, so no set that was tried is worth it"
    } else {
        ""
    };
    format!(
        "computed: {:.1} % of its tokens taken, {:.1} % of the model's bytes for each; with {} at a time decoding is {:.2} \
         times as fast{verdict}",
        draft.acceptance * 100.0,
        draft.cost_ratio * 100.0,
        draft.tokens,
        draft.speed_up
    )
}

/// Tasks on one line.
pub(super) fn task_line(tasks: &TaskReport) -> String {
    format!(
        "{} of {}: cross entropy {:.4} (whole model {:.4}), {:.1} % right (whole model {:.1} %, guessing {:.1} %)",
        HumanCount(tasks.tasks),
        tasks.source,
        tasks.cross_entropy,
        tasks.parent_cross_entropy,
        tasks.accuracy * 100.0,
        tasks.parent_accuracy * 100.0,
        tasks.chance * 100.0
    )
}

/// A figure with as many digits as one reads.
#[must_use]
pub fn figure(figure: Figure) -> String {
    match figure {
        Figure::Bytes(n_bytes) => HumanCount(n_bytes).to_string(),
        Figure::Number(number) => format!("{number:.4}"),
    }
}
