//! Writing the output: beside its place, checked against the plan, synced, then renamed. On failure nothing is left, and
//! nothing existing is touched.

use crate::files::part_name::Prefix;
use crate::files::place::check_folder;
use crate::files::place::check_free;
use crate::files::place::ends_in_separator;
use crate::files::place::is_same;
use crate::files::place::reserve;
use crate::files::staged::{Staged, commit, folder_of};
use crate::gguf::{self, Layout};
use crate::model::Model;
use crate::model::input::Input;
use crate::model::place::is_input;
use crate::output::Parent;
use crate::plan::parts::{Part, Splitting, parts};
use crate::plan::{Plan, Provenance, TensorData};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs::{DirEntry, File, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

/// A place for the output, checked before any work is done.
#[derive(Debug)]
pub struct Target {
    naming: Naming,
    overwrite: bool,
    min_free: u64,
}

/// Which files an output has, and what they are called.
#[derive(Clone, Debug)]
pub struct Naming {
    path: PathBuf,
    splitting: Splitting,
    /// What the names of the parts begin with. `None` for a single file.
    prefix: Option<Prefix>,
}

/// One file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub n_bytes: u64,
}

/// A finished file that is not in its place yet.
#[derive(Clone, Copy, Debug)]
pub struct Unplaced<'f> {
    /// Where it is.
    pub now: &'f Path,
    /// Where it will be.
    pub path: &'f Path,
}

/// Other files of a run. They get to their places together with the output, or not at all.
#[derive(Default)]
pub struct Others<'t, 'a> {
    /// Finished files.
    pub staged: Vec<Staged>,
    /// Makes files that describe the output.
    pub describe: Option<&'t mut Describe<'t, 'a>>,
}

/// Makes files that describe the output, from its plan and finished files.
pub type Describe<'t, 'a> = dyn FnMut(&Plan<'a>, &[Unplaced<'_>]) -> Result<Vec<Staged>> + 't;

impl Naming {
    /// Of an output that the user wants at `path`. Where it is cut into parts, this is the prefix of their names, with `.gguf`
    /// after it or without, or the name of one of them.
    ///
    /// # Errors
    /// A path that ends in no name.
    pub fn new(path: &Path, splitting: Splitting, input: &Input) -> Result<Self> {
        let is_cut = match splitting {
            Splitting::Whole => false,
            Splitting::MaxBytes(_) => true,
            Splitting::AsInput => input.parts().len() > 1,
        };
        let prefix = if is_cut {
            let prefix = Prefix::of_output(path).filter(|_| !ends_in_separator(path));
            Some(prefix.with_context(|| format!("{}: is not the name of a file", path.display()))?)
        } else {
            None
        };
        Ok(Self { path: path.to_owned(), splitting, prefix })
    }

    /// Whether a file at `path` would take the place of the output. A part of it counts.
    #[must_use]
    pub fn takes(&self, path: &Path) -> bool {
        let is_named = |name: &OsStr| match &self.prefix {
            Some(prefix) => prefix.is_part(name),
            None => self.path.file_name() == Some(name),
        };
        path.file_name().is_some_and(is_named) && is_same(folder_of(path), folder_of(&self.path))
    }

    /// The planned files, in order, and where each goes.
    ///
    /// # Errors
    /// An output that cannot be cut as it should be.
    pub fn files<'a>(&self, model: &Model<'_>, plan: &Plan<'a>) -> Result<Vec<(PathBuf, Part<'a>)>> {
        let parts = parts(model, plan, self.splitting)?;
        let n_parts = parts.len();
        let path = |i: usize| match &self.prefix {
            Some(prefix) => prefix.part(i + 1, n_parts),
            None => self.path.clone(),
        };
        let named = parts.into_iter().enumerate();
        Ok(named.map(|(i, part)| (path(i), part)).collect())
    }
}

impl Target {
    /// Checks that a file can be written at `path`. The folder is there and writable, nothing is overwritten without `force`,
    /// and never the input.
    ///
    /// # Errors
    /// A place where it cannot be written.
    pub fn new(path: &Path, input: &Input, force: bool) -> Result<Self> {
        Self::split(path, Splitting::Whole, input, force)
    }

    /// As [`Target::new`], for an output that is cut into parts. How many there will be is not known yet, so no part of any
    /// count may be there without `force`, and of the input none at all.
    ///
    /// # Errors
    /// A place where it cannot be written.
    pub fn split(path: &Path, splitting: Splitting, input: &Input, force: bool) -> Result<Self> {
        let naming = Naming::new(path, splitting, input)?;
        match &naming.prefix {
            None => check_place(path, input, force)?,
            Some(prefix) => check_parts(prefix, input, force)?,
        }
        Ok(Self { naming, overwrite: force, min_free: 0 })
    }

    /// The same place, with `min_free` bytes of its disk left free.
    #[must_use]
    pub fn leaving(self, min_free: u64) -> Self {
        Self { min_free, ..self }
    }

    /// Where the output goes.
    #[must_use]
    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Where the output goes, as the user said it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.naming.path
    }

    /// Writes the planned output and returns its plan. `plan` makes it from the hash of the input, which is computed while
    /// tensors are copied; positions do not depend on it. `progress` is called with bytes written.
    ///
    /// # Errors
    /// Those of `plan`; the system's, such as a full disk; a position that is not the planned one. The target is then as
    /// it was.
    pub fn save<'a>(
        &self,
        parent: Parent<'a>,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Plan<'a>> {
        let (plan, _) = self.save_with(parent, plan, Others::default(), progress)?;
        Ok(plan)
    }

    /// As [`Target::save`], together with `others`. Returns also the files of the output, in order.
    ///
    /// # Errors
    /// As [`Target::save`], and those of `others`.
    pub fn save_with<'a>(
        &self,
        parent: Parent<'a>,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        others: Others<'_, 'a>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Plan<'a>, Vec<Written>)> {
        self.try_save(parent, plan, others, progress)
            .with_context(|| format!("{}: nothing was written", self.path().display()))
    }

    fn try_save<'a>(
        &self,
        parent: Parent<'a>,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        others: Others<'_, 'a>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Plan<'a>, Vec<Written>)> {
        let Parent { input, model, .. } = parent;
        let draft = plan(Provenance::DRAFT)?;
        let drafts = self.naming.files(model, &draft)?;
        let mut staged = self.stage(input, &drafts)?;
        let plan = plan(write_data(parent, &draft, &drafts, &staged, progress)?)?;
        let parts = self.naming.files(model, &plan)?;
        ensure!(
            parts.len() == drafts.len(),
            "bug: the plan has {} files, but {} were written; the output was not kept",
            parts.len(),
            drafts.len()
        );
        for ((staged, (_, part)), (_, draft)) in staged.iter().zip(&parts).zip(&drafts) {
            write_head(staged.file(), &part.layout, &draft.layout)?;
            progress(part.layout.data_start().0);
            staged.file().sync_all()?;
        }
        let unplaced: Vec<Unplaced<'_>> =
            staged.iter().map(|file| Unplaced { now: file.temporary(), path: file.path() }).collect();
        let described = others.describe.map(|describe| describe(&plan, &unplaced)).transpose()?;
        staged.extend(others.staged);
        staged.extend(described.into_iter().flatten());
        input.check_unchanged()?;
        commit(staged)?;
        let written = parts.into_iter().map(|(path, part)| Written { path, n_bytes: part.layout.file_len() });
        Ok((plan, written.collect()))
    }

    /// Makes the files beside their places, each of its whole length.
    fn stage(&self, input: &Input, drafts: &[(PathBuf, Part<'_>)]) -> Result<Vec<Staged>> {
        let permissions = permissions(&input.parts()[0].mapping)?;
        let mut staged = Vec::new();
        let n_bytes = drafts.iter().map(|(_, part)| part.layout.file_len()).sum();
        check_free(folder_of(self.path()), n_bytes, self.min_free)?;
        for (path, part) in drafts {
            if self.naming.prefix.is_some() {
                // How many there are was not known before.
                check_place(path, input, self.overwrite)?;
            }
            let file = Staged::new(path, self.overwrite, &permissions)?;
            reserve(file.file(), part.layout.file_len())?;
            staged.push(file);
        }
        // Asked again: another program may have taken its share meanwhile.
        check_free(folder_of(self.path()), 0, self.min_free)?;
        Ok(staged)
    }
}

/// Copies all tensors to their places. Returns the hash of the input. The disk, the copying and the hashing do not wait for one
/// another.
fn write_data(
    parent: Parent<'_>,
    draft: &Plan<'_>,
    drafts: &[(PathBuf, Part<'_>)],
    staged: &[Staged],
    progress: &mut dyn FnMut(u64),
) -> Result<blake3::Hash> {
    let Parent { input, model, .. } = parent;
    let (to_disk, written) = mpsc::channel();
    thread::scope(|scope| {
        let beside = || thread::Builder::new();
        let hash = beside().spawn_scoped(scope, || input.blake3()).context(NO_THREAD)?;
        let files: Vec<&File> = staged.iter().map(Staged::file).collect();
        let on_disk =
            beside().spawn_scoped(scope, move || keep_on_disk(&files, &written)).context(NO_THREAD)?;
        let copied = staged.iter().zip(drafts).enumerate().try_for_each(|(i, (staged, (_, part)))| {
            copy_tensors(staged.file(), input, model, draft, part, &mut |n_bytes| {
                progress(n_bytes);
                // The receiver is gone only after a disk error, which it reports.
                let _ = to_disk.send((i, n_bytes));
            })
        });
        drop(to_disk);
        joined(on_disk)??;
        copied?;
        joined(hash)
    })
}

/// Stages a text beside its place, with the permissions of the input.
pub(crate) fn stage_text(path: &Path, text: &str, input: &Input, force: bool) -> Result<Staged> {
    let staged = Staged::new(path, force, &permissions(&input.parts()[0].mapping)?)?;
    staged.file().write_all(text.as_bytes())?;
    staged.file().sync_all()?;
    Ok(staged)
}

/// Checks that parts of any number and count can be written.
fn check_parts(prefix: &Prefix, input: &Input, force: bool) -> Result<()> {
    let first = prefix.part(1, 1);
    check_folder(&first)?;
    let entries = std::fs::read_dir(folder_of(&first)).and_then(Iterator::collect);
    let entries: Vec<DirEntry> = entries.with_context(|| first.display().to_string())?;
    let names = entries.into_iter().map(|entry| entry.file_name());
    let mut parts: Vec<PathBuf> =
        names.filter(|name| prefix.is_part(name)).map(|name| prefix.folder().join(name)).collect();
    parts.sort();
    parts.iter().try_for_each(|part| check_place(part, input, force))
}

/// Checks that a file can be written at `path`. The folder is there and writable, nothing is overwritten without `force`, and
/// never the input.
pub(crate) fn check_place(path: &Path, input: &Input, force: bool) -> Result<()> {
    let fail = || path.display().to_string();
    ensure!(
        path.file_name().is_some() && (path.is_dir() || !ends_in_separator(path)),
        "{}: is not the name of a file",
        fail()
    );
    // Also a dangling link counts as something that is there.
    if let Ok(link) = std::fs::symlink_metadata(path) {
        let kind = std::fs::metadata(path).unwrap_or(link);
        ensure!(!kind.is_dir(), "{}: is a folder, expected the name of a file", fail());
        ensure!(kind.is_file() || kind.is_symlink(), "{}: is not a regular file", fail());
        ensure!(!is_input(path, input), "{}: is the input itself", fail());
        if !force {
            bail!(
                anyhow::anyhow!("{}: exists already", fail())
                    .context(crate::error::Hint("--force overwrites it".to_owned()))
            );
        }
    }
    // Shows now what would else fail after calibration: a folder in which no file can be made.
    check_folder(path)
}

/// The value of a thread; its panic becomes this one's.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread.join().map_err(|panic| std::panic::resume_unwind(panic))
}

/// What is said where the system has no room for a thread.
const NO_THREAD: &str = "a thread that works beside the copy";

/// Has the disk keep up with what is written. So the sync at the end finds little left to do.
fn keep_on_disk(files: &[&File], written: &mpsc::Receiver<(usize, u64)>) -> io::Result<()> {
    const STEP: u64 = 32 << 20;
    let mut pending = vec![0; files.len()];
    while let Ok(first) = written.recv() {
        for (file, n_bytes) in std::iter::once(first).chain(written.try_iter()) {
            pending[file] += n_bytes;
        }
        for (file, pending) in files.iter().zip(&mut pending) {
            if *pending >= STEP {
                file.sync_data()?;
                *pending = 0;
            }
        }
    }
    Ok(())
}

/// The input's permissions, from which those of the output are made.
pub(crate) fn permissions(mapping: &ggml::Mapping) -> io::Result<Permissions> {
    Ok(mapping.file().metadata()?.permissions())
}

/// Writes everything before the tensor data. The data lies as in `draft`.
fn write_head(mut file: &File, layout: &Layout<'_>, draft: &Layout<'_>) -> Result<()> {
    let positions = |layout: &Layout<'_>| (layout.data_start(), layout.file_len());
    ensure!(
        positions(layout) == positions(draft),
        "bug: the plan's data is at {:?}, but was written at {:?}; the output was not kept",
        positions(layout),
        positions(draft)
    );
    file.rewind()?;
    let mut head = BufWriter::with_capacity(1 << 16, file);
    gguf::write_head(layout, &mut head)?;
    head.flush()?;
    Ok(())
}

/// Copies the data of every tensor of one part to its position. Writes the padding between them.
fn copy_tensors(
    mut file: &File,
    input: &Input,
    model: &Model<'_>,
    plan: &Plan<'_>,
    part: &Part<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let layout = &part.layout;
    let planned_data =
        plan.data.get(part.tensors.clone()).context("bug: a part of tensors that are not planned")?;
    let sources: Vec<File> =
        input.parts().iter().map(|part| part.mapping.file().try_clone()).collect::<io::Result<_>>()?;
    let mut position = layout.data_start().0;
    file.seek(SeekFrom::Start(position))?;
    for (planned, data) in layout.tensors().iter().zip(planned_data) {
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
                // Inside one file system the kernel moves the bytes (`copy_file_range` on Linux). Else they go through
                // a small buffer.
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
