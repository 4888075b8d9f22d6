//! Rounding of a tensor's weights to another type, as `llama-quantize` does it. Pure.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::gguf::{Quoted, TensorInfo, TensorType};

/// Weights that are rounded by one thread at once.
const CHUNK: usize = 1 << 18;

/// The ggml and the family of machines that this program runs on.
#[must_use]
pub fn family() -> String {
    format!("{} {}", ggml::backend::llama_cpp_version(), std::env::consts::ARCH)
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

#[cfg(test)]
mod tests {
    use ggml::FileType;

    use crate::plan::requantized::FILE_TYPES;

    #[test]
    fn numbers_of_file_types_are_those_of_llama_cpp() {
        for (name, number) in FILE_TYPES {
            // llama-quantize names the one after mixtures, the other not at all.
            let name = if *name == "MXFP4" { "MXFP4_MOE" } else { name };
            if name == "NVFP4" {
                continue;
            }
            let found: FileType = name.parse().unwrap();
            assert_eq!(found.number(), *number, "{name}");
        }
    }
}
