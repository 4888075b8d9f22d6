//! The norms between a block's branches and the stream. Pure: no I/O.

use crate::model::arch::Fit;
use crate::model::{BlockId, Model};
use crate::plan::writers::{POST_NORMS, is_norm};

/// Whether all blocks have both post-norms, and these can be fitted.
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
