//! The scored tokens of a window, and the trait for their logits.

use crate::engine::hidden_state::Token;
use anyhow::Result;
use std::ops::Range;

/// Yields the logits of the scored half of a window.
pub trait ScoredLogits {
    /// What errors call the model: its path.
    fn name(&self) -> String;

    /// Number of entries of the vocabulary.
    fn n_vocab(&self) -> usize;

    /// The logits after the tokens in [`scored`], `[n_scored, n_vocab]`.
    ///
    /// `window` is a sequence of its own. They are good until the next window.
    ///
    /// # Errors
    /// Whatever keeps the engine from evaluating the window.
    fn logits(&mut self, window: &[Token]) -> Result<&[f32]>;
}

/// The tokens of a window whose next-token prediction is scored.
///
/// They are those of the second half but the last, after which the window ends.
#[must_use]
pub fn scored(n_tokens: usize) -> Range<usize> {
    n_tokens / 2..n_tokens.saturating_sub(1)
}

/// The shortest window with a token that is scored.
pub const MIN_WINDOW: usize = 3;
