//! Where a block's attention ends and its feed-forward network begins: the stream between the two, for each architecture.

/// Where the residual stream between the two halves of a block appears in llama.cpp's graph: behind what attention (or
/// the recurrence in its place) adds to it, before the feed-forward network (or what is in its place) reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// The node `<name>-<i>`.
    Named(&'static str),
    /// A node without a name, or with that of another: what the norm with the weights `blk.<i>.ffn_norm.weight` reads.
    ReadByNorm,
    /// Nowhere: both halves read what enters the block.
    Parallel,
    /// As [`Middle::Parallel`] where this key, below the architecture's prefix, is true, else the node `ffn_inp-<i>`.
    ParallelIf(&'static str),
    /// As [`Middle::Parallel`] in a model without this tensor in its blocks, else the node `ffn_inp-<i>`.
    ParallelWithout(&'static str),
    /// Nowhere, as this says: the block ...
    Nowhere(&'static str),
}

/// Of an architecture by that name.
pub(super) fn find(name: &str) -> Middle {
    OTHERS
        .iter()
        .find(|(_, names)| names.contains(&name))
        .map_or(Middle::Named("ffn_inp"), |(middle, _)| *middle)
}

/// All that do not call it `ffn_inp`.
const OTHERS: &[(Middle, &[&str])] = &[
    (Middle::Named("sa_out"), &["gemma", "gemma2", "gemma3", "gemma-embedding", "bailingmoe2"]),
    (Middle::Named("attn_residual"), &["plamo2", "plamo3", "qwen3next", "qwen35", "qwen35moe"]),
    (Middle::Named("attn_out"), &["gemma4"]),
    // jamba gives the name to what its mixer adds (jamba.cpp).
    (Middle::ReadByNorm, &["jamba", "phi3", "phimoe", "bailingmoe3", "lfm2", "lfm2moe"]),
    (Middle::Parallel, &["falcon", "phi2", "plamo", "command-r", "cohere2", "cohere2moe"]),
    (Middle::ParallelIf("use_parallel_residual"), &["gptneox"]),
    // The node is there, but the feed-forward network of a model without that norm does not read it (stablelm.cpp).
    (Middle::ParallelWithout("ffn_norm.weight"), &["stablelm"]),
    (Middle::Nowhere("is a mixer alone, without a feed-forward network"), &["mamba", "mamba2"]),
    (Middle::Nowhere("is a mixer or a feed-forward network, never both"), &["nemotron_h", "nemotron_h_moe"]),
    (Middle::Nowhere("mixes several streams of each token in each half"), &["deepseek4", "gemma3n"]),
    (Middle::Nowhere("starts a new stream at some blocks"), &["kimi-k3"]),
];

/// Architectures in which a block without heads (`attention.head_count` as an array) has no attention at all: what enters
/// it is what its feed-forward network reads (`deci.cpp`).
pub const WITHOUT_HEADS_WITHOUT_ATTENTION: &[&str] = &["deci"];
