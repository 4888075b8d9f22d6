//! Models written to files without a name, in memory where the system has such.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use ggml::{Backend, ModelOptions};

use crate::files::unnamed::ScratchFile;
use crate::gguf::{self, EntryOut, Layout, TensorOut};
use crate::model::Model;
use crate::plan::Plan;

/// A file for llama.cpp to load. It is gone when this is dropped.
pub(crate) struct MemoryFile(ScratchFile);

/// The layout of a file with the version and alignment of `model`.
///
/// # Errors
/// Tensors that one file cannot hold.
pub(crate) fn layout<'a>(
    model: &Model<'_>,
    entries: Vec<EntryOut<'a>>,
    tensors: Vec<TensorOut<'a>>,
) -> Result<Layout<'a>> {
    let first = model.first();
    Ok(Layout::mappable(first.header().version, first.alignment(), entries, tensors, true)?)
}

impl MemoryFile {
    /// Writes a file of this layout. `data` writes each tensor by its number.
    ///
    /// # Errors
    /// The system's, such as no room.
    pub(crate) fn write(
        layout: &Layout<'_>,
        data: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Self> {
        let scratch = ScratchFile::in_memory().context("a file in memory")?;
        let mut file = scratch.file();
        file.set_len(layout.file_len())?;
        let mut head = BufWriter::with_capacity(1 << 16, file);
        gguf::write_head(layout, &mut head)?;
        head.flush()?;
        drop(head);
        for (i, planned) in layout.tensors().iter().enumerate() {
            file.seek(SeekFrom::Start(planned.position().0))?;
            data(i, &mut file)?;
        }
        Ok(Self(scratch))
    }

    /// As [`MemoryFile::write`], for a plan that could also go to disk.
    ///
    /// # Errors
    /// The system's, such as no room.
    pub(crate) fn write_plan(model: &Model<'_>, plan: &Plan<'_>) -> Result<Self> {
        Self::write(&plan.layout, &mut |i, out| plan.data[i].write(model, out))
    }

    /// Bytes that loading a model of `n_bytes` takes, until its file goes.
    pub(crate) fn loading_bytes(n_bytes: u64) -> u64 {
        n_bytes.saturating_mul(2)
    }

    /// What llama.cpp opens.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Loads the model, not mapped: its file goes, so its bytes are in memory once.
    ///
    /// # Errors
    /// llama.cpp's reason for not loading it.
    pub(crate) fn load(self, options: ModelOptions) -> Result<ggml::Model> {
        let options = ModelOptions { no_mmap: true, ..options };
        Ok(ggml::Model::load(Backend::init(), self.path(), options)?)
    }
}
