//! One block of a model, perhaps with other weights, evaluated on its own.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use ggml::{Context, ThreadPool};

use super::memory::MemoryFile;
use super::plan::{Head, SegmentPlan};
use crate::arch::Stream;
use crate::llama::{evaluate_block_reading, evaluate_segment};
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
        let plan = SegmentPlan::new(model, constraints, &[block], Head::Without, changed)
            .with_context(at_block)?;
        let file = MemoryFile::write(model, &plan, changed)?;
        let loaded = file.load().with_context(at_block)?;
        Ok(Self {
            block,
            n_embd: loaded.n_embd(),
            context: Context::of_shared(&Rc::new(loaded), window, window, threads)?,
            stream: constraints.rules.stream,
            n_blocks: plan.n_blocks,
            prefix: model.block_prefix(),
        })
    }

    /// The hidden state behind the block, for the one before it; both `[n_tokens, n_embd]`.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn run(&mut self, state: &[f32]) -> Result<Vec<f32>> {
        let (stream, n_blocks, n_embd) = (self.stream, self.n_blocks, self.n_embd);
        evaluate_segment(&mut self.context, stream, n_blocks, 1, n_embd, state)
            .with_context(|| format!("block {} as a model of its own", self.block))
    }

    /// As [`Lone::run`]; `read` becomes what the block's matrix `rest` multiplies, `[n_tokens, n_in]`.
    ///
    /// # Errors
    /// llama.cpp's; a matrix that multiplies nothing or several things.
    pub fn run_reading(
        &mut self,
        state: &[f32],
        rest: &str,
        read: &mut Vec<f32>,
    ) -> Result<Vec<f32>> {
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
