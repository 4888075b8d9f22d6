//! The table of all models as CSV (RFC 4180), with all digits.

use anyhow::Result;

use super::Collection;
use super::table::{Row, rows};
use crate::report::column::Column;

/// What there is of each row, after the name of its parent.
const COLUMNS: [Column<Row>; 19] = [
    Column::new("model", |row| row.name.clone()),
    Column::new("kind", |row| row.kind.to_owned()),
    Column::new("architecture", |row| text(&row.model.architecture)),
    Column::new("block_count", |row| text(&row.model.n_blocks)),
    Column::new("removed", |row| row.removed.clone()),
    Column::new("method", |row| row.method.clone()),
    Column::new("bytes", |row| text(&row.model.bytes)),
    Column::new("parameters", |row| text(&row.model.parameters)),
    Column::new("perplexity", |row| text(&row.quality.perplexity)),
    Column::new("perplexity_stderr", |row| text(&row.quality.perplexity_stderr)),
    Column::new("kl_divergence", |row| text(&row.quality.kl)),
    Column::new("kl_divergence_stderr", |row| text(&row.quality.kl_stderr)),
    Column::new("same_top", |row| text(&row.quality.same_top)),
    Column::new("prompt_tokens_per_second", |row| text(&row.quality.prompt)),
    Column::new("decode_tokens_per_second", |row| text(&row.quality.decode)),
    Column::new("text", |row| row.text.clone()),
    Column::new("verified", |row| text(&row.verified)),
    Column::new("blake3", |row| text(&row.model.blake3)),
    Column::new("error", |row| text(&row.error)),
];

/// One line for each model and text, and for each failure. A line of names comes first.
///
/// # Errors
/// None but those of memory.
pub fn csv(collection: &Collection) -> Result<String> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_field("parent")?;
    writer.write_record(COLUMNS.map(|column| column.head))?;
    let mut write = |parent: &str, row: &Row| {
        writer.write_field(parent)?;
        writer.write_record(COLUMNS.map(|column| (column.get)(row)))
    };
    for row in rows(collection).0 {
        write(&collection.sections[row.section].name(), &row)?;
    }
    for failed in &collection.failures {
        let name = failed.path.clone().unwrap_or_default();
        write("", &Row { name, kind: "failed", error: Some(failed.error.clone()), ..Row::default() })?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or(String::new(), T::to_string)
}
