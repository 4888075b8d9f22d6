//! The matrix of a block that is fitted: the one that writes to the stream.

use anyhow::{Context, Result, ensure};

use crate::gguf::{Quoted, TensorType};
use crate::model::arch::Fit;
use crate::model::{BlockId, Model, ModelTensor};

/// The matrix of the feed-forward network, after `blk.<i>.`.
pub const FFN_DOWN: &str = "ffn_down.weight";

/// The matrix of attention, after `blk.<i>.`.
pub const ATTN_OUTPUT: &str = "attn_output.weight";

/// Tensors that a block must not have, each with the reason.
const OBSTACLES: &[(&str, &str)] = &[
    ("ffn_down_exps.weight", "its feed-forward network has experts"),
    ("ffn_down_shexp.weight", "its feed-forward network has experts"),
    ("ffn_down.scale", "its 'ffn_down' has a scale of its own"),
    ("ffn_sub_norm.weight", "a norm stands before its 'ffn_down' as part of it"),
    ("post_ffw_norm.weight", "a norm stands between its 'ffn_down' and the stream"),
    ("post_ffn_norm.weight", "a norm stands between its 'ffn_down' and the stream"),
    ("ffn_post_norm.weight", "a norm stands between its 'ffn_down' and the stream"),
    ("layer_output_norm.weight", "the stream itself passes a norm"),
    ("layer_out_norm.weight", "the stream itself passes a norm"),
    ("layer_output_scale.weight", "the stream itself is scaled"),
];

/// A matrix that can be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetMatrix {
    /// Its index among the model's tensors.
    pub source: usize,
    /// Its type.
    pub tensor_type: TensorType,
    /// Numbers that it multiplies.
    pub n_in: usize,
    /// Numbers that it writes: the width of the stream.
    pub n_out: usize,
}

impl TargetMatrix {
    /// That of `block`.
    ///
    /// # Errors
    /// A block that has none, with the reason.
    pub fn of(model: &Model<'_>, block: BlockId) -> Result<Self> {
        for (rest, why) in OBSTACLES {
            let is_there = |tensor: &ModelTensor<'_>| tensor.block == Some((block, *rest));
            ensure!(!model.tensors().iter().any(is_there), "block {block} cannot make up for others: {why}");
        }
        ensure!(
            model.rules().is_none_or(|rules| rules.residual.fit != Fit::Nothing),
            "block {block} cannot make up for others: in {} what a block writes is multiplied by a factor",
            Quoted(model.architecture())
        );
        Self::named(model, block, FFN_DOWN)?
            .with_context(|| format!("block {block} cannot make up for others: it has no '{FFN_DOWN}'"))
    }

    /// The matrix of `block` called `rest` after `blk.<i>.`; `None` without one.
    ///
    /// # Errors
    /// One that other weights cannot be given to.
    pub fn named(model: &Model<'_>, block: BlockId, rest: &str) -> Result<Option<Self>> {
        let mut tensors = model.tensors().iter().enumerate();
        let found = tensors.find(|(_, tensor)| tensor.block == Some((block, rest)));
        let Some((source, tensor)) = found else {
            return Ok(None);
        };
        let info = &tensor.info;
        let tensor_type = info.tensor_type();
        ensure!(
            info.n_dims() == 2 && ggml::quantize::can_quantize(tensor_type.id()),
            "tensor {} cannot make up for removed blocks: weights of type {tensor_type} cannot be made",
            Quoted(info.name())
        );
        let dim = |i: usize| usize::try_from(info.dims()[i]);
        Ok(Some(Self { source, tensor_type, n_in: dim(0)?, n_out: dim(1)? }))
    }

    /// The largest target matrix of `model`, if any block has one.
    ///
    /// # Errors
    /// No block can: the reason of the first.
    pub fn largest(model: &Model<'_>) -> Result<Self> {
        let all: Vec<Result<Self>> =
            (0..model.n_trunk_blocks()).map(|block| Self::of(model, BlockId::new(block))).collect();
        match all.iter().flatten().max_by_key(|matrix| matrix.n_in) {
            Some(largest) => Ok(*largest),
            None => all.into_iter().next().context("bug: a model of no blocks")?,
        }
    }
}
