//! What architectures of the table have in common.

use super::{
    Architecture, BLOCK_PREFIX, CountRule, FirstRule, FullBlock, PartsTensor, Period, PositionRule,
    Recurrent, Stream, WindowPattern, WindowPresence,
};

/// Nothing depends on a block's number or on how many there are.
pub(super) const fn plain(name: &'static str) -> Architecture {
    with_input(name, "embd")
}

/// As [`plain`], with another name of the node that enters block 0.
pub(super) const fn with_input(name: &'static str, input: &'static str) -> Architecture {
    of_stream(name, Stream::Named { input })
}

/// As [`plain`], with hidden states that are found another way.
pub(super) const fn of_stream(name: &'static str, stream: Stream) -> Architecture {
    Architecture {
        name,
        block_prefix: BLOCK_PREFIX,
        stream,
        window: None,
        recurrent: None,
        head_blocks: None,
        leading: &[],
        arrays: &[],
        long_arrays: &[],
        inherited: None,
        parts: &[],
        full_only: &[],
        shared_kv: None,
        positions: &[],
        needed: &[],
        first: None,
        last: None,
        counts: &[],
        derived: &[],
        lists_since: None,
    }
}

/// As [`plain`], with numbers of blocks that llama.cpp treats in a special way.
pub(super) const fn with_counts(name: &'static str, counts: &'static [CountRule]) -> Architecture {
    Architecture { counts, ..plain(name) }
}

/// What each block of gemma3n and gemma4 adds of an embedding of its own.
pub(super) const PER_LAYER: &[PartsTensor] = &[
    PartsTensor { name: "per_layer_token_embd.weight", dim: 0 },
    PartsTensor { name: "per_layer_model_proj.weight", dim: 1 },
];

pub(super) const GEMMA: Stream = Stream::Named { input: "inp_scaled" };

pub(super) const TOKENS: Stream = Stream::Named { input: "model.embed_tokens" };

pub(super) const DENSE: &[&str] = &["leading_dense_block_count"];

pub(super) const NO_ROPE_EVERY_FOURTH: PositionRule = PositionRule {
    period: Period::Fixed(4),
    phase: -1,
    only_with_window: false,
    in_period: false,
    what: "no rotary embedding",
};

pub(super) const EXPERTS_BY_STEP: PositionRule = PositionRule {
    period: Period::Key("interleave_moe_layer_step"),
    phase: -1,
    only_with_window: false,
    in_period: false,
    what: "experts",
};

pub(super) const FIRST_VALUES: FirstRule =
    FirstRule::Itself { why: "it makes the values that all later blocks mix in (rwkv7-base.cpp)" };

/// The oldest release that `tests/stock/lists.sh` was run with, and saw to read lists. It sees nothing where the model has no
/// logits (gemma-embedding), or where another kind is tied to the same period, so that no cut that is allowed shifts it
/// (afmoe, llama4, smallthinker).
pub(super) const SEEN: Option<&str> = Some("0.5.0");

/// A pattern of sliding windows with a built-in period.
pub(super) const fn windowed(
    name: &'static str,
    period: u64,
    full: FullBlock,
    present: WindowPresence,
) -> Architecture {
    Architecture {
        window: Some(WindowPattern { period: Some(period), full, present, needs_full: false }),
        lists_since: SEEN,
        ..plain(name)
    }
}

/// As `rules`, where at least one block without a window must stay, too.
pub(super) const fn with_full(rules: Architecture) -> Architecture {
    let window = match rules.window {
        Some(window) => Some(WindowPattern { needs_full: true, ..window }),
        None => None,
    };
    Architecture { window, ..rules }
}

/// A pattern of sliding windows that the file says block by block.
pub(super) const fn flagged(name: &'static str) -> Architecture {
    Architecture {
        window: Some(WindowPattern {
            period: None,
            full: FullBlock::Last,
            present: WindowPresence::Always,
            needs_full: false,
        }),
        ..plain(name)
    }
}

/// Leading blocks without experts.
pub(super) const fn dense_lead(name: &'static str) -> Architecture {
    Architecture { leading: DENSE, ..plain(name) }
}

/// Blocks without KV heads are recurrent.
pub(super) const fn hybrid(name: &'static str) -> Architecture {
    Architecture { recurrent: Some(Recurrent::WithoutKvHeads), ..plain(name) }
}

/// Every block is attention, recurrent or a feed-forward network alone (`nemotron-h.cpp`).
pub(super) const fn sub_blocks(name: &'static str) -> Architecture {
    Architecture {
        recurrent: Some(Recurrent::WithoutKvHeadsAndFeedForward),
        ..of_stream(name, Stream::Renamed { input: "embd", output: "nemotron_h_block_out" })
    }
}

/// Recurrent blocks with attention at intervals.
pub(super) const fn intervals(name: &'static str) -> Architecture {
    Architecture {
        recurrent: Some(Recurrent::Interval { key: "full_attention_interval", default: 4 }),
        lists_since: SEEN,
        ..plain(name)
    }
}
