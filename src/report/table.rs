//! Results as tables for a person.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::{DecimalBytes, HumanCount};

use super::{
    BlockReport, CalibrationReport, ModelReport, OutputReport, Report, SearchReport, block_list,
    goal, stability,
};
use crate::gguf;
use crate::plan::{ChangeKind, TensorChange};

/// Whether a table may use colour.
pub type Colour = bool;

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
        let _ = writeln!(
            text,
            "would go {}",
            removed(&report.removed, &report.model, &chosen(&report.method))
        );
    }
    if let Some(output) = &report.output {
        let _ = writeln!(
            text,
            "removed  {}",
            removed(&report.removed, &report.model, &chosen(&report.method))
        );
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
            let _ = writeln!(
                text,
                "ollama   {} from {}{done}",
                ollama.name, ollama.modelfile
            );
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

/// The removed blocks of `model`, chosen as `how` says; prediction blocks apart, of which all go or none.
#[must_use]
pub fn removed(removed: &[usize], model: &ModelReport, how: &str) -> String {
    if removed.is_empty() {
        return "no whole block".to_owned();
    }
    let n_trunk = model.block_count - model.prediction_block_count;
    let n = removed.iter().filter(|&&block| block < n_trunk).count();
    let (trunk, prediction) = removed.split_at(n);
    let trunk = || format!("{} ({n} of {n_trunk} blocks, {how})", block_list(trunk));
    let prediction = || match prediction {
        [block] => format!("prediction block {block}"),
        blocks => format!("prediction blocks {}", block_list(blocks)),
    };
    match (n, removed.len() - n) {
        (_, 0) => trunk(),
        (0, _) => prediction(),
        _ => format!("{}, {}", trunk(), prediction()),
    }
}

/// How blocks were chosen, in words.
fn chosen(method: &str) -> String {
    match method {
        "blocks" => "as listed".to_owned(),
        method => format!("by {method}"),
    }
}

/// One row for each block.
fn blocks(report: &Report, colour: Colour) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut head = vec![
        "block",
        "influence",
        "\u{b1}",
        "rank",
        "within",
        "rel. magnitude",
        "\u{b1}",
    ];
    let has_halves = report
        .blocks
        .iter()
        .any(|block| block.attention_bi.is_some());
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
        let number =
            |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
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
            row.push(right(
                &perplexity.map_or(String::new(), |p| format!("{p:.2}")),
            ));
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

/// Tensors that are not the input's with all their bytes: a line for each reason.
#[must_use]
pub fn changes(changes: &[TensorChange]) -> String {
    let mut text = String::new();
    let mut groups: Vec<(&TensorChange, usize)> = Vec::new();
    for change in changes {
        let is_alike = |(first, _): &&mut (&TensorChange, usize)| {
            first.change == change.change && first.why == change.why
        };
        match groups.iter_mut().find(is_alike) {
            Some((_, n)) => *n += 1,
            None => groups.push((change, 1)),
        }
    }
    for (first, n) in groups {
        let word = match first.change {
            ChangeKind::Sliced => "sliced  ",
            ChangeKind::Changed => "changed ",
            ChangeKind::New => "new     ",
            ChangeKind::LeftOut => "left out",
        };
        let name = first.tensor.as_ref().or(first.parent.as_ref());
        let name = gguf::Quoted(name.map_or("", String::as_str));
        let others = match n {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let _ = writeln!(text, "{word} {name}{others}: {}", first.why);
    }
    text
}

/// The input on one line.
#[must_use]
pub fn model(model: &ModelReport) -> String {
    format!(
        "{}: {}, {} blocks, {} parameters, {}",
        model.path,
        model.architecture,
        model.block_count,
        HumanCount(model.parameters),
        DecimalBytes(model.bytes)
    )
}

/// What the removal costs, on one line.
fn loss(search: &SearchReport) -> String {
    format!(
        "on that text: perplexity {:.2} (whole model {:.2}), KL divergence {:.4}, same top {:.1} %; {} evaluations of a \
         block",
        search.perplexity,
        search.parent_perplexity,
        search.kl_divergence,
        search.same_top * 100.0,
        HumanCount(search.block_evaluations)
    )
}

/// The runs of 1, 2, 3, ... blocks before and behind which the stream is most alike.
fn alike(cosine: &[Vec<Option<f64>>]) -> String {
    const LONGEST: usize = 8;
    let n_blocks = cosine.len().saturating_sub(1);
    let mut text = String::new();
    for n in 1..=LONGEST.min(n_blocks.saturating_sub(1)) {
        let runs = (0..=n_blocks - n).filter_map(|start| Some((start, cosine[start][start + n]?)));
        let Some((start, best)) = runs.max_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        let run: Vec<usize> = (start..start + n).collect();
        let word = if n == 1 { "block" } else { "blocks" };
        let _ = writeln!(
            text,
            "{} cosine {best:.4} before and behind {word} {}",
            if n == 1 { "alike   " } else { "        " },
            block_list(&run)
        );
    }
    text
}

/// The text that was evaluated, on one line.
#[must_use]
pub fn calibrated(calibration: &CalibrationReport) -> String {
    let windows = match calibration.windows {
        1 => "window",
        _ => "windows",
    };
    if calibration.cached {
        return format!(
            "scores from the cache: {} tokens of {} text, {} {windows} of {}",
            HumanCount(calibration.tokens as u64),
            calibration.source,
            calibration.windows,
            calibration.window
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
    let rate = calibration.tokens as f64 / calibration.seconds;
    format!(
        "{} tokens of {} text in {:.1} s ({rate:.0} tokens/s), {} {windows} of {}",
        HumanCount(calibration.tokens as u64),
        calibration.source,
        calibration.seconds,
        calibration.windows,
        calibration.window,
    )
}

fn written(output: &OutputReport, parent_bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let share = output.bytes as f64 / parent_bytes as f64 * 100.0;
    let path = output.path.as_deref().unwrap_or("(dry run)");
    let seconds = output
        .seconds
        .map_or("nothing written".to_owned(), |seconds| {
            format!("{seconds:.2} s")
        });
    let parts = match output.parts.len() {
        0 | 1 => String::new(),
        n => format!("{n} parts, "),
    };
    format!(
        "{path}: {parts}{} blocks, {} parameters, {} ({share:.1} %), {seconds}",
        output.block_count,
        HumanCount(output.parameters),
        DecimalBytes(output.bytes)
    )
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
