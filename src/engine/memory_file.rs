//! Files without a name, in memory where the system has such.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use ggml::{Backend, ModelOptions};

use crate::gguf::{self, EntryOut, Layout, TensorOut};
use crate::model::Model;
use crate::plan::Plan;

/// A file for llama.cpp to load. It is gone when this is dropped.
pub(crate) struct MemoryFile {
    /// What llama.cpp opens.
    pub(crate) path: PathBuf,
    /// Keeps the file, or its name in place.
    _keep: Keep,
}

#[cfg(target_os = "linux")]
type Keep = File;

#[cfg(not(target_os = "linux"))]
type Keep = (tempfile::TempPath, ggml::fault::RemovedOnDeath);

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
        let (mut file, keep) = Self::create().context("a file in memory")?;
        file.set_len(layout.file_len())?;
        let mut head = BufWriter::with_capacity(1 << 16, &file);
        gguf::write_head(layout, &mut head)?;
        head.flush()?;
        drop(head);
        for (i, planned) in layout.tensors().iter().enumerate() {
            file.seek(SeekFrom::Start(planned.position().0))?;
            data(i, &mut file)?;
        }
        Ok(Self::of(file, keep))
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

    /// Loads the model, not mapped: its file goes, so its bytes are in memory once.
    ///
    /// # Errors
    /// llama.cpp's reason for not loading it.
    pub(crate) fn load(self, options: ModelOptions) -> Result<ggml::Model> {
        let options = ModelOptions { no_mmap: true, ..options };
        Ok(ggml::Model::load(Backend::init(), &self.path, options)?)
    }

    #[cfg(target_os = "linux")]
    fn create() -> Result<(File, ())> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let file = memfd_create("gguf-shorten", MemfdFlags::CLOEXEC)?;
        Ok((file.into(), ()))
    }

    #[cfg(target_os = "linux")]
    fn of(file: File, (): ()) -> Self {
        use std::os::fd::AsRawFd;
        Self { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _keep: file }
    }

    #[cfg(not(target_os = "linux"))]
    fn create() -> Result<(File, tempfile::TempPath)> {
        Ok(tempfile::NamedTempFile::new()?.into_parts())
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_file: File, keep: tempfile::TempPath) -> Self {
        let removed = ggml::fault::RemovedOnDeath::new(&keep);
        Self { path: keep.to_path_buf(), _keep: (keep, removed) }
    }
}
