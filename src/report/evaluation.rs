//! What an evaluation found, as JSON and as text.

use super::lines;
use crate::measure::outcome::AccuracyReport;
use crate::measure::outcome::EvalReport;
use indicatif::HumanCount;
use std::fmt::Write as _;

/// The result on one screen.
#[must_use]
pub fn screen(report: &EvalReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {value}");
    };
    line("model", lines::model(&report.model));
    if let Some(parent) = &report.parent {
        line("parent", lines::model(parent));
    }
    line("text", lines::calibrated(&report.calibration));
    line(
        "scored",
        format!(
            "{} tokens, those of the second half of each window",
            HumanCount(report.tokens_scored as u64)
        ),
    );
    line("perplexity", measured(report.perplexity, report.perplexity_stderr, 4, ""));
    if let Some(parent) = report.parent_perplexity {
        line("  parent's", measured(parent, report.parent_perplexity_stderr, 4, ""));
    }
    if let Some(ratio) = report.log_perplexity_ratio.map(f64::exp) {
        let stderr = report.log_perplexity_ratio_stderr.map(|stderr| stderr * ratio);
        line("  ratio", measured(ratio, stderr, 4, ""));
    }
    if let Some(kl) = &report.kl_divergence {
        line("KL divergence", measured(kl.mean, kl.mean_stderr, 5, ""));
        line(
            "",
            format!("median {:.5}, 90 % {:.5}, 99 % {:.5}, max. {:.5}", kl.median, kl.p90, kl.p99, kl.max),
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
    if let Some(speed) = report.tokens_per_second {
        let threads = if report.threads == 1 { "thread" } else { "threads" };
        let (prompt, decode) = (speed.prompt, speed.decode);
        let speed = format!(
            "prompt {prompt:.1} tokens/s, decoding {decode:.1} tokens/s, {} {threads}",
            report.threads
        );
        line("speed", speed);
    }
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
