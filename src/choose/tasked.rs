//! Candidates of a search doing tasks: each as a shortened model in memory.

use std::path::Path;

use anyhow::Result;

use crate::choose::outcome::TaskReport;
use crate::choose::request::Request;
use crate::choose::search::Measured;
use crate::choose::search::measure::Tasks;
use crate::engine::segment::whole::load_without;
use crate::measure::answers;
use crate::measure::loss::TaskLoss;
use crate::measure::quality::choice::Accuracy;
use crate::measure::tasks::Task;
use crate::model::block::BlockSet;
use crate::output::Parent;

/// Does tasks with a cut model, as it would be written.
///
/// In memory are the weights of one such model at a time.
pub(crate) struct Candidates<'m> {
    pub(crate) request: &'m Request<'m>,
    /// The whole model.
    pub(crate) engine: &'m ggml::Model,
    /// Models that did the tasks.
    pub(crate) n_models: u64,
}

impl Tasks for Candidates<'_> {
    fn loss(&mut self, removed: &BlockSet) -> Result<TaskLoss> {
        let Parent { input, model, constraints } = self.request.parent;
        let tasks = self.request.tasks.map_or(&[][..], |(_, tasks)| tasks);
        let short;
        let engine = if removed.is_empty() {
            self.engine
        } else {
            short = load_without(model, constraints, removed.clone(), self.engine.options())?;
            &short
        };
        self.n_models += 1;
        let scores =
            answers::answer_scores(engine, input.path(), tasks, self.request.text.threads, &mut || {})?;
        let answers = scores.iter().map(Vec::as_slice);
        Ok(TaskLoss::of(answers.zip(tasks.iter().map(|task| task.right))))
    }
}

/// The report of tasks of the file at `source`, which `chosen` did. `n_models` models did them in all.
pub(crate) fn report(
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
