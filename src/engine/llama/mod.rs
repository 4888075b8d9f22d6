//! [`HiddenStates`] by llama.cpp, from the residual stream in its graph.

mod block;

mod stream_tap;

use crate::engine::hidden_state::{HiddenStates, Token, Visitor};
use crate::engine::imatrix::Collector;
use crate::gguf::{Quoted, ValueType};
use crate::model::arch::{Architecture, Middle, Stream};
use crate::model::{BlockId, Model};
use crate::plan::kinds::Kinds;
use anyhow::{Error, Result, bail, ensure};
pub(crate) use block::{evaluate_block, evaluate_halves, evaluate_reading};
use ggml::{BlockCounts, Context, ContextOptions, Tap, ThreadPool, WindowInput};
use std::sync::Arc;
use stream_tap::{BothTaps, Seen, StreamTap};

/// The block counts to load `model` with, in place of the file's.
///
/// Some files count prediction blocks that are none or are not there. llama.cpp would leave the first out, and of many
/// architectures loads no file without the others. `None` where it reads the file as it is, and where a list has an entry for
/// a block that is not there.
#[must_use]
pub fn counts(model: &Model<'_>) -> Option<BlockCounts> {
    let held = |block: &BlockId| model.has_tensors(*block);
    let n_held = model.prediction_blocks().filter(held).count();
    let n_missing = model.prediction_blocks().count() - n_held;
    let rules = model.rules()?;
    let is_read =
        model.n_counted_prediction_blocks() == n_held || (n_missing > 0 && has_lists_of_blocks(model, rules));
    (!is_read).then(|| BlockCounts {
        architecture: rules.name,
        n_blocks: model.n_blocks() - n_missing,
        n_prediction_blocks: n_held,
    })
}

/// Whether a list has an entry for each of all blocks.
fn has_lists_of_blocks(model: &Model<'_>, rules: &Architecture) -> bool {
    let mut entries = model.metadata().iter();
    entries.any(|entry| {
        let name = entry.key().strip_prefix(rules.name);
        let name = name.and_then(|name| name.strip_prefix('.'));
        let is_of_blocks = name.is_some_and(|name| rules.is_per_block(name));
        is_of_blocks && entry.value().value_type() == ValueType::Array
    })
}

/// The note on counted prediction blocks that are ordinary blocks.
#[must_use]
pub fn note_counts(model: &Model<'_>) -> Option<String> {
    let n_counted = model.n_counted_prediction_blocks();
    let first = model.n_blocks() - n_counted;
    let ordinary = first..model.n_blocks() - model.prediction_blocks().count();
    let last = ordinary.clone().last()?;
    let (which, are) = match ordinary.len() {
        1 => (format!("block {first}"), "is a block as any other"),
        _ => (format!("blocks {first} to {last}"), "are blocks as any other"),
    };
    Some(format!(
        "metadata '{}.nextn_predict_layers' counts {n_counted} for prediction (MTP), but {which}, without \
         'nextn.eh_proj.weight', {are}, and an output says so; llama.cpp by itself leaves such a block out, or does not load \
         the file",
        model.architecture()
    ))
}

/// How the stream between the halves of a model's blocks is found.
#[derive(Clone, Debug)]
pub struct Halves {
    node: MiddleNode,
    /// Blocks without attention, whose middle is their input. Empty where all have one.
    without_attention: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
enum MiddleNode {
    Named(&'static str),
    ReadByNorm,
}

impl Halves {
    /// Of the blocks of `model`, with its kinds and its architecture's rules.
    ///
    /// # Errors
    /// Blocks that have no such halves.
    pub fn of(model: &Model<'_>, rules: &Architecture, kinds: &Kinds) -> Result<Self> {
        let has_tensor = |name: &str| {
            let of_block =
                |tensor: &crate::model::ModelTensor<'_>| tensor.block.is_some_and(|(_, rest)| rest == name);
            model.tensors().iter().any(of_block)
        };
        let is_true = |key: &str| {
            let key = format!("{}.{key}", model.architecture());
            let entry = model.metadata().get(&key);
            entry.map_or(Ok(false), |entry| entry.value().as_bool())
        };
        let node = match rules.middle {
            Middle::Named(name) => Some(MiddleNode::Named(name)),
            Middle::ReadByNorm => Some(MiddleNode::ReadByNorm),
            Middle::ParallelIf(key) => (!is_true(key)?).then_some(MiddleNode::Named("ffn_inp")),
            Middle::ParallelWithout(name) => has_tensor(name).then_some(MiddleNode::Named("ffn_inp")),
            Middle::Parallel => None,
            Middle::Nowhere(why) => bail!(
                "has no halves of blocks to score apart: a block of {} {why}",
                Quoted(model.architecture())
            ),
        };
        let Some(node) = node else {
            bail!(
                "has no halves of blocks to score apart: attention and feed-forward network of {} both read what enters \
                 the block, so no hidden state lies between them",
                Quoted(model.architecture())
            );
        };
        Ok(Self { node, without_attention: kinds.no_attention.iter().flatten().copied().collect() })
    }

    /// Of one block as a model of its own.
    #[must_use]
    pub fn of_block(&self, block: BlockId) -> Self {
        let without_attention = self.without_attention.get(block.index()).copied();
        Self { node: self.node, without_attention: without_attention.into_iter().collect() }
    }
}

/// Checks that llama.cpp comes to an end with `model`; see [`Architecture::is_endless_without_heads`].
///
/// # Errors
/// A model with which it does not.
pub fn check_ends(model: &Model<'_>) -> Result<()> {
    if !model.rules().is_some_and(Architecture::is_endless_without_heads) {
        return Ok(());
    }
    let heads = format!("{}.attention.head_count", model.architecture());
    let Some(entry) = model.metadata().get(&heads) else {
        return Ok(());
    };
    let first = match entry.value().as_array() {
        Ok(heads) => heads.i64s().next().transpose()?,
        Err(_) => None,
    };
    ensure!(
        first != Some(0),
        "cannot be evaluated: metadata '{heads}' says no heads for block 0, and there llama.cpp never ends"
    );
    Ok(())
}

/// How the residual stream shows in llama.cpp's graph of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamGraph {
    /// The nodes that hold it.
    pub stream: Stream,
    /// Blocks that are evaluated.
    pub n_blocks: usize,
    /// How often: once, but for looped models.
    pub n_loops: usize,
    /// Streams of each token: one, but for hyper-connections.
    pub n_streams: usize,
    /// Width of each, in elements.
    pub n_embd: usize,
}

impl StreamGraph {
    /// That of `model`, loaded as `engine`, whose nodes `stream` names.
    ///
    /// # Errors
    /// A count in the metadata that is not a number.
    pub fn of(model: &Model<'_>, engine: &ggml::Model, stream: Stream) -> Result<Self> {
        let count = |key| Ok::<_, Error>(model.count(key)?.unwrap_or(1));
        Ok(Self {
            stream,
            n_blocks: model.n_trunk_blocks(),
            n_loops: match stream {
                Stream::Looped { loops_key, .. } => count(loops_key)?,
                _ => 1,
            },
            n_streams: match stream {
                Stream::Parallel { streams_key, .. } => count(streams_key)?,
                _ => 1,
            },
            n_embd: engine.n_embd(),
        })
    }

    /// Runs of a block on one window.
    fn n_runs(&self) -> usize {
        self.n_blocks * self.n_loops
    }

    /// The shape of a hidden state as ggml writes it.
    ///
    /// `[n_embd, n_tokens]`, or with several streams `[n_embd, n_streams, n_tokens]`.
    fn shape(&self, n_tokens: usize) -> [usize; 4] {
        match self.stream {
            Stream::Parallel { .. } => [self.n_embd, self.n_streams, n_tokens, 1],
            _ => [self.n_embd, n_tokens, 1, 1],
        }
    }
}

/// Evaluates windows with llama.cpp and taps the residual stream.
pub struct LlamaHiddenStates<'model> {
    context: Context<'model>,
    graph: StreamGraph,
    halves: Option<Halves>,
    /// Runs of a block after which an evaluation stops.
    n_wanted: usize,
    state: Vec<f32>,
    collector: Option<Collector>,
}

impl<'model> LlamaHiddenStates<'model> {
    /// Prepares evaluation of windows of at most `options.window` tokens.
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn new(model: &'model ggml::Model, options: ContextOptions, graph: StreamGraph) -> Result<Self> {
        Ok(Self::of(Context::new(model, options)?, graph))
    }

    /// As [`LlamaHiddenStates::new`], with threads that others use, too.
    ///
    /// # Errors
    /// As [`LlamaHiddenStates::new`].
    pub fn with_threads(
        model: &'model ggml::Model,
        window: usize,
        threads: &Arc<ThreadPool>,
        graph: StreamGraph,
    ) -> Result<Self> {
        Ok(Self::of(Context::with_threads(model, window, threads)?, graph))
    }

    /// In a context that was made before.
    pub(crate) fn of(context: Context<'model>, graph: StreamGraph) -> Self {
        Self { context, graph, halves: None, n_wanted: graph.n_runs(), state: Vec::new(), collector: None }
    }

    /// Stops after the first `n_blocks` blocks, one at least.
    #[must_use]
    pub fn up_to(self, n_blocks: usize) -> Self {
        let n_wanted = n_blocks.clamp(1, self.n_wanted);
        Self { n_wanted, ..self }
    }

    /// Shows the stream between the halves of every block, too.
    #[must_use]
    pub fn with_halves(self, halves: Option<Halves>) -> Self {
        Self { halves, ..self }
    }

    /// Hands every evaluation to `collector`, too.
    #[must_use]
    pub fn with_collector(self, collector: Option<Collector>) -> Self {
        Self { collector, ..self }
    }

    /// Gives that collector back.
    #[must_use]
    pub fn into_collector(self) -> Option<Collector> {
        self.collector
    }
}

impl HiddenStates for LlamaHiddenStates<'_> {
    fn n_blocks(&self) -> usize {
        self.graph.n_blocks
    }

    fn n_embd(&self) -> usize {
        self.graph.n_embd * self.graph.n_streams
    }

    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        let stream = StreamTap {
            graph: self.graph,
            n_tokens: window.len(),
            n_wanted: self.n_wanted,
            halves: self.halves.as_ref(),
            state: &mut self.state,
            visit,
            seen: Seen::default(),
            error: None,
        };
        let other = self.collector.as_mut().map(|collector| collector as &mut dyn Tap);
        let mut tap = BothTaps { stream, other };
        let result = self.context.evaluate(WindowInput::Tokens(window), &mut tap);
        let StreamTap { error, seen, .. } = tap.stream;
        if let Some(error) = error {
            return Err(error);
        }
        self.collector.as_mut().map_or(Ok(()), Collector::check)?;
        result?;
        let n_seen = seen.n_outputs;
        if n_seen < self.n_wanted {
            bail!(
                "llama.cpp's graph shows the hidden state after {n_seen} of {} blocks; the names in this build are not those \
                 that are known for the architecture",
                self.n_wanted
            );
        }
        Ok(())
    }
}
