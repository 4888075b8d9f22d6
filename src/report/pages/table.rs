//! The table of all models: its rows, and the columns that are the same on every page.

use super::words::{measured, percent, plural};
use super::{Collection, Point, Section, is_same_model, name};
use crate::model::block::block_list;
use crate::report::column::Column;
use crate::report::saved::{Kind, Quality, SavedModel, Scored};
use indicatif::DecimalBytes;

/// A model and what is known of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// The number of its section.
    pub(super) section: usize,
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) model: SavedModel,
    /// What it lacks, in words.
    pub(super) removed: String,
    pub(super) method: String,
    /// Of the parent's bytes.
    pub(super) share: Option<f64>,
    pub(super) quality: Quality,
    /// The text, in words; empty where nothing was measured.
    pub(super) text: String,
    /// Its place among the texts of all rows, from 1.
    pub(super) text_number: Option<usize>,
    pub(super) verified: Option<bool>,
    pub(super) error: Option<String>,
}

/// How many blocks it has.
pub(super) const BLOCKS: Column<Row> =
    Column::new("blocks", |row| row.model.n_blocks.map_or(String::new(), |n| n.to_string()));

/// Its size and what was measured of it.
pub(super) const FIGURES: [Column<Row>; 7] = [
    Column::new("size", |row| row.model.bytes.map_or(String::new(), |bytes| DecimalBytes(bytes).to_string())),
    Column::new("share", |row| percent(row.share)),
    Column::new("perplexity", |row| measured(row.quality.perplexity, row.quality.perplexity_stderr, 2)),
    Column::new("KL divergence", |row| measured(row.quality.kl, row.quality.kl_stderr, 4)),
    Column::new("same top", |row| percent(row.quality.same_top)),
    Column::new("prompt t/s", |row| measured(row.quality.prompt, None, 0)),
    Column::new("decode t/s", |row| measured(row.quality.decode, None, 1)),
];

/// The number of its text.
pub(super) const TEXT: Column<Row> =
    Column::new("text", |row| row.text_number.map_or(String::new(), |number| number.to_string()));

/// Whether it is what it says.
pub(super) const VERIFIED: Column<Row> = Column::new("verified", |row| {
    row.verified.map_or("", |verified| if verified { "yes" } else { "NO" }).to_owned()
});

/// One row for each model and text, by section, parents first; and the texts by their numbers.
pub(super) fn rows(collection: &Collection) -> (Vec<Row>, Vec<String>) {
    let sections = collection.sections.iter().enumerate();
    let mut rows: Vec<Row> = sections.flat_map(|(i, section)| of_section(i, section)).collect();
    let mut texts: Vec<String> = Vec::new();
    for row in rows.iter_mut().filter(|row| !row.text.is_empty()) {
        let at = texts.iter().position(|text| *text == row.text);
        row.text_number = Some(at.unwrap_or(texts.len()) + 1);
        if at.is_none() {
            texts.push(row.text.clone());
        }
    }
    (rows, texts)
}

fn of_section(number: usize, section: &Section) -> Vec<Row> {
    let row = |model: &SavedModel| Row::new(number, section, model);
    let (parents, mut rest): (Vec<&Point>, Vec<&Point>) =
        section.points.iter().partition(|point| point.kind == Kind::Parent);
    let mut rows = Row { kind: "parent", ..row(&section.parent) }.for_each(&parents);
    for scored in &section.scored {
        let Some(output) = &scored.output else {
            continue;
        };
        let bare = Row {
            kind: match (&output.path, &scored.fit) {
                (None, _) => "planned",
                (Some(_), Some(_)) => "fit",
                (Some(_), None) => "shortened",
            },
            removed: removed(scored),
            method: scored.method.clone().unwrap_or_default(),
            ..row(output)
        };
        let is_of_output = |point: &mut &Point| match point.by_search {
            true => point.removed == scored.removed && scored.search == Some(point.quality),
            false => is_same_model(&point.model, output),
        };
        rows.extend(bare.for_each(&rest.extract_if(.., is_of_output).collect::<Vec<_>>()));
    }
    for point in rest {
        let bare = Row {
            name: point.name.clone(),
            kind: match point.kind {
                Kind::Parent => "parent",
                Kind::Shortened => "shortened",
                Kind::FewerExperts => "fewer experts",
                Kind::Requantized => "requantized",
                Kind::File => "file",
            },
            removed: match (point.removed.is_empty(), section.n_removed(point)) {
                (false, _) => block_list(&point.removed),
                (true, Some(n)) if n > 0 => plural(n, "block"),
                _ => String::new(),
            },
            ..row(&point.model)
        };
        rows.extend(bare.for_each(&[point]));
    }
    rows
}

impl Row {
    /// Of a model of section `number`, of which nothing is measured.
    fn new(number: usize, section: &Section, model: &SavedModel) -> Self {
        let bytes = |model: &SavedModel| model.bytes.filter(|&bytes| bytes > 0).map(|bytes| bytes as f64);
        let verified = section.verified.iter().rev().find(|result| is_same_model(&result.output, model));
        Self {
            section: number,
            name: name(model),
            share: bytes(&section.parent).zip(bytes(model)).map(|(parent, bytes)| bytes / parent),
            verified: verified.map(|result| result.verified),
            model: model.clone(),
            ..Self::default()
        }
    }

    /// With each of the measurements, or as it is without any.
    fn for_each(self, points: &[&Point]) -> Vec<Self> {
        let with = |point: &&Point| Self {
            quality: point.quality,
            text: text(point),
            error: point.error.clone(),
            ..self.clone()
        };
        if points.is_empty() { vec![self] } else { points.iter().map(with).collect() }
    }
}

/// The blocks that it lacks, in words.
fn removed(scored: &Scored) -> String {
    let (blocks, attention) = (&scored.removed, &scored.attention_removed);
    let blocks = (!blocks.is_empty()).then(|| block_list(blocks));
    let attention = (!attention.is_empty()).then(|| format!("attention of {}", block_list(attention)));
    blocks.into_iter().chain(attention).collect::<Vec<_>>().join(", ")
}

/// The text of a point, in words.
pub(super) fn text(point: &Point) -> String {
    let text = &point.text;
    let mut words = text.source.clone().unwrap_or_else(|| "unnamed text".to_owned());
    if let (Some(tokens), Some(window)) = (text.tokens, text.window) {
        words.push_str(&format!(", {} tokens in windows of {window}", indicatif::HumanCount(tokens)));
    }
    if point.by_search {
        words.push_str(", by the search that chose the blocks");
    }
    words
}
