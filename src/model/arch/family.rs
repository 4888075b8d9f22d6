//! The words of the table: what several rows have in common.

use super::Architecture;
use super::graph::{Alone, Experts, Fit, Gate, Middle, Normalised, OutputScale, Readers, Residual, Stream};
use super::rule::{
    CountRule, Derived, FirstRule, FullBlock, Needed, PartsTensor, Period, PositionRule, Recurrent, Rule,
    Which, WindowPattern, WindowPresence,
};

/// A row: every field but the experts, and all rules. Those are what llama.cpp derives from the number of a block, or of
/// blocks. No rules: nothing.
pub(super) const fn row(
    name: &'static str,
    stream: Stream,
    middle: Middle,
    alone: Alone,
    residual: Residual,
    rules: &'static [Rule],
) -> Architecture {
    Architecture { name, stream, middle, alone, residual, experts: Experts::Unknown, rules }
}

impl Architecture {
    /// The row with the experts of its blocks.
    pub(super) const fn routed(self, experts: Experts) -> Self {
        Self { experts, ..self }
    }
}

/// Weights as the softmax over all experts has them.
pub(super) const SOFTMAX: Experts = Experts::Routed(Gate::Softmax, Normalised::Never);

/// Those over their sum.
pub(super) const SOFTMAX_OVER_SUM: Experts = Experts::Routed(Gate::Softmax, Normalised::Always);

/// Weights that the other experts have no part in.
pub(super) const OWN: Experts = Experts::Routed(Gate::Own, Normalised::Never);

/// Those over their sum.
pub(super) const OWN_OVER_SUM: Experts = Experts::Routed(Gate::Own, Normalised::Always);

/// Weights by the keys of the file.
pub(super) const BY_KEYS: Experts = Experts::Routed(Gate::ByKey, Normalised::ByKey);

/// As [`BY_KEYS`], but the softmax without a key (`deepseek2.cpp`).
pub(super) const BY_KEYS_ELSE_SOFTMAX: Experts = Experts::Routed(Gate::ByKeyElseSoftmax, Normalised::ByKey);

/// Weights by the keys of the file, over their sum.
pub(super) const BY_KEY_OVER_SUM: Experts = Experts::Routed(Gate::ByKey, Normalised::Always);

/// The stream of most architectures.
pub(super) const EMBD: Stream = named("embd");

pub(super) const GEMMA: Stream = named("inp_scaled");

pub(super) const TOKENS: Stream = named("model.embed_tokens");

pub(super) const INPUT_EMBED: Stream = named("model.input_embed");

/// Another name of the node that enters block 0.
pub(super) const fn named(input: &'static str) -> Stream {
    Stream::Named { input }
}

/// That of blocks that are one of three kinds, [`ONE_OF_THREE`].
pub(super) const SUB_BLOCKS: Stream = Stream::Renamed { input: "embd", output: "nemotron_h_block_out" };

/// The middle of most architectures.
pub(super) const FFN_INP: Middle = Middle::Named("ffn_inp");

pub(super) const SA_OUT: Middle = Middle::Named("sa_out");

pub(super) const ATTN_RESIDUAL: Middle = Middle::Named("attn_residual");

pub(super) const MIXER_ALONE: Middle = Middle::Nowhere("is a mixer alone, without a feed-forward network");

pub(super) const MIXER_OR_NETWORK: Middle =
    Middle::Nowhere("is a mixer or a feed-forward network, never both");

pub(super) const STREAMS_MIXED: Middle = Middle::Nowhere("mixes several streams of each token in each half");

/// Products that are added to the stream as they are; only norms read it. [`Stream::is_sum`] may say otherwise.
pub(super) const SUM: Residual =
    Residual { fit: Fit::Matrix, readers: Readers::Norms, output_scale: OutputScale::Stream };

/// As [`SUM`], but blocks scale their products by a metadata factor.
pub(super) const FACTOR: Residual =
    Residual { fit: Fit::Nothing, readers: Readers::Norms, output_scale: OutputScale::Stream };

/// As [`SUM`], but the products pass norms whose fits are tested.
pub(super) const NORMS: Residual =
    Residual { fit: Fit::Norms, readers: Readers::Norms, output_scale: OutputScale::Stream };

/// As [`SUM`], but the length of the stream shows.
pub(super) const fn length_shows(why: &'static str) -> Residual {
    Residual { fit: Fit::Matrix, readers: Readers::Others(why), output_scale: OutputScale::Stream }
}

/// The oldest release that `tests/stock/lists.sh` has seen read lists. It sees nothing where the model has no logits
/// (gemma-embedding). Nor does it where another kind is tied to the same period, so that no allowed cut shifts it (afmoe,
/// llama4, smallthinker).
pub(super) const SEEN: Rule = Rule::ListsSince("0.5.0");

/// A pattern of sliding windows with a built-in period.
pub(super) const fn windows(period: u64, full: FullBlock, present: WindowPresence) -> Rule {
    Rule::Windows(WindowPattern { period: Some(period), full, present, needs_full: false })
}

/// As [`windows`], but at least one block without a window must stay.
pub(super) const fn windows_and_full(period: u64, full: FullBlock, present: WindowPresence) -> Rule {
    Rule::Windows(WindowPattern { period: Some(period), full, present, needs_full: true })
}

/// A pattern of sliding windows that the file says block by block.
pub(super) const FLAGS: Rule = Rule::Windows(WindowPattern {
    period: None,
    full: FullBlock::Last,
    present: WindowPresence::Always,
    needs_full: false,
});

/// As [`FLAGS`], but at least one block without a window must stay.
pub(super) const FLAGS_AND_FULL: Rule = Rule::Windows(WindowPattern {
    period: None,
    full: FullBlock::Last,
    present: WindowPresence::Always,
    needs_full: true,
});

/// Blocks without KV heads are recurrent.
pub(super) const HYBRID: Rule = Rule::Recurrent(Recurrent::WithoutKvHeads);

/// Recurrent blocks with attention at intervals.
pub(super) const INTERVALS: Rule =
    Rule::Recurrent(Recurrent::Interval { key: "full_attention_interval", default: 4 });

/// Every block is attention, recurrent or a feed-forward network alone (`nemotron-h.cpp`).
pub(super) const ONE_OF_THREE: Rule = Rule::Recurrent(Recurrent::WithoutKvHeadsAndFeedForward);

/// Leading blocks without experts.
pub(super) const DENSE: Rule = Rule::Leading("leading_dense_block_count");

/// The separate embedding that each block of gemma3n and gemma4 adds.
pub(super) const PER_LAYER_EMBEDDING: Rule =
    Rule::Parts(PartsTensor { name: "per_layer_token_embd.weight", dim: 0 });

/// The projection beside it.
pub(super) const PER_LAYER_PROJECTION: Rule =
    Rule::Parts(PartsTensor { name: "per_layer_model_proj.weight", dim: 1 });

/// Every fourth block, the first or last (-1), has no rotary embedding.
pub(super) const fn no_rope_every_fourth(phase: i64, only_with_window: bool) -> Rule {
    Rule::Position(PositionRule {
        period: Period::Fixed(4),
        phase,
        only_with_window,
        in_period: false,
        what: "no rotary embedding",
    })
}

/// The block of each period that has experts.
pub(super) const fn experts_by(period: &'static str, phase: i64) -> Rule {
    Rule::Position(PositionRule {
        period: Period::Key(period),
        phase,
        only_with_window: false,
        in_period: false,
        what: "experts",
    })
}

pub(super) const EXPERTS_BY_STEP: Rule = experts_by("interleave_moe_layer_step", -1);

/// A block of each period that changes the stream for later blocks.
pub(super) const fn stream_by(period: &'static str, phase: i64, what: &'static str) -> Rule {
    Rule::Position(PositionRule {
        period: Period::Key(period),
        phase,
        only_with_window: false,
        in_period: true,
        what,
    })
}

/// Leading dense blocks, and a query rank by block count (`deepseek2.cpp`).
pub(super) const LOW_RANK_QUERIES: &[Rule] = &[
    DENSE,
    Rule::Count(CountRule::QueryRank),
    Rule::Derived(Derived::QueryRank),
    Rule::Derived(Derived::Gating),
];

/// A kind of blocks of which one must stay.
pub(super) const fn needed(blocks: Which, what: &'static str) -> Rule {
    Rule::Needed(Needed { blocks, what })
}

/// Exactly this many blocks select something.
pub(super) const fn exactly(n_blocks: usize, what: &'static str) -> Rule {
    Rule::Count(CountRule::Exactly { n_blocks, what })
}

/// This many blocks or more select something.
pub(super) const fn at_least(n_blocks: usize, what: &'static str) -> Rule {
    Rule::Count(CountRule::AtLeast { n_blocks, what })
}

pub(super) const FIRST_VALUES: Rule = Rule::First(FirstRule::Itself {
    why: "it makes the values that all later blocks mix in (rwkv7-base.cpp)",
});
