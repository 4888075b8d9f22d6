//! The rules of architectures. What llama.cpp derives from a block's number, or from how many blocks there are.

use std::fmt;

/// One such fact. Keys are below the architecture's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The prefix of a block's tensor names, in place of [`super::BLOCK_PREFIX`].
    BlockPrefix(&'static str),
    /// How sliding-window blocks alternate with full ones.
    Windows(WindowPattern),
    /// How recurrent blocks alternate with attention.
    Recurrent(Recurrent),
    /// The oldest llama.cpp release known to read lists in place of periods. The period is of windows or recurrent blocks
    /// (`tests/stock/lists.sh`). Without this rule only the bundled one was.
    ListsSince(&'static str),
    /// The key that counts an added head's blocks, which always stay. They come after the model's own.
    HeadBlocks(&'static str),
    /// A key that counts leading blocks of another kind.
    Leading(&'static str),
    /// An array with an entry for each block, beside those of [`super::PER_BLOCK_ARRAYS`]. With a leading dot, a key without
    /// the architecture's prefix.
    Array(&'static str),
    /// Such an array that may go on after the blocks' entries. There must be enough, and llama.cpp reads no more.
    LongArray(&'static str),
    /// A tensor of block 0, read by blocks without their own.
    Inherited(&'static str),
    /// A tensor outside of blocks, with a part per trunk block.
    Parts(PartsTensor),
    /// A tensor outside of blocks, read only by blocks without sliding window.
    FullOnly(&'static str),
    /// The key that counts the blocks at the end with shared KV. They read those of two blocks before them: with a window those
    /// of the second to last, without one those of the last (`llama-model.cpp: create_memory`).
    SharedKv(&'static str),
    /// A block without heads (`attention.head_count` as an array) has no attention. Nothing is in its place: what enters it is
    /// what its feed-forward network reads (`deci.cpp`).
    NoAttentionWithoutHeads,
    /// llama.cpp never ends where the first block has no heads. Nothing is rotated, and its loop over rotated pairs goes on
    /// (`ops.cpp: ggml_compute_forward_rope_flt`).
    EndlessWithoutHeads,
    /// A kind of block that llama.cpp's code ties to the number.
    Position(PositionRule),
    /// A kind of which one must stay, besides windowed and recurrent blocks.
    Needed(Needed),
    /// What the first block must be.
    First(FirstRule),
    /// What the last block must be.
    Last(LastRule),
    /// A number of blocks at which llama.cpp computes something else.
    Count(CountRule),
    /// A value that llama.cpp derives from the block count without a key.
    Derived(Derived),
    /// A number of experts at which llama.cpp computes something else.
    ExpertCount(ExpertCount),
}

/// Sliding-window attention by block number (`llama-hparams.cpp: set_swa_pattern`, `llama-model.cpp: load_swa_pattern`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPattern {
    /// The period of the built-in pattern. `None` where the file must say it block by block.
    pub period: Option<u64>,
    /// Which block of a period has no window.
    pub full: FullBlock,
    /// When blocks have a window at all.
    pub present: WindowPresence,
    /// Whether at least one block without a window must stay, too. Its input may be made whether or not a block uses it; an
    /// unused one has no memory, and a check fails (`llama-graph.cpp: set_input`).
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
    /// A block is one of three (`nemotron-h.cpp`). It is a feed-forward network where `feed_forward_length` says its width,
    /// else attention if it has KV heads, else recurrent.
    WithoutKvHeadsAndFeedForward,
    /// All but the last of each period. `attention.recurrent_layers` may say it block by block, and is where it is then written
    /// (`qwen3next.cpp`).
    Interval {
        /// The key of the period.
        key: &'static str,
        /// The period without that key.
        default: u64,
    },
}

/// A kind that the program text ties to a block's number. Block `i` has it if `i % period == phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionRule {
    /// The period.
    pub period: Period,
    /// Which block of a period has the kind. Counted from the end of the period if negative.
    pub phase: i64,
    /// Whether the rule holds only where blocks have a sliding window.
    pub only_with_window: bool,
    /// Whether a block must also stay in its period, from the front. What blocks of the kind do to the stream adds up, and the
    /// weights after them are made for it.
    pub in_period: bool,
    /// What the blocks have, such as `no rotary embedding`.
    pub what: &'static str,
}

/// The period of a [`PositionRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// A constant of the program text.
    Fixed(usize),
    /// The value of a key below the architecture's prefix. 0 or no key: no block has the kind.
    Key(&'static str),
}

/// A kind of block of which one must stay. Its memory or its inputs are made whether or not a block uses them, and llama.cpp
/// divides by zero or fails a check where none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Which blocks are of the kind.
    pub blocks: Which,
    /// What the blocks are, in the plural.
    pub what: &'static str,
}

/// Which blocks are of a kind. All keys are below the architecture's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose entry in this list is this number.
    With(&'static str, i64),
    /// Those whose entry in this list is not 0.
    WithAny(&'static str),
    /// Those after the leading blocks that this key counts.
    After(&'static str),
}

/// A tensor outside of blocks, with ordered parts per trunk block.
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

/// A value that llama.cpp derives from the block count, and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// `residual_scale` is `1.4 / sqrt(n)` (`minicpm.cpp`).
    ResidualScale,
    /// `attention.q_lora_rank` is 0 at some numbers of blocks (`deepseek2.cpp`).
    QueryRank,
    /// `expert_gating_func` is sigmoid at some numbers of blocks, else softmax (`deepseek2.cpp`).
    Gating,
}

/// A number of experts that changes llama.cpp's computation; no metadata says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertCount {
    /// The number.
    pub n_experts: usize,
    /// What llama.cpp does there.
    pub what: &'static str,
}

/// A number of blocks that changes llama.cpp's computation; no metadata says so.
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
    /// Exactly this many blocks select another scale of queries. Where there are fewer, tensors can hold it (`gemma2.cpp`,
    /// `gemma3.cpp`).
    QueryScale {
        /// The number of blocks.
        n_blocks: usize,
        /// Which tensors.
        scale: QueryScale,
    },
    /// At some sizes queries are not of low rank, whatever the key. Those are 26 or 27 blocks, or 48 and 128256 tokens.
    /// Elsewhere the key can say so (`deepseek2.cpp`).
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
    /// What is added to a block's queries, after their scale.
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
