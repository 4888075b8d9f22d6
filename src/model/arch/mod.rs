//! What is particular to each architecture of llama.cpp: the rules as data.
//!
//! A maintainer adds an architecture by a row in `table.rs` and a test model. Every rule names the llama.cpp source it was
//! read from (paths below `src/models/` of the bundled version).

mod family;

mod graph;

mod refused;

mod rule;

mod table;

pub use graph::{Alone, Experts, Fit, Gate, Middle, Normalised, OutputScale, Readers, Residual, Stream};
use refused::Refused;
use rule::Rule;
pub use rule::{
    CountRule, Derived, ExpertCount, FirstRule, FullBlock, LastRule, Needed, PartsTensor, Period,
    PositionRule, QueryScale, Recurrent, Which, WindowPattern, WindowPresence,
};

/// A row of the table: all that is particular to one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Where its hidden states appear in the graph.
    pub stream: Stream,
    /// Where the stream between the two halves of a block appears.
    pub middle: Middle,
    /// Whether a block gives the same result alone as in the model.
    pub alone: Alone,
    /// What its blocks add to the stream, and what reads it.
    pub residual: Residual,
    /// How its blocks choose among experts.
    pub experts: Experts,
    /// What llama.cpp derives from a block's number or the number of blocks.
    rules: &'static [Rule],
}

/// Methods that find one rule or all rules of a kind.
macro_rules! finders {
    ($($(#[$doc:meta])* $name:ident: $how:tt $variant:ident -> $type:ty;)*) => {
        impl Architecture {
            $(finders! { @ $how $(#[$doc])* $name $variant $type })*
        }
    };
    (@ one $(#[$doc:meta])* $name:ident $variant:ident $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Option<$type> {
            self.rules.iter().find_map(|rule| if let Rule::$variant(value) = *rule { Some(value) } else { None })
        }
    };
    (@ each $(#[$doc:meta])* $name:ident $variant:ident $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self) -> impl Iterator<Item = $type> + use<> {
            let rules = self.rules.iter();
            rules.filter_map(|rule| if let Rule::$variant(value) = *rule { Some(value) } else { None })
        }
    };
}

finders! {
    /// How sliding-window blocks alternate with full ones, if they do.
    window: one Windows -> WindowPattern;
    /// How recurrent blocks alternate with attention, if they do.
    recurrent: one Recurrent -> Recurrent;
    /// The oldest llama.cpp release known to read lists in place of periods. `None`: only the bundled one.
    lists_since: one ListsSince -> &'static str;
    /// The key that counts an added head's blocks, which always stay. They come after the model's own. Below the
    /// architecture's prefix.
    head_blocks: one HeadBlocks -> &'static str;
    /// Keys that count leading blocks of another kind.
    leading: each Leading -> &'static str;
    /// Arrays that may go on after the blocks' entries.
    long_arrays: each LongArray -> &'static str;
    /// A tensor of block 0, read by blocks without their own.
    inherited: one Inherited -> &'static str;
    /// Tensors outside of blocks that hold a part for each trunk block.
    parts: each Parts -> PartsTensor;
    /// Tensors outside of blocks that only blocks without a sliding window read.
    full_only: each FullOnly -> &'static str;
    /// The key that counts the blocks at the end which share. They read the keys and values of two before them.
    shared_kv: one SharedKv -> &'static str;
    /// Kinds of blocks that the program text ties to a block's number.
    positions: each Position -> PositionRule;
    /// Kinds of which one must stay, besides windowed and recurrent blocks.
    needed: each Needed -> Needed;
    /// What the first block must be.
    first: one First -> FirstRule;
    /// What the last block must be.
    last: one Last -> LastRule;
    /// Numbers of blocks at which llama.cpp computes something else.
    counts: each Count -> CountRule;
    /// Values that llama.cpp derives from the block count without a key.
    derived: each Derived -> Derived;
    /// The number of experts at which llama.cpp computes something else.
    expert_count: one ExpertCount -> ExpertCount;
}

impl Architecture {
    /// The row of the architecture of that name, if there is one.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        table::ARCHITECTURES.iter().find(|arch| arch.name == name)
    }

    /// Why models of that architecture are refused, if that is known.
    #[must_use]
    pub fn refusal(name: &str) -> Option<&'static str> {
        Refused::find(name).map(Refused::why)
    }

    /// Whether the architecture is a draft head, bound to its target's blocks.
    #[must_use]
    pub fn is_draft_head(name: &str) -> bool {
        Refused::find(name) == Some(Refused::DraftHead)
    }

    /// The row of an unknown architecture. The user vouches that nothing depends on a block's number.
    #[must_use]
    pub fn trusted() -> &'static Self {
        &table::TRUSTED
    }

    /// All known architectures.
    #[must_use]
    pub fn all() -> &'static [Self] {
        table::ARCHITECTURES
    }

    /// What the names of a block's tensors begin with, before its number.
    #[must_use]
    pub fn block_prefix(&self) -> &'static str {
        let prefix = |rule: &Rule| if let Rule::BlockPrefix(prefix) = *rule { Some(prefix) } else { None };
        self.rules.iter().find_map(prefix).unwrap_or(BLOCK_PREFIX)
    }

    /// Arrays with an entry for each block, beside those of [`PER_BLOCK_ARRAYS`]. Below the architecture's prefix, or with a
    /// leading dot where they have none.
    pub fn arrays(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.rules.iter().filter_map(|rule| match *rule {
            Rule::Array(name) | Rule::LongArray(name) => Some(name),
            _ => None,
        })
    }

    /// Whether an array under this key has an entry for each block. The key is below the architecture's prefix.
    #[must_use]
    pub fn is_per_block(&self, name: &str) -> bool {
        PER_BLOCK_ARRAYS.contains(&name) || self.arrays().any(|array| array == name)
    }

    /// Whether a block without heads has no attention and no substitute.
    #[must_use]
    pub fn has_no_attention_without_heads(&self) -> bool {
        self.rules.contains(&Rule::NoAttentionWithoutHeads)
    }

    /// Whether llama.cpp never ends where the first block has no heads.
    #[must_use]
    pub fn is_endless_without_heads(&self) -> bool {
        self.rules.contains(&Rule::EndlessWithoutHeads)
    }
}

/// What the names of a block's tensors begin with in most architectures.
pub const BLOCK_PREFIX: &str = "blk.";

/// Arrays under `<arch>.` with one entry per block, in any architecture (`llama-model.cpp: load_hparams`).
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
    fn a_rule_that_has_one_value_stands_once_in_a_row() {
        for arch in Architecture::all() {
            let rules = arch.rules.iter().filter(|rule| {
                !matches!(
                    rule,
                    Rule::Leading(_)
                        | Rule::Array(_)
                        | Rule::LongArray(_)
                        | Rule::Parts(_)
                        | Rule::FullOnly(_)
                        | Rule::Position(_)
                        | Rule::Needed(_)
                        | Rule::Count(_)
                        | Rule::Derived(_)
                )
            });
            let mut kinds = std::collections::HashSet::new();
            for rule in rules {
                assert!(kinds.insert(std::mem::discriminant(rule)), "{}: {rule:?}", arch.name);
            }
        }
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
