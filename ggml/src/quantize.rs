//! ggml's own rounding of weights to a tensor type, and back.

use std::ffi::c_void;
use std::ptr;

use llama_cpp_sys_2 as sys;

use crate::enums::value;
use crate::tensor_type::{COUNT, block_bytes, block_size};

/// Whether the type needs an importance for each column (`ggml.c: ggml_quantize_requires_imatrix`).
#[must_use]
pub fn needs_importance(id: u32) -> bool {
    // SAFETY: compares the id with a few; any is fine.
    id < COUNT && unsafe { sys::ggml_quantize_requires_imatrix(value(id)) }
}

/// Whether [`quantize`] knows type `id`: those that `ggml.c: ggml_quantize_chunk` does.
#[must_use]
pub fn can_quantize(id: u32) -> bool {
    matches!(
        value(id),
        sys::GGML_TYPE_F32
            | sys::GGML_TYPE_F16
            | sys::GGML_TYPE_BF16
            | sys::GGML_TYPE_Q4_0
            | sys::GGML_TYPE_Q4_1
            | sys::GGML_TYPE_Q5_0
            | sys::GGML_TYPE_Q5_1
            | sys::GGML_TYPE_Q8_0
            | sys::GGML_TYPE_Q2_K
            | sys::GGML_TYPE_Q3_K
            | sys::GGML_TYPE_Q4_K
            | sys::GGML_TYPE_Q5_K
            | sys::GGML_TYPE_Q6_K
            | sys::GGML_TYPE_IQ1_S
            | sys::GGML_TYPE_IQ1_M
            | sys::GGML_TYPE_IQ2_XXS
            | sys::GGML_TYPE_IQ2_XS
            | sys::GGML_TYPE_IQ2_S
            | sys::GGML_TYPE_IQ3_XXS
            | sys::GGML_TYPE_IQ3_S
            | sys::GGML_TYPE_IQ4_NL
            | sys::GGML_TYPE_IQ4_XS
            | sys::GGML_TYPE_TQ1_0
            | sys::GGML_TYPE_TQ2_0
            | sys::GGML_TYPE_MXFP4
            | sys::GGML_TYPE_NVFP4
    )
}

/// Quantizes each row of `n_per_row` weights to type `id`. `importance`, of one row, says how much the square of an error
/// counts in each column; types without a use for it ignore it. `None` for a type that [`can_quantize`] does not know, or whose
/// importance is missing. Also for rows that are not whole quantisation blocks, and for numbers that are not finite.
#[must_use]
pub fn quantize(id: u32, weights: &[f32], n_per_row: usize, importance: Option<&[f32]>) -> Option<Vec<u8>> {
    let block = usize::try_from(block_size(id)).ok()?;
    let whole = n_per_row > 0
        && can_quantize(id)
        && n_per_row.is_multiple_of(block)
        && weights.len().is_multiple_of(n_per_row);
    let usable = match importance {
        Some(importance) => {
            importance.len() == n_per_row && importance.iter().all(|i| i.is_finite() && *i >= 0.0)
        }
        None => !needs_importance(id),
    };
    if !whole || !usable || !weights.iter().all(|weight| weight.is_finite()) {
        return None;
    }
    let row_bytes = (n_per_row / block).checked_mul(usize::try_from(block_bytes(id)).ok()?)?;
    let n_rows = weights.len() / n_per_row;
    let mut bytes = vec![0u8; n_rows.checked_mul(row_bytes)?];
    let (rows, columns) = (i64::try_from(n_rows).ok()?, i64::try_from(n_per_row).ok()?);
    // SAFETY: `weights` has rows x columns floats, the result room for as many rows of the type, `importance` is null or has a
    // float for each column. The type is one that the call takes, and rows are whole quantisation blocks.
    let n_bytes = unsafe {
        sys::ggml_quantize_chunk(
            value(id),
            weights.as_ptr(),
            bytes.as_mut_ptr().cast::<c_void>(),
            0,
            rows,
            columns,
            importance.map_or(ptr::null(), <[f32]>::as_ptr),
        )
    };
    (n_bytes == bytes.len()).then_some(bytes)
}

/// Whether [`dequantize`] knows type `id`.
#[must_use]
pub fn can_dequantize(id: u32) -> bool {
    dequantize(id, &[]).is_some()
}

/// The weights that `bytes` of type `id` stand for. `None` for a type that does not stand for numbers of any precision, and for
/// bytes that are not whole quantisation blocks.
#[must_use]
pub fn dequantize(id: u32, bytes: &[u8]) -> Option<Vec<f32>> {
    let (block, of_block) = (block_size(id), usize::try_from(block_bytes(id)).ok()?);
    if block == 0 || !bytes.len().is_multiple_of(of_block) {
        return None;
    }
    if value(id) == sys::GGML_TYPE_F32 {
        let floats = bytes.chunks_exact(4);
        return Some(floats.map(|float| f32::from_le_bytes(float.try_into().unwrap_or_default())).collect());
    }
    // SAFETY: `block_size` knows the type, so that it is below the number of types.
    let traits = unsafe { sys::ggml_get_type_traits(value(id)) };
    // SAFETY: a place in the library's table, or null.
    let to_float = unsafe { traits.as_ref() }?.to_float?;
    let n = (bytes.len() / of_block).checked_mul(usize::try_from(block).ok()?)?;
    // ggml reads structs whose numbers have up to four bytes.
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    for (to, from) in aligned.iter_mut().zip(bytes.chunks(8)) {
        let mut word = [0; 8];
        word[..from.len()].copy_from_slice(from);
        *to = u64::from_ne_bytes(word);
    }
    let mut weights = vec![0f32; n];
    // SAFETY: `aligned` holds the bytes of `n` weights of the type, `weights` has room for them.
    unsafe {
        to_float(aligned.as_ptr().cast::<c_void>(), weights.as_mut_ptr(), i64::try_from(n).ok()?);
    }
    Some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(n: usize) -> Vec<f32> {
        let mut state = 7u32;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0) - 1.0
        })
        .take(n)
        .collect()
    }

    #[test]
    fn weights_come_back_as_near_as_their_type_allows() {
        let weights = weights(3 * 512);
        let energy: f32 = weights.iter().map(|w| w * w).sum();
        for id in (0..COUNT).filter(|&id| can_quantize(id)) {
            let importance = needs_importance(id).then(|| vec![1.0; 512]);
            let bytes = quantize(id, &weights, 512, importance.as_deref()).unwrap();
            let back = dequantize(id, &bytes).unwrap();
            let error: f32 = weights.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
            let bits = block_bytes(id) as f32 * 8.0 / block_size(id) as f32;
            // Uniform weights: the error of b bits is about 4^-b of the energy; grids lose something.
            let bound = if bits > 9.0 { 1e-4 } else { 16.0 * 4f32.powf(-bits) };
            assert!(error <= bound.min(0.9) * energy, "type {id}: {error} of {energy}");
        }
    }

    #[test]
    fn what_cannot_be_rounded_is_nothing() {
        let weights = weights(64);
        assert!(quantize(sys::GGML_TYPE_Q8_0, &weights, 64, None).is_some());
        assert!(quantize(sys::GGML_TYPE_Q8_0, &weights, 16, None).is_none());
        assert!(quantize(sys::GGML_TYPE_Q8_1, &weights, 64, None).is_none());
        assert!(quantize(sys::GGML_TYPE_I32, &weights, 64, None).is_none());
        assert!(quantize(u32::MAX, &weights, 64, None).is_none());
        let many = self::weights(256);
        assert!(quantize(sys::GGML_TYPE_IQ2_XXS, &many, 256, None).is_none());
        let mut bad = weights.clone();
        bad[3] = f32::NAN;
        assert!(quantize(sys::GGML_TYPE_F32, &bad, 64, None).is_none());
        assert!(dequantize(sys::GGML_TYPE_I32, &[0; 8]).is_none());
        assert!(dequantize(sys::GGML_TYPE_Q8_0, &[0; 33]).is_none());
        assert_eq!(dequantize(sys::GGML_TYPE_F32, &1f32.to_le_bytes()).unwrap(), [1.0]);
    }

    #[test]
    fn importance_moves_the_error_to_other_columns() {
        let weights = weights(8 * 256);
        let importance: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { 1000.0 } else { 0.001 }).collect();
        let error = |importance: Option<&[f32]>| -> f32 {
            let bytes = quantize(sys::GGML_TYPE_Q4_K, &weights, 256, importance).unwrap();
            let back = dequantize(sys::GGML_TYPE_Q4_K, &bytes).unwrap();
            let even = weights.iter().zip(&back).step_by(2);
            even.map(|(a, b)| (a - b).powi(2)).sum()
        };
        assert!(error(Some(&importance)) < error(None));
    }
}
