//! Request: a choice for a number of blocks or a goal, checked and ready to be made.

use crate::choose::search::Goal;
use crate::engine::settings::Calibration;
use crate::measure::importance::Importance;
use crate::measure::loss::Objective;
use crate::measure::pairs::Pairs;
use crate::measure::tasks::Task;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::{Method, Splitting};
use crate::watch::Watch;
use anyhow::Result;
use std::path::Path;

/// The blocks that are wanted, and the means to find them.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r> {
    pub(crate) parent: Parent<'r>,
    pub(crate) method: Method,
    pub(crate) objective: Objective,
    pub(crate) target: Target,
    /// Blocks that stay.
    pub(crate) keep: &'r BlockSet,
    /// The scores of methods that go by scores.
    pub(crate) importance: Option<&'r Importance>,
    /// How alike any two positions of the stream are, where `auto` chooses.
    pub(crate) pairs: Option<&'r Pairs>,
    /// Why `auto` cannot compare sets; `None` if it can.
    pub(crate) why_not_auto: Option<&'static str>,
    /// The tasks of a file, where they are the objective.
    pub(crate) tasks: Option<(&'r Path, &'r [Task])>,
    /// The files of the output, whose bytes may be the goal.
    pub(crate) splitting: Splitting,
    /// The folder for measurements; `None` for the system's folder for caches.
    pub(crate) scratch: Option<&'r Path>,
    /// A search also names sets to be compared once they are healed. They are the next best ones, and runs of consecutive
    /// blocks.
    pub(crate) heals: bool,
    /// The text to measure on.
    pub(crate) text: &'r Calibration,
    pub(crate) watch: &'r dyn Watch,
}

impl Request<'_> {
    /// Bytes of the output without `removed`.
    pub(crate) fn n_bytes(&self, removed: &BlockSet) -> Result<u64> {
        self.parent.output_bytes(removed, &self.method.to_string(), self.splitting)
    }
}

/// How many blocks are removed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This many.
    Exactly(usize),
    /// As many as the goal says, but no more than `most`. Fewer than `first` cannot reach it.
    Goal { goal: Goal, first: usize, most: usize },
}

impl Target {
    pub(crate) fn most(self) -> usize {
        match self {
            Self::Exactly(n) | Self::Goal { most: n, .. } => n,
        }
    }
}
