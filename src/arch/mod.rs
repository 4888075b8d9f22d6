//! What llama.cpp derives from a block's number or from the number of blocks, for each architecture: the rules as data.
//!
//! A maintainer adds an architecture by a line in [`table`]. Every rule names the llama.cpp source it was read from
//! (paths below `src/models/` of the bundled version).

mod table;

use std::fmt;

/// The rules of one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Where its hidden states appear in the graph.
    pub stream: Stream,
    /// How sliding-window blocks alternate with full ones, if they do.
    pub window: Option<WindowPattern>,
    /// Numbers of blocks at which llama.cpp computes something else.
    pub counts: &'static [CountRule],
}

/// Where the residual stream appears in llama.cpp's graph. `-<i>` stands for a block's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nodes with names: `input` before block 0, `l_out-<i>` after block i.
    Named {
        /// The node that enters block 0.
        input: &'static str,
    },
    /// As `Named`, but the blocks run several times: `l_out-<j>` of the j-th run, and `loop_norm-<j>` where the stream is
    /// normalised after the last block of a loop (`nanbeige.cpp`).
    Looped {
        /// The node that enters block 0.
        input: &'static str,
        /// The key that says how often, below the architecture's prefix.
        loops_key: &'static str,
    },
    /// No name for outputs: what leaves block i is the sum whose second operand is `ffn_inp-<i>`; what enters block 0 is
    /// `inp_embd` (`eurobert.cpp`, `neo-bert.cpp`).
    ResidualSum,
    /// No names: what leaves block i is what its last norm, `blk.<i>.layer_output_norm`, gives; what enters block 0 is
    /// `inp_norm-0` (post-norm encoders, `bert.cpp`).
    LayerOutputNorm,
}

/// Sliding-window attention by block number (`llama-hparams.cpp: set_swa_pattern`, `llama-model.cpp: load_swa_pattern`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPattern {
    /// In each period of blocks all but the last have a window. 0: every block has one; 1: none.
    pub default_period: u64,
    /// Whether there is a window only if `<arch>.attention.sliding_window` is present and positive.
    pub only_with_key: bool,
}

impl WindowPattern {
    /// Whether block `i` has a sliding window under `period`.
    #[must_use]
    pub fn has_window(period: u64, i: usize) -> bool {
        period == 0 || (i as u64) % period < period - 1
    }
}

/// A number of blocks at which llama.cpp computes something else, and no metadata says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountRule {
    /// Exactly this many blocks select it.
    Exactly {
        /// The number of blocks.
        n_blocks: usize,
        /// What is selected.
        what: &'static str,
    },
    /// This many blocks or more select it.
    AtLeast {
        /// The number of blocks.
        n_blocks: usize,
        /// What is selected.
        what: &'static str,
    },
}

impl CountRule {
    fn holds(self, n: usize) -> bool {
        match self {
            Self::Exactly { n_blocks, .. } => n == n_blocks,
            Self::AtLeast { n_blocks, .. } => n >= n_blocks,
        }
    }

    /// Whether llama.cpp treats `before` and `after` blocks alike.
    #[must_use]
    pub fn allows(self, before: usize, after: usize) -> bool {
        self.holds(before) == self.holds(after)
    }
}

impl fmt::Display for CountRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly { n_blocks, what } => {
                write!(f, "llama.cpp {what} if there are exactly {n_blocks} blocks")
            }
            Self::AtLeast { n_blocks, what } => {
                write!(f, "llama.cpp {what} if there are {n_blocks} blocks or more")
            }
        }
    }
}

impl Architecture {
    /// The rules of the architecture of that name, if they are known.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        table::ARCHITECTURES.iter().find(|arch| arch.name == name)
    }

    /// All known architectures.
    #[must_use]
    pub fn all() -> &'static [Self] {
        table::ARCHITECTURES
    }
}

/// Arrays under `<arch>.` that have one entry for each block, in any architecture (`llama-model.cpp: load_hparams`).
pub const PER_BLOCK_ARRAYS: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "feed_forward_length",
    "expert_used_count",
    "expert_feed_forward_length",
    // In an architecture that reads no pattern of windows; see [`Architecture::window`].
    "attention.sliding_window_pattern",
    "deepstack_mapping",
];

/// Arrays under `<arch>.` that are not per block, whatever their length.
pub const OTHER_ARRAYS: &[&str] = &[
    "rope.dimension_sections",
    "classifier.output_labels",
    "rope.scaling.long_factors",
    "rope.scaling.short_factors",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_stands_once() {
        let mut names: Vec<_> = Architecture::all().iter().map(|arch| arch.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
        assert!(Architecture::find("llama").is_some());
        assert!(Architecture::find("clip").is_none());
    }

    #[test]
    fn window_pattern_is_that_of_set_swa_pattern() {
        let flags = |period| -> Vec<bool> {
            (0..7)
                .map(|i| WindowPattern::has_window(period, i))
                .collect()
        };
        assert_eq!(flags(6), [true, true, true, true, true, false, true]);
        assert_eq!(flags(2), [true, false, true, false, true, false, true]);
        assert_eq!(flags(1), [false; 7]);
        assert_eq!(flags(0), [true; 7]);
    }

    #[test]
    fn count_rules_see_both_sides() {
        let exactly = CountRule::Exactly {
            n_blocks: 62,
            what: "x",
        };
        assert!(exactly.allows(30, 20) && exactly.allows(62, 62));
        assert!(!exactly.allows(62, 61) && !exactly.allows(70, 62));
        let at_least = CountRule::AtLeast {
            n_blocks: 64,
            what: "x",
        };
        assert!(at_least.allows(80, 64) && at_least.allows(40, 30));
        assert!(!at_least.allows(64, 63));
    }
}
