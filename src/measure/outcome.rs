//! The quality of a model, in a result.

use crate::engine::logits::Speed;
use crate::engine::outcome::CalibrationReport;
use crate::measure::quality::choice::Accuracy;
use crate::measure::quality::divergence::Divergence;
use crate::measure::quality::measure::Quality;
use crate::model::outcome::ModelReport;
use serde::Serialize;
use std::path::Path;

/// The result of `eval`. Its fields are the JSON contract: unknown values are null, never left out.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// Version of this program.
    pub gguf_shorten: &'static str,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: &'static str,
    /// The command line, without the program's name; empty where there was none.
    pub arguments: Vec<String>,
    /// The model.
    pub model: ModelReport,
    /// What it is compared with; null if it is not.
    pub parent: Option<ModelReport>,
    /// The text that is scored. Its time is that of the evaluation of all windows, with the parent too if there is one.
    pub calibration: CalibrationReport,
    /// CPU threads.
    pub threads: usize,
    /// Perplexity.
    pub perplexity: f64,
    /// Its standard error; null for a single token.
    pub perplexity_stderr: Option<f64>,
    /// Tokens scored.
    pub tokens_scored: usize,
    /// The parent's perplexity.
    pub parent_perplexity: Option<f64>,
    /// Its standard error.
    pub parent_perplexity_stderr: Option<f64>,
    /// `ln(perplexity / parent_perplexity)`.
    pub log_perplexity_ratio: Option<f64>,
    /// Its standard error, of paired tokens.
    pub log_perplexity_ratio_stderr: Option<f64>,
    /// Of the parent's predictions and the model's.
    pub kl_divergence: Option<KlReport>,
    /// Share of tokens after which both have the same likeliest token.
    pub same_top: Option<f64>,
    /// Its standard error.
    pub same_top_stderr: Option<f64>,
    /// Change of the correct token's probability.
    pub probability_change: Option<ChangeReport>,
    /// Normalised accuracy on HellaSwag.
    pub hellaswag: Option<AccuracyReport>,
    /// Normalised accuracy on multiple-choice tasks.
    pub multiple_choice: Option<AccuracyReport>,
    /// How fast the model is. Null where it was evaluated block by block.
    pub tokens_per_second: Option<SpeedReport>,
    /// How fast the parent is; null unless that was measured beside it.
    pub parent_tokens_per_second: Option<SpeedReport>,
}

/// `KL(parent || model)` in nats, over tokens.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KlReport {
    /// Mean.
    pub mean: f64,
    /// Its standard error.
    pub mean_stderr: Option<f64>,
    /// Median.
    pub median: f64,
    /// What 90 % of tokens do not exceed.
    pub p90: f64,
    /// What 99 % of tokens do not exceed.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Change of the correct token's probability, over tokens: 0.01 is one percent more.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ChangeReport {
    /// Mean.
    pub mean: f64,
    /// Its standard error.
    pub mean_stderr: Option<f64>,
    /// Root of the mean square.
    pub rms: f64,
    /// Its standard error.
    pub rms_stderr: Option<f64>,
}

/// Tasks of one file.
#[derive(Clone, Debug, Serialize)]
pub struct AccuracyReport {
    /// The file.
    pub source: String,
    /// Tasks done, from its start.
    pub tasks: usize,
    /// Those that the model gets right.
    pub correct: usize,
    /// Their share.
    pub accuracy: f64,
    /// Its standard error.
    pub accuracy_stderr: Option<f64>,
    /// The share that guessing gets right on average.
    pub chance: f64,
    /// Time of the evaluation.
    pub seconds: f64,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpeedReport {
    /// Of a prompt of one window.
    pub prompt: f64,
    /// One after another.
    pub decode: f64,
}

impl EvalReport {
    /// Of a measured `quality`, without tasks.
    #[must_use]
    pub fn new(
        model: ModelReport,
        parent: Option<ModelReport>,
        calibration: CalibrationReport,
        quality: &Quality,
        speed: Option<Speed>,
        threads: usize,
    ) -> Self {
        let divergence = quality.divergence.as_ref();
        Self {
            gguf_shorten: env!("CARGO_PKG_VERSION"),
            llama_cpp: ggml::backend::llama_cpp_version(),
            arguments: Vec::new(),
            model,
            parent,
            calibration,
            threads,
            perplexity: quality.perplexity.value,
            perplexity_stderr: quality.perplexity.stderr,
            tokens_scored: quality.perplexity.n_tokens,
            parent_perplexity: divergence.map(|found| found.parent.value),
            parent_perplexity_stderr: divergence.and_then(|found| found.parent.stderr),
            log_perplexity_ratio: divergence.map(|found| found.log_ratio.mean),
            log_perplexity_ratio_stderr: divergence.and_then(|found| found.log_ratio.stderr),
            kl_divergence: divergence.map(KlReport::new),
            same_top: divergence.map(|found| found.same_top.mean),
            same_top_stderr: divergence.and_then(|found| found.same_top.stderr),
            probability_change: divergence.map(ChangeReport::new),
            hellaswag: None,
            multiple_choice: None,
            tokens_per_second: speed.map(Into::into),
            parent_tokens_per_second: None,
        }
    }
}

impl From<Speed> for SpeedReport {
    fn from(speed: Speed) -> Self {
        Self { prompt: speed.prompt, decode: speed.decode }
    }
}

impl KlReport {
    /// That of a model from itself.
    pub(crate) const NONE: Self =
        Self { mean: 0.0, mean_stderr: Some(0.0), median: 0.0, p90: 0.0, p99: 0.0, max: 0.0 };

    pub(crate) fn new(found: &Divergence) -> Self {
        Self {
            mean: found.kl.mean,
            mean_stderr: found.kl.stderr,
            median: found.kl_median,
            p90: found.kl_p90,
            p99: found.kl_p99,
            max: found.kl_max,
        }
    }
}

impl ChangeReport {
    fn new(found: &Divergence) -> Self {
        Self {
            mean: found.probability_change.mean,
            mean_stderr: found.probability_change.stderr,
            rms: found.probability_change_rms.mean,
            rms_stderr: found.probability_change_rms.stderr,
        }
    }
}

impl AccuracyReport {
    /// Of tasks from the file at `path` that took `seconds`.
    #[must_use]
    pub fn new(path: &Path, accuracy: &Accuracy, seconds: f64) -> Self {
        Self {
            source: path.display().to_string(),
            tasks: accuracy.n_tasks,
            correct: accuracy.n_correct,
            accuracy: accuracy.share.mean,
            accuracy_stderr: accuracy.share.stderr,
            chance: accuracy.chance,
            seconds,
        }
    }
}
