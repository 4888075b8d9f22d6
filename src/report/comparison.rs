//! What a comparison found, as JSON and as text.

use super::column::{Column, number, right, table};
use super::lines;
use crate::choose::outcome::{ChoiceReport, ExpertsAutoReport};
use crate::engine::logits::Speed;
use crate::engine::outcome::CalibrationReport;
use crate::measure::comparison::{Kind, Point, pareto, verdict};
use crate::measure::outcome::{KlReport, SpeedReport};
use crate::measure::quality::measure::Quality;
use crate::measure::quality::perplexity::Perplexity;
use crate::model::block::block_list;
use crate::model::outcome::ModelReport;
use crate::named::Named as _;
use crate::output::outcome::ExpertsReport;
use crate::plan::healing::HealMethod;
use comfy_table::Cell;
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;
use std::fmt::Write as _;

/// The result of `compare`. Its fields are the JSON contract: unknown values are null, never left out.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// Version of this program.
    pub gguf_shorten: &'static str,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: &'static str,
    /// Always `compare`.
    pub command: &'static str,
    /// The command line without the program's name.
    pub arguments: Vec<String>,
    /// The text that is scored. Its time is that of the evaluation of all windows with all models.
    pub text: CalibrationReport,
    /// What all are compared with.
    pub parent: ModelReport,
    /// How the rows of fewer blocks were chosen. Null if there are none.
    pub choice: Option<ChoiceReport>,
    /// CPU threads.
    pub threads: usize,
    /// The parent, files, fewer blocks, fewer experts, other types, as listed.
    pub rows: Vec<RowReport>,
    /// One sentence.
    pub verdict: String,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct RowReport {
    /// What it is called.
    pub name: String,
    /// `parent`, `file`, `drop`, `experts`, `requantize` or `mixed`.
    pub kind: Kind,
    /// Where it is; null where no file was written.
    pub path: Option<String>,
    /// The type by `general.file_type`, or of quantization, such as `Q4_K_M`.
    #[serde(rename = "type")]
    pub file_type: Option<&'static str>,
    /// The blocks that are gone, in the parent's numbering. Null but for fewer blocks.
    pub removed: Option<Vec<usize>>,
    /// The blocks that stay without their attention: healing by one of a run's blocks keeps its network. Null but for such.
    pub attention_removed: Option<Vec<usize>>,
    /// The method that chose them, the best set's where `auto` chose. Null but for fewer blocks.
    pub method: Option<String>,
    /// What makes up for them, `none` if nothing. Null but for fewer blocks.
    pub heal: Option<String>,
    /// The experts that stay, chosen by the best score where `auto` chose. Null but for fewer experts.
    pub experts: Option<ExpertsReport>,
    /// The sets of experts that it compared; null where it did not choose.
    pub experts_auto: Option<ExpertsAutoReport>,
    /// Bytes of all files. Of fewer blocks those that the file would have.
    pub bytes: Option<u64>,
    /// Number of blocks.
    pub block_count: Option<usize>,
    /// Those of them that an evaluation runs, without prediction blocks.
    #[serde(skip)]
    pub n_trunk_blocks: Option<usize>,
    /// Experts of a block; 0 of a model without.
    #[serde(skip)]
    pub n_experts: usize,
    /// Number of weights.
    pub parameters: Option<u64>,
    /// Perplexity.
    pub perplexity: Option<f64>,
    /// Its standard error; null for a single token.
    pub perplexity_stderr: Option<f64>,
    /// Of the parent's predictions and the row's; zeros for the parent.
    pub kl_divergence: Option<KlReport>,
    /// Share of tokens after which the parent's likeliest token is the same.
    pub same_top: Option<f64>,
    /// Its standard error.
    pub same_top_stderr: Option<f64>,
    /// How fast it is. Null where it was evaluated block by block.
    pub tokens_per_second: Option<SpeedReport>,
    /// Whether it is on the Pareto front. No other row is as small and as close to the parent, and better in one of the two.
    pub pareto: bool,
    /// Why it was not measured; null if it was.
    pub error: Option<String>,
}

impl RowReport {
    /// A row of which nothing is known yet.
    #[must_use]
    pub fn new(kind: Kind, name: String) -> Self {
        Self {
            name,
            kind,
            path: None,
            file_type: None,
            removed: None,
            attention_removed: None,
            method: None,
            heal: None,
            experts: None,
            experts_auto: None,
            bytes: None,
            block_count: None,
            n_trunk_blocks: None,
            n_experts: 0,
            parameters: None,
            perplexity: None,
            perplexity_stderr: None,
            kl_divergence: None,
            same_top: None,
            same_top_stderr: None,
            tokens_per_second: None,
            pareto: false,
            error: None,
        }
    }

    /// Takes over what the parent's predictions are.
    pub fn measured_parent(&mut self, perplexity: &Perplexity, speed: Option<Speed>) {
        self.perplexity = Some(perplexity.value);
        self.perplexity_stderr = perplexity.stderr;
        self.kl_divergence = Some(KlReport::NONE);
        self.same_top = Some(1.0);
        self.same_top_stderr = Some(0.0);
        self.tokens_per_second = speed.map(Into::into);
    }

    /// Takes over what was measured against the parent.
    pub fn measured(&mut self, quality: &Quality, speed: Option<Speed>) {
        self.perplexity = Some(quality.perplexity.value);
        self.perplexity_stderr = quality.perplexity.stderr;
        let divergence = quality.divergence.as_ref();
        self.kl_divergence = divergence.map(KlReport::new);
        self.same_top = divergence.map(|found| found.same_top.mean);
        self.same_top_stderr = divergence.and_then(|found| found.same_top.stderr);
        self.tokens_per_second = speed.map(Into::into);
    }

    /// Size and divergence, for the front and the verdict. `None` for a row that failed.
    fn point(&self) -> Option<Point> {
        if self.error.is_some() {
            return None;
        }
        let kl = self.kl_divergence?;
        Some(Point {
            name: self.name.clone(),
            kind: self.kind,
            n_blocks: self.n_trunk_blocks?,
            n_experts: self.n_experts,
            bytes: self.bytes?,
            kl: kl.mean,
            kl_stderr: kl.mean_stderr,
        })
    }
}

/// Marks the rows on the front, and gives the verdict.
#[must_use]
pub fn judge(rows: &mut [RowReport]) -> String {
    let (numbers, points): (Vec<usize>, Vec<Point>) =
        rows.iter().enumerate().filter_map(|(number, row)| Some((number, row.point()?))).unzip();
    let sizes: Vec<(u64, f64)> = points.iter().map(|point| (point.bytes, point.kl)).collect();
    for (number, on_front) in numbers.into_iter().zip(pareto::front(&sizes)) {
        rows[number].pareto = on_front;
    }
    verdict::verdict(&points)
}

/// The result on one screen.
#[must_use]
pub fn screen(report: &CompareReport) -> String {
    let mut text = format!("{}\n\n", rows(&report.rows));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<8} {value}");
    };
    for row in &report.rows {
        if let Some(error) = &row.error {
            line("failed", error.clone());
        }
    }
    line("parent", lines::model(&report.parent));
    line("scored", scored(&report.text));
    for row in &report.rows {
        if let (Some(removed), Some(method), None) = (&row.removed, &row.method, &row.error) {
            let by = report.choice.iter().any(|choice| choice.method != *method);
            let by = if by { format!(", by {method}") } else { String::new() };
            let heal = row.heal.as_deref().filter(|heal| HealMethod::of_word(heal) != Some(HealMethod::None));
            let heal = heal.map_or(String::new(), |heal| format!(", healed by {heal}"));
            let attention = row.attention_removed.as_ref().map(|blocks| block_list(blocks));
            let attention = attention.map_or(String::new(), |list| format!(", {list} without attention"));
            line("removed", format!("{}: {}{attention}{by}{heal}", row.name, block_list(removed)));
        }
    }
    for row in &report.rows {
        if let (Some(experts), None) = (&row.experts, &row.error) {
            let auto = row.experts_auto.as_ref().map_or(String::new(), lines::compared_experts);
            line(
                "experts",
                format!("{}: {experts}, by {}\n{auto}", row.name, experts.method).trim_end().to_owned(),
            );
        }
    }
    if let Some(choice) = &report.choice {
        line("chosen", chosen(choice));
    }
    line(
        "front",
        "* no other row is as small and as close to the parent, and better in one of the two".to_owned(),
    );
    line("verdict", report.verdict.clone());
    text
}

/// The text, and how long all took.
fn scored(text: &CalibrationReport) -> String {
    format!(
        "{} tokens of {} text, {} {} of {}, the second half of each; {:.1} s for all models",
        HumanCount(text.tokens as u64),
        text.source,
        text.windows,
        if text.windows == 1 { "window" } else { "windows" },
        text.window,
        text.seconds
    )
}

fn chosen(choice: &ChoiceReport) -> String {
    let mut by = match &choice.objective {
        Some(objective) => format!("by {} on {objective}", choice.method),
        None => format!("by {}", choice.method),
    };
    if let Some(of_experts) = &choice.experts_by {
        let _ = write!(by, ", experts by {of_experts}");
    }
    let Some(text) = &choice.calibration else {
        return by;
    };
    let of = format!("{by}, {} tokens of {} text", HumanCount(text.tokens as u64), text.source);
    match choice.seen_share {
        0.0 => format!("{of}, none of which is scored"),
        share => format!(
            "{of}; {:.0} % of the scored tokens are of that text, so {} look better here than on another one",
            (100.0 * share).max(1.0),
            if choice.experts_by.is_some() { "fewer blocks or experts" } else { "fewer blocks" }
        ),
    }
}

const COLUMNS: [Column<RowReport>; 11] = [
    Column::new("size", |row| row.bytes.map_or(String::new(), |bytes| DecimalBytes(bytes).to_string())),
    Column::new("blocks", |row| row.block_count.map_or(String::new(), |n| n.to_string())),
    Column::new("parameters", |row| row.parameters.map_or(String::new(), |n| HumanCount(n).to_string())),
    Column::new("perplexity", |row| number(row.perplexity, 2)),
    Column::new("\u{b1}", |row| number(row.perplexity_stderr, 2)),
    Column::new("KL", |row| number(row.kl_divergence.map(|kl| kl.mean), 4)),
    Column::new("\u{b1}", |row| number(row.kl_divergence.and_then(|kl| kl.mean_stderr), 4)),
    Column::new("same top", |row| {
        row.same_top.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share))
    }),
    Column::new("prompt/s", |row| number(row.tokens_per_second.map(|speed| speed.prompt), 1)),
    Column::new("decode/s", |row| number(row.tokens_per_second.map(|speed| speed.decode), 1)),
    Column::new("front", |row| match (&row.error, row.pareto) {
        (Some(_), _) => "failed".to_owned(),
        (None, on_front) => if on_front { "*" } else { "" }.to_owned(),
    }),
];

fn rows(rows: &[RowReport]) -> String {
    let under = |name: &str, cells: Vec<Cell>| [vec![Cell::new(name)], cells].concat();
    let head = under("", COLUMNS.iter().map(|column| right(column.head)).collect());
    let cells =
        |row: &RowReport| under(&row.name, COLUMNS.iter().map(|column| right((column.get)(row))).collect());
    table(head, rows.iter().map(|row| (cells(row), false)), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, kind: Kind, bytes: u64, kl: f64) -> RowReport {
        RowReport {
            bytes: Some(bytes),
            n_trunk_blocks: Some(match kind {
                Kind::Drop => 3,
                _ => 4,
            }),
            kl_divergence: Some(KlReport { mean: kl, ..KlReport::NONE }),
            ..RowReport::new(kind, name.to_owned())
        }
    }

    #[test]
    fn rows_that_failed_are_judged_by_nothing() {
        let mut rows = vec![
            row("m.gguf", Kind::Parent, 100, 0.0),
            row("Q2_K", Kind::Requantize, 1, 0.0),
            row("1 block fewer", Kind::Drop, 95, 0.1),
            RowReport::new(Kind::File, "other.gguf".to_owned()),
        ];
        rows[1].error = Some("refused".to_owned());
        rows[3].error = Some("not there".to_owned());
        let verdict = judge(&mut rows);
        assert!(
            verdict.starts_with("no verdict: only rows with fewer blocks were measured, 1 block fewer ("),
            "{verdict}"
        );
        let marked: Vec<bool> = rows.iter().map(|row| row.pareto).collect();
        assert_eq!(marked, [true, false, true, false]);
    }
}
