//! Temporary files without a name, which vanish with the run.

use std::io;
use std::path::{Path, PathBuf};

#[cfg(not(target_os = "linux"))]
use crate::files::staged::Staged;

/// A file that llama.cpp writes and reads. It is gone when this is dropped, and however the process ends. On Linux it has no
/// name, and is opened by way of this process's list of open files. Elsewhere an interrupt removes it.
pub struct ScratchFile {
    path: PathBuf,
    /// Keeps the file, or its name in place.
    #[cfg(target_os = "linux")]
    _file: std::fs::File,
    #[cfg(not(target_os = "linux"))]
    _file: Staged,
}

impl ScratchFile {
    /// Makes an empty file on the file system of `folder`.
    ///
    /// # Errors
    /// The system's, such as a folder in which no file can be made.
    #[cfg(target_os = "linux")]
    pub fn new(folder: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _file: file })
    }

    /// Makes an empty file in `folder`.
    ///
    /// # Errors
    /// The system's, such as a folder in which no file can be made.
    #[cfg(not(target_os = "linux"))]
    pub fn new(folder: &Path) -> io::Result<Self> {
        let permissions = std::fs::metadata(folder)?.permissions();
        let file = Staged::new(&folder.join("scratch"), false, permissions)?;
        Ok(Self { path: file.temporary().to_owned(), _file: file })
    }

    /// What llama.cpp opens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_written_and_read_by_its_path_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = ScratchFile::new(folder.path()).unwrap();
        std::fs::write(scratch.path(), "first").unwrap();
        // Written anew, as llama.cpp does it.
        std::fs::write(scratch.path(), "2nd").unwrap();
        assert_eq!(std::fs::read(scratch.path()).unwrap(), b"2nd");
        if cfg!(target_os = "linux") {
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        drop(scratch);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(ScratchFile::new(&folder.path().join("none")).is_err());
    }
}
