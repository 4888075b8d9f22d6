//! One block of a model, perhaps with other weights, evaluated on its own.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use ggml::{Context, ThreadPool};

use super::input_scale::InputScale;
use super::memory::MemoryFile;
use super::plan::{Head, SegmentPlan};
use crate::engine::llama::{Halves, evaluate_block_reading, evaluate_halves, evaluate_segment};
use crate::model::arch::Stream;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// A block as a model of its own. In memory are its weights and one row of the vocabulary's.
pub struct Lone {
    block: BlockId,
    context: Context<'static>,
    stream: Stream,
    n_blocks: usize,
    n_embd: usize,
    prefix: &'static str,
    input_scale: InputScale,
}

impl Lone {
    /// Loads `block` of `model`, in which the tensors of `changed` have other weights, for windows of at most `window` tokens.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn new(
        model: &Model<'_>,
        constraints: &Constraints,
        block: BlockId,
        changed: &ChangedTensors,
        window: usize,
        threads: &Rc<ThreadPool>,
    ) -> Result<Self> {
        let at_block = || format!("block {block} as a model of its own");
        let plan =
            SegmentPlan::new(model, constraints, &[block], Head::Without, changed).with_context(at_block)?;
        let file = MemoryFile::write(model, &plan, changed)?;
        let loaded = file.load().with_context(at_block)?;
        let n_embd = loaded.n_embd();
        Ok(Self {
            block,
            n_embd,
            input_scale: InputScale::of(constraints, n_embd),
            context: Context::of_shared(&Rc::new(loaded), window, window, threads)?,
            stream: constraints.rules.stream,
            n_blocks: plan.n_blocks,
            prefix: model.block_prefix(),
        })
    }

    /// Width of the stream, in elements.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// The hidden state behind the block, for the one before it; both `[n_tokens, n_embd]`.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn run(&mut self, state: &[f32]) -> Result<Vec<f32>> {
        let (stream, n_blocks, n_embd) = (self.stream, self.n_blocks, self.n_embd);
        let state = &self.input_scale.divide(state);
        evaluate_segment(&mut self.context, stream, n_blocks, 1, n_embd, state)
            .with_context(|| format!("block {} as a model of its own", self.block))
    }

    /// The hidden state between the halves of the block, and the one behind it, for the one before it.
    ///
    /// # Errors
    /// llama.cpp's; a block without halves.
    pub fn run_halves(&mut self, state: &[f32], halves: &Halves) -> Result<(Vec<f32>, Vec<f32>)> {
        let course = (self.stream, self.n_blocks, self.n_embd);
        let state = &self.input_scale.divide(state);
        evaluate_halves(&mut self.context, course, state, halves)
            .with_context(|| format!("block {} as a model of its own", self.block))
    }

    /// As [`Lone::run`]; `read` becomes what the block's matrix `rest` multiplies, `[n_tokens, n_in]`.
    ///
    /// # Errors
    /// llama.cpp's; a matrix that multiplies nothing or several things.
    pub fn run_reading(&mut self, state: &[f32], rest: &str, read: &mut Vec<f32>) -> Result<Vec<f32>> {
        let state = &self.input_scale.divide(state);
        evaluate_block_reading(
            &mut self.context,
            self.stream,
            self.n_blocks,
            self.n_embd,
            state,
            &format!("{}0.{rest}", self.prefix),
            read,
        )
        .with_context(|| format!("block {} as a model of its own", self.block))
    }
}
