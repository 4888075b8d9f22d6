//! The making of a segment: planned, held in memory, loaded.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use ggml::source::{CAN_STREAM, Source as _};
use ggml::{Backend, Context, ModelOptions, ThreadPool};

use super::block::{BlockSegment, SegmentOf};
use super::contents::Contents;
use super::head::HeadSegment;
use super::input_scale::InputScale;
use super::plan::{SegmentPlan, Vocabulary, Weights, takes_streams};
use crate::engine::conversion::Conversion;
use crate::engine::llama::StreamGraph;
use crate::engine::scored::scored;
use crate::files::unnamed::ScratchFile;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// The segments of a model, for windows up to some length.
#[derive(Clone)]
pub struct Segments<'m, 'a> {
    pub(super) model: &'m Model<'a>,
    pub(super) constraints: &'m Constraints,
    pub(super) window: usize,
    pub(super) threads: Arc<ThreadPool>,
    options: ModelOptions,
    conversion: Conversion,
}

/// A segment's weights in memory.
pub(super) struct Loaded {
    pub(super) engine: Arc<ggml::Model>,
    n_blocks: usize,
}

impl<'m, 'a> Segments<'m, 'a> {
    /// Of `model`, evaluated with these threads.
    #[must_use]
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        window: usize,
        threads: &Arc<ThreadPool>,
    ) -> Self {
        let options = ModelOptions::default();
        Self {
            model,
            constraints,
            window,
            threads: Arc::clone(threads),
            options,
            conversion: Conversion::None,
        }
    }

    /// Loads them as `options` say.
    #[must_use]
    pub fn on(self, options: ModelOptions) -> Self {
        Self { options, ..self }
    }

    /// Converts the weights of their blocks, but for changed ones.
    #[must_use]
    pub fn converted(self, conversion: Conversion) -> Self {
        Self { conversion, ..self }
    }

    /// What the weights of their blocks are converted to.
    #[must_use]
    pub fn conversion(&self) -> Conversion {
        self.conversion
    }

    /// The longest window, in tokens.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window
    }

    /// The threads that evaluate them.
    #[must_use]
    pub fn threads(&self) -> &Arc<ThreadPool> {
        &self.threads
    }

    /// Bytes of the file of a block alone.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn n_bytes(&self, block: BlockId) -> Result<u64> {
        let unchanged = ChangedTensors::new();
        let plan = self.plan(&[block], Vocabulary::None, &unchanged);
        Ok(plan.with_context(|| SegmentOf::Block(block))?.layout.file_len())
    }

    /// Whether some weights of a block may evaluate faster with `conversion`.
    #[must_use]
    pub fn may_gain(&self, block: BlockId, conversion: Conversion) -> bool {
        self.model.tensors().iter().any(|tensor| {
            let of_block = tensor.block.as_ref().filter(|(of, _)| *of == block);
            of_block.is_some_and(|(_, rest)| conversion.matters(rest, &tensor.info))
        })
    }

    /// Bytes of the file of each block alone.
    ///
    /// # Errors
    /// As [`Segments::n_bytes`].
    pub fn sizes(&self) -> Result<Vec<u64>> {
        (0..self.model.n_trunk_blocks()).map(|block| self.n_bytes(BlockId::new(block))).collect()
    }

    /// The first block with the largest file, and that file's bytes. `None` without blocks.
    ///
    /// # Errors
    /// As [`Segments::n_bytes`].
    pub fn largest(&self) -> Result<Option<(BlockId, u64)>> {
        let sizes = self.sizes()?;
        let most = sizes.iter().copied().max();
        let first = most.and_then(|most| sizes.iter().position(|n_bytes| *n_bytes == most));
        Ok(first.map(|first| (BlockId::new(first), sizes[first])))
    }

    /// One block, with the weights of `changed`.
    ///
    /// In memory are its weights and one row of the vocabulary's.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn block(&self, block: BlockId, changed: &ChangedTensors) -> Result<BlockSegment> {
        self.block_of(block, &self.load_block(block, changed)?, &self.threads)
    }

    /// One block, once for each of `pools`. In memory its weights are once.
    ///
    /// # Errors
    /// As [`Segments::block`].
    pub fn block_on_each(&self, block: BlockId, pools: &[Arc<ThreadPool>]) -> Result<Vec<BlockSegment>> {
        let loaded = self.load_block(block, &ChangedTensors::new())?;
        pools.iter().map(|threads| self.block_of(block, &loaded, threads)).collect()
    }

    /// Ascending blocks up to the logits, with the weights of `changed`.
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
        self.head_of(&self.load(&self.plan(blocks, Vocabulary::Whole, changed)?)?)
    }

    /// The file of `blocks`.
    pub(super) fn plan<'p>(
        &self,
        blocks: &[BlockId],
        vocabulary: Vocabulary<'p>,
        changed: &'p ChangedTensors,
    ) -> Result<SegmentPlan<'p>>
    where
        'a: 'p,
    {
        let weights = Weights { changed, conversion: self.conversion };
        SegmentPlan::new(self.model, self.constraints, blocks, vocabulary, weights)
    }

    /// Loads a planned file: its weights are in memory once.
    pub(super) fn load(&self, plan: &SegmentPlan<'_>) -> Result<Loaded> {
        let contents = Contents::new(&plan.layout, &plan.data)?;
        let no_repack = self.conversion == Conversion::NoRepack;
        let engine = load(&contents, ModelOptions { no_repack, ..self.options })?;
        Ok(Loaded { engine: Arc::new(engine), n_blocks: plan.n_blocks })
    }

    fn load_block(&self, block: BlockId, changed: &ChangedTensors) -> Result<Loaded> {
        let plan = self.plan(&[block], Vocabulary::None, changed);
        plan.and_then(|plan| self.load(&plan)).with_context(|| SegmentOf::Block(block))
    }

    /// A block that was loaded, ready for windows.
    pub(super) fn block_of(
        &self,
        block: BlockId,
        loaded: &Loaded,
        threads: &Arc<ThreadPool>,
    ) -> Result<BlockSegment> {
        let n_embd = loaded.engine.n_embd();
        Ok(BlockSegment {
            block,
            context: Context::of_shared(&loaded.engine, self.window, self.window, threads)?,
            graph: self.graph(loaded),
            prefix: self.model.block_prefix(),
            input_scale: InputScale::of(self.constraints, n_embd),
        })
    }

    /// How the stream shows in a segment's graph.
    pub(super) fn graph(&self, loaded: &Loaded) -> StreamGraph {
        StreamGraph {
            stream: self.constraints.rules.stream,
            n_blocks: loaded.n_blocks,
            n_loops: 1,
            n_streams: 1,
            n_embd: loaded.engine.n_embd(),
        }
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

/// Loads a segment while its file is made, or where the system cannot, from a file that is made before.
fn load(contents: &Contents<'_>, options: ModelOptions) -> Result<ggml::Model> {
    match CAN_STREAM {
        true => Ok(ggml::Model::load_source(Backend::init(), contents, options)?),
        false => load_file(contents, options),
    }
}

fn load_file(contents: &Contents<'_>, options: ModelOptions) -> Result<ggml::Model> {
    let scratch = ScratchFile::temporary()?;
    let mut file = scratch.file();
    let mut chunk = vec![0; 1 << 20];
    let mut position = 0;
    while position < contents.n_bytes() {
        let n = usize::try_from(contents.n_bytes() - position).unwrap_or(usize::MAX).min(chunk.len());
        contents.read_at(position, &mut chunk[..n])?;
        file.write_all(&chunk[..n])?;
        position += n as u64;
    }
    let options = ModelOptions { no_mmap: true, ..options };
    Ok(ggml::Model::load(Backend::init(), scratch.path(), options)?)
}
