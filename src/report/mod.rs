//! What a run found and did, as rows ready to print. Pure: from results to text.

pub mod table;

pub mod verification;

pub mod evaluation;

pub mod stability;

pub mod batch;
pub mod comparison;

pub mod goal;

pub mod healing;

use evaluation::EvalReport;
use serde::Serialize;

use crate::calibration::CalibrationSet;
use crate::importance::Importance;
use crate::input::Input;
use crate::model::{BlockId, Model};
use crate::plan::{ChangeKind, TensorChange};
use crate::restate::Restated;
use crate::search::{Measured, Objective};
use goal::{DraftReport, GoalReport, TaskReport};
use stability::{AblateReport, AgainstReport, ConfidenceReport};
use std::collections::BTreeSet;
use std::path::Path;

pub use healing::HealReport;

/// The result of one model. Its fields are the JSON contract: unknown values are null, never left out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub gguf_shorten: &'static str,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: &'static str,
    /// The command line, without the program's name; empty where there was none.
    pub arguments: Vec<String>,
    /// The input.
    pub model: ModelReport,
    /// How scores were measured; null if they were not.
    pub calibration: Option<CalibrationReport>,
    /// How blocks were chosen.
    pub method: String,
    /// What was measured to choose them; null where scores of a single pass or a list chose.
    pub search: Option<SearchReport>,
    /// What decided how many blocks go; null where their number or a list was given.
    pub goal: Option<GoalReport>,
    /// What makes up for the removed blocks; null where nothing was to.
    pub heal: Option<HealReport>,
    /// How sure the choice is; null where no scores were measured.
    pub confidence: Option<ConfidenceReport>,
    /// The same scores on another text; null if none was given.
    pub against: Option<AgainstReport>,
    /// What each block alone costs; null if that was not measured.
    pub ablate: Option<AblateReport>,
    /// Every block of the input, first to last.
    pub blocks: Vec<BlockReport>,
    /// The blocks that go, in the input's numbering.
    pub removed: Vec<usize>,
    /// The blocks that stay but lose their attention, in the input's numbering.
    pub attention_removed: Vec<usize>,
    /// How those were chosen; null if there are none.
    pub attention_method: Option<String>,
    /// How alike hidden states are; null unless that was asked for.
    pub pairs: Option<PairsReport>,
    /// What was written; of a command that writes nothing, not there at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputReport>,
    /// What was measured of the output for its card; null without one, or where it could not be measured.
    pub evaluation: Option<EvalReport>,
}

/// The input.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Where it is; of a split model, its first part.
    pub path: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Number of blocks.
    pub block_count: usize,
    /// How many of them, the last, are for multi-token prediction.
    pub prediction_block_count: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Hash of all bytes; null where no command needed it.
    pub blake3: Option<String>,
    /// How a file in a layout of Ollama's own is read; null of any other.
    pub layout: Option<LayoutReport>,
}

/// How a file in a layout of Ollama's own is read.
#[derive(Clone, Debug, Serialize)]
pub struct LayoutReport {
    /// `general.architecture` of the file.
    pub found: &'static str,
    /// `general.architecture` under which its text part is read.
    pub read_as: &'static str,
    /// Tensors that are not of the text part.
    pub tensors_left_out: usize,
    /// Their bytes.
    pub bytes_left_out: u64,
}

/// How scores were measured.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationReport {
    /// `built-in`, the files, or `self` for what the model wrote.
    pub source: String,
    /// Of what the model wrote, the number that chose it; null of other text.
    pub seed: Option<u64>,
    /// Hash of the text; of what the model wrote, of its tokens.
    pub blake3: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens of all windows.
    pub tokens: usize,
    /// Whether every window begins with the model's BOS token.
    pub bos: bool,
    /// Time of the evaluation, without loading the model; of scores from the cache, what it took then.
    pub seconds: f64,
    /// Whether the scores were in the cache, so that nothing was evaluated.
    pub cached: bool,
    /// The hash by which the model was looked up there.
    #[serde(skip)]
    pub scored: Option<blake3::Hash>,
}

/// What a search measured.
#[derive(Clone, Debug, Serialize)]
pub struct SearchReport {
    /// What it made small: `kl`, `ppl`, `task` or `draft`; null where scores chose the sets that were measured.
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
    /// What it is worth as a draft model; null unless that was the objective.
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

/// How alike the hidden states at any two positions of the stream are.
#[derive(Clone, Debug, Serialize)]
pub struct PairsReport {
    /// The mean cosine over tokens, `[n_blocks + 1, n_blocks + 1]`: position 0 is what enters block 0, position `i + 1` what
    /// leaves block `i`. Null where a state is all zeros for every token.
    pub cosine: Vec<Vec<Option<f64>>>,
}

/// One block of the input.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BlockReport {
    /// Its number.
    pub block: usize,
    /// Block Influence.
    pub bi: Option<f64>,
    /// Its standard error over windows.
    pub bi_stderr: Option<f64>,
    /// Relative Magnitude.
    pub relative_magnitude: Option<f64>,
    /// Its standard error over windows.
    pub relative_magnitude_stderr: Option<f64>,
    /// Block Influence of its attention alone, or of what it has in its place; null unless the halves were scored.
    pub attention_bi: Option<f64>,
    /// Its standard error over windows.
    pub attention_bi_stderr: Option<f64>,
    /// Relative Magnitude of its attention alone.
    pub attention_relative_magnitude: Option<f64>,
    /// Its standard error over windows.
    pub attention_relative_magnitude_stderr: Option<f64>,
    /// Block Influence of its feed-forward network alone; null unless the halves were scored.
    pub ffn_bi: Option<f64>,
    /// Its standard error over windows.
    pub ffn_bi_stderr: Option<f64>,
    /// Relative Magnitude of its feed-forward network alone.
    pub ffn_relative_magnitude: Option<f64>,
    /// Its standard error over windows.
    pub ffn_relative_magnitude_stderr: Option<f64>,
    /// Its place by the scores that the method goes by, from 1 for the lowest; null where there are none.
    pub rank: Option<usize>,
    /// The lowest rank that it may have among texts of this kind; null of a single window.
    pub rank_low: Option<usize>,
    /// The highest.
    pub rank_high: Option<usize>,
    /// Whether another text of this kind might move it into the set or out of it; null where no set was chosen by scores,
    /// or by those of a single window.
    pub tied: Option<bool>,
    /// KL divergence from the whole model's predictions without this block alone, in nats; null if it was not measured, or
    /// the block may not go alone.
    pub ablate_kl: Option<f64>,
    /// Perplexity without this block alone.
    pub ablate_perplexity: Option<f64>,
    /// Whether it goes.
    pub removed: bool,
    /// Whether it stays without its attention.
    pub attention_removed: bool,
}

/// The output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputReport {
    /// Where it is; of a split model, its first part; null in a dry run without a place.
    pub path: Option<String>,
    /// Number of blocks.
    pub block_count: usize,
    /// `general.architecture`: the input's, unless blocks lost their attention.
    pub architecture: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Hash of all bytes, part after part; null in a dry run.
    pub blake3: Option<String>,
    /// Time of writing; null in a dry run.
    pub seconds: Option<f64>,
    /// Its files in order: one, or all parts of a split model.
    pub parts: Vec<PartReport>,
    /// The importance matrix that was renumbered with it; null if none was asked for.
    pub imatrix: Option<ImatrixReport>,
    /// The model of Ollama's that was made of it; null if none was asked for.
    pub ollama: Option<OllamaReport>,
    /// Tensors that are not the input's with all their bytes.
    pub changes: Vec<TensorChange>,
    /// What a user should know of its metadata.
    pub notes: Vec<String>,
}

/// A model of Ollama's.
#[derive(Clone, Debug, Serialize)]
pub struct OllamaReport {
    /// Its name.
    pub name: String,
    /// What it is made from.
    pub modelfile: String,
    /// Whether it was made; else there is no `ollama` here, or it was a dry run.
    pub created: bool,
}

/// A renumbered importance matrix.
#[derive(Clone, Debug, Serialize)]
pub struct ImatrixReport {
    /// Where it is.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Weights that it has values for.
    pub entries: usize,
    /// Weights of removed blocks, whose values are left out.
    pub removed: usize,
}

/// One file of the output.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Where it is; null in a dry run without a place.
    pub path: Option<String>,
    /// Its bytes.
    pub bytes: u64,
}

impl ModelReport {
    /// Of `model`, at `path`.
    #[must_use]
    pub fn new(model: &Model<'_>, path: &Path, blake3: Option<blake3::Hash>) -> Self {
        Self {
            path: path.display().to_string(),
            architecture: model.architecture().to_owned(),
            block_count: model.n_blocks(),
            prediction_block_count: model.prediction_blocks().count(),
            bytes: model.n_bytes(),
            parameters: model.n_parameters(),
            blake3: blake3.map(|hash| hash.to_hex().to_string()),
            layout: None,
        }
    }

    /// Of `model`, which is what `input` shows.
    #[must_use]
    pub fn of(model: &Model<'_>, input: &Input, blake3: Option<blake3::Hash>) -> Self {
        Self {
            layout: input.restated().map(|restated| LayoutReport {
                found: restated.found,
                read_as: restated.stock,
                tensors_left_out: restated.left_out.len(),
                bytes_left_out: restated.n_bytes_left_out(),
            }),
            ..Self::new(model, input.path(), blake3)
        }
    }
}

/// The tensors of a restated model that are not of its text part.
#[must_use]
pub fn restated_changes(input: &Input) -> Vec<TensorChange> {
    let left_out = |restated: &Restated| {
        let names = restated.left_out.iter();
        names
            .map(|(name, _)| TensorChange {
                tensor: None,
                parent: Some(name.clone()),
                change: ChangeKind::LeftOut,
                why: Restated::WHY_LEFT_OUT.to_owned(),
            })
            .collect()
    };
    input.restated().map_or_else(Vec::new, left_out)
}

impl CalibrationReport {
    /// Of a calibration with `set` that took `seconds`.
    #[must_use]
    pub fn new(set: &CalibrationSet, seconds: f64) -> Self {
        Self {
            source: set.source.to_string(),
            seed: set.source.seed(),
            blake3: set.blake3.to_hex().to_string(),
            windows: set.windows().len(),
            window: set.window,
            tokens: set.n_tokens(),
            bos: set.bos,
            seconds,
            cached: false,
            scored: None,
        }
    }
}

/// One row for each of `n_blocks` blocks.
#[must_use]
pub fn block_rows(
    n_blocks: usize,
    importance: Option<&Importance>,
    removed: &BTreeSet<BlockId>,
    attention_removed: &BTreeSet<BlockId>,
) -> Vec<BlockReport> {
    (0..n_blocks)
        .map(|block| {
            // Blocks behind the evaluated ones (prediction blocks) have no score.
            let scores = importance.and_then(|importance| importance.blocks.get(block));
            let halves = scores.and_then(|scores| scores.halves);
            let attention = halves.map(|halves| halves.attention);
            let ffn = halves.map(|halves| halves.ffn);
            BlockReport {
                block,
                bi: scores.map(|scores| scores.bi),
                bi_stderr: scores.and_then(|scores| scores.bi_stderr),
                relative_magnitude: scores.map(|scores| scores.relative_magnitude),
                relative_magnitude_stderr: scores.and_then(|s| s.relative_magnitude_stderr),
                attention_bi: attention.map(|half| half.bi),
                attention_bi_stderr: attention.and_then(|half| half.bi_stderr),
                attention_relative_magnitude: attention.map(|half| half.relative_magnitude),
                attention_relative_magnitude_stderr: attention
                    .and_then(|half| half.relative_magnitude_stderr),
                ffn_bi: ffn.map(|half| half.bi),
                ffn_bi_stderr: ffn.and_then(|half| half.bi_stderr),
                ffn_relative_magnitude: ffn.map(|half| half.relative_magnitude),
                ffn_relative_magnitude_stderr: ffn.and_then(|half| half.relative_magnitude_stderr),
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

/// `12-15,17` for blocks 12, 13, 14, 15, 17; `none` for no block.
#[must_use]
pub fn block_list(blocks: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &block in blocks {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == block => *end = block,
            _ => ranges.push((block, block)),
        }
    }
    if ranges.is_empty() {
        return "none".to_owned();
    }
    let ranges: Vec<_> = ranges
        .into_iter()
        .map(|(start, end)| match end - start {
            0 => start.to_string(),
            _ => format!("{start}-{end}"),
        })
        .collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests {
    use super::block_list;

    #[test]
    fn block_lists_use_ranges() {
        assert_eq!(block_list(&[12, 13, 14, 15, 17, 25, 26]), "12-15,17,25-26");
        assert_eq!(block_list(&[0]), "0");
        assert_eq!(block_list(&[]), "none");
    }
}
