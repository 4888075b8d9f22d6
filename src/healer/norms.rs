//! Healing where the output of every branch passes a norm before it is added to the stream: the weights of that norm fitted,
//! and `ffn_down` under it.
//!
//! A branch that gives `y` adds `g * y / rms(y)`. So its addition has the same length for every token, whatever the matrix that
//! makes `y`: the matrix decides its direction alone. To first order a change `D` of that matrix adds
//! `g * (D h) / rms(y)`, which is fitted to what is missing, channel by channel, as where there is no norm; then `g` is fitted
//! to the new directions.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::{Candidate, Fitted, HealType, Healer, KEPT_GAIN, Streams, quantized, run_end};
use crate::gguf::{Quoted, TensorType};
use crate::heal::Weighting;
use crate::heal::carrier::{CARRIER, Carrier};
use crate::heal::channels::{self, ChannelSums};
use crate::heal::normal::NormalEquations;
use crate::heal::ridge::cross_fit;
use crate::heal::rounding::shares;
use crate::heal::split::Split;
use crate::heal::writers::{POST_NORMS, is_norm};
use crate::hidden_state::{HiddenStates, Position, Token};
use crate::llama::{Course, Halves, LlamaHiddenStates};
use crate::model::{BlockId, Model};
use crate::plan::kinds::Kinds;
use crate::plan::{ChangedTensor, ChangedTensors, Constraints};

/// Which blocks are fitted.
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
    /// Which blocks.
    pub extent: Extent,
    /// Beside the norms also `ffn_down` under them.
    pub matrices: bool,
    /// What weights of matrices are rounded to.
    pub heal_type: HealType,
}

/// A fit of a block: what it is made from, and what has come of it.
struct BlockFit<'f> {
    block: BlockId,
    halves: &'f Halves,
    /// The parent's streams behind the block and the removed ones that follow it.
    targets: &'f Streams,
    /// The healed model's before it.
    streams: &'f Streams,
    request: Request,
    /// Of the block, those that are not the parent's.
    weights: &'f mut ChangedTensors,
    fitted: &'f mut Vec<Fitted>,
}

/// Architectures of which it is known that their blocks alone show what each branch adds; each is tested.
const FITTED: &[&str] = &["gemma2", "gemma3", "olmo2"];

/// Whether `model` is of an architecture whose norms are fitted, and the output of both branches of its blocks passes such a norm
/// before it is added.
#[must_use]
pub fn has_post_norms(model: &Model<'_>) -> bool {
    let mut blocks = 0..model.n_trunk_blocks();
    let has = |block: usize, rest: &str| {
        model.tensors().iter().any(|tensor| {
            let is_it = |(of, name): (BlockId, &str)| of.index() == block && is_norm(name, rest);
            tensor.block.is_some_and(is_it)
        })
    };
    FITTED.contains(&model.architecture())
        && blocks.all(|block| POST_NORMS.iter().all(|rest| has(block, rest)))
}

/// Checks that the norms of `model` can be fitted, and returns the largest matrix under one; `None` where none is fitted.
///
/// # Errors
/// A norm that is not F32; blocks whose halves are not known.
pub fn check(model: &Model<'_>) -> Result<Option<Carrier>> {
    let rules = model.rules().context("its architecture is not known")?;
    Halves::of(model, rules, &Kinds::of(model, rules)?)?;
    let mut largest: Option<Carrier> = None;
    for block in (0..model.n_trunk_blocks()).map(BlockId::new) {
        for rest in POST_NORMS {
            norm(model, block, rest)?;
        }
        let carrier = carrier_under(model, block)?;
        largest = largest
            .into_iter()
            .chain(carrier)
            .max_by_key(|carrier| carrier.n_in);
    }
    Ok(largest)
}

/// The matrix under the norm of a block; `None` where there is none that can be fitted.
fn carrier_under(model: &Model<'_>, block: BlockId) -> Result<Option<Carrier>> {
    let mut tensors = model.tensors().iter().enumerate();
    let found = tensors.find(|(_, tensor)| tensor.block == Some((block, CARRIER)));
    let Some((source, tensor)) = found else {
        return Ok(None);
    };
    let tensor_type = tensor.info.tensor_type();
    if tensor.info.n_dims() != 2 || !ggml::quantize::can_quantize(tensor_type.id()) {
        return Ok(None);
    }
    Ok(Some(Carrier {
        source,
        tensor_type,
        n_in: usize::try_from(tensor.info.dims()[0])?,
        n_out: usize::try_from(tensor.info.dims()[1])?,
    }))
}

/// The index of a norm, which must be F32.
fn norm(model: &Model<'_>, block: BlockId, rest: &str) -> Result<usize> {
    let mut tensors = model.tensors().iter().enumerate();
    let (i, tensor) = tensors
        .find(|(_, tensor)| {
            tensor
                .block
                .is_some_and(|(of, name)| of == block && is_norm(name, rest))
        })
        .with_context(|| format!("block {block} has no {}", Quoted(rest)))?;
    ensure!(
        tensor.info.tensor_type() == TensorType::F32,
        "tensor {} is {}, expected F32",
        Quoted(tensor.info.name()),
        tensor.info.tensor_type()
    );
    Ok(i)
}

impl<'m, 'a> Healer<'m, 'a> {
    /// As [`Healer::new`], for a model of which each block alone need compute what it does inside of the model up to rounding
    /// only.
    ///
    /// # Errors
    /// It does not; llama.cpp's.
    pub fn of_blocks(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &'m ggml::Model,
        windows: Vec<&'m [Token]>,
        split: &'m Split,
        n_threads: usize,
    ) -> Result<Self> {
        let healer = Self::of_whole_models(model, constraints, engine, windows, split, n_threads)?;
        let Some(window) = split.all().first().copied() else {
            return Ok(healer);
        };
        let stream = constraints.rules.stream;
        let course = Course::of(model, stream)?;
        let threads = &healer.threads;
        let mut whole =
            LlamaHiddenStates::with_threads(engine, healer.window, threads, stream, course)?;
        let mut before: Vec<f32> = Vec::new();
        whole.visit(healer.windows[window], &mut |position, state| {
            if let Position::Output(block) = position {
                let found = healer.lone(block, &ChangedTensors::new())?.run(&before)?;
                let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
                let size = square(&mut state.iter().copied());
                let error = square(&mut state.iter().zip(&found).map(|(a, b)| a - b));
                ensure!(
                    error <= 1e-4 * size,
                    "cannot be healed: block {block} alone does not compute what it does inside of the model"
                );
            }
            state.clone_into(&mut before);
            Ok(())
        })?;
        drop(whole);
        Ok(healer)
    }

    /// As [`Healer::fit`], for a model with norms behind its branches.
    ///
    /// # Errors
    /// As [`Healer::fit`].
    pub fn fit_norms(
        &mut self,
        removed: &BTreeSet<BlockId>,
        request: Request,
    ) -> Result<Option<Candidate>> {
        let n_blocks = self.model.n_trunk_blocks();
        let rules = self.constraints.rules;
        let halves = Halves::of(self.model, rules, &self.constraints.kinds)?;
        let mut candidate = Candidate::unhealed(removed, None);
        let Some((first, last)) = removed.first().zip(removed.last()) else {
            return Ok(None);
        };
        let mut block = first.index().saturating_sub(1);
        let mut targets = self.start(block)?.clone();
        let mut streams = targets.clone();
        let mut differs = false;
        while block < n_blocks {
            let id = BlockId::new(block);
            if removed.contains(&id) {
                let end = run_end(removed, block, n_blocks);
                self.advance(block..end, &mut targets)?;
                differs = true;
                block = end;
                continue;
            }
            let end = run_end(removed, block + 1, n_blocks);
            self.advance(block..end, &mut targets)?;
            let is_at_cut = end > block + 1 || (differs && candidate.fitted.is_empty());
            differs |= is_at_cut;
            let mut weights = ChangedTensors::new();
            if is_at_cut || (request.extent == Extent::Onward && differs) {
                let mut fit = BlockFit {
                    block: id,
                    halves: &halves,
                    targets: &targets,
                    streams: &streams,
                    request,
                    weights: &mut weights,
                    fitted: &mut candidate.fitted,
                };
                self.fit_channels(&mut fit, true)?;
                // Again, since its network reads what the norm behind the attention writes.
                self.fit_channels(&mut fit, false)?;
                if request.matrices {
                    self.fit_under(&mut fit)?;
                    self.fit_channels(&mut fit, false)?;
                }
            }
            block = end;
            let is_done = request.extent == Extent::Cuts && last.index() < end;
            if is_done && !candidate.fitted.is_empty() {
                candidate.tensors.extend(weights);
                break;
            }
            self.pass(id, &weights, &mut streams)?;
            candidate.tensors.extend(weights);
        }
        Ok((!candidate.tensors.is_empty()).then_some(candidate))
    }

    /// Fits the norm behind the feed-forward network of a block; with `attention` that behind its attention, too, at once.
    fn fit_channels(&self, fit: &mut BlockFit<'_>, attention: bool) -> Result<()> {
        let block = fit.block;
        let mut lone = self.lone(block, fit.weights)?;
        let n_embd = lone.n_embd();
        let mut folds = [ChannelSums::new(n_embd), ChannelSums::new(n_embd)];
        for (fold, sums) in self.split.folds.iter().zip(&mut folds) {
            for &window in fold {
                let (input, target) = (&fit.streams[window], &fit.targets[window]);
                let (middle, output) = lone.run_halves(input, fit.halves)?;
                let tokens = target.chunks_exact(n_embd);
                let counts: Vec<f64> = tokens
                    .map(|token| fit.request.weighting.of(token))
                    .collect();
                sums.add(
                    &difference(&middle, input),
                    &difference(&output, &middle),
                    &difference(target, &output),
                    &counts,
                )
                .with_context(|| format!("block {block}, window {}", window + 1))?;
            }
        }
        let Some(found) = channels::fit(&folds, attention) else {
            return Ok(());
        };
        for (rest, factors) in POST_NORMS.into_iter().zip([&found.attention, &found.ffn]) {
            if rest == POST_NORMS[0] && !attention {
                continue;
            }
            let source = norm(self.model, block, rest)?;
            let bytes = self
                .norm_weights(source, fit.weights)
                .into_iter()
                .zip(factors);
            #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
            let product =
                |(weight, factor): (f32, &f64)| (f64::from(weight) * (1.0 + factor)) as f32;
            let changed = ChangedTensor {
                tensor_type: TensorType::F32,
                bytes: bytes.flat_map(|pair| product(pair).to_le_bytes()).collect(),
            };
            fit.weights.insert(source, changed);
            fit.fitted.retain(|fitted| fitted.source != source);
            fit.fitted.push(Fitted {
                source,
                ridge: found.ridge,
                left: found.left,
            });
        }
        Ok(())
    }

    /// The weights of an F32 tensor, as they are now.
    fn norm_weights(&self, source: usize, weights: &ChangedTensors) -> Vec<f32> {
        let bytes = weights
            .get(&source)
            .map_or(self.model.tensors()[source].info.bytes(), |changed| {
                &changed.bytes
            });
        let floats = bytes.as_chunks::<4>().0.iter();
        floats.map(|&float| f32::from_le_bytes(float)).collect()
    }

    /// Fits `ffn_down` under the norm of a block.
    fn fit_under(&self, fit: &mut BlockFit<'_>) -> Result<()> {
        let block = fit.block;
        let Some(carrier) = carrier_under(self.model, block)? else {
            return Ok(());
        };
        let (n_in, n_out) = (carrier.n_in, carrier.n_out);
        let old = self.decoded(&carrier)?;
        let gains = self.norm_weights(norm(self.model, block, POST_NORMS[1])?, fit.weights);
        let mut lone = self.lone(block, fit.weights)?;
        let mut equations = [0, 1].map(|_| NormalEquations::new(n_in, n_out, self.n_threads));
        let mut inputs = Vec::new();
        for (fold, equations) in self.split.folds.iter().zip(&mut equations) {
            for &window in fold {
                let target = &fit.targets[window];
                let output = lone.run_reading(&fit.streams[window], CARRIER, &mut inputs)?;
                let sizes = sizes(&old, &inputs, n_in, n_out, self.n_threads);
                let mut residuals = difference(target, &output);
                let rows = residuals.chunks_exact_mut(n_out);
                let tokens = target.chunks_exact(n_out).zip(rows).zip(&sizes);
                let counts = tokens
                    .map(|((token, row), &size)| {
                        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
                        row.iter_mut()
                            .for_each(|x| *x = (f64::from(*x) * size) as f32);
                        if size > 0.0 {
                            fit.request.weighting.of(token) / (size * size)
                        } else {
                            0.0
                        }
                    })
                    .collect::<Vec<f64>>();
                equations
                    .add(&inputs, &residuals, &counts)
                    .with_context(|| format!("block {block}, window {}", window + 1))?;
            }
        }
        drop(lone);
        let Some(found) = cross_fit(&equations) else {
            return Ok(());
        };
        let [mut all, other] = equations;
        all.add_all(&other);
        // The fit is of what the norm makes of the change.
        let gain_of = |o: usize| f64::from(gains[o]);
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        let new: Vec<f32> = old
            .iter()
            .enumerate()
            .map(|(i, &weight)| {
                let (input, o) = (i % n_in, i / n_in);
                let change = found.change[(input, o)] / gain_of(o);
                if change.is_finite() {
                    (f64::from(weight) + change) as f32
                } else {
                    weight
                }
            })
            .collect();
        let importance = shares(&all.importance());
        let exact = all.energy() - all.left(found.change.as_ref());
        let mut best: Option<(f64, ChangedTensor)> = None;
        for tensor_type in fit.request.heal_type.types(carrier.tensor_type) {
            let Some(bytes) = quantized(tensor_type, &new, n_in, &importance) else {
                continue;
            };
            let Some(back) = ggml::quantize::dequantize(tensor_type.id(), &bytes) else {
                continue;
            };
            let change = Mat::from_fn(n_in, n_out, |i, o| {
                (f64::from(back[o * n_in + i]) - f64::from(old[o * n_in + i])) * gain_of(o)
            });
            let gain = all.energy() - all.left(change.as_ref());
            if best.as_ref().is_none_or(|(best, _)| gain > *best) {
                best = Some((gain, ChangedTensor { tensor_type, bytes }));
            }
            if gain >= KEPT_GAIN * exact {
                break;
            }
        }
        if let Some((gain, changed)) = best
            && gain > 0.0
        {
            fit.weights.insert(carrier.source, changed);
            fit.fitted.push(Fitted {
                source: carrier.source,
                ridge: found.ridge,
                left: found.left,
            });
        }
        Ok(())
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// For each token the root of the mean square of what the matrix with `weights` (rows of `n_in`) makes of its inputs.
fn sizes(weights: &[f32], inputs: &[f32], n_in: usize, n_out: usize, n_threads: usize) -> Vec<f64> {
    let n_tokens = inputs.len() / n_in.max(1);
    let weights = MatRef::from_row_major_slice(weights, n_out, n_in);
    let inputs = MatRef::from_row_major_slice(inputs, n_tokens, n_in);
    let mut products = Mat::<f32>::zeros(n_out, n_tokens);
    let par = if n_threads > 1 {
        Par::rayon(n_threads)
    } else {
        Par::Seq
    };
    matmul(
        products.as_mut(),
        Accum::Replace,
        weights,
        inputs.transpose(),
        1.0,
        par,
    );
    let size = |t: usize| {
        let square: f64 = (0..n_out)
            .map(|o| f64::from(products[(o, t)]).powi(2))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a width stays far below 2^53")]
        let mean = square / n_out.max(1) as f64;
        mean.sqrt()
    };
    (0..n_tokens).map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_roots_of_mean_squares() {
        let weights = [1.0, 2.0, -1.0, 0.5, 0.0, 3.0];
        let inputs = [1.0, -1.0, 2.0, 0.5];
        let found = sizes(&weights, &inputs, 2, 3, 1);
        let expected = |x: [f64; 2]| {
            let rows = weights.chunks_exact(2);
            let squares = rows.map(|w| (f64::from(w[0]) * x[0] + f64::from(w[1]) * x[1]).powi(2));
            (squares.sum::<f64>() / 3.0).sqrt()
        };
        assert!((found[0] - expected([1.0, -1.0])).abs() < 1e-6);
        assert!((found[1] - expected([2.0, 0.5])).abs() < 1e-6);
    }
}
