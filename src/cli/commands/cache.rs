//! `cache`: what is in the cache of scores, and nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{DecimalBytes, HumanCount, HumanDuration};
use serde::Serialize;

use super::{print_json, to_stdout};
use crate::cli::args::CacheCommand;
use crate::cli::options::Printing;
use crate::measure::cache::{Cache, Listed, Scored};
use crate::report::column::trimmed;

/// What `cache list --json` writes.
#[derive(Serialize)]
struct ListReport {
    gguf_shorten: &'static str,
    /// Where the cache is.
    folder: String,
    /// Bytes of all entries.
    bytes: u64,
    /// Texts that models wrote.
    own_texts: usize,
    own_text_bytes: u64,
    entries: Vec<EntryReport>,
}

/// An entry; all but its bytes is null if it is damaged.
#[derive(Serialize)]
struct EntryReport {
    /// Where the model was.
    model: Option<String>,
    model_blake3: Option<String>,
    /// Where the text came from.
    source: Option<String>,
    text_blake3: Option<String>,
    tokens: Option<usize>,
    window: Option<usize>,
    /// `blocks`, `halves`, or `runs of N`.
    scored: Option<String>,
    gguf_shorten: Option<String>,
    llama_cpp: Option<String>,
    /// In seconds since 1970.
    written: Option<u64>,
    damaged: bool,
    bytes: u64,
}

/// What `cache clear --json` writes.
#[derive(Serialize)]
struct ClearReport {
    gguf_shorten: &'static str,
    folder: String,
    /// Entries that were removed, as `list` counts them.
    removed: usize,
    bytes: u64,
    /// Texts that models wrote.
    own_texts: usize,
    own_text_bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// No place for a cache; a folder that cannot be read, or an entry that cannot be removed.
pub fn run(command: &CacheCommand) -> Result<()> {
    let (CacheCommand::List(common) | CacheCommand::Clear(common)) = command;
    let printing = Printing::new(common);
    let cache = Cache::of_user(&printing);
    let cache = cache.context("the system has no folder for caches; GGUF_SHORTEN_CACHE names one")?;
    match command {
        CacheCommand::List(_) => list(&cache, &printing),
        CacheCommand::Clear(_) => clear(&cache, &printing),
    }
}

fn list(cache: &Cache<'_>, printing: &Printing) -> Result<()> {
    let (own_texts, own_text_bytes) = cache.own_texts()?;
    let report = ListReport {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        folder: cache.folder().display().to_string(),
        bytes: 0,
        own_texts,
        own_text_bytes,
        entries: cache.list()?.into_iter().map(EntryReport::of).collect(),
    };
    let report = ListReport { bytes: report.entries.iter().map(|entry| entry.bytes).sum(), ..report };
    if printing.tables() {
        to_stdout(&shown(&report))?;
    }
    print_json(&report, printing)
}

fn clear(cache: &Cache<'_>, printing: &Printing) -> Result<()> {
    let [(removed, bytes), (own_texts, own_text_bytes)] = cache.clear()?;
    let report = ClearReport {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        folder: cache.folder().display().to_string(),
        removed,
        bytes,
        own_texts,
        own_text_bytes,
    };
    if printing.tables() {
        let (n, size) = (entries(removed), DecimalBytes(bytes));
        let text = format!(
            "removed  {removed} {n} of {}, {size}\n{}",
            report.folder,
            texts(own_texts, own_text_bytes)
        );
        to_stdout(&text)?;
    }
    print_json(&report, printing)
}

fn entries(n: usize) -> &'static str {
    match n {
        1 => "entry",
        _ => "entries",
    }
}

impl EntryReport {
    fn of(listed: Listed) -> Self {
        let bytes = listed.n_bytes;
        let entry = listed.entry;
        let of = |text: fn(&crate::measure::cache::Entry) -> String| entry.as_ref().map(text);
        Self {
            model: of(|entry| entry.path.clone()),
            model_blake3: of(|entry| entry.key.model.clone()),
            source: of(|entry| entry.measured.source.clone()),
            text_blake3: of(|entry| entry.measured.blake3.clone()),
            tokens: entry.as_ref().map(|entry| entry.measured.tokens),
            window: entry.as_ref().map(|entry| entry.measured.window),
            scored: of(|entry| match entry.key.scored {
                Scored::Blocks => "blocks".to_owned(),
                Scored::Halves => "halves".to_owned(),
                Scored::Runs(n) => format!("runs of {n}"),
                Scored::Pairs => "pairs".to_owned(),
                Scored::Experts => "experts".to_owned(),
            }),
            gguf_shorten: of(|entry| entry.key.gguf_shorten.clone()),
            llama_cpp: of(|entry| entry.key.llama_cpp.clone()),
            written: entry.as_ref().map(|entry| entry.written),
            damaged: entry.is_none(),
            bytes,
        }
    }
}

fn shown(report: &ListReport) -> String {
    let mut text = String::new();
    if !report.entries.is_empty() {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["model", "text", "tokens", "window", "scores", "size", "written"]);
        for entry in &report.entries {
            let number = |n: Option<usize>| n.map_or(String::new(), |n| HumanCount(n as u64).to_string());
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let plain = |text: &str| Cell::new(text.replace(char::is_control, " "));
            table.add_row([
                plain(entry.model.as_deref().unwrap_or("(damaged)")),
                plain(entry.source.as_deref().unwrap_or_default()),
                right(number(entry.tokens)),
                right(number(entry.window)),
                plain(entry.scored.as_deref().unwrap_or_default()),
                right(DecimalBytes(entry.bytes).to_string()),
                plain(&entry.written.map_or(String::new(), age)),
            ]);
        }
        text = format!("{}\n\n", trimmed(table));
    }
    let n = report.entries.len();
    let size = DecimalBytes(report.bytes);
    text += &format!("cache    {}: {n} {}, {size}\n", report.folder, entries(n));
    text + &texts(report.own_texts, report.own_text_bytes)
}

/// The line of texts that models wrote; empty without one.
fn texts(n: usize, n_bytes: u64) -> String {
    match n {
        0 => String::new(),
        n => format!("texts    {n} that models wrote, {}\n", DecimalBytes(n_bytes)),
    }
}

/// How long ago a second since 1970 was.
fn age(written: u64) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_or(0, |since| since.as_secs().saturating_sub(written));
    format!("{} ago", HumanDuration(Duration::from_secs(since)))
}
