//! Small results: text beside the output or on its own.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::{check_folder, ends_in_separator, is_input};
use crate::commit::{TEMPORARY, folder_of, temporary_in};
use crate::input::Input;

/// Checks that [`text`] can write at `path`, and that it takes the place of neither the input nor the output.
///
/// # Errors
/// What is wrong with the place.
pub fn check_text(path: &Path, input: &Input, output: Option<&Path>) -> Result<()> {
    let fail = || path.display().to_string();
    match std::fs::metadata(path) {
        Ok(kind) if kind.is_dir() => bail!("{}: is a folder, expected the name of a file", fail()),
        // A pipe or device.
        Ok(kind) if !kind.is_file() => return Ok(()),
        _ => {}
    }
    ensure!(!is_input(path, input), "{}: is the input itself", fail());
    let folder = folder_of(path);
    let is_output = output.is_some_and(|output| {
        path.file_name() == output.file_name()
            && same_file::is_same_file(folder, folder_of(output)).unwrap_or(false)
    });
    ensure!(!is_output, "{}: is the output itself", fail());
    check_folder(path)
}

/// Checks that [`text`] can write at `path`, where the caller knows what may be replaced.
///
/// # Errors
/// What is wrong with the place.
pub fn check_page(path: &Path) -> Result<()> {
    let fail = || path.display().to_string();
    ensure!(
        path.file_name().is_some() && !ends_in_separator(path),
        "{}: is not the name of a file",
        fail()
    );
    match std::fs::metadata(path) {
        Ok(kind) if kind.is_dir() => bail!("{}: is a folder, expected the name of a file", fail()),
        // A pipe or device.
        Ok(kind) if !kind.is_file() => Ok(()),
        _ => check_folder(path),
    }
}

/// Writes a small result beside its place, then renames it over what is there. A pipe or device is written to as it is.
///
/// # Errors
/// The system's.
pub fn text(path: &Path, text: &str) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Ok(std::fs::write(path, text)?);
    }
    let folder = folder_of(path);
    let (mut temporary, _removed) = temporary_in(folder, TEMPORARY.0, 0o666)?;
    temporary.write_all(text.as_bytes())?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}
