//! Several models in one table. What each row says, which rows are worth a look, and what follows. Pure: no I/O.
//!
//! In reading order: [`pareto`] marks the rows that no other one beats, [`verdict`] says what the rows show, [`overlap`]
//! whether the scored text is also the one that chose.

pub mod pareto;

mod pair;

pub mod verdict;

pub mod overlap;

use std::fmt;

use serde::{Serialize, Serializer};

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The model that all others are compared with.
    Parent,
    /// A file as it is.
    File,
    /// The parent without some blocks.
    Drop,
    /// The parent without some experts of each block.
    Experts,
    /// The parent in another type.
    Requantize,
    /// The parent without some blocks or experts and in another type.
    Mixed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parent => "parent",
            Self::File => "file",
            Self::Drop => "drop",
            Self::Experts => "experts",
            Self::Requantize => "requantize",
            Self::Mixed => "mixed",
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A row as far as size and distance from the parent go. Rows that failed have none.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What the row is called.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
    /// Blocks that an evaluation runs.
    pub n_blocks: usize,
    /// Experts of a block; 0 of a model without.
    pub n_experts: usize,
    /// Bytes of its files.
    pub bytes: u64,
    /// Mean KL divergence from the parent, in nats; 0 for the parent.
    pub kl: f64,
    /// Its standard error; `None` for a single token.
    pub kl_stderr: Option<f64>,
}
