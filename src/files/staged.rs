//! Putting finished files into their places: all of them or none.
//!
//! A file is written under a temporary name in the folder of its place ([`Staged`]). [`commit`] renames all files of one
//! result, and takes back what it has done where one of them cannot be renamed. An interrupt finds either nothing done or
//! all of it: it waits for a commit that has begun.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use ggml::fault::{self, RemovedOnDeath};
use tempfile::NamedTempFile;

use crate::files::system::{mode_from, set_mode, show_in_use};

/// Held by what begins or ends a save.
static SAVING: Mutex<()> = Mutex::new(());

fn saving() -> MutexGuard<'static, ()> {
    SAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the output is in its place. Changes only under the lock of [`SAVING`].
static SAVED: AtomicBool = AtomicBool::new(false);

/// Removes the temporary files of an interrupted save. Called before the process ends; no save begins or ends after it.
/// Returns what became of the output.
#[must_use]
pub fn interrupt() -> &'static str {
    let saving = saving();
    fault::remove_all();
    // Not given back: another thread may be about to make its temporary file, or to move it into its place.
    std::mem::forget(saving);
    if SAVED.load(Ordering::SeqCst) { "the output is complete" } else { "nothing was written" }
}

/// What the names of temporary files begin and end with.
pub(crate) const TEMPORARY: (&str, &str) = (".gguf-shorten-", ".tmp");

/// What the names of temporary files of one process begin with.
fn temporary_prefix(process: u32) -> String {
    format!("{}{process}-", TEMPORARY.0)
}

/// Removes the temporary files that a killed process has left in `folder`. On another
/// machine a process of the same number may be writing there; its files are locked, and stay.
pub fn remove_left_by(process: u32, folder: &Path) {
    let prefix = temporary_prefix(process);
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(&prefix) || !name.ends_with(TEMPORARY.1) {
            continue;
        }
        let file = File::open(entry.path());
        let is_locked = file.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)));
        if !is_locked {
            // It may be gone by now.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A new file in `folder`; its unique name begins with `prefix`. Its permissions are `mode` where the system has such.
/// It is removed too where an interrupt or llama.cpp ends the process: its name is registered before the file exists.
///
/// # Errors
/// The system's.
pub(crate) fn temporary_in(
    folder: &Path,
    prefix: &str,
    mode: u32,
) -> io::Result<(NamedTempFile, RemovedOnDeath)> {
    let mut removed = None;
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    set_mode(&mut options, mode);
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(TEMPORARY.1);
    let temporary = builder.make_in(folder, |path| {
        let removes = removed.insert(RemovedOnDeath::new(path));
        let file = options.open(path)?;
        removes.check();
        Ok(file)
    })?;
    let removed = removed.ok_or(io::ErrorKind::NotFound)?;
    Ok((temporary, removed))
}

/// Renames a temporary file over what is at `path`, which others may have open: the standard library asks Windows for that,
/// tempfile does not. On failure it is removed.
pub(crate) fn renamed(temporary: NamedTempFile, path: &Path) -> io::Result<File> {
    let (file, name) = temporary.into_parts();
    fs::rename(&name, path)?;
    // Nothing is left under that name to keep, which is no failure.
    let _ = name.keep();
    Ok(file)
}

/// A file that is being written beside its place. Dropped, it is removed.
#[derive(Debug)]
pub struct Staged {
    // Removed before its name is forgotten.
    temporary: NamedTempFile,
    removed: RemovedOnDeath,
    path: PathBuf,
    overwrite: bool,
}

impl Staged {
    /// Makes a temporary file in the folder of `path`. `overwrite` lets it take the place of a file that is there by then.
    ///
    /// # Errors
    /// The system's.
    pub fn new(path: &Path, overwrite: bool, permissions: &Permissions) -> io::Result<Self> {
        let _saving = saving();
        let prefix = temporary_prefix(std::process::id());
        let mode = mode_from(permissions);
        let (temporary, removed) = temporary_in(folder_of(path), &prefix, mode)?;
        // Also to a process on another machine.
        show_in_use(temporary.as_file());
        Ok(Self { temporary, removed, path: path.to_owned(), overwrite })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Where it is.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Where it will go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Renames all files to their places, from the last to the first. What is opened by name is first in `files`, so that it
/// is never there without the others.
///
/// # Errors
/// The system's, such as a file that has appeared meanwhile. Every place is then as it was.
pub fn commit(files: Vec<Staged>) -> Result<()> {
    let folders: BTreeSet<PathBuf> = files.iter().map(|file| folder_of(&file.path).to_owned()).collect();
    // Forgotten when all is done, or taken back.
    let mut removed = Vec::new();
    let saving = saving();
    let mut placed: Vec<Placed> = Vec::new();
    let mut failure = None;
    let n_files = files.len();
    for (i, file) in files.into_iter().enumerate().rev() {
        removed.push(file.removed);
        if failure.is_some() {
            continue;
        }
        // Nothing can fail after the last rename. It is done or not done.
        let keeps_old = i > 0;
        match Placed::put(file.temporary, &file.path, file.overwrite, keeps_old) {
            Ok(done) => placed.push(done),
            Err(error) if n_files == 1 => failure = Some(error.into()),
            Err(error) => {
                failure = Some(anyhow!(error).context(file.path.display().to_string()));
            }
        }
    }
    if let Some(error) = failure {
        return Err(placed.into_iter().rev().fold(error, Placed::undo));
    }
    SAVED.store(true, Ordering::SeqCst);
    placed.into_iter().for_each(Placed::settle);
    drop(saving);
    for folder in folders {
        // So that the new names are on disk too. Not every system can; the output is in its place either way.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// A file in its place, and what was there before.
struct Placed {
    path: PathBuf,
    old: Option<PathBuf>,
}

impl Placed {
    /// Renames a temporary file. With `keeps_old`, what it takes the place of stays under another name.
    fn put(temporary: NamedTempFile, path: &Path, overwrite: bool, keeps_old: bool) -> io::Result<Self> {
        let mut old = None;
        if overwrite {
            // The rename fails where a folder is in its place.
            if keeps_old && fs::symlink_metadata(path).is_ok_and(|kind| !kind.is_dir()) {
                old = Some(set_aside(path)?);
            }
            if let Err(error) = renamed(temporary, path) {
                if let Some(old) = old {
                    put_back(&old, path)?;
                }
                return Err(error);
            }
        } else {
            temporary.persist_noclobber(path).map_err(|error| error.error)?;
        }
        Ok(Self { path: path.to_owned(), old })
    }

    /// Puts back what was there, because of `error`.
    fn undo(error: anyhow::Error, placed: Self) -> anyhow::Error {
        let (undone, left) = match &placed.old {
            Some(old) => {
                (put_back(old, &placed.path), format!("; what was there before is {}", old.display()))
            }
            None => (fs::remove_file(&placed.path), String::new()),
        };
        match undone {
            Ok(()) => error,
            Err(second) => {
                error.context(format!("{} could not be taken back ({second}{left})", placed.path.display()))
            }
        }
    }

    /// Gives up what was there before.
    fn settle(self) {
        if let Some(old) = self.old {
            // The output is complete; an old file that cannot be removed is no failure of it.
            let _ = fs::remove_file(old);
        }
    }
}

/// Gives the file at `path` a second name, to put it back. Where the file system knows no second names, another one.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside =
        tempfile::Builder::new().prefix(TEMPORARY.0).suffix(".old").make_in(folder_of(path), |aside| {
            match fs::hard_link(path, aside) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    // A name that is taken must not be lost by this rename.
                    if fs::symlink_metadata(aside).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    fs::rename(path, aside)
                }
                result => result,
            }
        })?;
    // Kept: it is removed when all files are in their places.
    aside.into_temp_path().keep().map_err(|error| error.error)
}

/// Puts a file that was set aside back to `path`.
fn put_back(old: &Path, path: &Path) -> io::Result<()> {
    fs::rename(old, path)?;
    // A rename between two names of one file leaves both.
    match fs::remove_file(old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The folder that a file at `path` lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            for (name, text) in files {
                fs::write(folder.path(name), text).unwrap();
            }
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn staged(&self, name: &str, overwrite: bool) -> Staged {
            let permissions = fs::metadata(self.0.path()).unwrap().permissions();
            let staged = Staged::new(&self.path(name), overwrite, &permissions).unwrap();
            staged.file().write_all(format!("new {name}").as_bytes()).unwrap();
            staged
        }

        /// Every name, hidden ones too, with the text of files.
        fn all(&self) -> Vec<(String, String)> {
            let mut all: Vec<_> = fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| {
                    let path = entry.unwrap().path();
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    (name, fs::read_to_string(&path).unwrap_or_default())
                })
                .collect();
            all.sort();
            all
        }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn all_files_get_to_their_places() {
        let folder = Folder::new(&[("b", "old b")]);
        let files = vec![folder.staged("a", false), folder.staged("b", true), folder.staged("c", true)];
        commit(files).unwrap();
        let expected = [("a", "new a"), ("b", "new b"), ("c", "new c")];
        assert_eq!(folder.all(), pairs(&expected));
    }

    #[test]
    fn one_that_fails_takes_back_the_others() {
        // A file cannot take the place of a folder.
        for (blocked, others) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
            let folder = Folder::new(&[(others[0], "old")]);
            fs::create_dir(folder.path(blocked)).unwrap();
            let before = folder.all();
            let files = ["a", "b", "c"].map(|name| folder.staged(name, true));
            let error = commit(files.into()).unwrap_err();
            assert!(
                format!("{error:#}").starts_with(&folder.path(blocked).display().to_string()),
                "{error:#}"
            );
            assert_eq!(folder.all(), before, "{blocked}");
        }
    }

    #[test]
    fn a_file_that_appeared_meanwhile_stays() {
        for taken in ["a", "b"] {
            let folder = Folder::new(&[]);
            let files = ["a", "b"].map(|name| folder.staged(name, false));
            fs::write(folder.path(taken), "another's").unwrap();
            commit(files.into()).unwrap_err();
            assert_eq!(folder.all(), pairs(&[(taken, "another's")]));
        }
    }

    #[test]
    fn what_a_killed_process_has_left_is_removed_and_what_is_locked_is_not() {
        let folder = Folder::new(&[(".gguf-shorten-7-x.tmp", "left"), (".gguf-shorten-77-x.tmp", "")]);
        let locked = fs::File::create(folder.path(".gguf-shorten-7-y.tmp")).unwrap();
        locked.lock().unwrap();
        remove_left_by(7, folder.0.path());
        let left = folder.all().into_iter().map(|(name, _)| name);
        let expected = [".gguf-shorten-7-y.tmp", ".gguf-shorten-77-x.tmp"];
        assert_eq!(left.collect::<Vec<_>>(), expected);
        let staged = folder.staged("a", true);
        let path = staged.temporary().to_owned();
        remove_left_by(std::process::id(), folder.0.path());
        assert!(path.exists());
    }

    #[test]
    fn files_that_are_not_committed_are_removed() {
        let folder = Folder::new(&[("a", "old")]);
        drop(folder.staged("a", true));
        assert_eq!(folder.all(), pairs(&[("a", "old")]));
    }
}
