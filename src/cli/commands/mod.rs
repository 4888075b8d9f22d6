//! Commands: each parses its input, calls the library, and prints.

mod escaped;

pub mod batch;

mod candidate;

mod card;

pub mod compare;

pub mod cache;

mod devices;

pub mod eval;

pub mod fit;

pub mod generate;

pub mod help;

pub mod list;

pub mod overview;

pub mod report;

pub mod score;

pub mod shorten;

pub mod show;

pub mod verify;

use crate::cli::colour;
use crate::cli::options::Printing;
use crate::engine::llama;
use crate::files::place;
use crate::model::Model;
use crate::model::input::Input;
use crate::model::place::check_text;
use crate::report::{Report, table};
use crate::watch::Watch;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;

/// Says that a file counts prediction blocks that are none.
fn note_counts(model: &Model<'_>, input: &Input, printing: &Printing) {
    if let Some(counts) = llama::note_counts(model) {
        printing.note(&format!("{}: {counts}", input.path().display()));
    }
}

/// The command line without the program's name, for the result.
fn arguments() -> Vec<String> {
    let arguments = std::env::args_os().skip(1);
    arguments.map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Prints a result: as a table, as JSON, or both.
fn print(report: &Report, printing: &Printing) -> Result<()> {
    if printing.tables() {
        to_stdout(&table::report(report, colour::on_stdout()))?;
    }
    print_json(report, printing)
}

/// Checks before any work where `--json` says that the result goes: over no model, and no other file that is `read`.
fn check_json(printing: &Printing, inputs: &[&Input], read: &[&[PathBuf]]) -> Result<()> {
    let Some(path) = printing.json.as_deref().filter(|_| printing.tables()) else {
        return Ok(());
    };
    place::check_unread(path, read.iter().copied().flatten().map(PathBuf::as_path))?;
    inputs.iter().try_for_each(|input| check_text(path, input, None))?;
    place::check_no_model(path)
}

/// Writes a result to where `--json` says, if it says so.
fn print_json(result: &impl serde::Serialize, printing: &Printing) -> Result<()> {
    let Some(path) = &printing.json else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(result)? + "\n";
    if !printing.tables() {
        return to_stdout(&json);
    }
    place::text(path, &json).with_context(|| path.display().to_string())
}

/// Writes to stdout. A closed pipe is no error: who read it has seen enough.
fn to_stdout(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("stdout"),
    }
}
