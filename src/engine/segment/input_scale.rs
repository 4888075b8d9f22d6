//! The factor on a hidden state before llama.cpp's first block.

use std::borrow::Cow;

use crate::model::arch::Alone;
use crate::plan::Constraints;

/// The factor of [`Alone::Scaled`]; none for other architectures.
pub(super) struct InputScale(Option<f32>);

impl InputScale {
    /// For hidden states of `n_embd` numbers.
    pub(super) fn of(constraints: &Constraints, n_embd: usize) -> Self {
        let scale = || (n_embd as f32).sqrt();
        Self((constraints.rules.alone == Alone::Scaled).then(scale))
    }

    /// The state that llama.cpp makes `state` of.
    pub(super) fn divide<'s>(&self, state: &'s [f32]) -> Cow<'s, [f32]> {
        match self.0.map(f32::recip) {
            Some(factor) => state.iter().map(|x| x * factor).collect(),
            None => Cow::Borrowed(state),
        }
    }
}
