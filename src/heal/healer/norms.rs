//! Healing where every branch ends in a norm: that norm fitted, and `ffn_down` under it.
//!
//! A branch that gives `y` adds `g * y / rms(y)`. So its addition has the same length for every token, whatever the matrix that
//! makes `y`: the matrix decides its direction alone.
//!
//! To first order a change `D` of that matrix adds `g * (D h) / rms(y)`. That is fitted to what is missing, channel by channel, as
//! where there is no norm. Then `g` is fitted to the new directions.

use super::stepwise::{FitMode, Step, WORTHWHILE, Walk};
use super::{Candidate, Fitted, HealType, Healer, Streams, at, difference};
use crate::engine::llama::Halves;
use crate::gguf::{Quoted, TensorType};
use crate::heal::channels::{self, ChannelSums};
use crate::heal::normal::NormalEquations;
use crate::heal::ridge::cross_fit;
use crate::heal::target_matrix::{FFN_DOWN, TargetMatrix};
use crate::model::{BlockId, Model};
use crate::plan::kinds::Kinds;
use crate::plan::writers::{POST_NORMS, is_norm};
use crate::plan::{ChangedTensor, ChangedTensors};
use anyhow::{Context, Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// A fit of a block: its inputs and its results.
struct BlockFit<'f> {
    block: BlockId,
    halves: &'f Halves,
    /// The parent's streams after the block and the removed ones after it.
    targets: &'f Streams,
    /// The healed model's before it.
    streams: &'f Streams,
    mode: FitMode,
    heal_type: HealType,
    /// Of the block, those that are not the parent's.
    weights: ChangedTensors,
    fitted: Vec<Fitted>,
}

/// Checks that norms can be fitted. Returns the largest matrix under one, if any is fitted.
///
/// # Errors
/// A norm that is not F32; blocks whose halves are not known.
pub fn check(model: &Model<'_>) -> Result<Option<TargetMatrix>> {
    let rules = model.rules().context("its architecture is not known")?;
    Halves::of(model, rules, &Kinds::of(model, rules)?)?;
    let mut largest: Option<TargetMatrix> = None;
    for block in (0..model.n_trunk_blocks()).map(BlockId::new) {
        for rest in POST_NORMS {
            norm(model, block, rest)?;
        }
        let matrix = matrix_under(model, block);
        largest = largest.into_iter().chain(matrix).max_by_key(|matrix| matrix.n_in);
    }
    Ok(largest)
}

/// The matrix under a block's norm, if it can be fitted.
fn matrix_under(model: &Model<'_>, block: BlockId) -> Option<TargetMatrix> {
    TargetMatrix::named(model, block, FFN_DOWN).ok().flatten()
}

/// The index of a norm, which must be F32.
fn norm(model: &Model<'_>, block: BlockId, rest: &str) -> Result<usize> {
    let mut tensors = model.tensors().iter().enumerate();
    let (i, tensor) = tensors
        .find(|(_, tensor)| tensor.block.is_some_and(|(of, name)| of == block && is_norm(name, rest)))
        .with_context(|| format!("block {block} has no {}", Quoted(rest)))?;
    ensure!(
        tensor.info.tensor_type() == TensorType::F32,
        "tensor {} is {}, expected F32",
        Quoted(tensor.info.name()),
        tensor.info.tensor_type()
    );
    Ok(i)
}

impl Healer<'_, '_> {
    /// Fits the norms of a block: at a cut in every mode, after one in the best.
    ///
    /// The target is the parent's stream after it and the removed ones after it. Returns whether that helps.
    pub(super) fn step_of_norms(
        &mut self,
        block: BlockId,
        is_at_cut: bool,
        walk: &mut Walk<'_>,
    ) -> Result<bool> {
        let base = walk.candidate.clone();
        let matrices = matrix_under(self.model, block).is_some();
        let mut modes = vec![walk.mode];
        if is_at_cut {
            let weightings = walk.order.weightings.iter();
            modes = weightings.map(|&weighting| FitMode { weighting, matrices }).collect();
        }
        let mut gain: f64 = 0.0;
        for mode in modes {
            gain = gain.max(self.step_of_mode(block, mode, &base, walk)?);
        }
        if is_at_cut && matrices {
            let norms = FitMode { matrices: false, ..walk.mode };
            gain = gain.max(self.step_of_mode(block, norms, &base, walk)?);
        }
        Ok(gain >= WORTHWHILE)
    }

    /// Fits the norms of a block in one mode, on `base`. Returns the share of the loss that this takes.
    fn step_of_mode(
        &mut self,
        block: BlockId,
        mode: FitMode,
        base: &Candidate,
        walk: &mut Walk<'_>,
    ) -> Result<f64> {
        let what = if mode.matrices { "norms and ffn_down" } else { "norms" };
        let variant = format!("{}, {what}, block {block}", mode.weighting);
        let rules = self.constraints.rules;
        let mut fit = BlockFit {
            block,
            halves: &Halves::of(self.model, rules, &self.constraints.kinds)?,
            targets: &walk.targets,
            streams: &walk.streams,
            mode,
            heal_type: walk.order.heal_type,
            weights: self.weights_of(block, base),
            fitted: Vec::new(),
        };
        self.fit_channels(&mut fit, true)?;
        // Again, since its network reads what the norm after the attention writes.
        self.fit_channels(&mut fit, false)?;
        if mode.matrices {
            self.fit_under(&mut fit)?;
            self.fit_channels(&mut fit, false)?;
        }
        let BlockFit { weights, fitted, .. } = fit;
        if fitted.is_empty() {
            walk.steps.push(Step { variant, measured: None });
            return Ok(0.0);
        }
        let mut candidate = base.clone();
        candidate.tensors.extend(weights);
        candidate.fitted.extend(fitted);
        let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
        let gain = walk.keep_better(variant, candidate, loss);
        if gain > 0.0 {
            walk.mode = mode;
        }
        Ok(gain)
    }

    /// Fits the norm after the feed-forward network; with `attention` both at once.
    fn fit_channels(&self, fit: &mut BlockFit<'_>, attention: bool) -> Result<()> {
        let block = fit.block;
        let mut segment = self.segments.block(block, &fit.weights)?;
        let n_embd = segment.n_embd();
        let step = format!("fitting norms of block {block}");
        let folds = self.sums_of_folds(&step, &|| ChannelSums::new(n_embd), &mut |sums, window| {
            let (input, target) = (&fit.streams[window], &fit.targets[window]);
            let (middle, output) = segment.run_halves(input, fit.halves)?;
            sums.add(
                &difference(&middle, input),
                &difference(&output, &middle),
                &difference(target, &output),
                &fit.mode.weighting.of_tokens(target, n_embd),
            )
            .with_context(|| at(block, window))
        })?;
        let Some(found) = channels::fit(&folds, attention) else {
            return Ok(());
        };
        for (rest, factors) in POST_NORMS.into_iter().zip([&found.attention, &found.ffn]) {
            if rest == POST_NORMS[0] && !attention {
                continue;
            }
            let source = norm(self.model, block, rest)?;
            let bytes = self.norm_weights(source, &fit.weights).into_iter().zip(factors);
            #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
            let product = |(weight, factor): (f32, &f64)| (f64::from(weight) * (1.0 + factor)) as f32;
            let changed = ChangedTensor {
                tensor_type: TensorType::F32,
                bytes: bytes.flat_map(|pair| product(pair).to_le_bytes()).collect(),
            };
            fit.weights.insert(source, changed);
            fit.fitted.retain(|fitted| fitted.source != source);
            fit.fitted.push(Fitted { source, ridge: found.ridge, left: found.left });
        }
        Ok(())
    }

    /// The weights of an F32 tensor, as they are now.
    fn norm_weights(&self, source: usize, weights: &ChangedTensors) -> Vec<f32> {
        let bytes =
            weights.get(&source).map_or(self.model.tensors()[source].info.bytes(), |changed| &changed.bytes);
        let floats = bytes.as_chunks::<4>().0.iter();
        floats.map(|&float| f32::from_le_bytes(float)).collect()
    }

    /// Fits `ffn_down` under the norm of a block.
    fn fit_under(&self, fit: &mut BlockFit<'_>) -> Result<()> {
        let block = fit.block;
        let Some(matrix) = matrix_under(self.model, block) else {
            return Ok(());
        };
        let (n_in, n_out) = (matrix.n_in, matrix.n_out);
        let old = self.decoded(&matrix)?;
        let gains = self.norm_weights(norm(self.model, block, POST_NORMS[1])?, &fit.weights);
        let mut segment = self.segments.block(block, &fit.weights)?;
        let mut inputs = Vec::new();
        let empty = || NormalEquations::new(n_in, n_out, self.n_threads);
        let step = format!("fitting block {block}");
        let folds = self.sums_of_folds(&step, &empty, &mut |sums, window| {
            let target = &fit.targets[window];
            let output = segment.run_reading(&fit.streams[window], FFN_DOWN, &mut inputs)?;
            // Else they would look for work while sums are made.
            self.threads.pause();
            let sizes = sizes(&old, &inputs, n_in, n_out, self.n_threads);
            let mut residuals = difference(target, &output);
            let mut counts = fit.mode.weighting.of_tokens(target, n_out);
            for ((row, count), &size) in residuals.chunks_exact_mut(n_out).zip(&mut counts).zip(&sizes) {
                #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
                row.iter_mut().for_each(|x| *x = (f64::from(*x) * size) as f32);
                *count = if size > 0.0 { *count / (size * size) } else { 0.0 };
            }
            sums.add(&inputs, &residuals, &counts).with_context(|| at(block, window))
        })?;
        drop(segment);
        let Some(found) = cross_fit(&folds) else {
            return Ok(());
        };
        let all = NormalEquations::of_both(folds);
        // The fit is of what the norm makes of the change.
        let changed = self.rounded(&matrix, Some(&gains), &found, &all, fit.heal_type)?;
        fit.weights.insert(matrix.source, changed);
        fit.fitted.push(Fitted { source: matrix.source, ridge: found.ridge, left: found.left });
        Ok(())
    }
}

/// The root mean square of each token's product of inputs and `weights`. Rows have `n_in` elements.
fn sizes(weights: &[f32], inputs: &[f32], n_in: usize, n_out: usize, n_threads: usize) -> Vec<f64> {
    let n_tokens = inputs.len() / n_in.max(1);
    let weights = MatRef::from_row_major_slice(weights, n_out, n_in);
    let inputs = MatRef::from_row_major_slice(inputs, n_tokens, n_in);
    let mut products = Mat::<f32>::zeros(n_out, n_tokens);
    let par = if n_threads > 1 { Par::rayon(n_threads) } else { Par::Seq };
    matmul(products.as_mut(), Accum::Replace, weights, inputs.transpose(), 1.0, par);
    let size = |t: usize| {
        let square: f64 = (0..n_out).map(|o| f64::from(products[(o, t)]).powi(2)).sum();
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
