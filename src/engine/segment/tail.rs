//! The blocks behind a place in a model, evaluated from the hidden state there to logits.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ggml::{Context, ThreadPool, WindowInput};

use super::input_scale::InputScale;
use super::memory::MemoryFile;
use super::plan::{Head, SegmentPlan, takes_streams};
use crate::engine::scored::scored;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// Blocks as a model of their own that ends in logits. In memory are their weights and the vocabulary's.
pub struct Tail {
    context: Context<'static>,
    input_scale: InputScale,
}

impl Tail {
    /// Loads `blocks` of `model`, in ascending order, in which the tensors of `changed` have other weights, for windows of at
    /// most `window` tokens.
    ///
    /// # Errors
    /// Blocks that llama.cpp does not take alone, or an architecture of which that is not known.
    pub fn new(
        model: &Model<'_>,
        constraints: &Constraints,
        blocks: &[BlockId],
        changed: &ChangedTensors,
        window: usize,
        threads: &Rc<ThreadPool>,
    ) -> Result<Self> {
        ensure!(
            takes_streams(constraints),
            "its architecture is not one of those whose blocks are known to be evaluated alone as inside of the model"
        );
        let plan = SegmentPlan::new(model, constraints, blocks, Head::With, changed)?;
        let loaded = MemoryFile::write(model, &plan, changed)?.load()?;
        let n_outputs = scored(window).len();
        Ok(Self {
            input_scale: InputScale::of(constraints, loaded.n_embd()),
            context: Context::of_shared(&Rc::new(loaded), window, n_outputs, threads)?,
        })
    }

    /// The logits behind the tokens at `rows`, of those that [`scored`] names, `[rows.len(), n_vocab]`, for the hidden state
    /// before the first of the blocks, `[n_tokens, n_embd]`.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn logits(&mut self, state: &[f32], rows: Range<usize>) -> Result<&[f32]> {
        let state = &self.input_scale.divide(state);
        Ok(self.context.logits_of(WindowInput::HiddenStates(state), rows)?)
    }
}
