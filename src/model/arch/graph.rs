//! The residual stream in llama.cpp's graphs, and how blocks change it.

/// Where the residual stream appears in llama.cpp's graph. `-<i>` stands for a block's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nodes with names: `input` before block 0, `l_out-<i>` after block i.
    Named {
        /// The node that enters block 0. Where it has no name, its second operand.
        input: &'static str,
    },
    /// As `Named`, with another name for what leaves a block: `<output>-<i>`.
    Renamed {
        /// The node that enters block 0. Where it has no name, its second operand.
        input: &'static str,
        /// What a block calls what it gives.
        output: &'static str,
    },
    /// As `Renamed`, with several streams per token, mixed by hyper-connections (`deepseek4.cpp`). Their shape is `[n_embd,
    /// n_streams, n_tokens]`. The hidden state of a token is all of them, one after another.
    Parallel {
        /// The node that enters block 0.
        input: &'static str,
        /// What a block calls what it gives.
        output: &'static str,
        /// The key of the number of streams, below the architecture's prefix.
        streams_key: &'static str,
    },
    /// As `Named`, but the last block's output has another name (`t5.cpp`).
    NamedTo {
        /// The node that enters block 0.
        input: &'static str,
        /// The node that leaves the last block.
        last: &'static str,
    },
    /// As `Named`, but each node is several states in a row. Blocks compute with the first (`gemma3n.cpp`).
    Stacked {
        /// The node that enters block 0.
        input: &'static str,
    },
    /// As `Named`, but the blocks run several times (`nanbeige.cpp`). `l_out-<j>` is of the j-th run, and `loop_norm-<j>` where
    /// the stream is normalised after the last block of a loop.
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
    /// No name for outputs. What leaves block i is the sum whose second operand is `ffn_inp-<i>` (`eurobert.cpp`,
    /// `neo-bert.cpp`, `modern-bert.cpp`).
    ResidualSum {
        /// The node that enters block 0.
        input: &'static str,
    },
    /// No names: what leaves block i is what its last norm, `blk.<i>.layer_output_norm`, gives. What enters block 0 is
    /// `inp_norm-0` (post-norm encoders, `bert.cpp`).
    LayerOutputNorm,
}

impl Stream {
    /// Whether the stream is the sum of what blocks add. A block that adds zeros is then the identity.
    #[must_use]
    pub const fn is_sum(self) -> bool {
        !matches!(self, Self::LayerOutputNorm | Self::Stacked { .. } | Self::Parallel { .. })
    }
}

/// The residual stream between the two halves of a block. Attention (or the recurrence in its place) has added to it, and the
/// feed-forward network (or what is in its place) has not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// The node `<name>-<i>`.
    Named(&'static str),
    /// A node without a name, or with that of another. What the norm with the weights `blk.<i>.ffn_norm.weight` reads.
    ReadByNorm,
    /// Nowhere: both halves read what enters the block.
    Parallel,
    /// As [`Middle::Parallel`] where this key is true, else the node `ffn_inp-<i>`. The key is below the architecture's prefix.
    ParallelIf(&'static str),
    /// [`Middle::Parallel`] without this tensor in the blocks, else the node `ffn_inp-<i>`.
    ParallelWithout(&'static str),
    /// Nowhere, as this says: the block ...
    Nowhere(&'static str),
}

/// Whether a block gives the same result alone as in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// Bit for bit; tested.
    Exact,
    /// Up to rounding; tested. Its graph multiplies what enters block 0 by the root of its width, hidden states as well, so
    /// that a block is given a hidden state over that root (`gemma2.cpp`).
    Scaled,
    /// Not known. Some scale what enters block 0, add positions to it, or share something between blocks. A few make llama.cpp
    /// end the process, so that trying is no way to find out.
    Unknown,
}

/// What blocks add to the residual stream, and what reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residual {
    /// What a fit of a block's weights may change.
    pub fit: Fit,
    /// What reads the stream.
    pub readers: Readers,
    /// What the tensor `layer_output_scale` of a block multiplies, where it has one.
    pub output_scale: OutputScale,
}

/// The weights of a block that a fit may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The matrix `ffn_down`, where its product enters the stream directly.
    Matrix,
    /// In blocks that have both, the norms after both branches. A block alone shows what each branch adds; tested. Else as
    /// [`Fit::Matrix`].
    Norms,
    /// Nothing: a factor of the metadata multiplies what a block writes.
    Nothing,
}

/// What reads the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Norms alone. Scaling the stream and the additions to it changes nothing.
    Norms,
    /// Other readers too, or unknown ones: why the scale of the stream matters.
    Others(&'static str),
}

/// What the tensor `layer_output_scale` of a block multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputScale {
    /// The whole stream, so that one is no change.
    Stream,
    /// The embedding, added again by the block. Zero changes nothing.
    Embedding,
}

/// How a block chooses among its experts and weighs them (`llama-graph.cpp: build_moe_ffn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// It has none, or how it chooses is not known.
    Unknown,
    /// None of them can be removed, as this says.
    Fixed(&'static str),
    /// By the product of its router: those with the largest, or with the largest sum with a bias.
    Routed(Gate, Normalised),
}

/// The function of the router's product from which expert weights come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// A softmax over all experts of the block.
    Softmax,
    /// An own weight per expert, or a softmax over the chosen.
    Own,
    /// As `expert_gating_func` says; without it as [`Gate::Own`].
    ByKey,
    /// As `expert_gating_func` says; without it as [`Gate::Softmax`].
    ByKeyElseSoftmax,
}

/// Whether the weights of the chosen experts are divided by their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalised {
    /// Always.
    Always,
    /// Never.
    Never,
    /// As `expert_weights_norm` says.
    ByKey,
}
