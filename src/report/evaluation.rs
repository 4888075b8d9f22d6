//! What an evaluation found, as JSON and as a screen for a person.

use std::fmt::Write as _;
use std::path::Path;

use indicatif::HumanCount;
use serde::Serialize;

use super::{CalibrationReport, ModelReport, table};
use crate::evaluator::Speed;
use crate::quality::choice::Accuracy;
use crate::quality::divergence::Divergence;
use crate::quality::measure::Quality;

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
    /// Share of tokens behind which both hold the same token to be the likeliest.
    pub same_top: Option<f64>,
    /// Its standard error.
    pub same_top_stderr: Option<f64>,
    /// Change of the correct token's probability.
    pub probability_change: Option<ChangeReport>,
    /// Normalised accuracy on HellaSwag.
    pub hellaswag: Option<AccuracyReport>,
    /// Normalised accuracy on multiple-choice tasks.
    pub multiple_choice: Option<AccuracyReport>,
    /// How fast the model is.
    pub tokens_per_second: SpeedReport,
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
        speed: Speed,
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
            tokens_per_second: speed.into(),
            parent_tokens_per_second: None,
        }
    }
}

impl From<Speed> for SpeedReport {
    fn from(speed: Speed) -> Self {
        Self {
            prompt: speed.prompt,
            decode: speed.decode,
        }
    }
}

impl KlReport {
    /// That of a model from itself.
    pub(super) const NONE: Self = Self {
        mean: 0.0,
        mean_stderr: Some(0.0),
        median: 0.0,
        p90: 0.0,
        p99: 0.0,
        max: 0.0,
    };

    pub(super) fn new(found: &Divergence) -> Self {
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

/// The result on one screen.
#[must_use]
pub fn screen(report: &EvalReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    line("model", table::model(&report.model));
    if let Some(parent) = &report.parent {
        line("parent", table::model(parent));
    }
    line("text", table::calibrated(&report.calibration));
    line(
        "scored",
        format!(
            "{} tokens, those of the second half of each window",
            HumanCount(report.tokens_scored as u64)
        ),
    );
    line(
        "perplexity",
        measured(report.perplexity, report.perplexity_stderr, 4, ""),
    );
    if let Some(parent) = report.parent_perplexity {
        line(
            "  parent's",
            measured(parent, report.parent_perplexity_stderr, 4, ""),
        );
    }
    if let Some(ratio) = report.log_perplexity_ratio.map(f64::exp) {
        let stderr = report
            .log_perplexity_ratio_stderr
            .map(|stderr| stderr * ratio);
        line("  ratio", measured(ratio, stderr, 4, ""));
    }
    if let Some(kl) = &report.kl_divergence {
        line("KL divergence", measured(kl.mean, kl.mean_stderr, 5, ""));
        line(
            "",
            format!(
                "median {:.5}, 90 % {:.5}, 99 % {:.5}, max. {:.5}",
                kl.median, kl.p90, kl.p99, kl.max
            ),
        );
    }
    if let Some(same) = report.same_top {
        line("same top token", percent(same, report.same_top_stderr));
    }
    if let Some(change) = &report.probability_change {
        line(
            "correct token",
            format!(
                "probability changed by {}, root mean square {}",
                percent(change.mean, change.mean_stderr),
                percent(change.rms, change.rms_stderr)
            ),
        );
    }
    if let Some(tasks) = &report.hellaswag {
        line("HellaSwag", accuracy(tasks));
    }
    if let Some(tasks) = &report.multiple_choice {
        line("multiple choice", accuracy(tasks));
    }
    let speed = report.tokens_per_second;
    line(
        "speed",
        format!(
            "prompt {:.1} tokens/s, decoding {:.1} tokens/s, {} {}",
            speed.prompt,
            speed.decode,
            report.threads,
            if report.threads == 1 {
                "thread"
            } else {
                "threads"
            }
        ),
    );
    text
}

/// A value with its standard error, if there is one.
fn measured(value: f64, stderr: Option<f64>, digits: usize, unit: &str) -> String {
    let stderr = stderr.map_or(String::new(), |stderr| format!(" \u{b1} {stderr:.digits$}"));
    format!("{value:.digits$}{stderr}{unit}")
}

fn percent(share: f64, stderr: Option<f64>) -> String {
    measured(100.0 * share, stderr.map(|stderr| 100.0 * stderr), 2, " %")
}

fn accuracy(tasks: &AccuracyReport) -> String {
    format!(
        "{}, {} of {} right, by guessing {:.2} %, {:.1} s",
        percent(tasks.accuracy, tasks.accuracy_stderr),
        HumanCount(tasks.correct as u64),
        HumanCount(tasks.tasks as u64),
        100.0 * tasks.chance,
        tasks.seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_shown_where_they_are_known() {
        assert_eq!(measured(1.0, Some(0.25), 2, ""), "1.00 \u{b1} 0.25");
        assert_eq!(measured(1.0, None, 2, " x"), "1.00 x");
        assert_eq!(percent(0.125, Some(0.01)), "12.50 \u{b1} 1.00 %");
    }
}
