//! Conversion of block weights to types that evaluate faster, for scores. Pure.
//!
//! llama.cpp has its fastest kernels (repacked rows, tiles, matrix units) for some types only, which differ from machine to
//! machine. A weight of `Q5_0` is `d * q` with an integer `q` of five bits, one of `IQ4_NL` is `d * q` with one of sixteen
//! integers of eight bits. `Q8_0` holds any `d * q` with eight bits: the same scale, the same integer, the same number. All
//! three are multiplied with inputs in `Q8_0` (`ggml-cpu.c: type_traits_cpu`). So converted to it a model computes the same up
//! to the order in which floats are added. So it does where llama.cpp does not repack its weights. `F32` holds the weights of
//! every type, `BF16` their first eight bits. With both,
//! inputs are not rounded as they are with the model's own types. So only scores are taken from converted blocks, and they say
//! so. Whatever is compared bit for bit is evaluated as it is.

use std::io;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::gguf::{TensorInfo, TensorType};
use crate::named::named;

named! {
    /// The form that block weights get before evaluation.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Conversion {
        /// evaluate weights as they are
        None = "none",
        /// Q5_0 and IQ4_NL as Q8_0: the same numbers
        Q8_0 = "q8_0",
        /// BF16: weights lose digits, what they multiply is not rounded to eight bits
        Bf16 = "bf16",
        /// F32: the same weights, what they multiply is not rounded
        F32 = "f32",
        /// weights as they are, not repacked while they are loaded
        NoRepack = "no_repack",
    }
}

/// Weights that share a scale, in `Q5_0`, `IQ4_NL` and `Q8_0`.
const BLOCK: usize = 32;

/// Bytes of a scale, a 16-bit float.
const SCALE: usize = 2;

/// The integers of `IQ4_NL` (`ggml-common.h: kvalues_iq4nl`).
const IQ4_NL_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Conversion {
    /// The type that a block's tensor `rest` is converted to. `None` where it stays as it is.
    #[must_use]
    pub fn target(self, rest: &str, info: &TensorInfo<'_>) -> Option<TensorType> {
        let from = info.tensor_type();
        // Other tensors are not multiplied.
        let is_weight = rest.ends_with("weight") && info.n_dims() > 1;
        let to = match self {
            Self::None | Self::NoRepack => None,
            Self::Q8_0 => ["Q5_0", "IQ4_NL"].contains(&from.name()).then_some(TensorType::Q8_0),
            Self::Bf16 => Some(TensorType::BF16),
            Self::F32 => Some(TensorType::F32),
        };
        let to = to.filter(|to| is_weight && *to != from && from != TensorType::F32)?;
        let is_known = to == TensorType::Q8_0 || ggml::quantize::can_dequantize(from.id());
        is_known.then_some(to)
    }

    /// Whether a block's tensor `rest` may evaluate faster so.
    ///
    /// A type of 256 weights per scale has a kernel for rows that are not repacked (`ggml-cpu/tiled`).
    #[must_use]
    pub fn matters(self, rest: &str, info: &TensorInfo<'_>) -> bool {
        let is_tiled = || info.tensor_type().block_size() == 256;
        self.target(rest, info).is_some() || self == Self::NoRepack && is_tiled()
    }
}

/// A tensor's weights in another type, converted as they are read.
#[derive(Clone, Copy, Debug)]
pub struct Converted<'a> {
    /// The weights.
    pub bytes: &'a [u8],
    /// Their type.
    pub from: TensorType,
    /// The type that they get.
    pub to: TensorType,
}

impl Converted<'_> {
    /// Bytes of the smallest piece that is converted alone, as type `of`.
    fn piece(&self, of: TensorType) -> usize {
        // Both are powers of two.
        let n = self.from.block_size().max(self.to.block_size());
        usize::try_from(n / of.block_size() * of.block_bytes()).unwrap_or(1)
    }

    /// Fills `out` with the converted bytes from `position` on.
    ///
    /// # Errors
    /// A range that is not inside of the tensor.
    pub fn read_at(&self, position: usize, out: &mut [u8]) -> io::Result<()> {
        /// Pieces that are converted at once.
        const AT_ONCE: usize = 256;
        let (n_from, n_to) = (self.piece(self.from), self.piece(self.to));
        let (mut number, mut skip) = (position / n_to, position % n_to);
        let mut rest = out;
        while !rest.is_empty() {
            let n = (skip + rest.len()).div_ceil(n_to).min(AT_ONCE);
            let range = number.saturating_mul(n_from)..number.saturating_add(n).saturating_mul(n_from);
            let pieces =
                self.bytes.get(range).ok_or_else(|| io::Error::other("bug: bytes outside of a tensor"))?;
            let converted = convert(self.from, self.to, pieces)?;
            let converted = converted.get(skip..).unwrap_or_default();
            let n_bytes = converted.len().min(rest.len());
            let (first, later) = rest.split_at_mut(n_bytes);
            first.copy_from_slice(&converted[..n_bytes]);
            (rest, number, skip) = (later, number + n, 0);
        }
        Ok(())
    }
}

/// Whole blocks of type `from` as type `to`.
fn convert(from: TensorType, to: TensorType, bytes: &[u8]) -> io::Result<Vec<u8>> {
    if to == TensorType::Q8_0 {
        return Ok(to_q8_0(from, bytes));
    }
    let weights = ggml::quantize::dequantize(from.id(), bytes);
    let weights = weights.ok_or_else(|| io::Error::other(format!("bug: {from} cannot be converted")))?;
    Ok(match to {
        TensorType::BF16 => bytes_of(&weights, |weight| to_bf16(weight).to_le_bytes()),
        _ => bytes_of(&weights, f32::to_le_bytes),
    })
}

/// As [`bf16::from_f32`], without a branch, which vector instructions do not have.
fn to_bf16(weight: f32) -> bf16 {
    let bits = weight.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x40_0000;
    let bits = if weight.is_nan() { quiet } else { rounded };
    let [_, _, high @ ..] = bits.to_le_bytes();
    bf16::from_le_bytes(high)
}

/// The bytes of each weight, one after another.
fn bytes_of<const N: usize>(weights: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    // Vector instructions need a place for each.
    let mut out = vec![[0; N]; weights.len()];
    out.iter_mut().zip(weights).for_each(|(out, weight)| *out = bytes(*weight));
    out.into_flattened()
}

/// Blocks of `Q5_0` or `IQ4_NL` as `Q8_0`.
fn to_q8_0(from: TensorType, bytes: &[u8]) -> Vec<u8> {
    let n_bytes = usize::try_from(from.block_bytes()).unwrap_or(1);
    let mut out = Vec::with_capacity(bytes.len() / n_bytes * (SCALE + BLOCK));
    for block in bytes.chunks_exact(n_bytes) {
        let (scale, rest) = block.split_at(SCALE);
        out.extend_from_slice(scale);
        out.extend_from_slice(&match from.name() {
            "Q5_0" => of_q5_0(rest),
            _ => of_iq4_nl(rest),
        });
    }
    out
}

/// The integers of a block of `Q5_0` after its scale. They are the fifth bits, then pairs of four bits (`ggml-common.h:
/// block_q5_0`).
fn of_q5_0(block: &[u8]) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    let high = block[..4].iter().rev().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
    let fifth = |i: usize| if high >> i & 1 == 1 { 16 } else { 0 };
    for (i, &pair) in block[4..].iter().enumerate() {
        out[i] = (pair & 0xf | fifth(i)).wrapping_sub(16);
        out[i + BLOCK / 2] = (pair >> 4 | fifth(i + BLOCK / 2)).wrapping_sub(16);
    }
    out
}

/// The integers of a block of `IQ4_NL` after its scale.
fn of_iq4_nl(block: &[u8]) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    let value = |code: u8| IQ4_NL_VALUES[usize::from(code)].cast_unsigned();
    for (i, &pair) in block.iter().enumerate() {
        out[i] = value(pair & 0xf);
        out[i + BLOCK / 2] = value(pair >> 4);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_name(name: &str) -> TensorType {
        TensorType::all().find(|of| of.name() == name).unwrap()
    }

    /// `block` as Q8_0, and its integers.
    fn recode(from: &str, block: &[u8]) -> (Vec<u8>, Vec<i8>) {
        let out = to_q8_0(of_name(from), block);
        let integers = out[SCALE..].iter().map(|byte| byte.cast_signed()).collect();
        (out[..SCALE].to_vec(), integers)
    }

    #[test]
    fn every_code_of_q5_0_keeps_its_number() {
        // Weight i has the number i: bits 0 to 3 of i, and bit 4 of i.
        let mut block = vec![0x34, 0x12, 0, 0, 0xff, 0xff];
        block.extend((0..16).map(|i| i << 4 | i));
        let (scale, integers) = recode("Q5_0", &block);
        assert_eq!(scale, [0x34, 0x12]);
        assert_eq!(integers, (-16..16).collect::<Vec<i8>>());
    }

    #[test]
    fn every_code_of_iq4_nl_keeps_its_number() {
        let mut block = vec![1, 2];
        block.extend((0..16).map(|i| (15 - i) << 4 | i));
        let (scale, integers) = recode("IQ4_NL", &block);
        assert_eq!(scale, [1, 2]);
        assert_eq!(integers[..16], IQ4_NL_VALUES);
        assert!(integers[16..].iter().eq(IQ4_NL_VALUES.iter().rev()));
    }

    #[test]
    fn floats_are_rounded_as_by_the_crate() {
        let near = |bits: u32| [bits.wrapping_sub(1), bits, bits.wrapping_add(1)];
        let halves = (0..=u16::MAX).flat_map(|high| near(u32::from(high) << 16 | 0x8000));
        for bits in halves.chain((0..=u16::MAX).flat_map(|high| near(u32::from(high) << 16))) {
            let weight = f32::from_bits(bits);
            assert_eq!(to_bf16(weight).to_bits(), bf16::from_f32(weight).to_bits(), "{bits:x}");
        }
    }

    #[test]
    fn any_range_is_that_of_the_tensor_as_a_whole() {
        let weights: Vec<f32> = (0..64 * 512u16).map(|i| f32::from(i).sin()).collect();
        for (from, to) in
            [("Q4_1", "F32"), ("Q4_K", "F32"), ("Q6_K", "BF16"), ("F16", "F32"), ("Q5_0", "Q8_0")]
        {
            let (from, to) = (of_name(from), of_name(to));
            let bytes = ggml::quantize::quantize(from.id(), &weights, 512, None).unwrap();
            let expected = ggml::quantize::dequantize(from.id(), &bytes).unwrap();
            let converted = Converted { bytes: &bytes, from, to };
            let n_bytes = weights.len() / usize::try_from(to.block_size()).unwrap()
                * usize::try_from(to.block_bytes()).unwrap();
            let mut whole = vec![0; n_bytes];
            converted.read_at(0, &mut whole).unwrap();
            let back = ggml::quantize::dequantize(to.id(), &whole).unwrap();
            for (found, expected) in back.iter().zip(&expected) {
                let bound = if to == TensorType::BF16 { expected.abs() / 256.0 } else { 0.0 };
                assert!((found - expected).abs() <= bound, "{from} {to}: {found} {expected}");
            }
            for (start, n) in [(0, 1), (1, 4000), (33, 34), (n_bytes / 2 - 7, 5000), (n_bytes - 3, 3)] {
                let mut out = vec![9; n];
                converted.read_at(start, &mut out).unwrap();
                assert!(out == whole[start..start + n], "{from} {to} {start} {n}");
            }
            assert!(converted.read_at(n_bytes - 1, &mut [0; 2]).is_err());
        }
    }
}
