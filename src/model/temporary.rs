//! Temporary files that llama.cpp opens by a path.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Result;

use crate::files::unnamed::ScratchFile;
use crate::gguf;
use crate::model::convert::layout_of;
use crate::model::part::Part;

/// A temporary file, in the system's folder for such ([`ScratchFile`]).
pub struct Temporary(ScratchFile);

impl Temporary {
    /// An empty one.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        Ok(Self(ScratchFile::temporary()?))
    }

    /// A copy of a part of a model.
    ///
    /// # Errors
    /// The system's.
    pub fn copy(part: &Part) -> io::Result<Self> {
        let copy = Self::new()?;
        let mut file = copy.file();
        let mut source = part.mapping.file().try_clone()?;
        source.seek(SeekFrom::Start(0))?;
        io::copy(&mut source.take(part.mapping.len() as u64), &mut file)?;
        Ok(copy)
    }

    /// A temporary file with `part` under the head of `shown`. Returns also where the data of each of its tensors is.
    ///
    /// # Errors
    /// The system's.
    pub fn of_shown(part: &Part, shown: &gguf::File<'_>) -> Result<(Self, Vec<u64>)> {
        let layout = layout_of(shown)?;
        let copy = Self::new()?;
        let mut file = copy.file();
        file.set_len(layout.file_len())?;
        let mut head = BufWriter::with_capacity(1 << 16, file);
        gguf::write_head(&layout, &mut head)?;
        head.flush()?;
        drop(head);
        let mut source = part.mapping.file().try_clone()?;
        let mut positions = Vec::new();
        for (planned, tensor) in layout.tensors().iter().zip(shown.tensors()) {
            source.seek(SeekFrom::Start(tensor.position().0))?;
            file.seek(SeekFrom::Start(planned.position().0))?;
            io::copy(&mut (&source).take(tensor.n_bytes()), &mut file)?;
            positions.push(planned.position().0);
        }
        Ok((copy, positions))
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        self.0.file()
    }

    /// What llama.cpp opens.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
