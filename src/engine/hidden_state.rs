//! Hidden states: the trait that yields them, and its recorded twin.
//!
//! A hidden state is the residual stream between blocks: row-major `[n_tokens, n_embd]`, one row a token. (ggml prints
//! the same shape reversed, fastest dimension first.)

use anyhow::{Result, ensure};

use crate::model::BlockId;

/// A token id of a model's vocabulary.
pub type Token = ggml::Token;

/// Which point of the residual stream a hidden state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The stream as the next block receives it, if not an output. So before the first block, and after anything that
    /// llama.cpp does to the stream between two blocks.
    Input,
    /// The stream between attention and feed-forward network of this block. Shown only where the source was made to.
    Middle(BlockId),
    /// The stream as this block leaves it, before any final norm.
    Output(BlockId),
}

/// What one block makes of one window: hidden states, each `[n_tokens, n_embd]`.
pub struct Passage<'p> {
    /// The block.
    pub block: BlockId,
    /// The number of the window.
    pub window: usize,
    /// The stream before the block.
    pub before: &'p [f32],
    /// The stream between its halves, where that is shown.
    pub middle: Option<&'p [f32]>,
    /// The stream after it.
    pub after: &'p [f32],
}

/// Receives hidden states in order of evaluation, each `[n_tokens, n_embd]`.
pub type Visitor<'v> = dyn FnMut(Position, &[f32]) -> Result<()> + 'v;

/// Yields the hidden states of a window, one at a time.
pub trait HiddenStates {
    /// Number of blocks that are evaluated.
    fn n_blocks(&self) -> usize;

    /// Width of the stream, in elements.
    fn n_embd(&self) -> usize;

    /// Evaluates `window` as a sequence and shows every hidden state to `visit`.
    ///
    /// First comes a [`Position::Input`], then the [`Position::Output`] of every block in order of evaluation. Where the source
    /// was made to show it, the [`Position::Middle`] of each block comes before its output.
    ///
    /// # Errors
    /// The visitor's, and whatever keeps the engine from evaluating the window.
    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()>;
}

/// Hidden states that were recorded: the engine's twin for tests.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Width of the stream, in elements.
    pub n_embd: usize,
    /// The states of every window, in order of evaluation.
    pub windows: Vec<Vec<(Position, Vec<f32>)>>,
    next: usize,
}

impl Recorded {
    /// Records every window of `source`.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn record<'w>(
        source: &mut dyn HiddenStates,
        windows: impl Iterator<Item = &'w [Token]>,
    ) -> Result<Self> {
        let mut recorded = Self { n_blocks: source.n_blocks(), n_embd: source.n_embd(), ..Self::default() };
        for window in windows {
            let mut states = Vec::new();
            source.visit(window, &mut |position, state| {
                states.push((position, state.to_vec()));
                Ok(())
            })?;
            recorded.windows.push(states);
        }
        Ok(recorded)
    }
}

impl HiddenStates for Recorded {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Shows the next recorded window, whatever the tokens. Begins again after the last.
    fn visit(&mut self, _window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        ensure!(!self.windows.is_empty(), "no window was recorded");
        let states = &self.windows[self.next % self.windows.len()];
        self.next += 1;
        for (position, state) in states {
            visit(*position, state)?;
        }
        Ok(())
    }
}
