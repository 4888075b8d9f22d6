//! Residual-writing projections: the tensors that write to the stream. Pure: no I/O.
//!
//! What blocks after a cut find in the stream has another length than in the parent, while what they add to it is as large as
//! ever. Norms are the only readers of the stream, so a longer stream and smaller additions are the same. So the projections of
//! all blocks after the cut are divided by what the stream should be multiplied by (after Prune&Comp, arXiv:2507.18212, which
//! multiplies those before the cut).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::scale;
use crate::gguf::{Quoted, TensorType};
use crate::model::arch::{Readers, Stream};
use crate::model::{BlockId, Model};
use crate::plan::writers::{POST_NORMS, is_norm, is_projection};
use crate::plan::{ChangedTensor, ChangedTensors};

/// The tensors by which each block writes to the stream, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projections(BTreeMap<BlockId, Vec<usize>>);

/// Projections times their factors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaledProjections {
    /// The tensors.
    pub tensors: ChangedTensors,
    /// Names of those quantized again, for want of such scales.
    pub requantized: Vec<String>,
}

impl Projections {
    /// Those of `model`.
    ///
    /// # Errors
    /// An architecture in which the length of the stream shows, or may; a block without a projection that is known; one of a type
    /// that holds no other weights.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        let name = model.architecture();
        let refuse = |why: &str| -> Result<Self> {
            bail!("residual-writing projections of {} cannot be scaled: {why}", Quoted(name))
        };
        let Some(rules) = model.rules() else {
            return refuse("where its blocks write to the stream is not known");
        };
        if let Readers::Others(why) = rules.residual.readers {
            return refuse(why);
        }
        if !rules.stream.is_sum() || matches!(rules.stream, Stream::Looped { .. }) {
            return refuse("its stream is more than a sum of what blocks add");
        }
        let rests: BTreeSet<(BlockId, &str)> =
            model.tensors().iter().filter_map(|tensor| tensor.block).collect();
        let mut projections: BTreeMap<BlockId, Vec<usize>> = BTreeMap::new();
        for (i, tensor) in model.tensors().iter().enumerate() {
            let Some((block, rest)) = tensor.block else {
                continue;
            };
            if block.index() >= model.n_trunk_blocks() {
                continue;
            }
            let has = |norm: &str| rests.iter().any(|(of, rest)| *of == block && is_norm(rest, norm));
            let writes = match POST_NORMS.into_iter().all(has) {
                true => POST_NORMS.into_iter().any(|norm| is_norm(rest, norm)),
                false => is_projection(rest),
            };
            if writes {
                let tensor_type = tensor.info.tensor_type();
                if let Some(why) = scale::refusal(tensor_type)
                    && !ggml::quantize::can_quantize(tensor_type.id())
                {
                    return refuse(&format!(
                        "tensor {} is {tensor_type}, and {why}",
                        Quoted(tensor.info.name())
                    ));
                }
                projections.entry(block).or_default().push(i);
            }
        }
        let mut blocks = (0..model.n_trunk_blocks()).map(BlockId::new);
        if let Some(block) =
            blocks.find(|block| !projections.contains_key(block) && rests.iter().any(|(of, _)| of == block))
        {
            return refuse(&format!("none that is known is in block {block}"));
        }
        Ok(Self(projections))
    }

    /// The projections of these blocks, each block's times its factor.
    ///
    /// Those of `base` are taken as they are there. Those that `is_missing` says are in the model no more are left out.
    ///
    /// # Errors
    /// Weights that are not finite; a tensor whose product its type cannot hold.
    pub fn scaled(
        &self,
        model: &Model<'_>,
        base: &ChangedTensors,
        factors: &BTreeMap<BlockId, f64>,
        is_missing: &dyn Fn(usize) -> bool,
    ) -> Result<ScaledProjections> {
        let mut result = ScaledProjections::default();
        for (block, &factor) in factors {
            let projections = self.0.get(block).into_iter().flatten();
            for &i in projections.filter(|&&i| !is_missing(i)) {
                let tensor = model.tensors().get(i);
                let info = &tensor.context("bug: a projection that the model does not have")?.info;
                let at_tensor = || format!("tensor {}", Quoted(info.name()));
                let (tensor_type, bytes) = match base.get(&i) {
                    Some(changed) => (changed.tensor_type, &changed.bytes[..]),
                    None => (info.tensor_type(), info.bytes()),
                };
                // A scale may be too small for a nonzero product, too.
                let bytes = match scale::scaled(tensor_type, bytes, factor) {
                    Ok(scaled) => scaled.bytes,
                    Err(error) => {
                        result.requantized.push(info.name().to_owned());
                        let n_per_row = usize::try_from(info.dims()[0])?;
                        requantized(tensor_type, bytes, n_per_row, factor)
                            .with_context(|| format!("{error:#}"))
                            .with_context(at_tensor)?
                    }
                };
                result.tensors.insert(i, ChangedTensor { tensor_type, bytes });
            }
        }
        Ok(result)
    }
}

/// The weights times `factor`, rounded to the same type again.
fn requantized(tensor_type: TensorType, bytes: &[u8], n_per_row: usize, factor: f64) -> Result<Vec<u8>> {
    let id = tensor_type.id();
    let why = || format!("{tensor_type} cannot be rounded again");
    let mut weights = ggml::quantize::dequantize(id, bytes).with_context(why)?;
    for weight in &mut weights {
        #[expect(clippy::cast_possible_truncation, reason = "what overflows is found below")]
        let product = (f64::from(*weight) * factor) as f32;
        *weight = product;
    }
    ensure!(weights.iter().all(|weight| weight.is_finite()), "weights are not finite");
    ggml::quantize::quantize(id, &weights, n_per_row, None).with_context(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{EntryOut, File, Layout, TensorOut, write};

    /// A model whose three blocks have these tensors, all with these data.
    fn model_of(
        architecture: &str,
        rests: &[&str],
        tensor_type: TensorType,
        dims: &[u64],
        data: &[u8],
    ) -> Vec<u8> {
        let key = format!("{architecture}.block_count");
        let entries = vec![EntryOut::string("general.architecture", architecture), EntryOut::u32(&key, 3)];
        let tensors: Vec<TensorOut<'_>> = (0..3)
            .flat_map(|i| rests.iter().map(move |rest| format!("blk.{i}.{rest}")))
            .map(|name| TensorOut::new(name, dims, tensor_type).unwrap())
            .collect();
        let layout = Layout::new(3, 32, entries, tensors, true).unwrap();
        let mut bytes = Vec::new();
        write(&layout, &mut bytes, |_, out| out.write_all(data)).unwrap();
        bytes
    }

    fn model(architecture: &str, rests: &[&str]) -> Vec<u8> {
        let data = [3.0, -1.0].map(f32::to_le_bytes).concat();
        model_of(architecture, rests, TensorType::F32, &[2], &data)
    }

    fn names(architecture: &str, rests: &[&str]) -> Result<Vec<String>> {
        let bytes = model(architecture, rests);
        let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        let projections = Projections::of(&model)?;
        let of_block = &projections.0[&BlockId::new(1)];
        let name = |&i: &usize| model.tensors()[i].block.unwrap().1.to_owned();
        Ok(of_block.iter().map(name).collect())
    }

    #[test]
    fn weights_and_biases_or_the_norms_after_them_are_scaled() {
        let llama = [
            "attn_norm.weight",
            "attn_q.weight",
            "attn_output.weight",
            "attn_output.bias",
            "ffn_up.weight",
            "ffn_down.weight",
        ];
        assert_eq!(
            names("llama", &llama).unwrap(),
            ["attn_output.weight", "attn_output.bias", "ffn_down.weight"]
        );
        let experts = [
            "attn_output.weight",
            "attn_output.scale",
            "attn_output.input_scale",
            "ffn_down_exps.weight",
            "ffn_down_exps.bias",
            "ffn_down_shexp.weight",
        ];
        assert_eq!(
            names("qwen2moe", &experts).unwrap(),
            ["attn_output.weight", "ffn_down_exps.weight", "ffn_down_exps.bias", "ffn_down_shexp.weight"]
        );
        let both =
            ["attn_output.weight", "post_attention_norm.weight", "ffn_down.weight", "post_ffw_norm.weight"];
        assert_eq!(names("gemma3", &both).unwrap(), [both[1], both[3]]);
        assert_eq!(
            names("plamo3", &["post_attention_norm", "attn_output.weight", "post_ffw_norm"]).unwrap(),
            POST_NORMS
        );
        assert_eq!(names("qwen35", &both[..3]).unwrap(), ["attn_output.weight", "ffn_down.weight"]);
    }

    #[test]
    fn where_the_length_of_the_stream_shows_nothing_is_scaled() {
        for (architecture, why) in [
            ("olmo2", "attention and feed-forward network read the stream without a norm (olmo2.cpp)"),
            ("bert", "its stream is more than a sum of what blocks add"),
            ("nanbeige", "its stream is more than a sum of what blocks add"),
            ("llama", "none that is known is in block 0"),
            ("new", "where its blocks write to the stream is not known"),
        ] {
            let error = names(architecture, &["attn_norm.weight"]).unwrap_err();
            let expected =
                format!("residual-writing projections of '{architecture}' cannot be scaled: {why}");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn what_has_no_scale_for_a_factor_is_rounded_again_and_named() {
        let named = |name: &str| TensorType::all().find(|of| of.name() == name).unwrap();
        for (name, error) in [("MXFP4", 0.2), ("NVFP4", 0.2), ("F16", 1e-3)] {
            let tensor_type = named(name);
            let weights: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut data = ggml::quantize::quantize(tensor_type.id(), &weights, 64, None).unwrap();
            if name == "F16" {
                // A third of it is nothing.
                data[..2].copy_from_slice(&1u16.to_le_bytes());
            }
            let bytes = model_of("llama", &["ffn_down.weight"], tensor_type, &[64, 2], &data);
            let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
            let projections = Projections::of(&model).unwrap();
            let factors = BTreeMap::from([(BlockId::new(1), 0.3)]);
            let scaled = projections.scaled(&model, &ChangedTensors::new(), &factors, &|_| false).unwrap();
            assert_eq!(scaled.requantized, ["blk.1.ffn_down.weight"]);
            let decoded = |data: &[u8]| ggml::quantize::dequantize(tensor_type.id(), data).unwrap();
            let (old, new) = (decoded(&data), decoded(&scaled.tensors[&1].bytes));
            let wrong = old.iter().zip(&new).map(|(a, b)| (b - 0.3 * a).powi(2));
            let size = old.iter().map(|a| (0.3 * a).powi(2)).sum::<f32>();
            assert!((wrong.sum::<f32>() / size).sqrt() < error, "{name}");
        }
        let integers = model_of("llama", &["ffn_down.weight"], named("I8"), &[32], &[0; 32]);
        let model = Model::new(vec![File::parse(&integers).unwrap()]).unwrap();
        assert_eq!(
            Projections::of(&model).unwrap_err().to_string(),
            "residual-writing projections of 'llama' cannot be scaled: tensor 'blk.0.ffn_down.weight' is I8, and it has no scales"
        );
    }

    #[test]
    fn each_block_has_its_own_factor() {
        let bytes = model("llama", &["attn_norm.weight", "ffn_down.weight"]);
        let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        let projections = Projections::of(&model).unwrap();
        let factors = BTreeMap::from([(BlockId::new(1), 0.5), (BlockId::new(2), 2.0)]);
        let none = ChangedTensors::new();
        let scaled = projections.scaled(&model, &none, &factors, &|_| false).unwrap();
        let floats = |i: usize| -> Vec<f32> {
            let bytes = scaled.tensors[&i].bytes.as_chunks::<4>().0;
            bytes.iter().map(|&b| f32::from_le_bytes(b)).collect()
        };
        assert_eq!(scaled.tensors.keys().copied().collect::<Vec<_>>(), [3, 5]);
        assert_eq!((floats(3), floats(5)), (vec![1.5, -0.5], vec![6.0, -2.0]));
        assert!(scaled.requantized.is_empty());
        // On top of weights that are others already.
        let again = projections.scaled(&model, &scaled.tensors, &factors, &|i| i == 5).unwrap();
        assert_eq!(again.tensors.len(), 1);
        assert_eq!(again.tensors[&3].bytes[..4], 0.75f32.to_le_bytes());
    }
}
