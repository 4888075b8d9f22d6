//! Segments: models of a few blocks, in memory, fed with hidden states.
//!
//! [`Segments`] plans and loads them. A [`FrontSegment`] evaluates the first block on a window of tokens, a [`BlockSegment`]
//! any block. A [`HeadSegment`] evaluates the last blocks up to the logits, perhaps with other weights. A [`Chain`] evaluates a
//! model block by block, each block a segment of its own. So any set of its blocks can be evaluated without a file, and what
//! two sets have in common is evaluated once. Before segments are used they are compared with the whole model, bit for bit,
//! since llama.cpp does not treat every architecture's hidden states as it treats its tokens. Where they cannot be used,
//! [`Whole`] evaluates shortened models one by one.
//!
//! In reading order: `plan` says what a segment's file holds, `contents` makes it while llama.cpp reads it, and `segments`
//! loads it. `input_scale` is what llama.cpp does to the hidden states that it is fed with. `front`, `block` and `head` evaluate, and `check` compares with the whole model.
//! `contexts` says what is kept ready, [`chain`] evaluates sets of blocks, and [`whole`] is the fall-back.

mod plan;

mod contents;

mod input_scale;

mod block;

mod front;

mod head;

mod segments;

mod check;

mod contexts;

pub mod chain;

pub mod whole;

use anyhow::Result;

use crate::engine::hidden_state::Token;
use crate::model::BlockId;

pub use block::{BlockSegment, Evaluated, SegmentOf};
pub use chain::Chain;
pub use check::check_blocks;
pub use front::{FrontSegment, Tokens};
pub use head::HeadSegment;
pub(in crate::engine) use plan::{VOCABULARY, n_vocab};
pub use plan::{is_exact, takes_streams};
pub use segments::Segments;
pub use whole::Whole;

/// The logits of a set on a window, and the parent's.
pub struct Outcome<'o> {
    /// The number of the set.
    pub set: usize,
    /// The number of the window.
    pub window: usize,
    /// The window.
    pub tokens: &'o [Token],
    /// The parent's logits after the tokens that [`crate::engine::scored::scored`] names, `[n_scored, n_vocab]`.
    pub parent: &'o [f32],
    /// The set's.
    pub logits: &'o [f32],
}

/// Receives the logits of sets.
pub type Visitor<'v> = dyn FnMut(Outcome<'_>) -> Result<()> + 'v;

/// Evaluates sets of blocks beside the whole model, on given windows.
pub trait Subsets {
    /// How many windows there are.
    fn n_windows(&self) -> usize;

    /// Evaluates every set of `kept` blocks on the windows with these numbers.
    ///
    /// Each is in ascending order, and no two are the same. Outcomes are shown to `visit` in any order.
    ///
    /// # Errors
    /// The visitor's, and whatever keeps the engine from evaluating a set.
    fn visit(&mut self, windows: &[usize], kept: &[Vec<BlockId>], visit: &mut Visitor<'_>) -> Result<()>;

    /// Evaluations of one block on one window so far, the parent's included.
    fn n_block_evaluations(&self) -> u64;
}
