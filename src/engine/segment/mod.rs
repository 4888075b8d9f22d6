//! Segments: shortened models of a few blocks, held in memory and fed with hidden states.
//!
//! A [`Chain`] evaluates a model block by block, each block a segment of its own. So any set of its blocks can be
//! evaluated without a file, and what two sets have in common is evaluated once. Before it is used it is compared with
//! the whole model, bit for bit, since llama.cpp does not treat every architecture's hidden states as it treats its tokens;
//! where it cannot be used, [`Whole`] evaluates shortened models one by one. A [`Lone`] block is evaluated as a segment with
//! other weights.
//!
//! In reading order: `plan` says what a segment's file holds, `memory` writes it, `input_scale` is what llama.cpp does to the
//! hidden states that it is fed with, `contexts` says what is kept ready, [`chain`] evaluates, [`whole`] is the fall-back,
//! [`lone`] is a single block, [`tail`] are the last ones, and `alone` compares blocks alone with the whole model.

mod plan;

mod input_scale;

pub(crate) mod memory;

mod contexts;

pub mod chain;

pub mod whole;

pub mod lone;

pub mod tail;

mod alone;

use anyhow::Result;

use crate::engine::hidden_state::Token;
use crate::model::BlockId;

pub use alone::check_alone;
pub use chain::Chain;
pub use lone::Lone;
pub use plan::takes_streams;
pub use tail::Tail;
pub use whole::Whole;

/// What a set gives on a window, beside its parent.
pub struct Outcome<'o> {
    /// The number of the set.
    pub set: usize,
    /// The number of the window.
    pub window: usize,
    /// The window.
    pub tokens: &'o [Token],
    /// The parent's logits behind the tokens that [`crate::engine::scored::scored`] names, `[n_scored, n_vocab]`.
    pub parent: &'o [f32],
    /// The set's.
    pub logits: &'o [f32],
}

/// Receives what sets give.
pub type Visitor<'v> = dyn FnMut(Outcome<'_>) -> Result<()> + 'v;

/// Evaluates sets of a model's blocks beside the whole model, on windows that are given once.
pub trait Subsets {
    /// How many windows there are.
    fn n_windows(&self) -> usize;

    /// Evaluates every set of `kept` blocks, in ascending order each and no two the same, on the windows with these
    /// numbers, and shows the outcomes to `visit` in any order.
    ///
    /// # Errors
    /// The visitor's, and whatever keeps the engine from evaluating a set.
    fn visit(&mut self, windows: &[usize], kept: &[Vec<BlockId>], visit: &mut Visitor<'_>) -> Result<()>;

    /// Evaluations of one block on one window so far, the parent's included.
    fn n_block_evaluations(&self) -> u64;
}
