//! `list`: the models of all stores, and whether they can be shortened.

use std::path::Path;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::{print_json, to_stdout};
use crate::cli::args::CommonArgs;
use crate::cli::commands::escaped::Escaped;
use crate::cli::options::Printing;
use crate::error;
use crate::model::Model;
use crate::model::input::Input;
use crate::model::stores;
use crate::plan::Constraints;
use crate::report::column::trimmed;
use crate::watch::Watch;

/// What `list --json` writes.
#[derive(Serialize)]
struct ListReport {
    gguf_shorten: &'static str,
    models: Vec<ModelRow>,
}

/// A model of a store; null is what cannot be read.
#[derive(Serialize)]
struct ModelRow {
    /// What names it on the command line.
    name: String,
    /// `ollama`, `hf`, `llama.cpp` or `lmstudio`.
    store: &'static str,
    path: Option<String>,
    architecture: Option<String>,
    block_count: Option<usize>,
    bytes: Option<u64>,
    /// How many blocks may go.
    may_go: Option<usize>,
    /// Why nothing may be removed; null if something may.
    refused: Option<String>,
    /// Why it cannot be read; null if it can.
    error: Option<String>,
}

impl ModelRow {
    fn of(name: &Path, store: &'static str) -> Self {
        let row = Self {
            name: name.display().to_string(),
            store,
            path: None,
            architecture: None,
            block_count: None,
            bytes: None,
            may_go: None,
            refused: None,
            error: None,
        };
        match row.read(name) {
            Ok(read) => read,
            Err(failure) => Self { error: Some(error::message(&failure)), ..row },
        }
    }

    /// With what the file says.
    fn read(&self, name: &Path) -> Result<Self> {
        let input = Input::open(name)?;
        let model = Model::new(input.parse()?)?;
        let constraints = Constraints::of(&model);
        let may_go = |constraints: &Constraints| {
            let n = constraints.n_trunk_blocks;
            n - constraints.must_stay.keys().filter(|block| block.index() < n).count()
        };
        Ok(Self {
            name: self.name.clone(),
            store: self.store,
            path: Some(input.path().display().to_string()),
            architecture: Some(model.architecture().to_owned()),
            block_count: Some(model.n_blocks()),
            bytes: Some(model.n_bytes()),
            may_go: constraints.as_ref().ok().map(may_go),
            refused: constraints.err().map(|error| error::message(&error)),
            error: None,
        })
    }

    /// What may go, in a few words.
    fn says(&self) -> String {
        match (&self.error, &self.refused, self.may_go) {
            (Some(_), ..) => "cannot be read".to_owned(),
            (None, Some(_), _) => "no".to_owned(),
            (None, None, Some(n)) => format!("{n} blocks"),
            (None, None, None) => String::new(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Those of stdout, and of the place of the result.
pub fn run(common: &CommonArgs) -> Result<()> {
    let printing = Printing::new(common);
    let mut models = Vec::new();
    for listed in stores::list() {
        match listed.models {
            Ok(names) => models.extend(names.iter().map(|name| ModelRow::of(name, listed.store))),
            Err(why) => printing.warn(&format!("{}: {why}", listed.store)),
        }
    }
    let report = ListReport { gguf_shorten: env!("CARGO_PKG_VERSION"), models };
    if printing.tables() {
        to_stdout(&shown(&report))?;
    }
    print_json(&report, &printing)
}

fn shown(report: &ListReport) -> String {
    if report.models.is_empty() {
        return "no models in the stores of Ollama, Hugging Face, llama.cpp and LM Studio; gguf-shorten help stores says where \
                they are looked for\n"
            .to_owned();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["model", "architecture", "blocks", "size", "may go"]);
    for row in &report.models {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(Escaped(&row.name)),
            Cell::new(Escaped(row.architecture.as_deref().unwrap_or_default())),
            right(row.block_count.map_or(String::new(), |n| n.to_string())),
            right(row.bytes.map_or(String::new(), |n| DecimalBytes(n).to_string())),
            right(row.says()),
        ]);
    }
    let mut text = trimmed(table) + "\n";
    for row in &report.models {
        if let Some(why) = row.error.as_ref().or(row.refused.as_ref()) {
            text += &format!("{}: {why}\n", Escaped(&row.name));
        }
    }
    text
}
