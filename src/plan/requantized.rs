//! Kept tensors in other types than the parent's, as `llama-quantize` makes them. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{AttentionCut, ChangedTensors, Tensors};
use crate::gguf::{EntryOut, TensorType, ValueOut};
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model};

/// The parent's names of the tensors in other types.
pub const TENSORS_KEY: &str = "gguf_shorten.fit.tensors";

/// The BLAKE3 hash of the data of each of them.
pub const HASHES_KEY: &str = "gguf_shorten.fit.blake3";

/// What became of each block of the parent: its types, or that it was removed.
pub const BLOCKS_KEY: &str = "gguf_shorten.fit.blocks";

/// The mean KL divergence from the parent, in nats: as the sum of single losses, and as measured.
pub const LOSS_KEY: &str = "gguf_shorten.fit.loss";

/// The ggml and the family of machines that rounded the weights.
pub const GGML_KEY: &str = "gguf_shorten.fit.ggml";

/// The BLAKE3 hash of the importance matrix that was used.
pub const IMATRIX_KEY: &str = "gguf_shorten.fit.imatrix.blake3";

/// The type of most weights (`llama.h: llama_ftype`).
const FILE_TYPE: &str = "general.file_type";

/// The version of the quantized formats (`ggml.h: GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: (&str, u32) = ("general.quantization_version", 2);

/// Tensors in other types.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantized {
    /// The tensors, by their index among the model's.
    pub tensors: ChangedTensors,
    /// The mean KL divergence from the parent, in nats: as the sum of single losses, and as measured; NaN where it was not.
    pub loss: [f32; 2],
    /// The ggml and the family of machines that rounded the weights.
    pub ggml: String,
    /// Hash of the importance matrix that was used.
    pub imatrix: Option<blake3::Hash>,
}

impl Requantized {
    /// The output's entries, with those about its types.
    ///
    /// # Errors
    /// A tensor that the model does not have, which is a bug.
    pub(super) fn entries<'a>(
        &self,
        model: &Model<'a>,
        renumbering: &Renumbering,
        attention: Option<&AttentionCut>,
        mut entries: Vec<EntryOut<'a>>,
        tensors: &Tensors<'_>,
    ) -> Result<Vec<EntryOut<'a>>> {
        let mut names = Vec::new();
        let mut hashes = Vec::new();
        for (&source, changed) in &self.tensors {
            let tensor = model.tensors().get(source);
            names.push(
                tensor.context("bug: a tensor in another type that the model does not have")?.info.name(),
            );
            hashes.push(blake3::hash(&changed.bytes).to_hex().to_string());
        }
        let types = self.tensors.iter().map(|(source, changed)| (*source, changed.tensor_type));
        if let Some(number) = file_type(tensors) {
            set(&mut entries, FILE_TYPE, number);
        }
        set(&mut entries, QUANTIZATION_VERSION.0, QUANTIZATION_VERSION.1);
        entries.push(EntryOut::new(TENSORS_KEY, ValueOut::strings(&names)));
        entries.push(EntryOut::new(HASHES_KEY, ValueOut::strings(&hashes)));
        let rungs = rungs(model, renumbering, attention, types);
        entries.push(EntryOut::new(BLOCKS_KEY, ValueOut::strings(&rungs)));
        entries.push(EntryOut::new(LOSS_KEY, ValueOut::f32s(&self.loss)));
        entries.push(EntryOut::string(GGML_KEY, &self.ggml));
        if let Some(hash) = self.imatrix {
            entries.push(EntryOut::string(IMATRIX_KEY, hash.to_hex().as_str()));
        }
        Ok(entries)
    }
}

/// What became of each block of `model`: `removed`, `kept`, or its new types from the one of most weights on. Then
/// `without attention` of those of `attention`.
#[must_use]
pub fn rungs(
    model: &Model<'_>,
    renumbering: &Renumbering,
    attention: Option<&AttentionCut>,
    types: impl IntoIterator<Item = (usize, TensorType)>,
) -> Vec<String> {
    let mut weights: BTreeMap<BlockId, BTreeMap<&str, u64>> = BTreeMap::new();
    for (source, to) in types {
        let tensor = model.tensors().get(source);
        if let Some((tensor, block)) = tensor.and_then(|tensor| Some((tensor, tensor.block?.0))) {
            *weights.entry(block).or_default().entry(to.name()).or_default() += tensor.info.n_elements();
        }
    }
    let word = |block: BlockId| match (renumbering.number(block), weights.get(&block)) {
        (None, _) => "removed".to_owned(),
        (Some(_), None) => "kept".to_owned(),
        (Some(_), Some(types)) => {
            let mut types: Vec<(&str, u64)> = types.iter().map(|(name, n)| (*name, *n)).collect();
            types.sort_by_key(|(name, n)| (std::cmp::Reverse(*n), *name));
            types.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
        }
    };
    let without = |block: &BlockId| attention.is_some_and(|cut| cut.blocks.contains(block));
    let full = |block: BlockId| match without(&block) {
        true => word(block) + " without attention",
        false => word(block),
    };
    (0..model.n_blocks()).map(BlockId::new).map(full).collect()
}

/// Sets an entry to a number, or adds it.
fn set(entries: &mut Vec<EntryOut<'_>>, key: &'static str, number: u32) {
    match entries.iter_mut().find(|entry| entry.key() == key) {
        Some(entry) => *entry = EntryOut::u32(key, number),
        None => entries.push(EntryOut::u32(key, number)),
    }
}

/// File type numbers by base type, the middle one of several (`llama.h: llama_ftype`).
pub const FILE_TYPES: &[(&str, u32)] = &[
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q2_K", 10),
    ("Q3_K", 12),
    ("Q4_K", 15),
    ("Q5_K", 17),
    ("Q6_K", 18),
    ("IQ2_XXS", 19),
    ("IQ2_XS", 20),
    ("IQ3_XXS", 23),
    ("IQ1_S", 24),
    ("IQ4_NL", 25),
    ("IQ3_S", 26),
    ("IQ2_S", 28),
    ("IQ4_XS", 30),
    ("IQ1_M", 31),
    ("BF16", 32),
    ("TQ1_0", 36),
    ("TQ2_0", 37),
    ("MXFP4", 38),
    ("NVFP4", 39),
];

/// The file type whose base type holds most weights (`llama-model-loader.cpp: llama_model_loader`).
fn file_type(tensors: &Tensors<'_>) -> Option<u32> {
    let mut weights: BTreeMap<&str, u64> = BTreeMap::new();
    for (out, _) in &tensors.planned {
        *weights.entry(out.tensor_type().name()).or_default() += out.n_elements();
    }
    let (most, _) = weights.into_iter().max_by_key(|(_, n)| *n)?;
    FILE_TYPES.iter().find(|(name, _)| *name == most).map(|(_, number)| *number)
}
