//! What llama.cpp derives from a block's number or from the number of blocks, for each architecture: the rules as data.
//!
//! A maintainer adds an architecture by a line in `table.rs`. Every rule names the llama.cpp source it was read from
//! (paths below `src/models/` of the bundled version).

mod family;

mod refused;

mod table;

mod middle;

use std::fmt;

pub use middle::{Middle, WITHOUT_HEADS_WITHOUT_ATTENTION};

/// The rules of one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// What the names of a block's tensors begin with, before its number.
    pub block_prefix: &'static str,
    /// Where its hidden states appear in the graph.
    pub stream: Stream,
    /// How sliding-window blocks alternate with full ones, if they do.
    pub window: Option<WindowPattern>,
    /// How recurrent blocks alternate with attention, if they do.
    pub recurrent: Option<Recurrent>,
    /// The key that counts blocks of a head behind the model's own, which always stay; below the architecture's prefix.
    pub head_blocks: Option<&'static str>,
    /// Keys that count leading blocks of another kind.
    pub leading: &'static [&'static str],
    /// Arrays with an entry for each block, beside those of [`PER_BLOCK_ARRAYS`]; below the architecture's prefix, or
    /// with a leading dot where they have none.
    pub arrays: &'static [&'static str],
    /// Those of `arrays` that may go on behind the blocks' entries: llama.cpp checks that there are enough, and reads no
    /// more.
    pub long_arrays: &'static [&'static str],
    /// A tensor of the first block that all blocks read which have none of their own.
    pub inherited: Option<&'static str>,
    /// Tensors outside of blocks that hold a part for each trunk block.
    pub parts: &'static [PartsTensor],
    /// Tensors outside of blocks that only blocks without a sliding window read.
    pub full_only: &'static [&'static str],
    /// The key that counts the blocks at the end that read the keys and values of the last two before them: with a window
    /// those of the second to last, without those of the last (`llama-model.cpp: create_memory`).
    pub shared_kv: Option<&'static str>,
    /// Kinds of blocks that the program text ties to a block's number.
    pub positions: &'static [PositionRule],
    /// Kinds of blocks of which one must stay, beside those that windows and recurrent blocks ask for.
    pub needed: &'static [Needed],
    /// What the first block must be.
    pub first: Option<FirstRule>,
    /// What the last block must be.
    pub last: Option<LastRule>,
    /// Numbers of blocks at which llama.cpp computes something else.
    pub counts: &'static [CountRule],
    /// Values that llama.cpp derives from the number of blocks unless a key says them.
    pub derived: &'static [Derived],
    /// The oldest release of llama.cpp that was seen to read the list of what else goes by a period, windows or recurrent
    /// blocks (`tests/stock/lists.sh`); `None` where none but the bundled one was.
    pub lists_since: Option<&'static str>,
}

/// Where the residual stream appears in llama.cpp's graph. `-<i>` stands for a block's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nodes with names: `input` before block 0, `l_out-<i>` after block i.
    Named {
        /// The node that enters block 0; where it has no name, its second operand.
        input: &'static str,
    },
    /// As `Named`, with another name for what leaves a block: `<output>-<i>`.
    Renamed {
        /// The node that enters block 0; where it has no name, its second operand.
        input: &'static str,
        /// What a block calls what it gives.
        output: &'static str,
    },
    /// As `Renamed`, with several streams for each token, `[n_embd, n_streams, n_tokens]`, which hyper-connections mix
    /// (`deepseek4.cpp`). The hidden state of a token is all of them, one after another.
    Parallel {
        /// The node that enters block 0.
        input: &'static str,
        /// What a block calls what it gives.
        output: &'static str,
        /// The key that says how many streams there are, below the architecture's prefix.
        streams_key: &'static str,
    },
    /// As `Named`, but what leaves the last block has a name of its own (`t5.cpp`).
    NamedTo {
        /// The node that enters block 0.
        input: &'static str,
        /// The node that leaves the last block.
        last: &'static str,
    },
    /// As `Named`, but each node is several states one behind another, of which the first is the one that blocks compute
    /// with (`gemma3n.cpp`).
    Stacked {
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
    /// The name that its reader gives it: `<reader>-<i>` enters block i, `last` leaves the last one (`step35.cpp`).
    NamedByReader {
        /// What a block calls what it reads.
        reader: &'static str,
        /// What the output head calls what it reads.
        last: &'static str,
    },
    /// No name for outputs: what leaves block i is the sum whose second operand is `ffn_inp-<i>` (`eurobert.cpp`,
    /// `neo-bert.cpp`, `modern-bert.cpp`).
    ResidualSum {
        /// The node that enters block 0.
        input: &'static str,
    },
    /// No names: what leaves block i is what its last norm, `blk.<i>.layer_output_norm`, gives; what enters block 0 is
    /// `inp_norm-0` (post-norm encoders, `bert.cpp`).
    LayerOutputNorm,
}

/// Sliding-window attention by block number (`llama-hparams.cpp: set_swa_pattern`, `llama-model.cpp: load_swa_pattern`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPattern {
    /// The period of the built-in pattern; `None` where the file must say it block by block.
    pub period: Option<u64>,
    /// Which block of a period has no window.
    pub full: FullBlock,
    /// When blocks have a window at all.
    pub present: WindowPresence,
    /// Whether at least one block without a window must stay, too: where its input is made whether or not a block uses
    /// it, an unused one has no memory, and a check fails (`llama-graph.cpp: set_input`).
    pub needs_full: bool,
}

/// Which block of a period attends to everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullBlock {
    /// The last one.
    Last,
    /// The first one.
    First,
}

/// When blocks have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowPresence {
    /// Always.
    Always,
    /// If `attention.sliding_window` is there and positive.
    IfPositive,
    /// Unless `attention.sliding_window` is there and zero.
    UnlessZero,
}

impl WindowPattern {
    /// Whether block `i` has a sliding window under `period`. 0: every block; 1: none.
    #[must_use]
    pub fn has_window(self, period: u64, i: usize) -> bool {
        let i = i as u64;
        match self.full {
            FullBlock::Last => period == 0 || i % period < period - 1,
            FullBlock::First => period == 0 || !i.is_multiple_of(period),
        }
    }
}

/// How recurrent blocks alternate with attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrent {
    /// A block without KV heads is recurrent (`attention.head_count_kv`).
    WithoutKvHeads,
    /// A block is one of three: a feed-forward network where `feed_forward_length` says its width, else attention if it
    /// has KV heads, else recurrent (`nemotron-h.cpp`).
    WithoutKvHeadsAndFeedForward,
    /// All but the last of each period, unless `attention.recurrent_layers` says it block by block, which is where it is
    /// then written (`qwen3next.cpp`).
    Interval {
        /// The key of the period.
        key: &'static str,
        /// The period without that key.
        default: u64,
    },
}

/// A kind that the program text ties to a block's number: block `i` has it if `i % period == phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionRule {
    /// The period.
    pub period: Period,
    /// Which block of a period has the kind; counted from the end of the period if negative.
    pub phase: i64,
    /// Whether the rule holds only where blocks have a sliding window.
    pub only_with_window: bool,
    /// Whether a block must also stay in its period, counted from the front: what blocks of the kind do to the stream
    /// adds up, and the weights behind them are made for it.
    pub in_period: bool,
    /// What the blocks have, such as `no rotary embedding`.
    pub what: &'static str,
}

/// The period of a [`PositionRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// A constant of the program text.
    Fixed(usize),
    /// The value of a key below the architecture's prefix; 0 or no key: no block has the kind.
    Key(&'static str),
}

/// A kind of block of which one must stay: llama.cpp makes its memory or its inputs whether or not a block uses them, and
/// divides by zero or fails a check where none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Which blocks are of the kind.
    pub blocks: Which,
    /// What the blocks are, in the plural.
    pub what: &'static str,
}

/// Which blocks are of a kind; all keys are below the architecture's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose entry in this list is this number.
    With(&'static str, i64),
    /// Those whose entry in this list is not 0.
    WithAny(&'static str),
    /// Those behind the leading blocks that this key counts.
    Behind(&'static str),
}

/// A tensor outside of blocks that holds a part for each trunk block, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartsTensor {
    /// Its name.
    pub name: &'static str,
    /// The dimension that is divided into parts.
    pub dim: usize,
}

/// What the first block must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRule {
    /// The input's own first blocks, in their places.
    These {
        /// How many.
        n_blocks: usize,
        /// Why.
        why: &'static str,
    },
    /// The input's own first block.
    Itself {
        /// Why.
        why: &'static str,
    },
    /// A block without a sliding window.
    FullAttention {
        /// Why.
        why: &'static str,
    },
}

/// What the last block must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRule {
    /// The input's own last block, where blocks have no sliding window.
    ItselfWithoutWindow {
        /// Why.
        why: &'static str,
    },
    /// A block with a feed-forward network.
    WithFeedForward {
        /// Why.
        why: &'static str,
    },
}

/// A value that llama.cpp derives from the number of blocks, and the key that can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// `residual_scale` is `1.4 / sqrt(n)` (`minicpm.cpp`).
    ResidualScale,
    /// `attention.q_lora_rank` is 0 at some numbers of blocks (`deepseek2.cpp`).
    QueryRank,
    /// `expert_gating_func` is sigmoid at some numbers of blocks, else softmax (`deepseek2.cpp`).
    Gating,
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
    /// Exactly this many blocks select another scale of queries, which tensors can hold where there are fewer
    /// (`gemma2.cpp`, `gemma3.cpp`).
    QueryScale {
        /// The number of blocks.
        n_blocks: usize,
        /// Which tensors.
        scale: QueryScale,
    },
    /// 26 or 27 blocks, or 48 and 128256 tokens, have queries that are not of low rank, whatever the key says; elsewhere
    /// the key can say so (`deepseek2.cpp`).
    QueryRank,
}

/// Where the scale of queries is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryScale {
    /// In the norm of queries, [`QueryScale::NORM`].
    Norm,
    /// In a tensor of its own, [`QueryScale::SCALE`], and in [`QueryScale::BIAS`] (`llama-model.cpp: load_tensors`, `llama-graph.cpp: build_qkv`).
    Tensor,
}

impl QueryScale {
    /// The norm of a block's queries.
    pub const NORM: &'static str = "attn_q_norm.weight";
    /// What makes a block's queries.
    pub const QUERIES: &'static str = "attn_q.weight";
    /// What is added to a block's queries, behind their scale.
    pub const BIAS: &'static str = "attn_q.bias";
    /// One number by which a block's queries are multiplied.
    pub const SCALE: &'static str = "attn_q.scale";
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
            Self::QueryScale { n_blocks, .. } => write!(
                f,
                "llama.cpp scales queries by the width per head instead of the head size if there are exactly {n_blocks} \
                 blocks"
            ),
            Self::QueryRank => f.write_str(
                "llama.cpp takes queries for one matrix if there are 26 or 27 blocks, or 48 and 128256 tokens \
                 (deepseek2.cpp)",
            ),
        }
    }
}

impl Architecture {
    /// The rules of the architecture of that name, if they are known.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        table::ARCHITECTURES.iter().find(|arch| arch.name == name)
    }

    /// Why models of that architecture are refused, if that is known.
    #[must_use]
    pub fn refusal(name: &str) -> Option<&'static str> {
        refused::REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, why)| *why)
    }

    /// The rules of an architecture that is not known, for a user who says that nothing depends on a block's number.
    #[must_use]
    pub fn trusted() -> &'static Self {
        &table::TRUSTED
    }

    /// Where the stream between the two halves of a block appears.
    #[must_use]
    pub fn middle(&self) -> Middle {
        middle::find(self.name)
    }

    /// All known architectures.
    #[must_use]
    pub fn all() -> &'static [Self] {
        table::ARCHITECTURES
    }
}

/// What the names of a block's tensors begin with in most architectures.
pub const BLOCK_PREFIX: &str = "blk.";

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
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "attention.recurrent_layers",
];

/// Arrays under `<arch>.` that are not per block, whatever their length.
pub const OTHER_ARRAYS: &[&str] = &[
    "rope.dimension_sections",
    "classifier.output_labels",
    "rope.scaling.long_factors",
    "rope.scaling.short_factors",
    // One for each adapter (granite-switch.cpp).
    "adapters.token_ids_activate",
    "adapters.token_ids_substitute",
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
        assert!(names.iter().all(|name| Architecture::refusal(name).is_none()));
    }

    #[test]
    fn window_patterns_are_those_of_set_swa_pattern() {
        let flags = |full, period| -> Vec<bool> {
            let pattern =
                WindowPattern { period: None, full, present: WindowPresence::Always, needs_full: false };
            (0..7).map(|i| pattern.has_window(period, i)).collect()
        };
        let (t, f) = (true, false);
        assert_eq!(flags(FullBlock::Last, 6), [t, t, t, t, t, f, t]);
        assert_eq!(flags(FullBlock::Last, 2), [t, f, t, f, t, f, t]);
        assert_eq!(flags(FullBlock::Last, 1), [f; 7]);
        assert_eq!(flags(FullBlock::Last, 0), [t; 7]);
        assert_eq!(flags(FullBlock::First, 3), [f, t, t, f, t, t, f]);
        assert_eq!(flags(FullBlock::First, 1), [f; 7]);
        assert_eq!(flags(FullBlock::First, 0), [t; 7]);
    }
}
