//! Writing the output: beside its place, checked against the plan, synced, then renamed. On failure nothing is left
//! behind and nothing existing is touched.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::gguf;
use crate::input::Input;
use crate::model::Model;
use crate::plan::{Plan, TensorData};

/// The temporary files of the saves that are running, for [`remove_unfinished`].
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is whole whenever the lock is free, also after a panic.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the output is in its place. Changes only under the lock of [`UNFINISHED`].
static SAVED: AtomicBool = AtomicBool::new(false);

/// Removes what an interrupted save would leave behind. Called before the process ends; no save begins or ends after it.
pub fn remove_unfinished() {
    let unfinished = unfinished();
    for path in unfinished.iter() {
        // The process ends in any case; there is nobody left to tell.
        let _ = std::fs::remove_file(path);
    }
    // Not given back: another thread may be about to make its temporary file, or to move it into its place.
    std::mem::forget(unfinished);
}

/// As [`remove_unfinished`], on an interrupt. Returns what became of the output.
#[must_use]
pub fn interrupt() -> &'static str {
    remove_unfinished();
    if SAVED.load(Ordering::SeqCst) {
        "the output is complete"
    } else {
        "nothing was written"
    }
}

/// A place for the output, checked before any work is done.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    folder: PathBuf,
    overwrite: bool,
}

impl Target {
    /// Checks that a file can be written at `path`: the folder is there and writable, nothing is overwritten without
    /// `force`, and never the input.
    ///
    /// # Errors
    /// What is wrong with the place.
    pub fn new(path: &Path, input: &Input, force: bool) -> Result<Self> {
        let fail = || path.display().to_string();
        ensure!(
            path.file_name().is_some() && (path.is_dir() || !ends_in_separator(path)),
            "{}: is not the name of a file",
            fail()
        );
        // Also a dangling link counts as something that is there.
        if let Ok(link) = std::fs::symlink_metadata(path) {
            let kind = std::fs::metadata(path).unwrap_or(link);
            ensure!(
                !kind.is_dir(),
                "{}: is a folder, expected the name of a file",
                fail()
            );
            ensure!(
                kind.is_file() || kind.is_symlink(),
                "{}: is not a regular file",
                fail()
            );
            // Only now: the comparison opens what is there, and opening a pipe would wait for its other end.
            ensure!(!is_input(path, input), "{}: is the input itself", fail());
            if !force {
                bail!(
                    anyhow::anyhow!("{}: exists already", fail())
                        .context(crate::error::Hint("--force overwrites it".to_owned()))
                );
            }
        }
        // Shows now what would else fail after calibration: a folder in which no file can be made.
        check_folder(path)?;
        Ok(Self {
            path: path.to_owned(),
            folder: folder_of(path).to_owned(),
            overwrite: force,
        })
    }

    /// Where the output goes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the planned output and returns its plan. `plan` makes it from the hash of the input, which is computed while
    /// tensors are copied; positions do not depend on it. `progress` is called with bytes written.
    ///
    /// # Errors
    /// Those of `plan`; the system's, such as a full disk; a position that is not the planned one. The target is then as
    /// it was.
    pub fn save<'a>(
        &self,
        input: &Input,
        model: &Model<'a>,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Plan<'a>> {
        self.try_save(input, model, plan, progress)
            .with_context(|| format!("{}: nothing was written", self.path.display()))
    }

    fn try_save<'a>(
        &self,
        input: &Input,
        model: &Model<'a>,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Plan<'a>> {
        let draft = plan(blake3::Hash::from_bytes([0; blake3::OUT_LEN]))?;
        let temporary = {
            let mut unfinished = unfinished();
            let temporary = tempfile::Builder::new()
                .prefix(".gguf-shorten-")
                .suffix(".tmp")
                .permissions(permissions(&input.parts()[0].mapping)?)
                .tempfile_in(&self.folder)?;
            unfinished.insert(temporary.path().to_owned());
            temporary
        };
        let listed = Listed(temporary.path().to_owned());
        let file = temporary.as_file();
        reserve(file, draft.layout.file_len())?;
        // The disk, the copying and the hashing do not wait for one another.
        let (to_disk, written) = mpsc::channel();
        let hash = thread::scope(|scope| -> Result<blake3::Hash> {
            let hash = scope.spawn(|| input.blake3());
            let on_disk = scope.spawn(move || keep_on_disk(file, &written));
            let copied = copy_tensors(file, input, model, &draft, &mut |n_bytes| {
                progress(n_bytes);
                // The other side is gone only if the disk failed, which it reports itself.
                let _ = to_disk.send(n_bytes);
            });
            drop(to_disk);
            joined(on_disk)??;
            copied?;
            joined(hash)
        })?;
        let plan = plan(hash)?;
        write_head(file, &plan, &draft)?;
        progress(plan.layout.data_start().0);
        file.sync_all()?;
        let mut unfinished = unfinished();
        if self.overwrite {
            temporary.persist(&self.path).map_err(|error| error.error)?;
        } else {
            temporary
                .persist_noclobber(&self.path)
                .map_err(|error| error.error)?;
        }
        unfinished.remove(&listed.0);
        SAVED.store(true, Ordering::SeqCst);
        drop(unfinished);
        // So that the new name is on disk too. Not every system can; the output is in its place either way.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(plan)
    }
}

/// What a thread returned; its panic becomes this one's.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread
        .join()
        .map_err(|panic| std::panic::resume_unwind(panic))
}

/// Has the disk keep up with what is written, so that the sync at the end finds little left to do.
fn keep_on_disk(file: &File, written: &mpsc::Receiver<u64>) -> io::Result<()> {
    const STEP: u64 = 32 << 20;
    let mut pending = 0;
    while let Ok(n_bytes) = written.recv() {
        pending += n_bytes + written.try_iter().sum::<u64>();
        if pending >= STEP {
            file.sync_data()?;
            pending = 0;
        }
    }
    Ok(())
}

/// A temporary file's place on the list of [`UNFINISHED`]; dropped before the file itself is removed.
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        if unfinished().remove(&self.0) {
            // Also removed by its own guard; here so that an interrupt between the two finds nothing to do.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// The input's permissions, but for those that the user's mask takes away.
fn permissions(mapping: &ggml::Mapping) -> io::Result<Permissions> {
    let permissions = mapping.file().metadata()?.permissions();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The owner can always write: this is their new file.
        Ok(Permissions::from_mode((permissions.mode() & 0o666) | 0o600))
    }
    #[cfg(not(unix))]
    Ok(permissions)
}

/// Writes everything before the data of the tensors, which lie where `draft` has them.
fn write_head(mut file: &File, plan: &Plan<'_>, draft: &Plan<'_>) -> Result<()> {
    let positions = |plan: &Plan<'_>| (plan.layout.data_start(), plan.layout.file_len());
    ensure!(
        positions(plan) == positions(draft),
        "bug: the plan's data is at {:?}, but was written at {:?}; the output was not kept",
        positions(plan),
        positions(draft)
    );
    file.rewind()?;
    let mut head = BufWriter::with_capacity(1 << 16, file);
    gguf::write_head(&plan.layout, &mut head)?;
    head.flush()?;
    Ok(())
}

/// Copies the data of every planned tensor to its position, and writes the padding between them.
fn copy_tensors(
    mut file: &File,
    input: &Input,
    model: &Model<'_>,
    plan: &Plan<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let layout = &plan.layout;
    let sources: Vec<File> = input
        .parts()
        .iter()
        .map(|part| part.mapping.file().try_clone())
        .collect::<io::Result<_>>()?;
    let mut position = layout.data_start().0;
    file.seek(SeekFrom::Start(position))?;
    for (planned, data) in layout.tensors().iter().zip(&plan.data) {
        let name = planned.tensor().name();
        ensure!(
            position == planned.position().0,
            "bug: tensor '{name}' planned at byte {}, writer is at {position}; the output was not kept",
            planned.position().0
        );
        let n_bytes = planned.tensor().n_bytes();
        match (data, data.source_in(model)?) {
            (TensorData::Whole { .. }, Some(tensor)) => {
                let mut source = &sources[tensor.part];
                source.seek(SeekFrom::Start(tensor.info.position().0))?;
                // Between two files of one system this moves the bytes inside the kernel (`copy_file_range` on Linux),
                // else through a small buffer.
                let copied = io::copy(&mut source.take(n_bytes), &mut file)?;
                ensure!(
                    copied == n_bytes,
                    "tensor '{name}' has {n_bytes} bytes, but the input ended after {copied}: it was changed meanwhile"
                );
            }
            _ => {
                // Large runs go past the buffer.
                let mut buffered = BufWriter::with_capacity(1 << 20, file);
                data.write(model, &mut buffered)?;
                buffered.flush()?;
            }
        }
        let padding = planned.n_padding();
        io::copy(&mut io::repeat(0).take(padding), &mut file)?;
        position += n_bytes + padding;
        ensure!(
            file.stream_position()? == position,
            "bug: tensor '{name}' planned to end at byte {position}, writer is elsewhere; the output was not kept"
        );
        progress(n_bytes + padding);
    }
    let end = file.stream_position()?;
    ensure!(
        position == layout.file_len() && end == position,
        "bug: the output ends at byte {end}, planned {}; it was not kept",
        layout.file_len()
    );
    Ok(())
}

/// Asks the file system for the whole length at once, so that a full disk shows before anything is written.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reserve(file: &File, len: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Some file systems cannot; the disk then shows that it is full while the file is written.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(error) => {
            Err(io::Error::from(error)).with_context(|| format!("{len} bytes are needed"))
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reserve(file: &File, len: u64) -> Result<()> {
    Ok(file.set_len(len)?)
}

/// Whether the file at `path` is one of the input's. Differing names can be one file, through links of either kind; a
/// dangling link is not the input.
fn is_input(path: &Path, input: &Input) -> bool {
    input
        .parts()
        .iter()
        .any(|part| same_file::is_same_file(path, &part.path).unwrap_or(false))
}

/// `new/` is no file's name, though [`Path::file_name`] of it is `new`.
fn ends_in_separator(path: &Path) -> bool {
    let last = path.as_os_str().as_encoded_bytes().last();
    last.is_some_and(|&byte| std::path::is_separator(byte.into()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

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

/// Checks that a file can be made in the folder of `path`.
fn check_folder(path: &Path) -> Result<()> {
    let fail = || path.display().to_string();
    let folder = folder_of(path);
    let metadata = std::fs::metadata(folder)
        .with_context(|| format!("{}: folder '{}'", fail(), folder.display()))?;
    ensure!(
        metadata.is_dir(),
        "{}: '{}' is not a folder",
        fail(),
        folder.display()
    );
    tempfile::tempfile_in(folder)
        .with_context(|| format!("{}: cannot write in folder '{}'", fail(), folder.display()))?;
    Ok(())
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
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gguf-shorten-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder)?;
    temporary.write_all(text.as_bytes())?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}
