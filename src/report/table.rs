//! Results as tables for a person.

use super::{Report, goal, stability};
use crate::choose::outcome::BlockReport;
use crate::model::block::block_list;
use crate::report::lines::Colour;
use crate::report::lines::alike;
use crate::report::lines::calibrated;
use crate::report::lines::changes;
use crate::report::lines::chosen;
use crate::report::lines::loss;
use crate::report::lines::model;
use crate::report::lines::removed;
use crate::report::lines::written;
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::DecimalBytes;
use std::fmt::Write as _;

/// Scores of every block, with what goes, then what was done.
#[must_use]
pub fn report(report: &Report, colour: Colour) -> String {
    let mut text = String::new();
    if report.blocks.iter().any(|block| block.bi.is_some()) {
        let _ = writeln!(text, "{}\n", blocks(report, colour));
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
    if report.output.is_none() && !report.removed.is_empty() {
        let _ =
            writeln!(text, "would go {}", removed(&report.removed, &report.model, &chosen(&report.method)));
    }
    if let Some(output) = &report.output {
        let _ =
            writeln!(text, "removed  {}", removed(&report.removed, &report.model, &chosen(&report.method)));
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
        if let Some(heal) = &report.heal {
            text.push_str(&super::healing::lines(heal));
        }
        let _ = writeln!(text, "output   {}", written(output, report.model.bytes));
        text.push_str(&changes(&output.changes));
        if let Some(ollama) = &output.ollama {
            let done = match ollama.created {
                true => "",
                false => ", not made yet",
            };
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
    }
    text
}

/// One row for each block.
fn blocks(report: &Report, colour: Colour) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut head = vec!["block", "influence", "\u{b1}", "rank", "within", "rel. magnitude", "\u{b1}"];
    let has_halves = report.blocks.iter().any(|block| block.attention_bi.is_some());
    if has_halves {
        head.extend(["attention", "\u{b1}", "rel. magnitude", "\u{b1}"]);
        head.extend(["FFN", "\u{b1}", "rel. magnitude", "\u{b1}"]);
    }
    if report.ablate.is_some() {
        head.extend(["KL alone", "perplexity"]);
    }
    if report.against.is_some() {
        head.extend(["against", "\u{b1}", "rank", "within"]);
        head.extend(["rel. magnitude", "\u{b1}"]);
    }
    let has_marks = report.output.is_some() || !report.removed.is_empty();
    if has_marks {
        head.push("");
    }
    table.set_header(head.iter().map(|text| right(text)));
    for block in &report.blocks {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let mut row = vec![
            right(&block.block.to_string()),
            right(&number(block.bi)),
            right(&number(block.bi_stderr)),
            right(&rank(block)),
            right(&within(block)),
            right(&number(block.relative_magnitude)),
            right(&number(block.relative_magnitude_stderr)),
        ];
        if has_halves {
            let scores = [
                block.attention_bi,
                block.attention_bi_stderr,
                block.attention_relative_magnitude,
                block.attention_relative_magnitude_stderr,
                block.ffn_bi,
                block.ffn_bi_stderr,
                block.ffn_relative_magnitude,
                block.ffn_relative_magnitude_stderr,
            ];
            row.extend(scores.map(|score| right(&number(score))));
        }
        if report.ablate.is_some() {
            row.push(right(&number(block.ablate_kl)));
            let perplexity = block.ablate_perplexity;
            row.push(right(&perplexity.map_or(String::new(), |p| format!("{p:.2}"))));
        }
        if let Some(against) = &report.against {
            let other = against.blocks.get(block.block);
            let number = |of: fn(&BlockReport) -> Option<f64>| right(&number(other.and_then(of)));
            row.extend([
                number(|other| other.bi),
                number(|other| other.bi_stderr),
                right(&other.map_or(String::new(), rank)),
                right(&other.map_or(String::new(), within)),
                number(|other| other.relative_magnitude),
                number(|other| other.relative_magnitude_stderr),
            ]);
        }
        if has_marks {
            let what = match (block.removed, block.attention_removed) {
                (true, _) if report.output.is_none() => "goes",
                (true, _) => "removed",
                (false, true) => "attention removed",
                (false, false) => "",
            };
            let tied = if block.tied == Some(true) { "~" } else { "" };
            row.push(Cell::new(format!("{what} {tied}").trim()));
        }
        if colour && (block.removed || block.attention_removed) {
            row = row.into_iter().map(|cell| cell.fg(Color::Red)).collect();
        }
        table.add_row(row);
    }
    if colour {
        table.enforce_styling();
    }
    table
}

fn rank(block: &BlockReport) -> String {
    block.rank.map_or(String::new(), |rank| rank.to_string())
}

/// The ranks that it may have.
fn within(block: &BlockReport) -> String {
    match (block.rank_low, block.rank_high) {
        (Some(low), Some(high)) if low < high => format!("{low}-{high}"),
        (Some(low), _) => low.to_string(),
        _ => String::new(),
    }
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
