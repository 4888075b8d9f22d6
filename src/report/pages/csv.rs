//! The table of all models as comma-separated values (RFC 4180), with all digits.

use anyhow::Result;

use super::Collection;
use super::table::{Row, rows};

/// One line for each model and text, and one for each failure, under a line of names.
///
/// # Errors
/// None but those of memory.
pub fn csv(collection: &Collection) -> Result<String> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "parent",
        "model",
        "kind",
        "architecture",
        "block_count",
        "removed",
        "method",
        "bytes",
        "parameters",
        "perplexity",
        "perplexity_stderr",
        "kl_divergence",
        "kl_divergence_stderr",
        "same_top",
        "prompt_tokens_per_second",
        "decode_tokens_per_second",
        "text",
        "verified",
        "blake3",
        "error",
    ])?;
    for row in rows(collection) {
        let parent = collection.sections[row.section].name();
        writer.write_record(record(&parent, &row))?;
    }
    for failed in &collection.failures {
        let mut record = vec![String::new(); 20];
        record[1] = failed.path.clone().unwrap_or_default();
        record[2] = "failed".to_owned();
        record[19].clone_from(&failed.error);
        writer.write_record(record)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn record(parent: &str, row: &Row) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let count = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
    let (model, quality) = (&row.model, &row.quality);
    vec![
        parent.to_owned(),
        row.name.clone(),
        row.kind.to_owned(),
        model.architecture.clone().unwrap_or_default(),
        count(model.n_blocks.map(|n| n as u64)),
        row.removed.clone(),
        row.method.clone(),
        count(model.bytes),
        count(model.parameters),
        number(quality.perplexity),
        number(quality.perplexity_stderr),
        number(quality.kl),
        number(quality.kl_stderr),
        number(quality.same_top),
        number(quality.prompt),
        number(quality.decode),
        row.text.clone(),
        row.verified.map_or(String::new(), |verified| verified.to_string()),
        model.blake3.clone().unwrap_or_default(),
        row.error.clone().unwrap_or_default(),
    ]
}
