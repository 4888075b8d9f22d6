//! The making of a segment: planned, held in memory, loaded.

use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use ggml::{Context, ThreadPool};

use super::block::{BlockSegment, name};
use super::head::HeadSegment;
use super::input_scale::InputScale;
use super::plan::{Head, SegmentPlan, takes_streams};
use crate::engine::llama::StreamGraph;
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::scored;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// The segments of a model, for windows up to some length.
#[derive(Clone)]
pub struct Segments<'m, 'a> {
    pub(super) model: &'m Model<'a>,
    pub(super) constraints: &'m Constraints,
    pub(super) window: usize,
    pub(super) threads: Rc<ThreadPool>,
}

/// A segment's weights in memory.
pub(super) struct Loaded {
    engine: Rc<ggml::Model>,
    n_blocks: usize,
}

impl<'m, 'a> Segments<'m, 'a> {
    /// Of `model`, evaluated with these threads.
    #[must_use]
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        window: usize,
        threads: &Rc<ThreadPool>,
    ) -> Self {
        Self { model, constraints, window, threads: Rc::clone(threads) }
    }

    /// One block, with the weights of `changed`.
    ///
    /// In memory are its weights and one row of the vocabulary's.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn block(&self, block: BlockId, changed: &ChangedTensors) -> Result<BlockSegment> {
        let plan = self.plan(&[block], Head::Without, changed);
        let loaded = plan.and_then(|plan| self.load(&plan)).with_context(|| name(block))?;
        self.block_of(block, &loaded)
    }

    /// Blocks up to the logits, in ascending order, with the weights of `changed`.
    ///
    /// In memory are their weights and the vocabulary's.
    ///
    /// # Errors
    /// Blocks that llama.cpp does not take alone, or an architecture of which that is not known.
    pub fn head(&self, blocks: &[BlockId], changed: &ChangedTensors) -> Result<HeadSegment> {
        ensure!(
            takes_streams(self.constraints),
            "its architecture is not one of those whose blocks are known to be evaluated alone as inside of the model"
        );
        self.head_of(&self.load(&self.plan(blocks, Head::With, changed)?)?)
    }

    /// The file of `blocks`.
    pub(super) fn plan<'p>(
        &self,
        blocks: &[BlockId],
        head: Head,
        changed: &'p ChangedTensors,
    ) -> Result<SegmentPlan<'p>>
    where
        'a: 'p,
    {
        SegmentPlan::new(self.model, self.constraints, blocks, head, changed)
    }

    /// Writes a planned file to memory and loads it.
    pub(super) fn load(&self, plan: &SegmentPlan<'_>) -> Result<Loaded> {
        let file = MemoryFile::write(&plan.layout, &mut |i, out| match plan.data[i] {
            Some(bytes) => out.write_all(bytes),
            // What is not written is zeros.
            None => Ok(()),
        })?;
        Ok(Loaded { engine: Rc::new(file.load()?), n_blocks: plan.n_blocks })
    }

    /// A block that was loaded, ready for windows.
    pub(super) fn block_of(&self, block: BlockId, loaded: &Loaded) -> Result<BlockSegment> {
        let n_embd = loaded.engine.n_embd();
        Ok(BlockSegment {
            block,
            context: Context::of_shared(&loaded.engine, self.window, self.window, &self.threads)?,
            graph: StreamGraph {
                stream: self.constraints.rules.stream,
                n_blocks: loaded.n_blocks,
                n_loops: 1,
                n_streams: 1,
                n_embd,
            },
            prefix: self.model.block_prefix(),
            input_scale: InputScale::of(self.constraints, n_embd),
        })
    }

    /// Blocks up to the logits that were loaded, ready for windows.
    pub(super) fn head_of(&self, loaded: &Loaded) -> Result<HeadSegment> {
        let n_outputs = scored(self.window).len();
        Ok(HeadSegment {
            context: Context::of_shared(&loaded.engine, self.window, n_outputs, &self.threads)?,
            input_scale: InputScale::of(self.constraints, loaded.engine.n_embd()),
        })
    }
}
