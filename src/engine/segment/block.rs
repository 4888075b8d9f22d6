//! One block, evaluated from a hidden state to the next.

use std::fmt;

use anyhow::{Context as _, Result};
use ggml::{Context, Tap};

use super::input_scale::InputScale;
use crate::engine::imatrix::Collector;
use crate::engine::llama::{Halves, StreamGraph, evaluate_block, evaluate_halves, evaluate_reading};
use crate::model::BlockId;

/// The hidden states between a block's halves, where these show, and after it.
pub type Evaluated = (Option<Vec<f32>>, Vec<f32>);

/// A block as a model of its own.
pub struct BlockSegment {
    pub(super) block: BlockId,
    pub(super) context: Context<'static>,
    pub(super) graph: StreamGraph,
    /// What the names of its tensors begin with, before the number.
    pub(super) prefix: &'static str,
    pub(super) input_scale: InputScale,
}

impl BlockSegment {
    /// Width of the stream, in elements.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        self.graph.n_embd
    }

    /// The hidden state after the block, for `state` before it.
    ///
    /// Both are `[n_tokens, n_embd]`.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn run(&mut self, state: &[f32]) -> Result<Vec<f32>> {
        let state = &self.input_scale.divide(state);
        evaluate_block(&mut self.context, self.graph, state, None)
            .with_context(|| SegmentOf::Block(self.block))
    }

    /// The hidden states between the block's halves and after it.
    ///
    /// # Errors
    /// llama.cpp's; a block without halves.
    pub fn run_halves(&mut self, state: &[f32], halves: &Halves) -> Result<(Vec<f32>, Vec<f32>)> {
        let state = &self.input_scale.divide(state);
        evaluate_halves(&mut self.context, self.graph, state, halves, None)
            .with_context(|| SegmentOf::Block(self.block))
    }

    /// As [`BlockSegment::run`], or with `halves` as [`BlockSegment::run_halves`]. What the block's weights multiply goes to
    /// `collector`.
    ///
    /// # Errors
    /// As those; the collector's.
    pub fn run_collecting(
        &mut self,
        state: &[f32],
        halves: Option<&Halves>,
        mut collector: Option<&mut Collector>,
    ) -> Result<Evaluated> {
        let state = &self.input_scale.divide(state);
        let tap = collector.as_deref_mut().map(|collector| collector as &mut dyn Tap);
        let states = match halves {
            Some(halves) => evaluate_halves(&mut self.context, self.graph, state, halves, tap)
                .map(|(middle, after)| (Some(middle), after)),
            None => evaluate_block(&mut self.context, self.graph, state, tap).map(|after| (None, after)),
        };
        // Its error comes first: it stopped the evaluation.
        collector.map_or(Ok(()), Collector::check).and(states).with_context(|| SegmentOf::Block(self.block))
    }

    /// As [`BlockSegment::run`]; `read` becomes what the block's matrix `rest` multiplies, `[n_tokens, n_in]`.
    ///
    /// # Errors
    /// llama.cpp's; a matrix that multiplies nothing or several things.
    pub fn run_reading(&mut self, state: &[f32], rest: &str, read: &mut Vec<f32>) -> Result<Vec<f32>> {
        let state = &self.input_scale.divide(state);
        let reader = format!("{}0.{rest}", self.prefix);
        evaluate_reading(&mut self.context, self.graph, state, &reader, read)
            .with_context(|| SegmentOf::Block(self.block))
    }
}

/// Blocks that are evaluated alone, as errors of them say.
#[derive(Clone, Copy, Debug)]
pub enum SegmentOf {
    /// One.
    Block(BlockId),
    /// So many, from the first on.
    First(usize),
}

impl fmt::Display for SegmentOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => write!(f, "block {block} as a model of its own"),
            Self::First(1) => f.write_str("block 0 as a model of its own"),
            Self::First(n) => write!(f, "the first {n} blocks as a model of their own"),
        }
    }
}
