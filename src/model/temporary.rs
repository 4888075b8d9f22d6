//! Temporary files that llama.cpp opens by a path.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::gguf;
use crate::model::convert::layout_of;
use crate::model::part::Part;

/// A temporary file, in the system's folder for such. On Linux it has no name, so that nothing is left however the process
/// ends.
pub struct Temporary {
    file: File,
    path: PathBuf,
    #[cfg(not(target_os = "linux"))]
    _keep: (tempfile::TempPath, ggml::fault::RemovedOnDeath),
}

impl Temporary {
    /// An empty one.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let file = tempfile::tempfile()?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
            Ok(Self { file, path })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let (file, keep) = tempfile::NamedTempFile::new()?.into_parts();
            let removed = ggml::fault::RemovedOnDeath::new(&keep);
            Ok(Self { file, path: keep.to_path_buf(), _keep: (keep, removed) })
        }
    }

    /// A copy of a part of a model.
    ///
    /// # Errors
    /// The system's.
    pub fn copy(part: &Part) -> io::Result<Self> {
        let mut copy = Self::new()?;
        let mut source = part.mapping.file().try_clone()?;
        source.seek(SeekFrom::Start(0))?;
        io::copy(&mut source.take(part.mapping.len() as u64), &mut copy.file)?;
        Ok(copy)
    }

    /// A temporary file with `part` under the head of `shown`. Returns also where the data of each of its tensors is.
    ///
    /// # Errors
    /// The system's.
    pub fn of_shown(part: &Part, shown: &gguf::File<'_>) -> Result<(Self, Vec<u64>)> {
        let layout = layout_of(shown)?;
        let mut copy = Self::new()?;
        copy.file.set_len(layout.file_len())?;
        let mut head = BufWriter::with_capacity(1 << 16, &copy.file);
        gguf::write_head(&layout, &mut head)?;
        head.flush()?;
        drop(head);
        let mut source = part.mapping.file().try_clone()?;
        let mut positions = Vec::new();
        for (planned, tensor) in layout.tensors().iter().zip(shown.tensors()) {
            source.seek(SeekFrom::Start(tensor.position().0))?;
            copy.file.seek(SeekFrom::Start(planned.position().0))?;
            io::copy(&mut (&source).take(tensor.n_bytes()), &mut copy.file)?;
            positions.push(planned.position().0);
        }
        Ok((copy, positions))
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
