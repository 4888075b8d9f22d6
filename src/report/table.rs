//! Results as tables for a person.

use super::column::{number, right, table};
use super::lines::{
    Colour, alike, calibrated, changes, chosen, compared, compared_experts, loss, model, removed, written,
};
use super::{Report, goal, stability};
use crate::choose::outcome::BlockReport;
use crate::fit::mixture::MixtureReport;
use crate::measure::importance::{BlockScores, Metric};
use crate::measure::mean::Mean;
use crate::model::block::block_list;
use crate::output::outcome::{MeasuredReport, OutputReport};
use comfy_table::Cell;
use indicatif::DecimalBytes;
use std::fmt::Write as _;

/// Scores of every block, those that go marked, then what was done.
#[must_use]
pub fn report(report: &Report, colour: Colour) -> String {
    let mut text = String::new();
    if report.blocks.iter().any(|block| block.scores.is_some()) {
        let _ = writeln!(text, "{}\n", blocks(report, colour));
    }
    if let Some(fit) = &report.fit {
        text = super::fit::screen(fit, colour);
    }
    let _ = writeln!(text, "model    {}", model(&report.model));
    if let Some(calibration) = &report.calibration {
        let _ = writeln!(text, "measured {}", calibrated(calibration));
    }
    if let (Some(confidence), Some(calibration)) = (&report.confidence, &report.calibration) {
        text.push_str(&stability::sure(confidence, calibration));
    }
    if let Some(against) = &report.against {
        text.push_str(&stability::against(against));
    }
    if let Some(ablate) = &report.ablate {
        text.push_str(&stability::ablated(ablate));
    }
    if let Some(auto) = &report.auto {
        text.push_str(&compared(auto));
    }
    if let Some(search) = &report.search {
        let _ = writeln!(text, "loss     {}", loss(search));
        if let Some(tasks) = &search.task {
            let _ = writeln!(text, "tasks    {}", goal::task_line(tasks));
        }
        if let Some(draft) = &search.draft {
            let _ = writeln!(text, "draft    {}", goal::draft_line(draft));
        }
    }
    if let Some(goal) = report.goal.as_ref().filter(|goal| goal.limit.is_some()) {
        let _ = writeln!(text, "goal     {}", goal::line(goal));
    }
    if let Some(pairs) = &report.pairs {
        text.push_str(&alike(&pairs.cosine));
    }
    if let Some(experts) = report.expert_scores.as_ref().filter(|_| report.output.is_none()) {
        text.push_str(&super::experts::table(experts));
    }
    if let Some(fit) = &report.fit {
        text.push_str(&super::fit::lines(fit));
    }
    if report.output.is_none() && !report.removed.is_empty() {
        let how = chosen(&report.method);
        let _ = writeln!(text, "would go {}", removed(&report.removed, &report.model, &how));
    }
    if let Some(output) = &report.output {
        text.push_str(&written_output(report, output));
    }
    if let Some(matrix) = &report.imatrix_out {
        text.push_str(&measured(matrix));
    }
    text
}

/// The importance matrix that was measured.
fn measured(matrix: &MeasuredReport) -> String {
    let MeasuredReport { path, entries, windows, window, unused_experts, .. } = matrix;
    let bytes = DecimalBytes(matrix.bytes);
    let unused = match unused_experts {
        0 => String::new(),
        n => format!(", without values for {n} matrices of experts, to which no token came"),
    };
    format!("imatrix  {path}: {entries} entries of {windows} x {window} tokens, {bytes}{unused}\n")
}

/// What was removed, healed and written.
fn written_output(report: &Report, output: &OutputReport) -> String {
    let how = chosen(&report.method);
    let is_alone = report.removed.is_empty() && report.attention_removed.is_empty();
    let mut text = match report.fit.is_some() && is_alone {
        true => String::new(),
        false => format!("removed  {}\n", removed(&report.removed, &report.model, &how)),
    };
    if let Some(method) = &report.attention_method {
        let _ = writeln!(
            text,
            "         attention of {} ({} of {} blocks, {}), as architecture {}",
            block_list(&report.attention_removed),
            report.attention_removed.len(),
            report.model.block_count,
            chosen(method),
            output.architecture
        );
    }
    if let Some(experts) = &report.experts {
        let _ = writeln!(text, "experts  {experts} (by {})", experts.method);
        if let Some(auto) = &report.experts_auto {
            text.push_str(&compared_experts(auto));
        }
    }
    if let Some(heal) = &report.heal {
        text.push_str(&super::healing::lines(heal));
    }
    if let Some(MixtureReport { file_type, tensors, imatrix_blake3 }) = &report.requantize {
        let by = if imatrix_blake3.is_some() { ", by the importance matrix" } else { "" };
        let _ = writeln!(text, "types    {file_type}: {tensors} tensors in other types than the input's{by}");
    }
    let _ = writeln!(text, "output   {}", written(output, report.model.bytes));
    text.push_str(&changes(&output.changes));
    if let Some(ollama) = &output.ollama {
        let done = if ollama.created { "" } else { ", not made yet" };
        let _ = writeln!(text, "ollama   {} from {}{done}", ollama.name, ollama.modelfile);
    }
    if let Some(imatrix) = &output.imatrix {
        let _ = writeln!(
            text,
            "imatrix  {}: {} entries, {} of removed blocks left out, {}",
            imatrix.path,
            imatrix.entries,
            imatrix.removed,
            DecimalBytes(imatrix.bytes)
        );
    }
    text
}

/// One row for each block.
fn blocks(report: &Report, colour: Colour) -> String {
    let has_halves = report.blocks.iter().any(|block| block.attention.is_some());
    let has_marks = report.output.is_some() || !report.removed.is_empty();
    let mut head = vec!["block"];
    head.extend(whole_heads("influence"));
    if has_halves {
        head.extend(heads("attention").into_iter().chain(heads("FFN")));
    }
    if report.ablate.is_some() {
        head.extend(["KL alone", "perplexity"]);
    }
    if report.against.is_some() {
        head.extend(whole_heads("against"));
    }
    head.extend(has_marks.then_some(""));
    let rows = report.blocks.iter().map(|block| {
        let mut row = vec![block.block.to_string()];
        row.extend(whole(Some(block)));
        if has_halves {
            row.extend(scores(block.attention).into_iter().chain(scores(block.ffn)));
        }
        if report.ablate.is_some() {
            row.extend([number(block.ablate_kl, 4), number(block.ablate_perplexity, 2)]);
        }
        if let Some(against) = &report.against {
            row.extend(whole(against.blocks.get(block.block)));
        }
        let mut row: Vec<Cell> = row.into_iter().map(right).collect();
        row.extend(has_marks.then(|| Cell::new(mark(report, block))));
        (row, block.removed || block.attention_removed)
    });
    table(head.into_iter().map(right).collect(), rows, colour)
}

/// The heads of the scores of a block or its half. The first tells them apart.
fn heads(first: &'static str) -> Vec<&'static str> {
    let mut heads: Vec<_> = Metric::ALL.iter().map(|metric| metric.head()).collect();
    heads[0] = first;
    heads
}

fn scores(scores: Option<BlockScores>) -> Vec<String> {
    Metric::ALL
        .iter()
        .map(|metric| scores.map_or(String::new(), |scores| with_error(scores[*metric])))
        .collect()
}

/// A score and its standard error, `0.0328 ±0.0011`.
fn with_error(score: Mean) -> String {
    let error = score.stderr.map_or(String::new(), |error| format!(" \u{b1}{error:.4}"));
    format!("{:.4}{error}", score.mean)
}

/// Those of a block, whose ranks follow its first score.
fn whole_heads(first: &'static str) -> Vec<&'static str> {
    let mut heads = heads(first);
    heads.splice(1..1, ["rank", "within"]);
    heads
}

fn whole(block: Option<&BlockReport>) -> Vec<String> {
    let mut cells = scores(block.and_then(|block| block.scores));
    let rank = block.and_then(|block| block.rank).map_or(String::new(), |rank| rank.to_string());
    cells.splice(1..1, [rank, block.map_or(String::new(), within)]);
    cells
}

/// What becomes of a block, and whether another text might decide otherwise.
fn mark(report: &Report, block: &BlockReport) -> String {
    let what = match (block.removed, block.attention_removed) {
        (true, _) if report.output.is_none() => "goes",
        (true, _) => "removed",
        (false, true) => "no attn.",
        (false, false) => "",
    };
    let tied = if block.tied == Some(true) { "~" } else { "" };
    format!("{what} {tied}").trim().to_owned()
}

/// The ranks that it may have.
fn within(block: &BlockReport) -> String {
    match (block.rank_low, block.rank_high) {
        (Some(low), Some(high)) if low < high => format!("{low}-{high}"),
        (Some(low), _) => low.to_string(),
        _ => String::new(),
    }
}
