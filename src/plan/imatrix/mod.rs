//! Importance matrices: what `llama-imatrix` measured for each weight, renumbered together with the model. Pure.
//!
//! Two forms (`tools/imatrix/imatrix.cpp: save_imatrix`, `common/imatrix-loader.cpp` of llama.cpp). The newer one is GGUF with
//! `general.type` `imatrix`; the weight `W` has the tensors `W.in_sum2`, `W.counts` and perhaps others such as `W.in_sum`.
//! The older one (`.dat`) is in `legacy`.
//!
//! Entries of removed blocks go, those of others get their new numbers, and everything else stays byte for byte. One that is
//! measured here is in [`measured`].

mod legacy;

pub mod measured;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context, Result, bail, ensure};

use crate::gguf::{self, EntryOut, Layout, MAGIC, Quoted, TensorOut, TensorType, ValueOut};
use crate::model::arch::BLOCK_PREFIX;
use crate::model::block::BlockSet;
use crate::model::companion::IMATRIX;
use crate::model::names::Names;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model, block_of};
use crate::plan::Runs;
use crate::plan::experts::{KeptExperts, dimension};
use legacy::Legacy;
use measured::WeightSums;

/// The suffix of the tensor that every weight has one of.
const SUMS: &str = ".in_sum2";

/// How the name of the one with the numbers of rows ends.
const COUNTS: &str = ".counts";

/// How many of the last blocks are prediction blocks.
const N_PREDICTION_BLOCKS: &str = "imatrix.n_layer_nextn";

/// A checked view of an importance matrix. Borrows from its bytes.
#[derive(Debug)]
pub struct Imatrix<'a>(Form<'a>);

#[derive(Debug)]
enum Form<'a> {
    Gguf(gguf::File<'a>),
    Legacy(Legacy<'a>),
}

/// What was measured for one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Name of the weight, such as `blk.3.attn_q.weight`.
    pub name: &'a str,
    /// Number of values. As many as a row of the weight has elements, for each of its experts.
    pub n_values: u64,
}

impl<'a> Imatrix<'a> {
    /// Reads and checks an importance matrix of either form.
    ///
    /// # Errors
    /// What is no importance matrix, or a damaged one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(&MAGIC) {
            return Legacy::parse(bytes).map(|legacy| Self(Form::Legacy(legacy)));
        }
        let file = gguf::File::parse(bytes)?;
        let kind = file.metadata().get("general.type").map(|entry| entry.value().as_str()).transpose()?;
        let is_matrix = kind == Some(IMATRIX);
        let found = kind.map_or("missing".to_owned(), |kind| Quoted(kind).to_string());
        ensure!(
            is_matrix,
            "is no importance matrix: metadata 'general.type' is {found}, expected '{IMATRIX}'"
        );
        Ok(Self(Form::Gguf(file)))
    }

    /// Whether the bytes begin like the older form: with an entry of a block. Looks at no more.
    #[must_use]
    pub fn looks_like_legacy(bytes: &[u8]) -> bool {
        Legacy::first(bytes).is_some_and(|entry| block_of(entry.name, BLOCK_PREFIX).is_some())
    }

    /// What was measured, in file order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry<'a>> {
        match &self.0 {
            Form::Legacy(legacy) => legacy.entries().collect(),
            Form::Gguf(file) => {
                let entry = |tensor: &gguf::TensorInfo<'a>| {
                    Some(Entry { name: tensor.name().strip_suffix(SUMS)?, n_values: tensor.n_elements() })
                };
                file.tensors().iter().filter_map(entry).collect()
            }
        }
    }

    /// Checks that this can be the importance matrix of `model`. Its last block is the model's last one that is evaluated, and
    /// the model has every tensor of an entry. An entry has as many values as a row of the tensor has elements, for each of its
    /// experts, as `llama-quantize` wants it (`llama-quant.cpp: llama_model_quantize_impl`).
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, model: &Model<'_>) -> Result<()> {
        let entries = self.entries();
        let blocks: BlockSet =
            entries.iter().filter_map(|entry| Some(block_of(entry.name, BLOCK_PREFIX)?.0)).collect();
        let Some(&last) = blocks.last() else {
            bail!("has {} entries, but none of a block", entries.len());
        };
        check_block(last, model.n_blocks())?;
        let is_matrix = |dims: [u64; 4]| dims[0] > 1 && dims[1] > 1;
        let last_of_model = model
            .tensors()
            .iter()
            .filter(|tensor| is_matrix(tensor.info.dims()))
            .filter_map(|tensor| Some(tensor.block?.0))
            .filter(|block| block.index() < model.n_trunk_blocks())
            .max();
        ensure!(
            last_of_model.is_none_or(|of_model| of_model <= last),
            "is of blocks 0 to {last}, but the model has {} blocks",
            model.n_blocks()
        );
        let shapes: HashMap<&str, [u64; 4]> =
            model.tensors().iter().map(|tensor| (tensor.info.name(), tensor.info.dims())).collect();
        let lacking = |entry: &&Entry<'_>| !shapes.contains_key(entry.name);
        if let Some(first) = entries.iter().find(lacking) {
            let others = match entries.iter().filter(lacking).count() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            bail!("has an entry of tensor {}{others}, which the model does not have", Quoted(first.name));
        }
        for entry in entries {
            if let Some(&[row, _, n_matrices, _]) = shapes.get(entry.name) {
                check_values(entry, row, n_matrices)?;
            }
        }
        Ok(())
    }

    /// The importance of each column of each matrix of a tensor. It weighs squares of errors. `None` without an entry.
    ///
    /// It is the mean of the squared inputs; 1 where a matrix of the newer form had none (`tools/quantize/quantize.cpp:
    /// load_imatrix` of llama.cpp).
    ///
    /// # Errors
    /// An entry whose parts do not fit together.
    pub fn importance(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let file = match &self.0 {
            Form::Legacy(legacy) => return Ok(legacy.importance(name)),
            Form::Gguf(file) => file,
        };
        let tensor = |ending: &str| file.tensors().get(&format!("{name}{ending}"));
        let Some(sums) = tensor(SUMS) else {
            return Ok(None);
        };
        let wrong = || format!("entry {} has no {COUNTS} that fit its {SUMS}", Quoted(name));
        let counts = tensor(COUNTS).with_context(wrong)?;
        let floats = |tensor: &gguf::TensorInfo<'_>| -> Result<Vec<f32>> {
            ensure!(tensor.tensor_type() == TensorType::F32, wrong());
            Ok(tensor.bytes().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let (mut values, counts) = (floats(sums)?, floats(counts)?);
        for (what, found) in [(SUMS, &values), (COUNTS, &counts)] {
            let wrong = found.iter().enumerate().find(|(_, value)| !value.is_finite() || **value < 0.0);
            if let Some((at, value)) = wrong {
                bail!(
                    "entry {} has {value} at {what}[{at}], expected a finite number from 0 on",
                    Quoted(name)
                );
            }
        }
        ensure!(!counts.is_empty() && values.len().is_multiple_of(counts.len()), wrong());
        let n_columns = values.len() / counts.len();
        for (columns, count) in values.chunks_exact_mut(n_columns.max(1)).zip(counts) {
            for value in columns {
                *value = if count > 0.0 { *value / count } else { 1.0 };
            }
        }
        ensure!(
            values.iter().all(|value| value.is_finite() && *value >= 0.0),
            "entry {} has values that are no finite numbers from 0 on",
            Quoted(name)
        );
        Ok(Some(values))
    }

    /// Plans the importance matrix of what is left of the model.
    ///
    /// # Errors
    /// A block that the model does not have; no entry that is left.
    pub fn plan<'l>(&self, left: impl Into<Left<'l>>) -> Result<Planned<'a>> {
        let left = left.into();
        let planned = match &self.0 {
            Form::Gguf(file) => plan_gguf(file, left)?,
            Form::Legacy(legacy) => legacy.plan(left)?,
        };
        ensure!(
            planned.n_entries > 0,
            "has no entry that is left: all {} are of removed blocks",
            planned.n_removed
        );
        Ok(planned)
    }
}

/// An importance matrix, ready to be written.
#[derive(Debug)]
pub struct Planned<'a> {
    /// Entries that are kept.
    pub n_entries: usize,
    /// Entries of removed blocks.
    pub n_removed: usize,
    content: Content<'a>,
}

#[derive(Debug)]
enum Content<'a> {
    Gguf {
        layout: Box<Layout<'a>>,
        /// The data of each tensor of the layout.
        data: Vec<Cow<'a, [u8]>>,
    },
    Legacy(Vec<Cow<'a, [u8]>>),
    Measured {
        layout: Box<Layout<'a>>,
        /// Of each two tensors of the layout the sums.
        weights: Vec<&'a WeightSums>,
    },
}

impl Planned<'_> {
    /// Bytes of the file.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        match &self.content {
            Content::Gguf { layout, .. } | Content::Measured { layout, .. } => layout.file_len(),
            Content::Legacy(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }

    /// Writes the file. `writer` should be buffered; it is not flushed.
    ///
    /// # Errors
    /// Those of `writer`.
    pub fn write(&self, writer: &mut impl Write) -> Result<()> {
        match &self.content {
            Content::Gguf { layout, data } => {
                gguf::write(layout, writer, |index, out| {
                    out.write_all(data.get(index).map_or(&[][..], AsRef::as_ref))
                })?;
            }
            Content::Measured { layout, weights } => {
                gguf::write(layout, writer, |index, out| weights[index / 2].write(index % 2 == 1, out))?;
            }
            Content::Legacy(pieces) => {
                for piece in pieces {
                    writer.write_all(piece)?;
                }
            }
        }
        Ok(())
    }
}

/// Checks that an entry has a value per column of its tensor. That has `n_matrices` matrices with rows of `row` elements.
fn check_values(entry: Entry<'_>, row: u64, n_matrices: u64) -> Result<()> {
    let (name, n_values) = (Quoted(entry.name), entry.n_values);
    if n_matrices == 1 {
        ensure!(
            n_values == row,
            "entry {name} has {n_values} values, but the rows of that tensor of the model have {row}"
        );
    }
    ensure!(
        row.checked_mul(n_matrices) == Some(n_values),
        "entry {name} has {n_values} values, but that tensor of the model has {n_matrices} matrices with rows of {row}"
    );
    Ok(())
}

/// What is left of a model.
#[derive(Clone, Copy, Debug)]
pub struct Left<'l> {
    /// The blocks.
    pub blocks: &'l Renumbering,
    /// Their experts, where some go, and how many each block had.
    pub experts: Option<(&'l KeptExperts, usize)>,
}

/// All experts of the blocks.
impl<'l> From<&'l Renumbering> for Left<'l> {
    fn from(blocks: &'l Renumbering) -> Self {
        Self { blocks, experts: None }
    }
}

impl<'l> Left<'l> {
    /// The kept experts of the weight `name`, and how many there were.
    fn experts_of(self, name: &str) -> Option<(&'l [usize], usize)> {
        let (kept, n_experts) = self.experts?;
        let (block, rest) = block_of(name, BLOCK_PREFIX)?;
        // Three dimensions: a matrix for each.
        let kept = kept.get(&block).filter(|_| dimension(rest) == Some(2))?;
        Some((kept, n_experts))
    }
}

/// What becomes of a name.
enum Name {
    /// It stays: it is of no block, or of one that keeps its number.
    Same,
    /// Its block has a new number.
    New(String),
    /// Its block goes.
    Removed,
}

impl Name {
    fn of(name: &str, renumbering: &Renumbering) -> Result<Self> {
        let Some((block, rest)) = block_of(name, BLOCK_PREFIX) else {
            return Ok(Self::Same);
        };
        check_block(block, renumbering.n_blocks())?;
        Ok(match renumbering.number(block) {
            None => Self::Removed,
            Some(number) if number == block.index() => Self::Same,
            Some(number) => Self::New(format!("blk.{number}.{rest}")),
        })
    }
}

fn check_block(block: BlockId, n_blocks: usize) -> Result<()> {
    ensure!(
        block.index() < n_blocks,
        "has an entry of block {block}, but the model has {n_blocks} blocks, 0 to {}",
        n_blocks.saturating_sub(1)
    );
    Ok(())
}

fn plan_gguf<'a>(file: &gguf::File<'a>, left: Left<'_>) -> Result<Planned<'a>> {
    let renumbering = left.blocks;
    let (mut n_entries, mut n_removed) = (0, 0);
    let mut tensors = Vec::new();
    let mut data = Vec::new();
    for tensor in file.tensors() {
        let is_entry = usize::from(tensor.name().ends_with(SUMS));
        let out = match Name::of(tensor.name(), renumbering)? {
            Name::Removed => {
                n_removed += is_entry;
                continue;
            }
            Name::New(name) => TensorOut::rename(tensor, name),
            Name::Same => TensorOut::keep(tensor),
        };
        let (out, bytes) = with_experts(tensor, out, left)?;
        tensors.push(out);
        data.push(bytes);
        n_entries += is_entry;
    }
    let entries = names_left(file, renumbering)?.into_iter().map(|entry| {
        if entry.key() != N_PREDICTION_BLOCKS {
            return Ok(entry);
        }
        let n_before = usize::try_from(entry.value().as_u64()?)?;
        let first = renumbering.n_blocks().saturating_sub(n_before);
        let n = renumbering.kept().iter().filter(|block| block.index() >= first).count();
        let value = ValueOut::integer(entry.value_type(), n as u64);
        let value = value.with_context(|| format!("metadata '{N_PREDICTION_BLOCKS}' cannot be {n}"))?;
        Ok(EntryOut::new(N_PREDICTION_BLOCKS, value))
    });
    let layout = Layout::new(
        file.header().version,
        file.alignment(),
        entries.collect::<Result<_>>()?,
        tensors,
        file.ends_padded(),
    )?;
    Ok(Planned { n_entries, n_removed, content: Content::Gguf { layout: Box::new(layout), data } })
}

/// A weight's tensor, sums or counts, with only the kept experts.
fn with_experts<'a>(
    tensor: &gguf::TensorInfo<'a>,
    out: TensorOut<'a>,
    left: Left<'_>,
) -> Result<(TensorOut<'a>, Cow<'a, [u8]>)> {
    let weight = tensor.name().rsplit_once('.').map_or("", |(weight, _)| weight);
    let whole: &'a [u8] = tensor.bytes();
    match left.experts_of(weight) {
        Some((kept, n_experts)) if tensor.dims()[1] == n_experts as u64 => {
            let (runs, dims) = Runs::of_parts(tensor, 1, n_experts, kept.iter().copied())?;
            let n_dims = if kept.len() == 1 { 1 } else { tensor.n_dims() };
            let out = TensorOut::new(out.name().to_owned(), &dims[..n_dims], tensor.tensor_type())?;
            let parts: Vec<&[u8]> = runs.within(0..whole.len()).map(|(range, _)| &whole[range]).collect();
            Ok((out, parts.concat().into()))
        }
        _ => Ok((out, whole.into())),
    }
}

/// The metadata with the names of the weights that are left.
fn names_left<'a>(file: &gguf::File<'a>, renumbering: &Renumbering) -> Result<Vec<EntryOut<'a>>> {
    // Names of blocks do: every weight with values is of one, or keeps its name.
    let names = Names::new([], Some((BLOCK_PREFIX, renumbering)));
    let entries = file.metadata().iter().map(EntryOut::keep).collect();
    let (entries, _) = names.apply(entries, true)?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renumbering(n_blocks: usize, removed: &[usize]) -> Renumbering {
        Renumbering::new(n_blocks, &removed.iter().copied().map(BlockId::new).collect())
    }

    fn legacy(entries: &[(&str, &[f32])], trailer: &[u8]) -> Vec<u8> {
        let int = |n: usize| i32::try_from(n).unwrap().to_le_bytes();
        let mut bytes = int(entries.len()).to_vec();
        for (name, values) in entries {
            bytes.extend(int(name.len()));
            bytes.extend(name.as_bytes());
            bytes.extend(int(7));
            bytes.extend(int(values.len()));
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        bytes.extend(trailer);
        bytes
    }

    /// As `llama-imatrix` ends a file.
    const TRAILER: &[u8] = b"\x05\0\0\0\x08\0\0\0text.txt";

    fn sample() -> Vec<u8> {
        legacy(
            &[
                ("blk.0.attn_q.weight", &[1.0, 2.0]),
                ("blk.1.attn_q.weight", &[3.0]),
                ("blk.10.attn_q.weight", &[4.0, f32::NAN]),
                ("output.weight", &[5.0]),
                ("v.blk.1.attn_q.weight", &[6.0]),
            ],
            TRAILER,
        )
    }

    fn renumbered(bytes: &[u8], renumbering: &Renumbering) -> Result<Vec<u8>, String> {
        let run = || -> Result<Vec<u8>> {
            let planned = Imatrix::parse(bytes)?.plan(renumbering)?;
            let mut out = Vec::new();
            planned.write(&mut out)?;
            assert_eq!(planned.n_bytes(), out.len() as u64);
            Ok(out)
        };
        run().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn entries_of_kept_blocks_get_their_numbers_and_keep_their_bytes() {
        let expected = legacy(
            &[
                ("blk.0.attn_q.weight", &[1.0, 2.0]),
                ("blk.9.attn_q.weight", &[4.0, f32::NAN]),
                ("output.weight", &[5.0]),
                ("v.blk.1.attn_q.weight", &[6.0]),
            ],
            TRAILER,
        );
        assert_eq!(renumbered(&sample(), &renumbering(11, &[1])), Ok(expected));
        let bytes = sample();
        assert_eq!(renumbered(&bytes, &renumbering(11, &[])), Ok(bytes));
    }

    #[test]
    fn the_trailer_may_be_missing_or_short() {
        for trailer in [&b""[..], &TRAILER[..4], TRAILER] {
            let bytes = legacy(&[("a", &[1.0])], trailer);
            assert_eq!(renumbered(&bytes, &renumbering(1, &[])), Ok(bytes.clone()));
        }
        let more = legacy(&[("a", &[1.0])], &[TRAILER, b"xy"].concat());
        assert_eq!(
            renumbered(&more, &renumbering(1, &[])).unwrap_err(),
            "2 bytes at its end belong to nothing"
        );
    }

    #[test]
    fn blocks_that_the_model_does_not_have_are_refused() {
        assert_eq!(
            renumbered(&sample(), &renumbering(10, &[1])).unwrap_err(),
            "has an entry of block 10, but the model has 10 blocks, 0 to 9"
        );
        let bytes = legacy(&[("blk.1.a", &[1.0])], b"");
        assert_eq!(
            renumbered(&bytes, &renumbering(2, &[1])).unwrap_err(),
            "has no entry that is left: all 1 are of removed blocks"
        );
    }

    #[test]
    fn a_file_cut_off_at_any_byte_is_refused_or_ends_where_a_file_may() {
        let bytes = sample();
        let may_end = [bytes.len() - TRAILER.len(), bytes.len() - TRAILER.len() + 4];
        for len in 0..bytes.len() {
            let result = Imatrix::parse(&bytes[..len]);
            assert_eq!(result.is_ok(), may_end.contains(&len), "{len}");
        }
    }

    #[test]
    fn no_changed_byte_causes_a_panic() {
        let bytes = sample();
        for position in 0..bytes.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff, bytes[position] ^ 1] {
                let mut changed = bytes.clone();
                changed[position] = byte;
                if let Err(error) = renumbered(&changed, &renumbering(11, &[1])) {
                    assert!(error.len() < 400 && error.lines().count() == 1, "{error}");
                }
            }
        }
    }
}
