//! Places of files: whether they can be made, room on their disk, and small ones written whole.

use crate::files::staged::{TEMPORARY, folder_of, renamed, temporary_in};
use crate::files::system;
pub use crate::files::system::is_same;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::path::Path;

/// Checks that `folder` has room for `n_bytes`, with `min_free` left. What has been reserved is not free. Where free space is not
/// known, the disk shows that it is full while the file is written.
///
/// # Errors
/// That it cannot be.
pub fn check_free(folder: &Path, n_bytes: u64, min_free: u64) -> Result<()> {
    let Some(free) = system::free_bytes(folder) else {
        return Ok(());
    };
    let needed = match (n_bytes, min_free) {
        (n_bytes, 0) => format!("{n_bytes} bytes are needed"),
        (0, min_free) => format!("{min_free} bytes are to stay free"),
        (n_bytes, min_free) => {
            format!("{n_bytes} bytes are needed and {min_free} are to stay free")
        }
    };
    ensure!(
        n_bytes.saturating_add(min_free) <= free,
        "No space left on device: {needed}, but '{}' has {free}",
        folder.display()
    );
    Ok(())
}

/// Makes an empty file `len` bytes long. So a full disk shows before the first write, where the system can tell.
pub(crate) fn reserve(file: &File, len: u64) -> Result<()> {
    system::reserve(file, len).with_context(|| format!("{len} bytes are needed"))
}

/// `new/` is no file's name, though [`Path::file_name`] of it is `new`.
pub fn ends_in_separator(path: &Path) -> bool {
    let last = path.as_os_str().as_encoded_bytes().last();
    last.is_some_and(|&byte| std::path::is_separator(byte.into()))
}

/// Checks that a file at `path` replaces none of those `read`. A pipe or device is no place.
///
/// # Errors
/// That it does.
pub fn check_unread<'r>(path: &Path, read: impl IntoIterator<Item = &'r Path>) -> Result<()> {
    let is_read = path.is_file() && read.into_iter().any(|read| is_same(path, read));
    ensure!(!is_read, "{}: is read by this run", path.display());
    Ok(())
}

/// Checks that a text would not replace a model at `path`.
///
/// # Errors
/// That there is one.
pub fn check_no_model(path: &Path) -> Result<()> {
    let mut start = [0; 4];
    let is_model = path.is_file()
        && File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok_and(|()| start == *b"GGUF");
    ensure!(!is_model, "{}: is a model", path.display());
    Ok(())
}

/// All of a file, of which `what` has at most `limit` bytes. A pipe or device does not say how much it holds.
///
/// # Errors
/// The system's; a folder; a file that has more.
pub fn read_at_most(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    ensure!(!metadata.is_dir(), "is a folder, expected {what}");
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    let is_more = metadata.len() > limit || bytes.len() as u64 > limit;
    ensure!(!is_more, "has more than {limit} bytes, expected {what}");
    Ok(bytes)
}

/// Checks that a file can be made in the folder of `path`.
pub fn check_folder(path: &Path) -> Result<()> {
    let fail = || path.display().to_string();
    let folder = folder_of(path);
    let metadata =
        std::fs::metadata(folder).with_context(|| format!("{}: folder '{}'", fail(), folder.display()))?;
    ensure!(metadata.is_dir(), "{}: '{}' is not a folder", fail(), folder.display());
    tempfile::tempfile_in(folder)
        .with_context(|| format!("{}: cannot write in folder '{}'", fail(), folder.display()))?;
    Ok(())
}

/// Checks that [`text`] can write at `path`. What may be replaced is for the caller to know.
///
/// # Errors
/// What is wrong with the place.
pub fn check_page(path: &Path) -> Result<()> {
    let fail = || path.display().to_string();
    ensure!(path.file_name().is_some() && !ends_in_separator(path), "{}: is not the name of a file", fail());
    match std::fs::metadata(path) {
        Ok(kind) if kind.is_dir() => bail!("{}: is a folder, expected the name of a file", fail()),
        // A pipe or device.
        Ok(kind) if !kind.is_file() => Ok(()),
        _ => check_folder(path),
    }
}

/// Writes a small file to a temporary name, then renames it. A pipe or device is written to as it is.
///
/// # Errors
/// The system's.
pub fn text(path: &Path, text: &str) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Ok(std::fs::write(path, text)?);
    }
    Ok(replace(path, text.as_bytes(), 0o666)?)
}

/// Writes a file to a temporary name, then renames it. Its permissions are `mode` where the system has such.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (mut temporary, _removed) = temporary_in(folder_of(path), TEMPORARY.0, mode)?;
    temporary.write_all(bytes)?;
    renamed(temporary, path)?;
    Ok(())
}
