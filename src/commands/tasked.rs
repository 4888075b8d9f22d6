//! Candidates of a search doing tasks: each as a shortened model in memory.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use ggml::{Backend, ModelOptions};

use crate::evaluator;
use crate::model::Model;
use crate::plan::{Constraints, Plan, Provenance};
use crate::quality::choice::Accuracy;
use crate::report::goal::TaskReport;
use crate::search::measure::Tasks;
use crate::search::{Measured, Removed, TaskLoss};
use crate::segment::memory::MemoryFile;
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
    let file = MemoryFile::write_plan(model, &plan)?;
    let options = ModelOptions {
        // The file is gone once it is loaded.
        no_mmap: true,
        ..ModelOptions::default()
    };
    Ok(ggml::Model::load(Backend::init(), &file.path, options)?)
}
