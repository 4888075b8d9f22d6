//! Candidates of a search doing tasks: each as a shortened model in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml::{Backend, ModelOptions};

use crate::evaluator;
use crate::gguf;
use crate::model::Model;
use crate::plan::{Constraints, Plan, Provenance};
use crate::quality::choice::Accuracy;
use crate::report::goal::TaskReport;
use crate::search::measure::Tasks;
use crate::search::{Measured, Removed, TaskLoss};
use crate::tasks::Task;

/// Does tasks with a model without some of its blocks, as it would be written.
///
/// In memory are the weights of one such model at a time.
pub(super) struct Candidates<'m, 'a> {
    pub(super) model: &'m Model<'a>,
    pub(super) constraints: &'m Constraints,
    /// The whole model, which lies at `path`.
    pub(super) engine: &'m ggml::Model,
    pub(super) path: &'m Path,
    pub(super) tasks: &'m [Task],
    pub(super) threads: usize,
    /// Models that did the tasks.
    pub(super) n_models: u64,
}

impl Tasks for Candidates<'_, '_> {
    fn loss(&mut self, removed: &Removed) -> Result<TaskLoss> {
        let short;
        let engine = if removed.is_empty() {
            self.engine
        } else {
            short = load(self.model, self.constraints, removed)?;
            &short
        };
        self.n_models += 1;
        let scores =
            evaluator::answer_scores(engine, self.path, self.tasks, self.threads, &mut || {})?;
        let answers = scores.iter().map(Vec::as_slice);
        Ok(TaskLoss::of(
            answers.zip(self.tasks.iter().map(|task| task.right)),
        ))
    }
}

/// The report of tasks of the file at `source`, which `chosen` did; `n_models` models did them in all.
pub(super) fn report(
    source: &Path,
    tasks: &[Task],
    chosen: &Measured,
    parent: &TaskLoss,
    n_models: u64,
) -> Option<TaskReport> {
    let loss = chosen.tasks.as_ref()?;
    let n_correct = usize::try_from(loss.n_correct).ok()?;
    let answers = tasks.iter().map(|task| task.choices.len()).enumerate();
    // Which of them are right has no part in their share.
    let counted: Vec<_> = answers.map(|(i, n)| (i < n_correct, n)).collect();
    let found = Accuracy::of(&counted)?;
    let source = source.display().to_string();
    Some(TaskReport::new(source, loss, parent, &found, n_models))
}

/// `model` without `removed`, loaded from a file in memory.
fn load(
    model: &Model<'_>,
    constraints: &Constraints,
    removed: &BTreeSet<crate::model::BlockId>,
) -> Result<ggml::Model> {
    let provenance = Provenance {
        parent_blake3: blake3::Hash::from_bytes([0; blake3::OUT_LEN]),
        method: "search".to_owned(),
        heal: "none".to_owned(),
    };
    let plan = Plan::new(model, constraints, removed.clone(), &provenance)?;
    let (mut file, path, _keep) = unnamed().context("a file in memory")?;
    file.set_len(plan.layout.file_len())?;
    let mut head = BufWriter::with_capacity(1 << 16, &file);
    gguf::write_head(&plan.layout, &mut head)?;
    head.flush()?;
    drop(head);
    for (planned, data) in plan.layout.tensors().iter().zip(&plan.data) {
        file.seek(SeekFrom::Start(planned.position().0))?;
        data.write(model, &mut file)?;
    }
    let options = ModelOptions {
        // The file is gone once it is loaded.
        no_mmap: true,
        ..ModelOptions::default()
    };
    Ok(ggml::Model::load(Backend::init(), &path, options)?)
}

/// A file in memory, and what llama.cpp opens.
#[cfg(target_os = "linux")]
fn unnamed() -> Result<(File, PathBuf, ())> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, memfd_create};
    let file: File = memfd_create("gguf-shorten", MemfdFlags::CLOEXEC)?.into();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Ok((file, path, ()))
}

/// A temporary file where the system has none in memory; it is gone with its name.
#[cfg(not(target_os = "linux"))]
fn unnamed() -> Result<(File, PathBuf, tempfile::TempPath)> {
    let (file, name) = tempfile::NamedTempFile::new()?.into_parts();
    Ok((file, name.to_path_buf(), name))
}
