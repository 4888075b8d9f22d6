//! Results as tables for a person.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::{DecimalBytes, HumanCount};

use super::{CalibrationReport, ModelReport, OutputReport, Report, block_list};

/// Whether a table may use colour.
pub type Colour = bool;

/// Scores of every block, with what goes, then what was done.
#[must_use]
pub fn report(report: &Report, colour: Colour) -> String {
    let mut text = String::new();
    if report.calibration.is_some() {
        let _ = writeln!(text, "{}\n", blocks(report, colour));
    }
    let _ = writeln!(text, "model    {}", model(&report.model));
    if let Some(calibration) = &report.calibration {
        let _ = writeln!(text, "measured {}", calibrated(calibration));
    }
    if let Some(output) = &report.output {
        let how = match report.method.as_str() {
            "blocks" => "as listed".to_owned(),
            method => format!("by {method}"),
        };
        let removed = removed(&report.removed, &report.model, &how);
        let _ = writeln!(text, "removed  {removed}");
        let _ = writeln!(text, "output   {}", written(output, report.model.bytes));
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

/// One row for each block.
fn blocks(report: &Report, colour: Colour) -> Table {
    let mut by_bi: Vec<_> = report.blocks.iter().filter(|b| b.bi.is_some()).collect();
    by_bi.sort_by(|a, b| {
        let score = |block: &super::BlockReport| block.bi.unwrap_or(f64::NAN);
        score(a).total_cmp(&score(b)).then(b.block.cmp(&a.block))
    });
    let rank = |block: usize| by_bi.iter().position(|b| b.block == block).map(|at| at + 1);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut head = vec![
        "block",
        "influence",
        "\u{b1}",
        "rank",
        "rel. magnitude",
        "\u{b1}",
    ];
    if report.output.is_some() {
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
            right(&rank(block.block).map_or(String::new(), |rank| rank.to_string())),
            right(&number(block.relative_magnitude)),
            right(&number(block.relative_magnitude_stderr)),
        ];
        if report.output.is_some() {
            row.push(Cell::new(if block.removed { "removed" } else { "" }));
        }
        if colour && block.removed {
            row = row.into_iter().map(|cell| cell.fg(Color::Red)).collect();
        }
        table.add_row(row);
    }
    if colour {
        table.enforce_styling();
    }
    table
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

fn calibrated(calibration: &CalibrationReport) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
    let rate = calibration.tokens as f64 / calibration.seconds;
    format!(
        "{} tokens of {} text in {:.1} s ({rate:.0} tokens/s), {} {} of {}",
        HumanCount(calibration.tokens as u64),
        calibration.source,
        calibration.seconds,
        calibration.windows,
        if calibration.windows == 1 {
            "window"
        } else {
            "windows"
        },
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
