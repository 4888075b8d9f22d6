//! Places of results that must not be those of the input.

use crate::files::place::{check_folder, is_same};
use crate::files::staged::folder_of;
use crate::model::input::Input;
use anyhow::{Result, bail, ensure};
use std::path::Path;

/// Checks that [`crate::files::place::text`] can write at `path`. It may not be the input or the output.
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
    let is_output = output
        .is_some_and(|output| path.file_name() == output.file_name() && is_same(folder, folder_of(output)));
    ensure!(!is_output, "{}: is the output itself", fail());
    check_folder(path)
}

/// Whether the file at `path` is one of the input's. Differing names can be one file, through links of either kind; a
/// dangling link is not the input.
pub fn is_input(path: &Path, input: &Input) -> bool {
    input.parts().iter().any(|part| is_same(path, &part.path))
}
