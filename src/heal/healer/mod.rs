//! Healing by llama.cpp. It evaluates the parent and the shortened model side by side, block by block, and fits as it goes.
//!
//! ```text
//! parent's stream     t ---- block 11 ---- block 12 ... block 18 ----+---- block 19 ---- ...
//!                                                                    | r = t - x
//! shortened stream    x ---- block 11 -------------------------------+---- block 19 ---- ...
//!                                 | h, what its ffn_down multiplies
//! ```
//!
//! A block is loaded once for all windows, as a model of its own. In memory are the streams of all windows, twice or three
//! times, the normal equations of one matrix, and some of the parent's logits.
//!
//! In reading order: [`stepwise`] walks through the blocks, `attention` and [`norms`] are two of its steps. [`validation`] says
//! what a candidate loses, and [`scaling`] is healing by the length of the stream alone.

pub mod stepwise;

mod attention;

pub mod norms;

pub mod validation;

pub mod scaling;

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use faer::Mat;
use ggml::ThreadPool;
use rayon::prelude::*;

use self::validation::{LOGITS_BYTES, Predictions};
use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::engine::llama::{LlamaHiddenStates, StreamGraph};
use crate::engine::segment::{Segments, check_blocks};
use crate::gguf::{Quoted, TensorType};
use crate::heal::normal::NormalEquations;
use crate::heal::ridge::{Fit, factor};
use crate::heal::rounding::{nearest_plane, shares};
use crate::heal::split::Split;
use crate::heal::target_matrix::{FFN_DOWN, TargetMatrix};
use crate::measure::loss::Loss;
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model};
use crate::plan::{AttentionCut, ChangedTensor, ChangedTensors, Constraints};

pub use scaling::Scaling;

/// What refitted weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealType {
    /// The type that they had.
    Keep,
    /// The smallest that keeps `KEPT_GAIN` of what the fit gains.
    Auto,
    /// This one.
    To(TensorType),
}

impl HealType {
    /// The types that are tried for weights of type `own`, in order.
    fn types(self, own: TensorType) -> Vec<TensorType> {
        match self {
            Self::Keep => vec![own],
            Self::To(tensor_type) => vec![tensor_type],
            Self::Auto => ladder(own),
        }
    }
}

/// The share of a fit's gain that rounding may not take.
const KEPT_GAIN: f64 = 0.95;

/// Types tried where the tensor's own loses too much, by their bits.
const LADDER: &[&str] = &["Q4_K", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "F16"];

/// A matrix that was fitted.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Its index among the model's tensors.
    pub source: usize,
    /// The ridge, relative to the mean of the diagonal.
    pub ridge: f64,
    /// The share of the stream's error that is left. It is of tokens that it was not fitted to.
    pub left: f64,
}

/// A shortened model with other weights.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Blocks that are removed.
    pub removed: BlockSet,
    /// Blocks that lose their attention.
    pub attention: Option<AttentionCut>,
    /// The other weights.
    pub tensors: ChangedTensors,
    /// How they were fitted.
    pub fitted: Vec<Fitted>,
}

impl Candidate {
    /// Without `removed` and the attention of `attention`, all weights as they were.
    #[must_use]
    pub fn unhealed(removed: &BlockSet, attention: Option<&AttentionCut>) -> Self {
        Self {
            removed: removed.clone(),
            attention: attention.cloned(),
            tensors: ChangedTensors::new(),
            fitted: Vec::new(),
        }
    }

    /// Gives a matrix other weights, which come of `fit`.
    fn put(&mut self, matrix: &TargetMatrix, changed: ChangedTensor, fit: &Fit) {
        self.tensors.insert(matrix.source, changed);
        self.fitted.push(Fitted { source: matrix.source, ridge: fit.ridge, left: fit.left });
    }
}

/// The streams of all windows, `[n_tokens, n_embd]` each. Empty for those that take no part.
type Streams = Vec<Vec<f32>>;

/// Shows the step, the windows that are done, and their number.
pub type OnProgress<'p> = dyn Fn(&str, usize, usize) + 'p;

/// The model to heal, and the text that it is healed by.
pub struct Setup<'m, 'a> {
    /// The model.
    pub model: &'m Model<'a>,
    /// What may be removed from it.
    pub constraints: &'m Constraints,
    /// The model, loaded.
    pub engine: &'m ggml::Model,
    /// The text.
    pub windows: Vec<&'m [Token]>,
    /// The purpose of each window.
    pub split: &'m Split,
    /// CPU threads.
    pub n_threads: usize,
}

/// Fits and measures, on windows that are given once.
pub struct Healer<'m, 'a> {
    model: &'m Model<'a>,
    constraints: &'m Constraints,
    engine: &'m ggml::Model,
    windows: Vec<&'m [Token]>,
    split: &'m Split,
    threads: Arc<ThreadPool>,
    n_threads: usize,
    segments: Segments<'m, 'a>,
    /// Tokens of the longest window.
    window: usize,
    /// The parent's streams before this block.
    start: Option<(usize, Streams)>,
    /// The parent's streams before the last block, of validation windows. Empty at first.
    before_last: Streams,
    /// The parent's streams before this block, of validation windows: one that no cut lies before.
    before_cut: Option<(usize, Streams)>,
    /// What was last measured without any fit.
    unhealed: Option<(Candidate, Loss)>,
    /// Memory for logits of the parent.
    logits_bytes: u64,
    /// Of validation windows.
    predictions: Predictions,
    on_progress: Box<OnProgress<'m>>,
}

impl<'m, 'a> Healer<'m, 'a> {
    /// Checks that the model is evaluated block by block, and prepares healing. A window must come out exactly, or up to
    /// rounding where llama.cpp scales what enters.
    ///
    /// # Errors
    /// It cannot; llama.cpp's.
    pub fn new(setup: Setup<'m, 'a>) -> Result<Self> {
        let healer = Self::of_whole_models(setup)?;
        if let Some(window) = healer.windows.first() {
            check_blocks(&healer.segments, healer.engine, window)
                .context("cannot be healed: its blocks are not evaluated one by one")?;
        }
        Ok(healer)
    }

    /// As [`Healer::new`], for blocks that need not be evaluated one by one. Only whole models are.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn of_whole_models(setup: Setup<'m, 'a>) -> Result<Self> {
        let Setup { model, constraints, engine, windows, split, n_threads } = setup;
        let window = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let threads = Arc::new(ThreadPool::new(n_threads)?);
        Ok(Self {
            segments: Segments::new(model, constraints, window, &threads).on(engine.options()),
            model,
            constraints,
            engine,
            windows,
            split,
            threads,
            n_threads,
            window,
            start: None,
            before_last: Vec::new(),
            before_cut: None,
            unhealed: None,
            logits_bytes: LOGITS_BYTES,
            predictions: Predictions::with_room(LOGITS_BYTES),
            on_progress: Box::new(|_, _, _| {}),
        })
    }

    /// Keeps at most so many bytes of the parent's logits.
    #[must_use]
    pub fn with_logits_bytes(self, logits_bytes: u64) -> Self {
        Self { logits_bytes, predictions: Predictions::with_room(logits_bytes), ..self }
    }

    /// Shows each step and its windows to `on_progress`.
    #[must_use]
    pub fn with_progress(self, on_progress: Box<OnProgress<'m>>) -> Self {
        Self { on_progress, ..self }
    }

    fn progress(&self, step: &str, n_done: usize, n_windows: usize) {
        (self.on_progress)(step, n_done, n_windows);
    }

    /// Checks that other weights change the stream after `block` by their product. Then nothing stands between the two. Some
    /// tokens tell.
    fn check_answer(
        &self,
        block: BlockId,
        matrix: &TargetMatrix,
        zeros: &ChangedTensors,
        changed: &ChangedTensor,
        streams: &Streams,
    ) -> Result<()> {
        let Some(state) = self.split.folds[0].first().map(|&window| &streams[window]) else {
            return Ok(());
        };
        let mut inputs = Vec::new();
        let before = self.segments.block(block, zeros)?.run_reading(state, FFN_DOWN, &mut inputs)?;
        let mut weights = zeros.clone();
        weights.insert(matrix.source, changed.clone());
        let after = self.segments.block(block, &weights)?.run(state)?;
        ensure!(
            self.is_product(matrix, changed, &inputs, &before, &after)?,
            "block {block} cannot make up for others: the stream after it is not the sum that its 'ffn_down' writes to"
        );
        Ok(())
    }

    /// Whether states changed by `inputs` times the change of a matrix. Some tokens tell.
    fn is_product(
        &self,
        matrix: &TargetMatrix,
        changed: &ChangedTensor,
        inputs: &[f32],
        before: &[f32],
        after: &[f32],
    ) -> Result<bool> {
        const TOKENS: usize = 16;
        let old = self.decoded(matrix)?;
        let new = ggml::quantize::dequantize(changed.tensor_type.id(), &changed.bytes)
            .context("bug: weights that were decoded once")?;
        let (n_in, n_out) = (matrix.n_in, matrix.n_out);
        let (mut square, mut product, mut error) = (0.0, 0.0, 0.0);
        for (token, inputs) in inputs.chunks_exact(n_in).take(TOKENS).enumerate() {
            for o in 0..n_out {
                let row = o * n_in..(o + 1) * n_in;
                let weights = new[row.clone()].iter().zip(&old[row]).zip(inputs);
                let expected: f64 = weights
                    .map(|((new, old), input)| (f64::from(*new) - f64::from(*old)) * f64::from(*input))
                    .sum();
                let at = token * n_out + o;
                let found = f64::from(after[at]) - f64::from(before[at]);
                square += expected * expected;
                product += expected * found;
                error += (expected - found).powi(2);
            }
        }
        // Activations are rounded, too, so the two differ a little.
        Ok(square == 0.0 || ((product / square - 1.0).abs() < 0.2 && error < 0.25 * square))
    }

    /// Zeros in place of what the attention of `block` writes.
    fn without_attention(&self, block: BlockId) -> ChangedTensors {
        let mut zeros = ChangedTensors::new();
        for (source, tensor) in self.model.tensors().iter().enumerate() {
            if tensor.block.is_some_and(|(of, rest)| of == block && rest.starts_with("attn_output.")) {
                let changed = ChangedTensor {
                    tensor_type: tensor.info.tensor_type(),
                    bytes: vec![0; tensor.info.bytes().len()],
                };
                zeros.insert(source, changed);
            }
        }
        zeros
    }

    /// The parent's streams before `block`, of all windows that take part.
    fn start(&mut self, block: usize) -> Result<&Streams> {
        match self.start.take() {
            Some((of, mut streams)) if of <= block => {
                self.advance(of..block, &mut streams)?;
                self.start = Some((block, streams));
            }
            _ => self.start = Some((block, self.evaluate_parent(block)?)),
        }
        self.start.as_ref().map(|(_, streams)| streams).context("bug: streams that were just made")
    }

    /// The streams before `block`, from the windows' tokens.
    ///
    /// Of validation windows those before the last block are kept, too.
    fn evaluate_parent(&mut self, block: usize) -> Result<Streams> {
        let graph = self.graph()?;
        let last = self.model.n_trunk_blocks() - 1;
        let before = |block: usize| match block {
            0 => Position::Input,
            block => Position::Output(BlockId::new(block - 1)),
        };
        let mut streams = vec![Vec::new(); self.windows.len()];
        let mut before_last = std::mem::take(&mut self.before_last);
        let knows_last = !before_last.is_empty();
        before_last.resize(self.windows.len(), Vec::new());
        let fitted: Vec<usize> = self.split.folds.concat();
        let validation = &self.split.validation;
        let last_wanted = if knows_last { block } else { last };
        let n_windows = fitted.len() + validation.len();
        let mut n_seen = 0;
        for (windows, n_blocks) in [(&fitted, block), (validation, last_wanted)] {
            let states = LlamaHiddenStates::with_threads(self.engine, self.window, &self.threads, graph)?;
            let mut states = states.up_to(n_blocks);
            for &window in windows {
                self.progress("whole model", n_seen, n_windows);
                n_seen += 1;
                states.visit(self.windows[window], &mut |position, state| {
                    if position == before(block) {
                        state.clone_into(&mut streams[window]);
                    }
                    if position == before(last) && n_blocks == last {
                        state.clone_into(&mut before_last[window]);
                    }
                    Ok(())
                })?;
            }
        }
        self.before_last = before_last;
        Ok(streams)
    }

    /// Passes streams through `blocks` of the parent.
    fn advance(&self, blocks: std::ops::Range<usize>, streams: &mut Streams) -> Result<()> {
        for block in blocks {
            let block = BlockId::new(block);
            self.pass(block, &ChangedTensors::new(), streams)?;
        }
        Ok(())
    }

    /// Passes streams through a block with these weights.
    fn pass(&self, block: BlockId, changed: &ChangedTensors, streams: &mut Streams) -> Result<()> {
        let mut segment = self.segments.block(block, changed)?;
        let n_windows = self.split.all().len();
        let all = streams.iter_mut().filter(|stream| !stream.is_empty());
        for (n_seen, stream) in all.enumerate() {
            self.progress(&format!("block {block}"), n_seen, n_windows);
            *stream = segment.run(stream)?;
        }
        Ok(())
    }

    /// The parent's streams in llama.cpp's graph of the whole model.
    fn graph(&self) -> Result<StreamGraph> {
        StreamGraph::of(self.model, self.engine, self.constraints.rules.stream)
    }

    /// The sums of a fit, of each fold apart. They begin as `empty` ones, to which `add` adds each window that is fitted to.
    fn sums_of_folds<S>(
        &self,
        step: &str,
        empty: &dyn Fn() -> S,
        add: &mut dyn FnMut(&mut S, usize) -> Result<()>,
    ) -> Result<[S; 2]> {
        let n_windows = self.split.folds.iter().map(Vec::len).sum();
        let mut n_seen = 0;
        let mut sums = [empty(), empty()];
        for (windows, sums) in self.split.folds.iter().zip(&mut sums) {
            for &window in windows {
                self.progress(step, n_seen, n_windows);
                n_seen += 1;
                add(sums, window)?;
            }
        }
        Ok(sums)
    }

    /// The weights of `matrix` with the change of `fit`, rounded. What is fitted is each output times its gain; one without a
    /// gain keeps its weights.
    fn rounded(
        &self,
        matrix: &TargetMatrix,
        gains: Option<&[f32]>,
        fit: &Fit,
        equations: &NormalEquations,
        heal_type: HealType,
    ) -> Result<ChangedTensor> {
        let name = || Quoted(self.model.tensors()[matrix.source].info.name());
        let old = self.decoded(matrix)?;
        let n_in = matrix.n_in;
        let gain_of = |o: usize| gains.map_or(1.0, |gains| f64::from(gains[o]));
        let new: Vec<f32> = (old.iter().enumerate())
            .map(|(i, &weight)| {
                let (input, o) = (i % n_in, i / n_in);
                let change = fit.change[(input, o)] / gain_of(o);
                #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
                let new = (f64::from(weight) + change) as f32;
                if new.is_finite() { new } else { weight }
            })
            .collect();
        let importance = shares(&equations.importance());
        let factor = factor(equations, fit.ridge);
        let round = |tensor_type: TensorType| {
            let par = equations.par();
            let apart = || quantized(tensor_type, &new, n_in, &importance);
            let together = |factor: &Mat<f64>| nearest_plane(tensor_type, &new, n_in, factor.as_ref(), par);
            let bytes = factor.as_ref().and_then(together).or_else(apart)?;
            Some(ChangedTensor { tensor_type, bytes })
        };
        let exact = equations.energy() - equations.left(fit.change.as_ref());
        let gain = |changed: &ChangedTensor| -> Option<f64> {
            let back = ggml::quantize::dequantize(changed.tensor_type.id(), &changed.bytes)?;
            let change = Mat::from_fn(n_in, matrix.n_out, |i, o| {
                (f64::from(back[o * n_in + i]) - f64::from(old[o * n_in + i])) * gain_of(o)
            });
            Some(equations.energy() - equations.left(change.as_ref()))
        };
        let mut best: Option<(f64, ChangedTensor)> = None;
        for tensor_type in heal_type.types(matrix.tensor_type) {
            let Some(changed) = round(tensor_type) else {
                continue;
            };
            let gain = gain(&changed).filter(|gain| gain.is_finite());
            let gain =
                gain.with_context(|| format!("tensor {}: {tensor_type} does not hold the weights", name()))?;
            let is_enough = gain >= KEPT_GAIN * exact;
            if best.as_ref().is_none_or(|(best, _)| gain > *best) {
                best = Some((gain, changed));
            }
            if is_enough {
                break;
            }
        }
        let (_, changed) = best.with_context(|| {
            format!("tensor {} has rows of {n_in}, which cannot be rounded to that type", name())
        })?;
        Ok(changed)
    }

    /// The parent's weights of a matrix, `[n_out, n_in]`.
    fn decoded(&self, matrix: &TargetMatrix) -> Result<Vec<f32>> {
        let info = &self.model.tensors()[matrix.source].info;
        let name = || Quoted(info.name());
        let weights = ggml::quantize::dequantize(matrix.tensor_type.id(), info.bytes())
            .with_context(|| format!("tensor {} cannot be decoded", name()))?;
        ensure!(
            weights.iter().all(|weight| weight.is_finite()),
            "tensor {} has weights that are not finite",
            name()
        );
        Ok(weights)
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Where numbers of a fit came from, for errors.
fn at(block: BlockId, window: usize) -> String {
    format!("block {block}, window {}", window + 1)
}

/// `own`, and the types of [`LADDER`] with more bits.
fn ladder(own: TensorType) -> Vec<TensorType> {
    let bits = |of: TensorType| of.block_bytes() as f64 / of.block_size() as f64;
    let named = |name: &str| TensorType::all().find(|of| of.name() == name);
    let larger = LADDER.iter().filter_map(|name| named(name));
    std::iter::once(own).chain(larger.filter(|of| bits(*of) > bits(own))).collect()
}

/// Rows of weights rounded to a type, on rayon's threads. `None` as [`ggml::quantize::quantize`].
fn quantized(
    tensor_type: TensorType,
    weights: &[f32],
    n_per_row: usize,
    importance: &[f32],
) -> Option<Vec<u8>> {
    const ROWS: usize = 32;
    let pieces: Option<Vec<Vec<u8>>> = weights
        .par_chunks(n_per_row * ROWS)
        .map(|rows| ggml::quantize::quantize(tensor_type.id(), rows, n_per_row, Some(importance)))
        .collect();
    Some(pieces?.concat())
}
