//! The same weights in a type whose kernels are faster. Pure but for what is written to `out`.
//!
//! llama.cpp has its fastest kernels (repacked rows, matrix units) for some types only. A weight of `Q5_0` is `d * q` with an
//! integer `q` of five bits, one of `IQ4_NL` is `d * q` with one of sixteen integers of eight bits. `Q8_0` holds any `d * q` with
//! eight bits: the same scale, the same integer, the same number. llama.cpp multiplies all three with inputs in `Q8_0`
//! (`ggml-cpu.c: type_traits_cpu`), so a model recoded this way computes the same up to the order in which floats are added.
//! Scores are taken from such a model where it is small; segments, and whatever is compared bit for bit, are not.

use std::io::{self, Write};

use anyhow::Result;

use crate::engine::memory_file;
use crate::gguf::{EntryOut, Layout, TensorOut, TensorType};
use crate::model::Model;

/// The largest recoded file, in bytes.
///
/// Recoded weights are not shared with the file's pages, and a user whose model hardly fits has no room for them.
const MAX_BYTES: u64 = 1 << 30;

/// Weights that share a scale, in all three types.
const BLOCK: usize = 32;

/// Bytes of a scale, a 16-bit float.
const SCALE: usize = 2;

/// The integers of `IQ4_NL` (`ggml-common.h: kvalues_iq4nl`).
const IQ4_NL_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A type whose weights `Q8_0` holds as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Q5_0,
    Iq4Nl,
}

impl Code {
    fn of(tensor_type: TensorType) -> Option<Self> {
        match tensor_type.name() {
            "Q5_0" => Some(Self::Q5_0),
            "IQ4_NL" => Some(Self::Iq4Nl),
            _ => None,
        }
    }

    /// Bytes of a block.
    fn n_bytes(self) -> usize {
        match self {
            Self::Q5_0 => SCALE + 4 + BLOCK / 2,
            Self::Iq4Nl => SCALE + BLOCK / 2,
        }
    }

    /// The integers of a block, as bytes of `Q8_0`. `block` begins after the scale.
    fn integers(self, block: &[u8]) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        match self {
            Self::Q5_0 => {
                // `ggml-common.h: block_q5_0`: the fifth bits, then pairs of four bits.
                let high = block[..4].iter().rev().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
                let fifth = |i: usize| if high >> i & 1 == 1 { 16 } else { 0 };
                for (i, &pair) in block[4..].iter().enumerate() {
                    out[i] = (pair & 0xf | fifth(i)).wrapping_sub(16);
                    out[i + BLOCK / 2] = (pair >> 4 | fifth(i + BLOCK / 2)).wrapping_sub(16);
                }
            }
            Self::Iq4Nl => {
                let value = |code: u8| IQ4_NL_VALUES[usize::from(code)].cast_unsigned();
                for (i, &pair) in block.iter().enumerate() {
                    out[i] = value(pair & 0xf);
                    out[i + BLOCK / 2] = value(pair >> 4);
                }
            }
        }
        out
    }

    /// Writes a tensor's `bytes` as `Q8_0`.
    fn write(self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        const BLOCKS_AT_ONCE: usize = 2048;
        let n_bytes = self.n_bytes();
        let mut recoded = Vec::with_capacity(BLOCKS_AT_ONCE * (SCALE + BLOCK));
        for blocks in bytes.chunks(BLOCKS_AT_ONCE * n_bytes) {
            recoded.clear();
            for block in blocks.chunks_exact(n_bytes) {
                let (scale, integers) = block.split_at(SCALE);
                recoded.extend_from_slice(scale);
                recoded.extend_from_slice(&self.integers(integers));
            }
            out.write_all(&recoded)?;
        }
        Ok(())
    }
}

/// A whole model, to be evaluated and not to be kept.
#[derive(Debug)]
pub struct Recoded<'a> {
    /// Every position of the file.
    pub layout: Layout<'a>,
    /// What each tensor was; `None` for those that are kept.
    codes: Vec<Option<Code>>,
}

impl<'a> Recoded<'a> {
    /// Plans the file; `None` if nothing is gained or memory is short.
    ///
    /// # Errors
    /// A model that one file cannot hold.
    pub fn of(model: &Model<'a>) -> Result<Option<Self>> {
        let codes: Vec<Option<Code>> = model
            .tensors()
            .iter()
            .map(|tensor| {
                // Other tensors are not multiplied, or only after the last block.
                let (_, name) = tensor.block.as_ref()?;
                let is_weight = name.ends_with("weight") && tensor.info.n_dims() > 1;
                Code::of(tensor.info.tensor_type()).filter(|_| is_weight)
            })
            .collect();
        let q8_0 = TensorType::all().find(|tensor_type| tensor_type.name() == "Q8_0");
        let (Some(q8_0), true) = (q8_0, codes.iter().any(Option::is_some)) else {
            return Ok(None);
        };
        let entries = model
            .metadata()
            .iter()
            .filter(|entry| !entry.key().starts_with("split."))
            .map(EntryOut::keep)
            .collect();
        let tensors = model
            .tensors()
            .iter()
            .zip(&codes)
            .map(|(tensor, code)| match code {
                None => Ok(TensorOut::keep(&tensor.info)),
                Some(_) => {
                    let dims = tensor.info.dims();
                    TensorOut::new(tensor.info.name(), &dims[..tensor.info.n_dims()], q8_0)
                }
            })
            .collect::<Result<_, _>>()?;
        let layout = memory_file::layout(model, entries, tensors)?;
        Ok((layout.file_len() <= MAX_BYTES).then_some(Self { layout, codes }))
    }

    /// Writes the data of the tensor with number `i`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, model: &Model<'_>, i: usize, out: &mut dyn Write) -> io::Result<()> {
        let bytes = model.tensors()[i].info.bytes();
        match self.codes[i] {
            None => out.write_all(bytes),
            Some(code) => code.write(bytes, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `block` as Q8_0, and its integers.
    fn recode(code: Code, block: &[u8]) -> (Vec<u8>, Vec<i8>) {
        let mut out = Vec::new();
        code.write(block, &mut out).unwrap();
        let integers = out[SCALE..].iter().map(|byte| byte.cast_signed()).collect();
        (out[..SCALE].to_vec(), integers)
    }

    #[test]
    fn every_code_of_q5_0_keeps_its_number() {
        // Weight i has the number i: bits 0 to 3 of i, and bit 4 of i.
        let mut block = vec![0x34, 0x12, 0, 0, 0xff, 0xff];
        block.extend((0..16).map(|i| i << 4 | i));
        let (scale, integers) = recode(Code::Q5_0, &block);
        assert_eq!(scale, [0x34, 0x12]);
        assert_eq!(integers, (-16..16).collect::<Vec<i8>>());
    }

    #[test]
    fn every_code_of_iq4_nl_keeps_its_number() {
        let mut block = vec![1, 2];
        block.extend((0..16).map(|i| (15 - i) << 4 | i));
        let (scale, integers) = recode(Code::Iq4Nl, &block);
        assert_eq!(scale, [1, 2]);
        assert_eq!(integers[..16], IQ4_NL_VALUES);
        assert!(integers[16..].iter().eq(IQ4_NL_VALUES.iter().rev()));
    }
}
