//! What a measured choice is asked for.

use crate::choose::search::{Goal, Removed};
use crate::measure::importance::Importance;
use crate::measure::loss::Objective;
use crate::measure::tasks::Task;
use crate::model::BlockId;
use crate::plan::Method;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// What is to be chosen, and how.
pub(crate) struct Request<'r> {
    pub(crate) method: Method,
    pub(crate) objective: Objective,
    pub(crate) target: Target,
    pub(crate) keep: &'r BTreeSet<BlockId>,
    /// The scores of methods that go by scores.
    pub(crate) importance: Option<&'r Importance>,
    /// The tasks of a file, where they are the objective.
    pub(crate) tasks: Option<(&'r Path, &'r [Task])>,
    /// The bytes of the output without some blocks.
    pub(crate) n_bytes: &'r dyn Fn(&Removed) -> Result<u64>,
    /// Where measurements are kept; `None` for the system's folder for caches.
    pub(crate) scratch: Option<&'r Path>,
    /// A search also names the sets that are next best, and runs of consecutive blocks, to be compared once they are healed.
    pub(crate) heals: bool,
}

/// How many blocks go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This many.
    Exactly(usize),
    /// What the goal says, but no more than `most`; fewer than `first` cannot reach it.
    Goal { goal: Goal, first: usize, most: usize },
}

impl Target {
    pub(crate) fn most(self) -> usize {
        match self {
            Self::Exactly(n) | Self::Goal { most: n, .. } => n,
        }
    }
}
