//! Runs of consecutive blocks by angular distance.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Result;
use ggml::ThreadPool;
use indicatif::ProgressBar;

use crate::angular;
use crate::calibration::CalibrationSet;
use crate::llama::{Course, LlamaHiddenStates};
use crate::model::{BlockId, Model};
use crate::plan::{Constraints, removal};
use crate::search::Removed;

/// Runs of consecutive blocks by angular distance.
pub(super) struct Runs<'r, 'a> {
    pub(super) model: &'r Model<'a>,
    pub(super) constraints: &'r Constraints,
    pub(super) keep: &'r BTreeSet<BlockId>,
    pub(super) engine: &'r ggml::Model,
    pub(super) set: &'r CalibrationSet,
    pub(super) threads: &'r Rc<ThreadPool>,
}

impl Runs<'_, '_> {
    /// The angular distance over every run of `n` blocks, by its first block.
    pub(super) fn distances(&self, n: usize, bar: &ProgressBar) -> Result<Vec<f64>> {
        let stream = self.constraints.rules.stream;
        let mut states = LlamaHiddenStates::with_threads(
            self.engine,
            self.set.window,
            self.threads,
            stream,
            Course::of(self.model, stream)?,
        )?;
        angular::measure(&mut states, self.set.windows(), n, &mut |n_tokens| {
            bar.inc(n_tokens as u64);
        })
    }

    /// The best run of `n` blocks.
    fn best(&self, n: usize, bar: &ProgressBar) -> Result<Removed> {
        let distances = self.distances(n, bar)?;
        removal::best_run(self.constraints, &distances, self.keep, n)
    }

    /// As [`Runs::best`]; `None` where no run of `n` blocks may go.
    pub(super) fn best_if_any(&self, n: usize, bar: &ProgressBar) -> Result<Option<Removed>> {
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
