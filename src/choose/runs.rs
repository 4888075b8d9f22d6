//! Runs of consecutive blocks by angular distance.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Result;
use ggml::ThreadPool;

use crate::choose::removal;
use crate::choose::search::Removed;
use crate::engine::llama::{LlamaHiddenStates, StreamGraph};
use crate::engine::text::CalibrationSet;
use crate::measure::angular;
use crate::model::{BlockId, Model};
use crate::plan::Constraints;
use crate::watch::Progress;

/// Runs of consecutive blocks by angular distance.
pub(crate) struct Runs<'r, 'a> {
    pub(crate) model: &'r Model<'a>,
    pub(crate) constraints: &'r Constraints,
    pub(crate) keep: &'r BTreeSet<BlockId>,
    pub(crate) engine: &'r ggml::Model,
    pub(crate) set: &'r CalibrationSet,
    pub(crate) threads: &'r Rc<ThreadPool>,
}

impl Runs<'_, '_> {
    /// The angular distance over every run of `n` blocks, by its first block.
    pub(crate) fn distances(&self, n: usize, bar: &dyn Progress) -> Result<Vec<f64>> {
        let graph = StreamGraph::of(self.model, self.engine, self.constraints.rules.stream)?;
        let mut states = LlamaHiddenStates::with_threads(self.engine, self.set.window, self.threads, graph)?;
        angular::measure(&mut states, self.set.windows(), n, &mut |n_tokens| {
            bar.advance(n_tokens as u64);
        })
    }

    /// The best run of `n` blocks.
    fn best(&self, n: usize, bar: &dyn Progress) -> Result<Removed> {
        let distances = self.distances(n, bar)?;
        removal::best_run(self.constraints, &distances, self.keep, n)
    }

    /// As [`Runs::best`]; `None` where no run of `n` blocks may go.
    pub(crate) fn best_if_any(&self, n: usize, bar: &dyn Progress) -> Result<Option<Removed>> {
        let n_blocks = self.constraints.n_trunk_blocks;
        let is_allowed = |start: usize| {
            let run: Removed = (start..start + n).map(BlockId::new).collect();
            run.is_disjoint(self.keep) && self.constraints.check(&run).is_ok()
        };
        match (0..=n_blocks - n).any(is_allowed) {
            true => self.best(n, bar).map(Some),
            false => Ok(None),
        }
    }
}
