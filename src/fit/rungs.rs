//! The ladder of each tensor: as it is, in smaller types, and how far its weights are then off.
//!
//! The error of a rung is `sum h_j (w_ij - q_ij)^2`, where `h_j` is the mean square of what column `j` multiplies: the mean
//! squared error of what the tensor gives, if its inputs had nothing in common. It is estimated from some rows. What is off so
//! little costs in proportion to it: the KL divergence is a quadratic form near its minimum.

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::knapsack;
use super::matrix::Matrix;
use crate::gguf::{TensorInfo, TensorType};
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model, ModelTensor};
use crate::output::rounding::{may_be_rounded, needs_importance};

/// Number of weights from which a rung's error is estimated.
const SAMPLE: usize = 1 << 14;

/// A type that a tensor may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rung {
    /// `None`: as it is.
    pub(super) to: Option<TensorType>,
    /// Bytes of the data.
    pub(super) bytes: u64,
    /// The error of its weights, in the square of the tensor's output.
    pub(super) error: f64,
}

/// A tensor that may become smaller.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    /// Its index among the model's.
    pub(super) source: usize,
    /// `None` for the vocabulary's.
    pub(super) block: Option<BlockId>,
    /// Its name without the block, such as `attn_q.weight`.
    pub(super) kind: String,
    /// Its rungs from large to small, the first as it is.
    pub(super) rungs: Vec<Rung>,
}

/// What the ladders of a model are made by.
pub(super) struct Rules<'r> {
    /// The types that tensors may become.
    pub(super) types: &'r [TensorType],
    /// Blocks that stay as they are.
    pub(super) keep: &'r BlockSet,
    /// The importance matrix by which weights are rounded.
    pub(super) rounding: Option<&'r Matrix>,
    /// The one by which errors are weighted.
    pub(super) weights: &'r Matrix,
}

/// The ladders of `model` with more than one rung, in its order.
pub(super) fn ladders(model: &Model<'_>, rules: &Rules<'_>) -> Result<Vec<Ladder>> {
    let rounding = rules.rounding.map(Matrix::parse).transpose()?;
    let weights = rules.weights.parse()?;
    let mut ladders = Vec::new();
    for (source, tensor) in model.tensors().iter().enumerate() {
        let (info, block) = (&tensor.info, tensor.block);
        if !may_change(model, tensor, rules.keep) {
            continue;
        }
        let importance = rounding.as_ref().map(|matrix| matrix.importance(info.name()));
        let importance = importance.transpose()?.flatten();
        let columns = weights.importance(info.name())?;
        let fits = |to: &TensorType| {
            let is_smaller = bytes_in(info, *to).is_some_and(|bytes| bytes < info.n_bytes());
            is_smaller && (importance.is_some() || !needs_importance(*to))
        };
        let types: Vec<TensorType> = rules.types.iter().copied().filter(fits).collect();
        let sample = Sample::of(info, columns.as_deref(), importance.as_deref())?;
        let rungs: Option<Vec<Rung>> = types.par_iter().map(|to| sample.rung(info, *to)).collect();
        let name = || format!("tensor '{}' has weights that cannot be rounded", info.name());
        let rungs = with_first(info, rungs.with_context(name)?);
        if rungs.len() > 1 {
            let kind = block.map_or(info.name(), |(_, rest)| rest).to_owned();
            ladders.push(Ladder { source, block: block.map(|(block, _)| block), kind, rungs });
        }
    }
    Ok(ladders)
}

/// Whether a tensor may take another type.
fn may_change(model: &Model<'_>, tensor: &ModelTensor<'_>, keep: &BlockSet) -> bool {
    let is_kept = tensor
        .block
        .is_some_and(|(block, _)| keep.contains(&block) || block.index() >= model.n_trunk_blocks());
    // A part of it for each block is cut where blocks go.
    let has_parts =
        model.rules().is_some_and(|rules| rules.parts().any(|parts| parts.name == tensor.info.name()));
    !is_kept && !has_parts && may_be_rounded(&tensor.info)
}

/// The least bytes of a tensor, as it is or in one of `types`.
pub(super) fn least_bytes(
    model: &Model<'_>,
    tensor: &ModelTensor<'_>,
    types: &[TensorType],
    keep: &BlockSet,
) -> u64 {
    let own = tensor.info.n_bytes();
    match may_change(model, tensor, keep) {
        true => types.iter().filter_map(|to| bytes_in(&tensor.info, *to)).fold(own, u64::min),
        false => own,
    }
}

/// Bytes of a tensor in another type; `None` if its rows are not whole quantisation blocks.
fn bytes_in(info: &TensorInfo<'_>, to: TensorType) -> Option<u64> {
    let n_columns = info.dims()[0];
    to.row_bytes(n_columns)?.checked_mul(info.n_elements().checked_div(n_columns)?)
}

/// The tensor as it is, then its rungs from large to small. Rungs that another one beats are left out.
fn with_first(info: &TensorInfo<'_>, mut rungs: Vec<Rung>) -> Vec<Rung> {
    rungs.push(Rung { to: None, bytes: info.n_bytes(), error: 0.0 });
    let options = rungs.iter().map(|rung| knapsack::Option { bytes: rung.bytes, loss: rung.error });
    let front = knapsack::front(&options.collect::<Vec<_>>());
    front.into_iter().rev().map(|number| rungs[number]).collect()
}

/// Some rows of a tensor.
struct Sample {
    n_columns: usize,
    /// Rows, each with the number of its matrix.
    rows: Vec<(usize, Vec<f32>)>,
    /// The share of all rows that they are.
    share: f64,
    /// The mean squares of inputs, `[n_matrices, n_columns]`.
    inputs: Vec<f32>,
    /// By what rows are rounded, of the same shape.
    importance: Option<Vec<f32>>,
}

impl Sample {
    fn of(info: &TensorInfo<'_>, inputs: Option<&[f32]>, importance: Option<&[f32]>) -> Result<Self> {
        let [n_columns, n_rows, ..] = info.dims();
        let (n_columns, n_rows) = (usize::try_from(n_columns)?, usize::try_from(n_rows)?.max(1));
        let from = info.tensor_type();
        let row_bytes = from.row_bytes(n_columns as u64).context("bug: rows that are not whole")?;
        let row_bytes = usize::try_from(row_bytes)?.max(1);
        let n_all = info.bytes().len() / row_bytes;
        let n = (SAMPLE / n_columns.max(1)).clamp(8, n_all.max(8)).min(n_all);
        let row = |i: usize| {
            // The middle of each of as many parts.
            let number = (2 * i + 1) * n_all / (2 * n.max(1));
            let bytes = &info.bytes()[number * row_bytes..(number + 1) * row_bytes];
            Some((number / n_rows, ggml::quantize::dequantize(from.id(), bytes)?))
        };
        let rows: Option<Vec<_>> = (0..n).map(row).collect();
        let n_inputs = n_all / n_rows * n_columns;
        let inputs = inputs.filter(|inputs| inputs.len() == n_inputs);
        Ok(Self {
            n_columns,
            rows: rows.context("bug: a type that cannot be read")?,
            share: n as f64 / n_all.max(1) as f64,
            inputs: inputs.map_or_else(|| vec![1.0; n_inputs], <[f32]>::to_vec),
            importance: importance.filter(|numbers| numbers.len() == n_inputs).map(<[f32]>::to_vec),
        })
    }

    /// The tensor in another type; `None` if its weights cannot be rounded.
    fn rung(&self, info: &TensorInfo<'_>, to: TensorType) -> Option<Rung> {
        let mut error = 0.0;
        for (matrix, weights) in &self.rows {
            let columns = matrix * self.n_columns..(matrix + 1) * self.n_columns;
            let importance = self.importance.as_ref().map(|all| &all[columns.clone()]);
            let bytes = ggml::quantize::quantize(to.id(), weights, self.n_columns, importance)?;
            let back = ggml::quantize::dequantize(to.id(), &bytes)?;
            let off = weights.iter().zip(&back).zip(&self.inputs[columns]);
            error += off.map(|((a, b), h)| f64::from(*h) * f64::from(a - b).powi(2)).sum::<f64>();
        }
        Some(Rung { to: Some(to), bytes: bytes_in(info, to)?, error: error / self.share })
    }
}
