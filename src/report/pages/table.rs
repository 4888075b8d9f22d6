//! Rows for a table of all models, the same in every form.

use super::{Collection, Point, Section, is_same_model, name};
use crate::model::block::block_list;
use crate::report::saved::{Kind, Quality, SavedModel};

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
    pub(super) verified: Option<bool>,
    pub(super) error: Option<String>,
}

/// One row for each model and text, by section, parents first.
pub(super) fn rows(collection: &Collection) -> Vec<Row> {
    let sections = collection.sections.iter().enumerate();
    sections.flat_map(|(i, section)| of_section(i, section)).collect()
}

fn of_section(number: usize, section: &Section) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut used = vec![false; section.points.len()];
    let bytes = |model: &SavedModel| model.bytes.filter(|&bytes| bytes > 0);
    let verified = |model: &SavedModel| {
        let mut of_model = section.verified.iter().rev();
        let found = of_model.find(|result| is_same_model(&result.output, model));
        found.map(|result| result.verified)
    };
    let row = |model: &SavedModel| Row {
        section: number,
        name: name(model),
        share: bytes(&section.parent).zip(bytes(model)).map(|(parent, bytes)| bytes as f64 / parent as f64),
        verified: verified(model),
        model: model.clone(),
        ..Row::default()
    };
    let with_point = |row: Row, point: &Point| Row {
        quality: point.quality,
        text: text(point),
        error: point.error.clone(),
        ..row
    };
    let parents = section.points.iter().enumerate();
    for (i, point) in parents.filter(|(_, point)| point.kind == Kind::Parent) {
        used[i] = true;
        let parent = Row { kind: "parent", ..row(&section.parent) };
        rows.push(with_point(parent, point));
    }
    if rows.is_empty() {
        rows.push(Row { kind: "parent", ..row(&section.parent) });
    }
    for scored in &section.scored {
        let Some(output) = &scored.output else {
            continue;
        };
        let mut removed = match scored.removed.is_empty() {
            true => String::new(),
            false => block_list(&scored.removed),
        };
        if !scored.attention_removed.is_empty() {
            let comma = if removed.is_empty() { "" } else { ", " };
            removed.push_str(&format!("{comma}attention of {}", block_list(&scored.attention_removed)));
        }
        let bare = Row {
            kind: if output.path.is_some() { "shortened" } else { "planned" },
            removed,
            method: scored.method.clone().unwrap_or_default(),
            ..row(output)
        };
        let mut measured = false;
        for (i, point) in section.points.iter().enumerate() {
            let is_of_output = match point.by_search {
                true => point.removed == scored.removed && scored.search == Some(point.quality),
                false => is_same_model(&point.model, output),
            };
            if !used[i] && is_of_output {
                used[i] = true;
                measured = true;
                rows.push(with_point(bare.clone(), point));
            }
        }
        if !measured {
            rows.push(bare);
        }
    }
    for (_, point) in section.points.iter().enumerate().filter(|(i, _)| !used[*i]) {
        let bare = Row {
            name: point.name.clone(),
            kind: match point.kind {
                Kind::Parent => "parent",
                Kind::Shortened => "shortened",
                Kind::Requantized => "requantized",
                Kind::File => "file",
            },
            removed: match (point.removed.is_empty(), section.n_removed(point)) {
                (false, _) => block_list(&point.removed),
                (true, Some(n)) if n > 0 => super::words::plural(n, "block"),
                _ => String::new(),
            },
            ..row(&point.model)
        };
        rows.push(with_point(bare, point));
    }
    rows
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
