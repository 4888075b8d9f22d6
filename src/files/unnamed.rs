//! Temporary files without a name, which vanish with the run.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A file that llama.cpp writes or reads by a path. It is gone when this is dropped, and however the process ends. On Linux it
/// has no name, and is opened by way of this process's list of open files. Elsewhere an interrupt removes it.
pub struct ScratchFile {
    // Closed before its name is removed.
    file: File,
    path: PathBuf,
    /// The name that it has.
    #[cfg(not(target_os = "linux"))]
    _name: (tempfile::TempPath, ggml::fault::RemovedOnDeath),
}

impl ScratchFile {
    /// Makes an empty file on the file system of `folder`.
    ///
    /// # Errors
    /// The system's, such as a folder in which no file can be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        return Ok(Self::open(tempfile::tempfile_in(folder)?));
        #[cfg(not(target_os = "linux"))]
        {
            let (file, removed) = super::staged::temporary_in(folder, super::staged::TEMPORARY.0, 0o600)?;
            let (file, name) = file.into_parts();
            Ok(Self { file, path: name.to_path_buf(), _name: (name, removed) })
        }
    }

    /// Makes an empty file in the system's folder for temporary files.
    ///
    /// # Errors
    /// The system's.
    pub fn temporary() -> io::Result<Self> {
        Self::new(&std::env::temp_dir())
    }

    /// Makes an empty file in memory, or where the system has no such files a temporary one.
    ///
    /// # Errors
    /// The system's.
    pub fn in_memory() -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{MemfdFlags, memfd_create};
            Ok(Self::open(memfd_create("gguf-shorten", MemfdFlags::CLOEXEC)?.into()))
        }
        #[cfg(not(target_os = "linux"))]
        Self::temporary()
    }

    #[cfg(target_os = "linux")]
    fn open(file: File) -> Self {
        use std::os::fd::AsRawFd;
        Self { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), file }
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
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
    fn each_kind_is_the_file_at_its_path() {
        use std::io::Write as _;
        for scratch in [ScratchFile::temporary().unwrap(), ScratchFile::in_memory().unwrap()] {
            scratch.file().write_all(b"by hand").unwrap();
            assert_eq!(std::fs::read(scratch.path()).unwrap(), b"by hand");
            let path = scratch.path().to_owned();
            drop(scratch);
            assert!(std::fs::read(path).is_err());
        }
    }

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
