//! How blocks were chosen, in a result.

use crate::choose::search::draft::Draft;
use crate::choose::search::{Goal, Measured};
use crate::engine::outcome::CalibrationReport;
use crate::measure::importance::{BlockScores, Importance, Metric};
use crate::measure::loss::{Loss, Objective, TaskLoss};
use crate::measure::mean::Mean;
use crate::measure::quality::choice::Accuracy;
use crate::model::BlockId;
use crate::model::block::block_list;
use crate::model::block::{BlockSet, numbers};
use indicatif::HumanCount;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The measurements of a search.
#[derive(Clone, Debug, Serialize)]
pub struct SearchReport {
    /// Its objective: `kl`, `ppl`, `task` or `draft`. Null where scores chose the sets that were measured.
    pub objective: Option<String>,
    /// How sets were evaluated: block by block (`segments`), or each as a whole model (`whole`).
    pub evaluated: &'static str,
    /// Evaluations of one block on one window, but for those of tasks.
    pub block_evaluations: u64,
    /// Losses that an interrupted run had measured.
    pub resumed_losses: u64,
    /// Time of all of it.
    pub seconds: f64,
    /// Of the chosen set, on the calibration text.
    pub perplexity: f64,
    /// Of the whole model.
    pub parent_perplexity: f64,
    /// Of the chosen set's predictions from the whole model's, in nats.
    pub kl_divergence: f64,
    /// Share of tokens whose likeliest successor is the whole model's.
    pub same_top: f64,
    /// How it does in tasks; null unless they were the objective.
    pub task: Option<TaskReport>,
    /// Its worth as a draft model; null unless that was the objective.
    pub draft: Option<DraftReport>,
}

impl SearchReport {
    /// Of a search that ended with `chosen`.
    #[must_use]
    pub fn new(
        objective: Option<Objective>,
        evaluated: &'static str,
        block_evaluations: u64,
        seconds: f64,
        chosen: &Measured,
    ) -> Self {
        let loss = &chosen.loss;
        Self {
            objective: objective.map(|objective| objective.to_string()),
            evaluated,
            block_evaluations,
            resumed_losses: 0,
            seconds,
            perplexity: loss.perplexity(),
            parent_perplexity: loss.parent_perplexity(),
            kl_divergence: loss.kl_divergence(),
            same_top: loss.same_top(),
            task: None,
            draft: None,
        }
    }
}

/// The sets that method `auto` compared.
#[derive(Clone, Debug, Serialize)]
pub struct AutoReport {
    /// Windows that they were measured on; 0 where nothing was measured.
    pub windows: usize,
    /// Those also scored, as the text has too few others.
    pub seen_windows: usize,
    /// Tokens of those.
    pub tokens: usize,
    /// As of a search; null where nothing was measured.
    pub evaluated: Option<&'static str>,
    /// Evaluations of one block on one window.
    pub block_evaluations: u64,
    /// Time of all of it, without loading the model.
    pub seconds: f64,
    /// Why nothing could be measured, so that `bi` chose; null otherwise.
    pub fallback: Option<String>,
    /// The different sets. Empty where no others than that of `bi` were looked for.
    pub candidates: Vec<CandidateReport>,
}

/// The cost of a set of blocks or experts, as measured. All null if it was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SetCost {
    /// Mean KL divergence from the whole model's predictions, in nats.
    pub kl_divergence: Option<f64>,
    /// Its standard error over windows; null of a single window.
    pub kl_divergence_stderr: Option<f64>,
    /// Perplexity on the same windows.
    pub perplexity: Option<f64>,
    /// Share of tokens whose likeliest successor is the whole model's.
    pub same_top: Option<f64>,
}

impl SetCost {
    /// The order by KL divergence. A set that was not measured costs nothing.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        let kl = |cost: &Self| cost.kl_divergence.unwrap_or(0.0);
        kl(self).total_cmp(&kl(other))
    }

    /// Of the losses of its windows.
    pub(super) fn of(losses: &[Loss]) -> Self {
        let kl = Mean::of(&losses.iter().map(Loss::kl_divergence).collect::<Vec<f64>>());
        let sum: Loss = losses.iter().copied().sum();
        Self {
            kl_divergence: Some(kl.mean),
            kl_divergence_stderr: kl.stderr,
            perplexity: Some(sum.perplexity()),
            same_top: Some(sum.same_top()),
        }
    }
}

/// A set of blocks that one method names, or several.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateReport {
    /// The methods.
    pub methods: Vec<String>,
    /// The blocks.
    pub removed: Vec<usize>,
    /// Its cost, in fields of its own.
    #[serde(flatten)]
    pub cost: SetCost,
    /// Whether it is the one.
    pub chosen: bool,
}

impl AutoReport {
    /// Of a choice by `bi` alone.
    #[must_use]
    pub fn fallen_back(why: String) -> Self {
        Self {
            windows: 0,
            seen_windows: 0,
            tokens: 0,
            evaluated: None,
            block_evaluations: 0,
            seconds: 0.0,
            fallback: Some(why),
            candidates: Vec::new(),
        }
    }
}

/// The sets of experts that `auto` compared.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertsAutoReport {
    /// Windows that they were measured on; 0 where nothing was measured.
    pub windows: usize,
    /// Those among them that were scored. The text had too few others.
    pub seen_windows: usize,
    /// Tokens of those.
    pub tokens: usize,
    /// Evaluations of one block on one window; of several shares of experts those of all.
    pub block_evaluations: u64,
    /// Time of all of it, without loading the model.
    pub seconds: f64,
    /// Why nothing could be measured, so that `reap` chose; null otherwise.
    pub fallback: Option<String>,
    /// The different sets.
    pub candidates: Vec<ExpertCandidateReport>,
}

/// A set of experts that one score names, or several.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertCandidateReport {
    /// The scores.
    pub methods: Vec<String>,
    /// The input's numbers of those that would stay, by block.
    pub kept: BTreeMap<usize, Vec<usize>>,
    /// Its cost, in fields of its own.
    #[serde(flatten)]
    pub cost: SetCost,
    /// Whether it is the one.
    pub chosen: bool,
}

/// How alike the stream's hidden states at any two positions are.
#[derive(Clone, Debug, Serialize)]
pub struct PairsReport {
    /// The mean cosine over tokens, `[n_blocks + 1, n_blocks + 1]`. Position 0 is what enters block 0, position `i + 1` what
    /// leaves block `i`. Null where a state is all zeros for every token.
    pub cosine: Vec<Vec<Option<f64>>>,
}

/// One block of the input.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BlockReport {
    /// Its number.
    pub block: usize,
    /// Its scores, each with its standard error over windows. Null where it has none.
    #[serde(flatten, serialize_with = "of_block")]
    pub scores: Option<BlockScores>,
    /// Those of its attention alone, or what it has instead. Null unless the halves were scored.
    #[serde(flatten, serialize_with = "of_attention")]
    pub attention: Option<BlockScores>,
    /// Those of its feed-forward network alone; null unless the halves were scored.
    #[serde(flatten, serialize_with = "of_ffn")]
    pub ffn: Option<BlockScores>,
    /// Its place in the order of LoRP, from 0. Null unless that is the method.
    pub lorp: Option<f64>,
    /// Its rank by the method's scores, from 1 for the lowest. Null where there are none.
    pub rank: Option<usize>,
    /// The lowest rank that it may have among texts of this kind. Null of a single window.
    pub rank_low: Option<usize>,
    /// The highest.
    pub rank_high: Option<usize>,
    /// Whether another text of this kind might decide otherwise on it. Null where no set was chosen by scores, or by those
    /// of a single window.
    pub tied: Option<bool>,
    /// KL divergence from the whole model without this block alone, in nats. Null if it was not measured, or the block may
    /// not go alone.
    pub ablate_kl: Option<f64>,
    /// Perplexity without this block alone.
    pub ablate_perplexity: Option<f64>,
    /// Whether it is removed.
    pub removed: bool,
    /// Whether it stays without its attention.
    pub attention_removed: bool,
}

fn of_block<S: Serializer>(scores: &Option<BlockScores>, serializer: S) -> Result<S::Ok, S::Error> {
    by_name("", *scores, serializer)
}

fn of_attention<S: Serializer>(scores: &Option<BlockScores>, serializer: S) -> Result<S::Ok, S::Error> {
    by_name("attention_", *scores, serializer)
}

fn of_ffn<S: Serializer>(scores: &Option<BlockScores>, serializer: S) -> Result<S::Ok, S::Error> {
    by_name("ffn_", *scores, serializer)
}

/// Two fields for each metric: the mean and its standard error.
fn by_name<S: Serializer>(part: &str, scores: Option<BlockScores>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut fields = serializer.serialize_map(None)?;
    for metric in Metric::ALL {
        let (score, key) = (scores.map(|scores| scores[metric]), format!("{part}{}", metric.key()));
        fields.serialize_entry(&key, &score.map(|score| score.mean))?;
        fields.serialize_entry(&format!("{key}_stderr"), &score.and_then(|score| score.stderr))?;
    }
    fields.end()
}

/// One row for each of `n_blocks` blocks.
#[must_use]
pub fn block_rows(
    n_blocks: usize,
    importance: Option<&Importance>,
    removed: &BlockSet,
    attention_removed: &BlockSet,
) -> Vec<BlockReport> {
    (0..n_blocks)
        .map(|block| {
            // Blocks after the evaluated ones (prediction blocks) have no score.
            let scores = importance.and_then(|importance| importance.blocks.get(block));
            let halves = scores.and_then(|scores| scores.halves);
            BlockReport {
                block,
                scores: scores.map(|scores| scores.scores),
                attention: halves.map(|halves| halves.attention),
                ffn: halves.map(|halves| halves.ffn),
                lorp: importance.and_then(|importance| importance.lorp.as_ref()?.get(block).copied()),
                rank: None,
                rank_low: None,
                rank_high: None,
                tied: None,
                ablate_kl: None,
                ablate_perplexity: None,
                removed: removed.contains(&BlockId::new(block)),
                attention_removed: attention_removed.contains(&BlockId::new(block)),
            }
        })
        .collect()
}

/// A goal, and how it was reached.
#[derive(Clone, Debug, Serialize)]
pub struct GoalReport {
    /// The flag: `target-size`, `max-ppl`, `max-kl`, or `draft` for the objective of that name.
    pub goal: &'static str,
    /// The value of the flag, such as `+10%`. Null for a draft model.
    pub given: Option<String>,
    /// The most that the figure may be: bytes, perplexity, or nats. Null for a draft model.
    pub limit: Option<Figure>,
    /// The figure of the output: bytes, perplexity, nats, or the expected speed-up.
    pub value: Figure,
    /// Every set on the way, in order.
    pub steps: Vec<StepReport>,
}

/// A set on the way to a goal.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The blocks that would be removed.
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

/// The computed worth of the output as its parent's draft model.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DraftReport {
    /// The share of its tokens that the parent takes. That of tokens whose likeliest successor is the parent's.
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
        let figure = |measured: &Measured| goal.figure(measured).map_or((f64::NAN, f64::NAN), |found| found);
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

    /// Of a size. `steps` are sets with the bytes of their output, the last of which is the first that is small enough.
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
    pub fn of_size(removed: &BlockSet, value: Figure, holds: Option<bool>) -> Self {
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
    /// Of `loss` beside the parent's, in tasks of the file `source`. `found` is the first as accuracy.
    #[must_use]
    pub fn new(source: String, loss: &TaskLoss, parent: &TaskLoss, found: &Accuracy, models: u64) -> Self {
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

/// How the blocks of the rows of fewer blocks were chosen.
#[derive(Clone, Debug, Serialize)]
pub struct ChoiceReport {
    /// As in the main job.
    pub method: String,
    /// The objective of a method that measures losses; null for others.
    pub objective: Option<String>,
    /// The text; null for a method that needs none.
    pub calibration: Option<CalibrationReport>,
    /// Share of scored tokens that the choice has seen, 0 to 1.
    pub seen_share: f64,
    /// By which score those of fewer experts were chosen; null if there are none.
    pub experts_by: Option<String>,
}

/// `block 3`, or `blocks 3-5`.
#[must_use]
pub fn named(blocks: &[usize]) -> String {
    match blocks {
        [block] => format!("block {block}"),
        blocks => format!("blocks {}", block_list(blocks)),
    }
}

/// A figure with as many digits as one reads.
#[must_use]
pub fn figure(figure: Figure) -> String {
    match figure {
        Figure::Bytes(n_bytes) => HumanCount(n_bytes).to_string(),
        Figure::Number(number) => format!("{number:.4}"),
    }
}
