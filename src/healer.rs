//! Healing by llama.cpp: evaluates the parent and the shortened model side by side, block by block, and fits as it goes.
//!
//! ```text
//! parent's stream     t ---- block 11 ---- block 12 ... block 18 ----+---- block 19 ---- ...
//!                                                                    | r = t - x
//! shortened stream    x ---- block 11 -------------------------------+---- block 19 ---- ...
//!                                 | h, what its ffn_down multiplies
//! ```
//!
//! A block is loaded once for all windows, as a model of its own. In memory are the streams of all windows, twice or three
//! times, and the normal equations of one matrix.

pub mod scaling;

pub mod norms;

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use ggml::{Context, ThreadPool, WindowInput};
use rayon::prelude::*;

use crate::gguf::{Quoted, TensorType};
use crate::heal::Weighting;
use crate::heal::carrier::{CARRIER, Carrier};
use crate::heal::normal::NormalEquations;
use crate::heal::ridge::{Fit, cross_fit};
use crate::heal::split::Split;
use crate::hidden_state::{HiddenStates, Position, Token};
use crate::llama::{Course, LlamaHiddenStates};
use crate::model::{BlockId, Model};
use crate::plan::{
    AttentionCut, ChangedTensor, ChangedTensors, Constraints, Healing, Plan, Provenance,
};
use crate::quality::scored;
use crate::search::Loss;
use crate::segment::memory::MemoryFile;
use crate::segment::{Chain, Lone};

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

/// The share of a fit's gain that rounding may not take.
const KEPT_GAIN: f64 = 0.95;

/// A matrix that is not at a cut is left as it is if its fit leaves more than this of the stream's error: rounding it again would
/// cost bytes, or more than is gained.
const WORTHWHILE: f64 = 0.98;

/// Types that are tried where the one that the weights had loses too much, by their bits.
const LADDER: &[&str] = &["Q4_K", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "F16"];

/// Which matrices are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Those at cuts.
    Cuts,
    /// Those behind the first cut, too, each toward the parent's stream behind the same block.
    Onward,
}

/// What is to be fitted.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// How tokens count.
    pub weighting: Weighting,
    /// Which matrices.
    pub extent: Extent,
    /// Of every run of removed blocks one stays as its feed-forward network alone.
    pub with_block: bool,
    /// What weights are rounded to.
    pub heal_type: HealType,
}

/// A matrix that was fitted.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Its index among the model's tensors.
    pub source: usize,
    /// The ridge, relative to the mean of the diagonal.
    pub ridge: f64,
    /// What is left of the stream's error on tokens that it was not fitted to, as a share.
    pub left: f64,
}

/// A shortened model with other weights.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Blocks that go.
    pub removed: BTreeSet<BlockId>,
    /// Blocks that lose their attention.
    pub attention: Option<AttentionCut>,
    /// The other weights.
    pub tensors: ChangedTensors,
    /// How they were fitted.
    pub fitted: Vec<Fitted>,
}

/// The streams of all windows, `[n_tokens, n_embd]` each; empty for those that take no part.
type Streams = Vec<Vec<f32>>;

/// Fits and measures, on windows that are given once.
pub struct Healer<'m, 'a> {
    model: &'m Model<'a>,
    constraints: &'m Constraints,
    engine: &'m ggml::Model,
    windows: Vec<&'m [Token]>,
    split: &'m Split,
    threads: Rc<ThreadPool>,
    n_threads: usize,
    /// Tokens of the longest window.
    window: usize,
    /// The parent's streams before this block.
    start: Option<(usize, Streams)>,
}

impl<'m, 'a> Healer<'m, 'a> {
    /// Prepares healing of `model`, which is `engine`, and checks on a window that it can be evaluated block by block.
    ///
    /// # Errors
    /// It cannot; llama.cpp's.
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &'m ggml::Model,
        windows: Vec<&'m [Token]>,
        split: &'m Split,
        n_threads: usize,
    ) -> Result<Self> {
        let threads = Rc::new(ThreadPool::new(n_threads)?);
        let first: Vec<&[Token]> = windows.iter().copied().take(1).collect();
        Chain::new(model, constraints, engine, &first, &threads)
            .context("cannot be healed: its blocks are not evaluated one by one")?;
        Ok(Self {
            window: windows.iter().map(|window| window.len()).max().unwrap_or(0),
            model,
            constraints,
            engine,
            windows,
            split,
            threads,
            n_threads,
            start: None,
        })
    }

    /// Fits what `request` says to a model without `removed` and without the attention of `attention`. `None` if nothing is
    /// gained by any matrix.
    ///
    /// # Errors
    /// A block that cannot make up for others; llama.cpp's; numbers that are not finite.
    pub fn fit(
        &mut self,
        removed: &BTreeSet<BlockId>,
        attention: Option<&AttentionCut>,
        request: Request,
    ) -> Result<Option<Candidate>> {
        let n_blocks = self.model.n_trunk_blocks();
        let mut candidate = Candidate {
            removed: removed.clone(),
            attention: attention.cloned(),
            tensors: ChangedTensors::new(),
            fitted: Vec::new(),
        };
        let without = |block: BlockId| attention.is_some_and(|cut| cut.blocks.contains(&block));
        let run_end = |start: usize| {
            let kept = |&block: &usize| !removed.contains(&BlockId::new(block));
            (start..n_blocks).find(kept).unwrap_or(n_blocks)
        };
        let Some(first) = (0..n_blocks)
            .map(BlockId::new)
            .find(|&block| removed.contains(&block) || without(block))
        else {
            return Ok(None);
        };
        let last = (0..n_blocks)
            .map(BlockId::new)
            .rfind(|&block| removed.contains(&block) || without(block))
            .unwrap_or(first);
        // The block before the first cut makes up for it, where there is one.
        let at_cut = removed.contains(&first) && !request.with_block;
        let mut block = first.index().saturating_sub(usize::from(at_cut));
        let mut targets = self.start(block)?.clone();
        let mut streams = targets.clone();
        let mut differs = false;
        while block < n_blocks {
            let id = BlockId::new(block);
            if removed.contains(&id) {
                let end = run_end(block);
                self.advance(block..end, &mut targets)?;
                differs = true;
                if request.with_block {
                    self.fit_one_of(block..end, &targets, &mut streams, &mut candidate, request)?;
                }
                block = end;
                if request.extent == Extent::Cuts && last.index() < end {
                    // Where the run ends the model or one of it stayed, nothing is left to fit.
                    let is_done = end == n_blocks || !candidate.tensors.is_empty();
                    if is_done {
                        break;
                    }
                }
                continue;
            }
            let end = match request.with_block {
                true => block + 1,
                false => run_end(block + 1),
            };
            self.advance(block..end, &mut targets)?;
            let is_at_cut =
                end > block + 1 || without(id) || (differs && candidate.fitted.is_empty());
            differs |= is_at_cut;
            let zeros = match without(id) {
                true => self.without_attention(id),
                false => ChangedTensors::new(),
            };
            let wanted = is_at_cut || (request.extent == Extent::Onward && differs);
            let carrier = match (wanted, Carrier::of(self.model, id)) {
                (true, Ok(carrier)) => Some(carrier),
                (true, Err(error)) if is_at_cut => return Err(error),
                _ => None,
            };
            let mut weights = zeros.clone();
            if let Some(carrier) = carrier
                && let Some((fit, equations)) =
                    self.fit_block(id, carrier, &zeros, &targets, &streams, request.weighting)?
                && (is_at_cut || fit.left <= WORTHWHILE)
            {
                let changed = self.rounded(&carrier, &fit, &equations, request.heal_type)?;
                candidate.fitted.push(Fitted {
                    source: carrier.source,
                    ridge: fit.ridge,
                    left: fit.left,
                });
                candidate.tensors.insert(carrier.source, changed.clone());
                if candidate.fitted.len() == 1 {
                    self.check_answer(id, &carrier, &zeros, &changed, &streams)?;
                }
                weights.insert(carrier.source, changed);
            }
            block = end;
            if request.extent == Extent::Cuts && last.index() < end {
                break;
            }
            self.pass(id, &weights, &mut streams)?;
        }
        Ok((!candidate.tensors.is_empty()).then_some(candidate))
    }

    /// Checks on some tokens that the stream behind `block` answers to other weights as their product says: that nothing
    /// stands between the two.
    fn check_answer(
        &self,
        block: BlockId,
        carrier: &Carrier,
        zeros: &ChangedTensors,
        changed: &ChangedTensor,
        streams: &Streams,
    ) -> Result<()> {
        const TOKENS: usize = 16;
        let Some(state) = self.split.folds[0].first().map(|&window| &streams[window]) else {
            return Ok(());
        };
        let mut inputs = Vec::new();
        let before = self
            .lone(block, zeros)?
            .run_reading(state, CARRIER, &mut inputs)?;
        let mut weights = zeros.clone();
        weights.insert(carrier.source, changed.clone());
        let after = self.lone(block, &weights)?.run(state)?;
        let info = &self.model.tensors()[carrier.source].info;
        let decoded = |of: TensorType, bytes: &[u8]| {
            ggml::quantize::dequantize(of.id(), bytes)
                .context("bug: weights that were decoded once")
        };
        let old = decoded(carrier.tensor_type, info.bytes())?;
        let new = decoded(changed.tensor_type, &changed.bytes)?;
        let (n_in, n_out) = (carrier.n_in, carrier.n_out);
        let (mut square, mut product, mut error) = (0.0, 0.0, 0.0);
        for (token, inputs) in inputs.chunks_exact(n_in).take(TOKENS).enumerate() {
            for o in 0..n_out {
                let row = o * n_in..(o + 1) * n_in;
                let weights = new[row.clone()].iter().zip(&old[row]).zip(inputs);
                let expected: f64 = weights
                    .map(|((new, old), input)| {
                        (f64::from(*new) - f64::from(*old)) * f64::from(*input)
                    })
                    .sum();
                let at = token * n_out + o;
                let found = f64::from(after[at]) - f64::from(before[at]);
                square += expected * expected;
                product += expected * found;
                error += (expected - found).powi(2);
            }
        }
        // Activations are rounded, too, so that the two are not quite the same.
        let is_sum =
            square == 0.0 || ((product / square - 1.0).abs() < 0.2 && error < 0.25 * square);
        ensure!(
            is_sum,
            "block {block} cannot make up for others: the stream behind it is not the sum that its 'ffn_down' writes to"
        );
        Ok(())
    }

    /// Lets the block of a run stay whose feed-forward network leaves least of the stream's error, and fits it.
    fn fit_one_of(
        &self,
        run: std::ops::Range<usize>,
        targets: &Streams,
        streams: &mut Streams,
        candidate: &mut Candidate,
        request: Request,
    ) -> Result<()> {
        let mut best: Option<(BlockId, Carrier, Fit, NormalEquations)> = None;
        for id in run.map(BlockId::new) {
            let Ok(carrier) = Carrier::of(self.model, id) else {
                continue;
            };
            let zeros = self.without_attention(id);
            let found = self.fit_block(id, carrier, &zeros, targets, streams, request.weighting)?;
            if let Some((fit, equations)) = found
                && best.as_ref().is_none_or(|best| fit.left < best.2.left)
            {
                best = Some((id, carrier, fit, equations));
            }
        }
        let Some((id, carrier, fit, equations)) = best else {
            return Ok(());
        };
        let changed = self.rounded(&carrier, &fit, &equations, request.heal_type)?;
        let mut weights = self.without_attention(id);
        weights.insert(carrier.source, changed.clone());
        self.pass(id, &weights, streams)?;
        candidate.removed.remove(&id);
        candidate
            .attention
            .get_or_insert_with(|| AttentionCut {
                blocks: BTreeSet::new(),
                method: "blocks".to_owned(),
            })
            .blocks
            .insert(id);
        candidate.tensors.insert(carrier.source, changed);
        candidate.fitted.push(Fitted {
            source: carrier.source,
            ridge: fit.ridge,
            left: fit.left,
        });
        Ok(())
    }

    /// Zeros in place of what the attention of `block` writes.
    fn without_attention(&self, block: BlockId) -> ChangedTensors {
        let mut zeros = ChangedTensors::new();
        for (source, tensor) in self.model.tensors().iter().enumerate() {
            if tensor
                .block
                .is_some_and(|(of, rest)| of == block && rest.starts_with("attn_output."))
            {
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
        if self.start.as_ref().is_none_or(|(of, _)| *of != block) {
            let stream = self.constraints.rules.stream;
            let course = Course::of(self.model, stream)?;
            let mut states = LlamaHiddenStates::with_threads(
                self.engine,
                self.window,
                &self.threads,
                stream,
                course,
            )?
            .up_to(block);
            let mut streams = vec![Vec::new(); self.windows.len()];
            for window in self.split.all() {
                let wanted = match block {
                    0 => Position::Input,
                    block => Position::Output(BlockId::new(block - 1)),
                };
                let into: &mut Vec<f32> = &mut streams[window];
                states.visit(self.windows[window], &mut |position, state| {
                    if position == wanted {
                        state.clone_into(into);
                    }
                    Ok(())
                })?;
            }
            self.start = Some((block, streams));
        }
        self.start
            .as_ref()
            .map(|(_, streams)| streams)
            .context("bug: streams that were just made")
    }

    /// Passes streams through `blocks` of the parent.
    fn advance(&self, blocks: std::ops::Range<usize>, streams: &mut Streams) -> Result<()> {
        for block in blocks {
            self.pass(BlockId::new(block), &ChangedTensors::new(), streams)?;
        }
        Ok(())
    }

    /// Passes streams through a block with these weights.
    fn pass(&self, block: BlockId, changed: &ChangedTensors, streams: &mut Streams) -> Result<()> {
        let mut lone = self.lone(block, changed)?;
        for stream in streams.iter_mut().filter(|stream| !stream.is_empty()) {
            *stream = lone.run(stream)?;
        }
        Ok(())
    }

    fn lone(&self, block: BlockId, changed: &ChangedTensors) -> Result<Lone> {
        let (window, threads) = (self.window, &self.threads);
        Lone::new(
            self.model,
            self.constraints,
            block,
            changed,
            window,
            threads,
        )
    }

    /// Fits the carrier of `block`, which has the weights of `changed` otherwise: the change, and the sums over all tokens
    /// that it was fitted to. `None` if nothing is gained.
    fn fit_block(
        &self,
        block: BlockId,
        carrier: Carrier,
        changed: &ChangedTensors,
        targets: &Streams,
        streams: &Streams,
        weighting: Weighting,
    ) -> Result<Option<(Fit, NormalEquations)>> {
        let mut lone = self.lone(block, changed)?;
        let mut equations =
            [0, 1].map(|_| NormalEquations::new(carrier.n_in, carrier.n_out, self.n_threads));
        let mut inputs = Vec::new();
        for (fold, equations) in self.split.folds.iter().zip(&mut equations) {
            for &window in fold {
                let target = &targets[window];
                let output = lone.run_reading(&streams[window], CARRIER, &mut inputs)?;
                // Else they would look for work while sums are made.
                self.threads.pause();
                let residuals: Vec<f32> = target.iter().zip(&output).map(|(t, x)| t - x).collect();
                let weights: Vec<f64> = target
                    .chunks_exact(carrier.n_out)
                    .map(|token| weighting.of(token))
                    .collect();
                equations
                    .add(&inputs, &residuals, &weights)
                    .with_context(|| format!("block {block}, window {}", window + 1))?;
            }
        }
        drop(lone);
        let fit = cross_fit(&equations);
        let [mut all, other] = equations;
        all.add_all(&other);
        Ok(fit.map(|fit| (fit, all)))
    }

    /// The weights of `carrier` with the change of `fit`, rounded.
    fn rounded(
        &self,
        carrier: &Carrier,
        fit: &Fit,
        equations: &NormalEquations,
        heal_type: HealType,
    ) -> Result<ChangedTensor> {
        let info = &self.model.tensors()[carrier.source].info;
        let name = || Quoted(info.name());
        let old = ggml::quantize::dequantize(carrier.tensor_type.id(), info.bytes())
            .with_context(|| format!("tensor {} cannot be decoded", name()))?;
        ensure!(
            old.iter().all(|weight| weight.is_finite()),
            "tensor {} has weights that are not finite",
            name()
        );
        let n_in = carrier.n_in;
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        let new: Vec<f32> = (old.iter().enumerate())
            .map(|(i, &weight)| (f64::from(weight) + fit.change[(i % n_in, i / n_in)]) as f32)
            .collect();
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        let importance: Vec<f32> = {
            let importance = equations.importance();
            let largest = importance.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            // Far from what a float cannot hold.
            importance
                .iter()
                .map(|i| (i / largest).max(1e-12) as f32)
                .collect()
        };
        let round = |tensor_type: TensorType| {
            let bytes = quantized(tensor_type, &new, n_in, &importance)?;
            Some(ChangedTensor { tensor_type, bytes })
        };
        let exact = equations.energy() - equations.left(fit.change.as_ref());
        let gain = |changed: &ChangedTensor| -> Option<f64> {
            let back = ggml::quantize::dequantize(changed.tensor_type.id(), &changed.bytes)?;
            let change = faer::Mat::from_fn(n_in, carrier.n_out, |i, o| {
                f64::from(back[o * n_in + i]) - f64::from(old[o * n_in + i])
            });
            Some(equations.energy() - equations.left(change.as_ref()))
        };
        let types: Vec<TensorType> = match heal_type {
            HealType::Keep => vec![carrier.tensor_type],
            HealType::To(tensor_type) => vec![tensor_type],
            HealType::Auto => ladder(carrier.tensor_type),
        };
        let mut best: Option<(f64, ChangedTensor)> = None;
        for tensor_type in types {
            let Some(changed) = round(tensor_type) else {
                continue;
            };
            let gain = gain(&changed).filter(|gain| gain.is_finite());
            let gain = gain.with_context(|| {
                format!("tensor {}: {tensor_type} does not hold the weights", name())
            })?;
            let is_enough = gain >= KEPT_GAIN * exact;
            if best.as_ref().is_none_or(|(best, _)| gain > *best) {
                best = Some((gain, changed));
            }
            if is_enough {
                break;
            }
        }
        let (_, changed) = best.with_context(|| {
            format!(
                "tensor {} has rows of {n_in}, which cannot be rounded to that type",
                name()
            )
        })?;
        Ok(changed)
    }

    /// What `candidate` loses on the windows with these numbers; `None` is the model without the blocks of `candidate` and
    /// without other weights.
    ///
    /// # Errors
    /// llama.cpp's; logits that are not numbers.
    pub fn loss(&self, candidate: &Candidate, windows: &[usize]) -> Result<Loss> {
        let healing = Healing {
            tensors: candidate.tensors.clone(),
            loss: [0.0; 2],
        };
        let plan = Plan::healed(
            self.model,
            self.constraints,
            candidate.removed.clone(),
            candidate.attention.as_ref(),
            Some(&healing),
            &Provenance::draft("heal"),
        )?;
        let model = MemoryFile::write_plan(self.model, &plan)?.load()?;
        let n_outputs = scored(self.window).len();
        let context_of =
            |model| Context::with_outputs(model, self.window, n_outputs, &self.threads);
        let (mut parent, mut context) = (context_of(self.engine)?, context_of(&model)?);
        let mut losses = Vec::new();
        for &window in windows {
            let tokens = self.windows[window];
            let (input, rows) = (WindowInput::Tokens(tokens), scored(tokens.len()));
            let expected = parent.logits_of(input, rows.clone())?;
            let found = context.logits_of(input, rows)?;
            losses.push(
                Loss::of(tokens, expected, found)
                    .with_context(|| format!("window {}", window + 1))?,
            );
        }
        Ok(losses.into_iter().sum())
    }
}

/// `own`, and the types of [`LADDER`] with more bits.
fn ladder(own: TensorType) -> Vec<TensorType> {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let bits = |of: TensorType| of.block_bytes() as f64 / of.block_size() as f64;
    let named = |name: &str| TensorType::all().find(|of| of.name() == name);
    let larger = LADDER.iter().filter_map(|name| named(name));
    std::iter::once(own)
        .chain(larger.filter(|of| bits(*of) > bits(own)))
        .collect()
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
