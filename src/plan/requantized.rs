//! Kept tensors in other types than the parent's, as `llama-quantize` makes them. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use ggml::FileType;
use rayon::prelude::*;

use super::{ChangedTensors, Tensors};
use crate::gguf::{EntryOut, Quoted, TensorInfo, TensorType, ValueOut};
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

/// Weights that are rounded by one thread at once.
const CHUNK: usize = 1 << 18;

/// Tensors in other types.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantized {
    /// The tensors, by their index among the model's.
    pub tensors: ChangedTensors,
    /// The mean KL divergence from the parent, in nats: as the sum of single losses, and as measured; NaN where it was not.
    pub loss: [f32; 2],
    /// What rounded the weights, as [`family`].
    pub ggml: String,
    /// Hash of the importance matrix that was used.
    pub imatrix: Option<blake3::Hash>,
}

/// The ggml and the family of machines that this program runs on.
#[must_use]
pub fn family() -> String {
    format!("{} {}", ggml::backend::llama_cpp_version(), std::env::consts::ARCH)
}

/// What counts for the squares of errors, column by column, of each matrix of a tensor.
pub type Importance = Vec<f32>;

impl Requantized {
    /// The entries of the output with all that it says of its types. `removed` are the parent's blocks that it does not have.
    ///
    /// # Errors
    /// A tensor that the model does not have, which is a bug.
    pub(super) fn entries<'a>(
        &self,
        model: &Model<'a>,
        renumbering: &Renumbering,
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
        if let Some(number) = file_type(tensors) {
            set(&mut entries, FILE_TYPE, number);
        }
        set(&mut entries, QUANTIZATION_VERSION.0, QUANTIZATION_VERSION.1);
        entries.push(EntryOut::new(TENSORS_KEY, ValueOut::strings(&names)));
        entries.push(EntryOut::new(HASHES_KEY, ValueOut::strings(&hashes)));
        entries.push(EntryOut::new(BLOCKS_KEY, ValueOut::strings(&self.blocks(model, renumbering))));
        entries.push(EntryOut::new(LOSS_KEY, ValueOut::f32s(&self.loss)));
        entries.push(EntryOut::string(GGML_KEY, &self.ggml));
        if let Some(hash) = self.imatrix {
            entries.push(EntryOut::string(IMATRIX_KEY, hash.to_hex().as_str()));
        }
        Ok(entries)
    }

    /// What became of each block of `model`: `removed`, `kept`, or its new types from the one of most weights on.
    #[must_use]
    pub fn blocks(&self, model: &Model<'_>, renumbering: &Renumbering) -> Vec<String> {
        let mut weights: BTreeMap<BlockId, BTreeMap<&str, u64>> = BTreeMap::new();
        for (&source, changed) in &self.tensors {
            let tensor = model.tensors().get(source);
            if let Some((tensor, block)) = tensor.and_then(|tensor| Some((tensor, tensor.block?.0))) {
                let of_type = weights.entry(block).or_default().entry(changed.tensor_type.name());
                *of_type.or_default() += tensor.info.n_elements();
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
        (0..model.n_blocks()).map(BlockId::new).map(word).collect()
    }
}

/// Sets an entry to a number, or adds it.
fn set(entries: &mut Vec<EntryOut<'_>>, key: &'static str, number: u32) {
    match entries.iter_mut().find(|entry| entry.key() == key) {
        Some(entry) => *entry = EntryOut::u32(key, number),
        None => entries.push(EntryOut::u32(key, number)),
    }
}

/// The number of the file type whose base type holds most weights (`llama-model-loader.cpp: llama_model_loader`).
fn file_type(tensors: &Tensors<'_>) -> Option<u32> {
    let mut weights: BTreeMap<&str, u64> = BTreeMap::new();
    for (out, _) in &tensors.planned {
        *weights.entry(out.tensor_type().name()).or_default() += out.n_elements();
    }
    let (most, _) = weights.into_iter().max_by_key(|(_, n)| *n)?;
    most.parse::<FileType>().ok().map(FileType::number)
}

/// Parts of names of tensors that `llama-quantize` leaves as they are (`llama-quant.cpp: tensor_allows_quantization`).
const LEFT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
];

/// Whether `llama-quantize` would write a tensor in another type.
#[must_use]
pub fn may_be_rounded(info: &TensorInfo<'_>) -> bool {
    let (name, dims) = (info.name(), info.dims());
    let n_matrices = dims.iter().filter(|dim| **dim > 1).count();
    let from = info.tensor_type();
    name.ends_with("weight")
        && n_matrices >= 2
        && dims[3] == 1
        && !LEFT.iter().any(|part| name.contains(part))
        && ggml::quantize::can_dequantize(from.id())
}

/// Whether a type needs an importance matrix, as `llama-quantize` sees it (`llama-quant.cpp: tensor_requires_imatrix`).
#[must_use]
pub fn needs_importance(to: TensorType) -> bool {
    ["IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"].contains(&to.name())
        || ggml::quantize::needs_importance(to.id())
}

/// The weights of a tensor in type `to`, by ggml's own rounding: the bytes that `llama_model_quantize` makes of them.
///
/// `importance` has a number for each column of each matrix.
///
/// # Errors
/// A type that the tensor's rows cannot take or that cannot be read; weights that are not finite.
pub fn rounded(info: &TensorInfo<'_>, to: TensorType, importance: Option<&[f32]>) -> Result<Vec<u8>> {
    let from = info.tensor_type();
    let cannot = || format!("tensor {} cannot be written in {to} from {from}", Quoted(info.name()));
    let [n_columns, n_rows, ..] = info.dims();
    let (n_columns, n_rows) = (usize::try_from(n_columns)?, usize::try_from(n_rows)?);
    let row_bytes = from.row_bytes(n_columns as u64).map(usize::try_from).with_context(cannot)??;
    let fits = to.row_bytes(n_columns as u64).is_some() && row_bytes > 0 && n_rows > 0;
    ensure!(
        fits,
        "{}: its rows of {n_columns} weights are not whole quantisation blocks of {}",
        cannot(),
        to.block_size()
    );
    let matrix_bytes = row_bytes.checked_mul(n_rows).with_context(cannot)?;
    let n_matrices = info.bytes().len() / matrix_bytes;
    if let Some(importance) = importance {
        ensure!(
            importance.len() == n_columns * n_matrices,
            "{}: its importance has {} numbers, expected {}",
            cannot(),
            importance.len(),
            n_columns * n_matrices
        );
    }
    let n_chunk = (CHUNK / n_columns.max(1)).max(1);
    let mut chunks: Vec<(usize, &[u8])> = Vec::new();
    for (matrix, bytes) in info.bytes().chunks_exact(matrix_bytes).enumerate() {
        chunks.extend(bytes.chunks(row_bytes * n_chunk).map(|rows| (matrix, rows)));
    }
    let pieces: Option<Vec<Vec<u8>>> = chunks
        .par_iter()
        .map(|(matrix, rows)| {
            let weights = ggml::quantize::dequantize(from.id(), rows)?;
            let of_matrix = importance.map(|all| &all[matrix * n_columns..(matrix + 1) * n_columns]);
            ggml::quantize::quantize(to.id(), &weights, n_columns, of_matrix)
        })
        .collect();
    Ok(pieces.with_context(cannot)?.concat())
}
