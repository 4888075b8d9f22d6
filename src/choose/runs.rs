//! Runs of consecutive blocks by angular distance.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::choose::loaded::Loaded;
use crate::choose::removal;
use crate::choose::request::Request;
use crate::engine::outcome::CalibrationReport;
use crate::measure::angular;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::watch::{Progress, Unit};

/// Runs of consecutive blocks by angular distance.
pub(crate) struct Runs<'r> {
    pub(crate) request: &'r Request<'r>,
    pub(crate) loaded: &'r Loaded,
}

impl Runs<'_> {
    /// Measures with a progress bar, and reports the text and the time.
    pub(crate) fn calibrate<T>(
        &self,
        measure: impl FnOnce(&Self, &dyn Progress) -> Result<T>,
    ) -> Result<(T, CalibrationReport)> {
        let set = &self.loaded.set;
        let bar = self.request.watch.begin("calibrating".into(), Unit::Tokens, set.n_tokens() as u64);
        let start = Instant::now();
        let found = measure(self, &*bar);
        drop(bar);
        let found = found.with_context(|| self.request.parent.name())?;
        let report = CalibrationReport::new(set, start.elapsed().as_secs_f64());
        Ok((found, CalibrationReport { conversion: self.loaded.conversion, ..report }))
    }

    /// The angular distance over each run of `n` blocks, by first block.
    pub(crate) fn distances(&self, n: usize, bar: &dyn Progress) -> Result<Vec<f64>> {
        let set = &self.loaded.set;
        self.loaded.states(self.request.parent, |states| {
            angular::measure(states, set.windows(), n, &mut |n_tokens| bar.advance(n_tokens as u64))
        })
    }

    /// The best run of `n` blocks. `None` where no such run may be removed.
    pub(crate) fn best_if_any(&self, n: usize, bar: &dyn Progress) -> Result<Option<BlockSet>> {
        if consecutive(self.request, n).next().is_none() {
            return Ok(None);
        }
        let distances = self.distances(n, bar)?;
        removal::best_run(self.request.parent.constraints, &distances, self.request.keep, n).map(Some)
    }
}

/// All runs of `n` consecutive blocks that may be removed.
pub(crate) fn consecutive<'r>(request: &'r Request<'_>, n: usize) -> impl Iterator<Item = BlockSet> + 'r {
    let constraints = request.parent.constraints;
    let runs = (0..(constraints.n_trunk_blocks + 1).saturating_sub(n))
        .map(move |start| (start..start + n).map(BlockId::new).collect::<BlockSet>());
    runs.filter(move |run| run.is_disjoint(request.keep) && constraints.check(run).is_ok())
}
