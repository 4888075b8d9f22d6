//! The norms that the output of a block's branches passes before it is added to the stream. Pure: no I/O.

use crate::model::arch::Fit;
use crate::model::{BlockId, Model};

/// The norms that the output of both branches of a block passes before it is added, where a block has both
/// (`gemma3.cpp`). Where it has but the first, that is the norm before its feed-forward network (`qwen3next.cpp`).
pub const POST_NORMS: [&str; 2] = ["post_attention_norm", "post_ffw_norm"];

/// Whether `rest` is the norm of [`POST_NORMS`] called `norm`: in most files it ends in `.weight`, in some not (`plamo3.cpp`).
#[must_use]
pub fn is_norm(rest: &str, norm: &str) -> bool {
    rest.strip_suffix(".weight").unwrap_or(rest) == norm
}

/// Whether `model` is of an architecture whose norms are fitted, and the output of both branches of its blocks passes such a norm
/// before it is added.
#[must_use]
pub fn has_post_norms(model: &Model<'_>) -> bool {
    let mut blocks = 0..model.n_trunk_blocks();
    let has = |block: usize, rest: &str| {
        model.tensors().iter().any(|tensor| {
            let is_it = |(of, name): (BlockId, &str)| of.index() == block && is_norm(name, rest);
            tensor.block.is_some_and(is_it)
        })
    };
    model.rules().is_some_and(|rules| rules.residual.fit == Fit::Norms)
        && blocks.all(|block| POST_NORMS.iter().all(|rest| has(block, rest)))
}
