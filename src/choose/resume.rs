//! The journal of a measured search: its key, opening it, and doing without where that fails.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::choose::request::Request;
use crate::choose::search::Record;
use crate::choose::search::journal::{Extent, Journal, Key};
use crate::engine::hidden_state::Token;
use crate::files::cache as cache_folder;
use crate::output::Parent;
use crate::watch::Watch;

/// All that a loss depends on. The number of threads changes no bit.
pub(crate) fn key(request: &Request<'_>, windows: &[&[Token]], evaluated: &str) -> Key {
    let Parent { input, constraints, .. } = request.parent;
    let numbers: Vec<u8> =
        windows.iter().flat_map(|window| window.iter().flat_map(|token| token.to_le_bytes())).collect();
    let tasks = request.tasks.map_or(&[][..], |(_, tasks)| tasks);
    let settings = format!(
        "{} windows, {evaluated}, {:?} on the GPU, trusted {}, portable {}, without {:?}, tasks {tasks:?}",
        windows.len(),
        request.text.gpu_layers,
        constraints.trusted,
        constraints.portable,
        constraints.dropped,
    );
    Key::of(&[
        env!("CARGO_PKG_VERSION").as_bytes(),
        ggml::backend::llama_cpp_version().as_bytes(),
        input.blake3_once().as_bytes(),
        &numbers,
        settings.as_bytes(),
    ])
}

/// The journal of a search, and what it holds. Without one, which is said, the search cannot be resumed.
pub(crate) fn open_journal(
    folder: Option<&Path>,
    key: &dyn Fn() -> Key,
    extent: Extent,
    watch: &dyn Watch,
) -> (Option<Journal>, Vec<Record>) {
    let folder: Result<PathBuf> = match folder {
        Some(folder) => Ok(folder.to_owned()),
        None => cache_folder::folder(),
    };
    match folder.and_then(|folder| Journal::open(&folder, key(), extent)) {
        Ok(opened) => {
            let path = opened.journal.path().display();
            if let Some(damage) = &opened.damage {
                watch.note(&format!("{path}: {damage}; the search begins anew"));
            }
            if !opened.records.is_empty() {
                let n = opened.records.len();
                watch.note(&format!("{n} losses are known from a run that did not end ({path})"));
            }
            (Some(opened.journal), opened.records)
        }
        Err(error) => {
            watch.note(&format!("the search will not be resumable: {error:#}"));
            (None, Vec::new())
        }
    }
}

/// Removes a journal that is not needed any more.
pub(crate) fn close_journal(journal: Option<Journal>, watch: &dyn Watch) {
    if let Some(Err(error)) = journal.map(Journal::remove) {
        watch.note(&format!("{error:#}"));
    }
}
