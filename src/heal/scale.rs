//! A tensor times a number, by the scales of its blocks alone. Pure: no I/O.
//!
//! Most types keep one half-precision scale for a block of weights, and a second one for an offset; a weight is linear in
//! them (`ggml-common.h`, `ggml-quants.c: dequantize_row_*`). So the product needs no new quantization: the packed weights
//! stay byte for byte, and the only error is the rounding of the scales.
//!
//! ```text
//! Q4_1:  | d | m | q q q q ...   |     weight = d * q + m
//! Q6_K:  | q q q ... | s s s | d |     weight = d * s * q
//! IQ1_M: | q q q ... | dsss dsss dsss dsss |    the four digits of d, lowest first, above four scales each
//! ```

use anyhow::{Result, ensure};
use half::{bf16, f16};

use crate::gguf::TensorType;

/// A tensor that was multiplied.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// Its data, of the same type and length.
    pub bytes: Vec<u8>,
    /// The largest relative error of a scale, or weight without scales.
    ///
    /// It is up to 2^-24 for F32, 2^-11 for half-precision scales, and 2^-9 for BF16; more where a half-precision scale is below
    /// 2^-14, where halves have fewer digits.
    pub largest_error: f64,
}

/// Where a type keeps what a factor can go into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// Every weight is a plain number of this kind.
    Plain(Number),
    /// Half-precision numbers at these bytes of every block.
    Halves(&'static [usize]),
    /// One half-precision number in the upper digits of four words. They begin at this byte of every block (`ggml-common.h:
    /// iq1m_scale_t`).
    Digits(usize),
    /// Nowhere, for this reason.
    Nowhere(&'static str),
}

/// A kind of number, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    F32,
    F16,
    Bf16,
}

/// As the structs of `ggml-common.h` have it.
fn scales(tensor_type: TensorType) -> Scales {
    match tensor_type.name() {
        "F32" => Scales::Plain(Number::F32),
        "F16" => Scales::Plain(Number::F16),
        "BF16" => Scales::Plain(Number::Bf16),
        "Q1_0" | "Q2_0" | "Q4_0" | "Q5_0" | "Q8_0" | "IQ1_S" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ3_XXS"
        | "IQ3_S" | "IQ4_NL" | "IQ4_XS" => Scales::Halves(&[0]),
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => Scales::Halves(&[0, 2]),
        "Q2_K" => Scales::Halves(&[80, 82]),
        "Q3_K" => Scales::Halves(&[108]),
        "Q6_K" => Scales::Halves(&[208]),
        "TQ1_0" => Scales::Halves(&[52]),
        "TQ2_0" => Scales::Halves(&[64]),
        "IQ1_M" => Scales::Digits(48),
        "MXFP4" => Scales::Nowhere("its scales are powers of two"),
        "NVFP4" => Scales::Nowhere("its scales have three digits"),
        "Q8_1" | "Q8_K" => Scales::Nowhere("it is no type of weights"),
        _ => Scales::Nowhere("it has no scales"),
    }
}

/// Why tensors of this type cannot be multiplied by their scales. `None` if they can.
#[must_use]
pub fn refusal(tensor_type: TensorType) -> Option<&'static str> {
    match scales(tensor_type) {
        Scales::Nowhere(why) => Some(why),
        _ => None,
    }
}

/// The data of a tensor of this type, times `factor`.
///
/// # Errors
/// A type that cannot carry a factor, a factor that is not a positive number, a scale or weight that is not finite. A product
/// that its number cannot hold: too large, or zero where the weight was not.
pub fn scaled(tensor_type: TensorType, bytes: &[u8], factor: f64) -> Result<Scaled> {
    ensure!(factor.is_finite() && factor > 0.0, "cannot multiply weights by {factor}");
    let block_bytes = usize::try_from(tensor_type.block_bytes())?;
    ensure!(
        bytes.len().is_multiple_of(block_bytes),
        "{} bytes are no whole blocks of {tensor_type}",
        bytes.len()
    );
    let mut scaled = Scaled { bytes: bytes.to_vec(), largest_error: 0.0 };
    let at = |number: usize, error: anyhow::Error| error.context(format!("block {number}"));
    let blocks = scaled.bytes.chunks_exact_mut(block_bytes).enumerate();
    let mut largest = 0.0f64;
    match scales(tensor_type) {
        Scales::Plain(number) => {
            for (i, weight) in blocks {
                let error = multiply(number, weight, factor).map_err(|error| at(i, error))?;
                largest = largest.max(error);
            }
        }
        Scales::Halves(places) => {
            for (i, block) in blocks {
                for &place in places {
                    let error = multiply(Number::F16, &mut block[place..place + 2], factor)
                        .map_err(|error| at(i, error))?;
                    largest = largest.max(error);
                }
            }
        }
        Scales::Digits(place) => {
            for (i, block) in blocks {
                let words = &mut block[place..place + 8];
                let mut half = gathered(words).to_le_bytes();
                let error = multiply(Number::F16, &mut half, factor).map_err(|error| at(i, error))?;
                scatter(words, u16::from_le_bytes(half));
                largest = largest.max(error);
            }
        }
        Scales::Nowhere(why) => anyhow::bail!("{tensor_type} cannot carry a factor: {why}"),
    }
    scaled.largest_error = largest;
    Ok(scaled)
}

/// Multiplies the number that `bytes` are. Returns the relative error.
fn multiply(number: Number, bytes: &mut [u8], factor: f64) -> Result<f64> {
    let before = read(number, bytes);
    ensure!(before.is_finite(), "{before} is not a finite number");
    let exact = before * factor;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding is what is wanted; what overflows is found below"
    )]
    match number {
        Number::F32 => bytes.copy_from_slice(&(exact as f32).to_le_bytes()),
        Number::F16 => bytes.copy_from_slice(&f16::from_f64(exact).to_le_bytes()),
        Number::Bf16 => bytes.copy_from_slice(&bf16::from_f64(exact).to_le_bytes()),
    }
    let after = read(number, bytes);
    ensure!(after.is_finite(), "{before:e} times {factor} is too large for its number");
    ensure!(after != 0.0 || before == 0.0, "{before:e} times {factor} is too small for its number");
    Ok(if exact == 0.0 { 0.0 } else { (after / exact - 1.0).abs() })
}

fn read(number: Number, bytes: &[u8]) -> f64 {
    match (number, bytes) {
        (Number::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (Number::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
        (Number::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
        // No number has another length.
        _ => f64::NAN,
    }
}

/// The upper digits of four words, the first word's the lowest.
fn gathered(words: &[u8]) -> u16 {
    let digits = words.chunks_exact(2).map(|word| u16::from(word[1] >> 4));
    digits.rev().fold(0, |number, digit| number << 4 | digit)
}

/// The inverse of [`gathered`].
fn scatter(words: &mut [u8], number: u16) {
    for (i, word) in words.chunks_exact_mut(2).enumerate() {
        let digit = number >> (4 * i) & 0xf;
        // A digit of four bits.
        word[1] = word[1] & 0xf | u8::try_from(digit << 4).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, the same in every run.
    fn noise(n: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect()
    }

    /// Blocks of random bytes with weights as large as models have.
    fn blocks(tensor_type: TensorType, n: usize) -> Vec<u8> {
        let block_bytes = usize::try_from(tensor_type.block_bytes()).unwrap();
        let usual = |block: &Vec<u8>| {
            let weights = ggml::quantize::dequantize(tensor_type.id(), block).unwrap();
            let largest = weights.iter().fold(0.0f32, |max, weight| {
                if weight.is_nan() { f32::INFINITY } else { max.max(weight.abs()) }
            });
            (0.01..10.0).contains(&largest)
        };
        (0..).map(|seed| noise(block_bytes, seed + 1)).filter(usual).take(n).flatten().collect()
    }

    #[test]
    fn ggml_reads_the_product_whatever_the_type() {
        let mut n_types = 0;
        for tensor_type in TensorType::all() {
            if refusal(tensor_type).is_some() {
                continue;
            }
            n_types += 1;
            let bytes = blocks(tensor_type, 40);
            let before = ggml::quantize::dequantize(tensor_type.id(), &bytes).unwrap();
            for factor in [0.731, 1.0, 1.0 / 3.0, 2.9] {
                let scaled = scaled(tensor_type, &bytes, factor).unwrap();
                let after = ggml::quantize::dequantize(tensor_type.id(), &scaled.bytes).unwrap();
                assert_eq!(after.len(), before.len());
                // An offset and a product may cancel. So the error is that of the larger of the two.
                let size = usize::try_from(tensor_type.block_size()).unwrap();
                for (after, before) in after.chunks(size).zip(before.chunks(size)) {
                    let largest = before.iter().fold(0.0f64, |m, b| m.max(f64::from(b.abs())));
                    for (after, before) in after.iter().zip(before) {
                        let expected = f64::from(*before) * factor;
                        let error = (f64::from(*after) - expected).abs();
                        let allowed = (scaled.largest_error + 1e-6) * factor;
                        // What an offset takes away may be many times what is left.
                        let room = if has_offset(tensor_type) { 40.0 } else { 1.0 };
                        assert!(
                            error <= allowed * room * largest,
                            "{tensor_type} times {factor}: {after}, expected {expected}"
                        );
                    }
                }
                if factor == 1.0 {
                    assert_eq!(scaled.bytes, bytes, "{tensor_type}");
                }
            }
        }
        assert_eq!(n_types, 26);
    }

    fn has_offset(tensor_type: TensorType) -> bool {
        matches!(scales(tensor_type), Scales::Halves([_, _]))
    }

    #[test]
    fn only_scales_change_and_by_no_more_than_their_rounding() {
        for tensor_type in TensorType::all() {
            let (Scales::Halves(_) | Scales::Digits(_)) = scales(tensor_type) else {
                continue;
            };
            let size = usize::try_from(tensor_type.block_bytes()).unwrap();
            let mut bytes = noise(size, 9);
            // Normal numbers of half precision at the scales, whatever is elsewhere.
            match scales(tensor_type) {
                Scales::Halves(places) => {
                    for &place in places {
                        bytes[place..place + 2].copy_from_slice(&f16::from_f64(0.37).to_le_bytes());
                    }
                }
                Scales::Digits(place) => {
                    scatter(&mut bytes[place..place + 8], f16::from_f64(0.37).to_bits());
                }
                _ => {}
            }
            let scaled = scaled(tensor_type, &bytes, 0.9).unwrap();
            assert!(scaled.largest_error <= 2f64.powi(-11), "{tensor_type}");
            let changed = bytes.iter().zip(&scaled.bytes).filter(|(a, b)| a != b);
            assert!(changed.count() <= 4, "{tensor_type}");
        }
    }

    #[test]
    fn digits_are_those_of_ggml() {
        // ggml-quants.c: dequantize_row_iq1_m
        let words = [0x3abcu16, 0xc123, 0x5fff, 0x0001];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let expected =
            words[0] >> 12 | (words[1] >> 8 & 0x00f0) | (words[2] >> 4 & 0x0f00) | (words[3] & 0xf000);
        assert_eq!(gathered(&bytes), expected);
        let mut other = bytes.clone();
        scatter(&mut other, 0x1234);
        assert_eq!(gathered(&other), 0x1234);
        scatter(&mut other, expected);
        assert_eq!(other, bytes);
    }

    fn error(tensor_type: TensorType, bytes: &[u8], factor: f64) -> String {
        let error = scaled(tensor_type, bytes, factor).unwrap_err();
        crate::error::message(&error)
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        let f16_bytes = |values: &[f64]| -> Vec<u8> {
            let halves = values.iter().map(|&value| f16::from_f64(value));
            halves.flat_map(f16::to_le_bytes).collect()
        };
        assert_eq!(
            error(TensorType::F16, &f16_bytes(&[1.0, 60000.0]), 1.5),
            "block 1: 6e4 times 1.5 is too large for its number"
        );
        assert_eq!(
            error(TensorType::F16, &f16_bytes(&[6e-8]), 0.25),
            "block 0: 5.960464477539063e-8 times 0.25 is too small for its number"
        );
        assert_eq!(
            error(TensorType::F32, &f32::INFINITY.to_le_bytes(), 0.5),
            "block 0: inf is not a finite number"
        );
        assert_eq!(error(TensorType::F32, &[0; 4], f64::NAN), "cannot multiply weights by NaN");
        let mxfp4 = TensorType::all().find(|t| t.name() == "MXFP4").unwrap();
        assert_eq!(error(mxfp4, &[0; 17], 0.5), "MXFP4 cannot carry a factor: its scales are powers of two");
        assert_eq!(error(mxfp4, &[0; 18], 0.5), "18 bytes are no whole blocks of MXFP4");
        // Zeros stay zeros, and what has no weights stays empty.
        let zeros = scaled(TensorType::F16, &[0, 0, 0, 0x80], 0.5).unwrap();
        assert_eq!(zeros.bytes, [0, 0, 0, 0x80]);
        assert_eq!(zeros.largest_error, 0.0);
        assert!(scaled(TensorType::F32, &[], 2.0).unwrap().bytes.is_empty());
    }
}
