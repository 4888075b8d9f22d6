//! The last blocks, evaluated from a hidden state to logits.

use std::ops::Range;

use anyhow::Result;
use ggml::{Context, WindowInput};

use super::input_scale::InputScale;

/// Blocks as a model of their own that ends in logits.
pub struct HeadSegment {
    pub(super) context: Context<'static>,
    pub(super) input_scale: InputScale,
}

impl HeadSegment {
    /// The logits after the tokens at `rows`, `[rows.len(), n_vocab]`.
    ///
    /// These are some of those that [`scored`](crate::engine::scored::scored) names. `state` is the one before the first of the
    /// blocks, `[n_tokens, n_embd]`.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn logits(&mut self, state: &[f32], rows: Range<usize>) -> Result<&[f32]> {
        let state = &self.input_scale.divide(state);
        Ok(self.context.logits_of(WindowInput::HiddenStates(state), rows)?)
    }
}
