//! The way through a model whose branches end in norms.

use crate::heal::Weighting;
use crate::heal::writers::{POST_NORMS, is_norm};
use crate::model::arch::Fit;
use crate::model::{BlockId, Model};
use std::fmt;

/// How the norms of a block are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// How tokens count.
    pub(super) weighting: Weighting,
    /// Beside the norms also `ffn_down` under them.
    pub(super) matrices: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.matrices { "norms and ffn_down" } else { "norms" };
        write!(f, "{}, {what}", self.weighting)
    }
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
