//! The table at the end of a batch.

use std::fmt::Write as _;

use comfy_table::Cell;
use indicatif::DecimalBytes;

use super::column::{right, table};
use super::lines::Colour;
use crate::model::block::block_list;

/// What became of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The model.
    pub model: String,
    /// What became of it.
    pub end: End,
}

/// What became of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// There is an output.
    Done(Short),
    /// There was one already, of an earlier run.
    DoneBefore(Short),
    /// There is a reason why not.
    Failed {
        /// The reason.
        why: String,
        /// A remedy.
        hint: Option<String>,
    },
    /// The run was stopped before.
    NotDone,
}

/// A shortened model.
#[derive(Clone, Debug, PartialEq)]
pub struct Short {
    /// Blocks of the input.
    pub parent_blocks: u64,
    /// Blocks that went.
    pub removed: Vec<usize>,
    /// Bytes of the input.
    pub parent_bytes: u64,
    /// Blocks that are left.
    pub blocks: u64,
    /// Bytes of the output.
    pub bytes: u64,
    /// Where the output is; of a dry run, where it would be.
    pub output: String,
    /// Time of its process.
    pub seconds: Option<f64>,
}

impl Short {
    /// The result in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        format!(
            "{} of {} blocks, {} ({})",
            self.blocks,
            self.parent_blocks,
            DecimalBytes(self.bytes),
            self.share()
        )
    }

    fn share(&self) -> String {
        let share = self.bytes as f64 / self.parent_bytes as f64 * 100.0;
        format!("{share:.1} %")
    }
}

/// How many models ended how.
#[must_use]
pub fn counts(rows: &[Row]) -> String {
    let n = |is: fn(&End) -> bool| rows.iter().filter(|row| is(&row.end)).count();
    let counts = [
        (n(|end| matches!(end, End::Done(_))), "done"),
        (n(|end| matches!(end, End::DoneBefore(_))), "done before"),
        (n(|end| matches!(end, End::Failed { .. })), "failed"),
        (n(|end| matches!(end, End::NotDone)), "not done"),
    ];
    let shown: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    shown.join(", ")
}

/// A row for each model, then the reasons of those that failed. At the end, how many there are of each kind.
#[must_use]
pub fn batch(rows: &[Row], results: Option<&str>, colour: Colour) -> String {
    let mut head = vec![Cell::new("model")];
    head.extend(["blocks", "removed", "bytes", "%", "s"].map(right));
    head.push(Cell::new("output"));
    let marked = |row: &Row| (cells(row), matches!(row.end, End::Failed { .. }));
    let table = table(head, rows.iter().map(marked), colour);
    let n = rows.len();
    let models = if n == 1 { "model" } else { "models" };
    let mut text = format!("{table}\n\n{}batch    {n} {models}: {}\n", failures(rows), counts(rows));
    let _ = match results {
        Some(results) => writeln!(text, "results  {results}"),
        None => writeln!(text, "written  nothing: this was a dry run"),
    };
    text
}

fn cells(row: &Row) -> Vec<Cell> {
    let (figures, end) = match &row.end {
        End::Done(short) | End::DoneBefore(short) => {
            let seconds = match (&row.end, short.seconds) {
                (End::Done(_), Some(seconds)) => format!("{seconds:.1}"),
                _ => "before".to_owned(),
            };
            let figures = [
                format!("{} -> {}", short.parent_blocks, short.blocks),
                block_list(&short.removed),
                DecimalBytes(short.bytes).to_string(),
                short.share().trim_end_matches(" %").to_owned(),
                seconds,
            ];
            (figures, short.output.as_str())
        }
        End::Failed { .. } => (Default::default(), "failed"),
        End::NotDone => (Default::default(), "not done"),
    };
    let mut cells = vec![Cell::new(&row.model)];
    cells.extend(figures.map(right));
    cells.push(Cell::new(end));
    cells
}

/// The reasons of models that failed, on lines of their own.
fn failures(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        if let End::Failed { why, hint } = &row.end {
            let why = why.strip_prefix(&format!("{}: ", row.model)).unwrap_or(why);
            let _ = writeln!(text, "failed   {}: {why}", row.model);
            if let Some(hint) = hint {
                let _ = writeln!(text, "         hint: {hint}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_became_of_each_model() {
        let short = Short {
            parent_blocks: 30,
            removed: vec![12, 13, 14, 17],
            parent_bytes: 1_000_000,
            blocks: 26,
            bytes: 910_000,
            output: "out/a-drop4.gguf".to_owned(),
            seconds: Some(12.34),
        };
        let row = |model: &str, end| Row { model: model.to_owned(), end };
        let rows = [
            row("a.gguf", End::Done(short.clone())),
            row("b.gguf", End::DoneBefore(short)),
            row("c.gguf", End::Failed { why: "c.gguf: is bad".to_owned(), hint: Some("mend it".to_owned()) }),
            row("d.gguf", End::NotDone),
        ];
        let text = batch(&rows, Some("out/results.jsonl"), false);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "model blocks removed bytes % s output",
                "a.gguf 30 -> 26 12-14,17 910.00 kB 91.0 12.3 out/a-drop4.gguf",
                "b.gguf 30 -> 26 12-14,17 910.00 kB 91.0 before out/a-drop4.gguf",
                "c.gguf failed",
                "d.gguf not done",
                "",
                "failed c.gguf: is bad",
                "hint: mend it",
                "batch 4 models: 1 done, 1 done before, 1 failed, 1 not done",
                "results out/results.jsonl",
            ]
        );
    }
}
