//! Files beside a model that name its blocks. The importance matrix is renumbered with it, and a note names the others.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml::Mapping;

use crate::files::place;
use crate::files::staged::{Staged, folder_of};
use crate::gguf::File;
use crate::model::Model;
use crate::model::companion::Companion;
use crate::model::input::Input;
use crate::output::save;
use crate::plan::imatrix::{Imatrix, Left, Planned};

/// An importance matrix to be renumbered, and where it goes.
pub struct ImatrixFile {
    from: PathBuf,
    to: PathBuf,
    mapping: Mapping,
}

impl ImatrixFile {
    /// Maps the file at `from`, which is to be written to `to`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(from: &Path, to: &Path) -> Result<Self> {
        let mapping = Mapping::open(from).with_context(|| from.display().to_string())?;
        Ok(Self { from: from.to_owned(), to: to.to_owned(), mapping })
    }

    /// Reads it and checks that it can be the one of `model`.
    ///
    /// # Errors
    /// Its fault, or that it is another model's.
    pub fn parse(&self, model: &Model<'_>) -> Result<Imatrix<'_>> {
        let parse = || -> Result<Imatrix<'_>> {
            let imatrix = Imatrix::parse(&self.mapping)?;
            imatrix.check(model)?;
            Ok(imatrix)
        };
        parse().with_context(|| self.from.display().to_string())
    }

    /// Plans what is written.
    ///
    /// # Errors
    /// Those of [`Imatrix::plan`].
    pub fn plan<'i>(&self, imatrix: &Imatrix<'i>, left: Left<'_>) -> Result<Planned<'i>> {
        let planned = imatrix.plan(left);
        planned.with_context(|| self.from.display().to_string())
    }

    /// Where it goes.
    #[must_use]
    pub fn to(&self) -> &Path {
        &self.to
    }

    /// Writes it beside its place, ready to be committed.
    ///
    /// # Errors
    /// The system's.
    pub fn stage(&self, planned: &Planned<'_>, force: bool) -> Result<Staged> {
        stage(&self.to, planned, &self.mapping, force)
    }
}

/// Writes an importance matrix beside its place, ready to be committed. It has the permissions of the file `like`.
///
/// # Errors
/// The system's.
pub(crate) fn stage(to: &Path, planned: &Planned<'_>, like: &Mapping, force: bool) -> Result<Staged> {
    let write = || -> Result<Staged> {
        let staged = Staged::new(to, force, &save::permissions(like)?)?;
        place::reserve(staged.file(), planned.n_bytes())?;
        let mut writer = BufWriter::with_capacity(1 << 16, staged.file());
        planned.write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        staged.file().sync_all()?;
        Ok(staged)
    };
    write().with_context(|| format!("{}: nothing was written", to.display()))
}

/// Maximum files of a folder to inspect, and maximum names to read.
const MAX_FILES: usize = 48;
const MAX_NAMES: usize = 4096;

/// How many metadata entries tell what a file is: they stand in front.
const MAX_ENTRIES: u64 = 64;

/// Files beside the model that no longer fit when blocks go. Each is a name in its folder, and what it is. Only the first
/// metadata entries are read; what cannot be read is passed over. Those at `known` paths are left out.
#[must_use]
pub fn stale(input: &Input, architecture: &str, known: &[&Path]) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(folder_of(input.path())) else {
        return Vec::new();
    };
    let is_known = |path: &Path| {
        input.parts().iter().any(|part| part.path.file_name() == path.file_name())
            || known.iter().any(|known| place::is_same(known, path))
    };
    let mut paths: Vec<PathBuf> = entries
        .take(MAX_NAMES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("gguf" | "dat" | "imatrix")) && !is_known(path)
        })
        .collect();
    paths.sort();
    paths
        .into_iter()
        .take(MAX_FILES)
        .filter_map(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some((name, stale_kind(&path, architecture)?))
        })
        .collect()
}

/// The kind of file at `path`, if it depends on block numbers.
fn stale_kind(path: &Path, architecture: &str) -> Option<String> {
    let mapping = Mapping::open(path).ok()?;
    let entries = File::first_entries(&mapping, MAX_ENTRIES);
    if entries.is_empty() {
        let is_legacy = Imatrix::looks_like_legacy(&mapping);
        return is_legacy.then(|| Companion::Imatrix.to_string());
    }
    let companion = Companion::of(&entries)?;
    companion.is_stale(architecture).then(|| companion.to_string())
}
