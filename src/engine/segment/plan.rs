//! What a segment's file holds. Pure: no I/O.

use anyhow::{Context, Result, bail, ensure};

use super::contents::Data;
use crate::engine::conversion::{Conversion, Converted};
use crate::engine::memory_file;
use crate::gguf::{EntryOut, Layout, Quoted, TensorInfo, TensorOut, ValueOut};
use crate::model::arch::Alone;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensor, ChangedTensors, Constraints, segment_entries};

/// The vocabulary's tensors of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary<'t> {
    /// One row of each: it takes hidden states and ends in them.
    None,
    /// The rows of these tokens: it takes them, by their numbers in this list.
    Tokens(&'t [usize]),
    /// All rows: it ends in the model's logits.
    Whole,
}

/// The weights of a segment's blocks.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Tensors that have others than in the model, by their numbers there.
    pub changed: &'a ChangedTensors,
    /// What happens to all others.
    pub conversion: Conversion,
}

impl<'a> Weights<'a> {
    /// A block's tensor: `rest` of its model name, `name` in the segment.
    fn of(
        self,
        info: &TensorInfo<'a>,
        number: usize,
        name: String,
        rest: &str,
    ) -> Result<(TensorOut<'a>, Data<'a>)> {
        let dims = info.dims();
        let out = |name, to| TensorOut::new(name, &dims[..info.n_dims()], to);
        if let Some(ChangedTensor { tensor_type, bytes }) = self.changed.get(&number) {
            return Ok((out(name, *tensor_type)?, Data::Bytes(bytes)));
        }
        let (from, bytes) = (info.tensor_type(), info.bytes());
        match self.conversion.target(rest, info) {
            None => Ok((TensorOut::rename(info, name), Data::Bytes(bytes))),
            Some(to) => Ok((out(name, to)?, Data::Converted(Converted { bytes, from, to }))),
        }
    }
}

/// A file of some blocks, evaluated from a hidden state on.
///
/// llama.cpp does not load some models without a block of a certain kind, such as one with a sliding window. Where the
/// blocks of the segment have none of that kind, one follows them whose weights are zeros. Evaluation stops before it, or,
/// on the way to logits, passes it unchanged: a block of zeros adds nothing to the stream.
#[derive(Debug)]
pub struct SegmentPlan<'a> {
    /// Every position of the file.
    pub layout: Layout<'a>,
    /// The data of each tensor of the layout.
    pub data: Vec<Data<'a>>,
    /// All its blocks, those of zeros included.
    pub n_blocks: usize,
}

impl<'a> SegmentPlan<'a> {
    /// Plans the file of `blocks`, in order, with these `weights`.
    ///
    /// # Errors
    /// Blocks that llama.cpp would take for something else in a model of their own.
    pub fn new(
        model: &Model<'a>,
        constraints: &Constraints,
        blocks: &[BlockId],
        vocabulary: Vocabulary<'a>,
        weights: Weights<'a>,
    ) -> Result<Self> {
        // Lists are for the bundled llama.cpp, whatever the output is for.
        let constraints = &constraints.clone().with_lists();
        let all = with_companions(model, constraints, blocks)?;
        let renumbering = Renumbering::in_order(model.n_blocks(), all.clone());
        let n_vocab = n_vocab(model)?;
        let n_rows = match vocabulary {
            Vocabulary::None => 1,
            Vocabulary::Tokens(tokens) => tokens.len() as u64,
            Vocabulary::Whole => n_vocab,
        };
        let entries = entries(model, constraints, &renumbering, n_rows)?;
        let (mut tensors, mut data) = (Vec::new(), Vec::new());
        for (i, tensor) in model.tensors().iter().enumerate() {
            let info = &tensor.info;
            let (out, bytes) = match tensor.block {
                None => shared(info, n_vocab, n_rows, vocabulary)?,
                Some((block, rest)) => {
                    let Some(number) = renumbering.number(block) else {
                        continue;
                    };
                    let name = format!("{}{number}.{rest}", model.block_prefix());
                    match blocks.contains(&block) {
                        false => (TensorOut::rename(info, name), Data::Zeros),
                        true => weights.of(info, i, name, rest)?,
                    }
                }
            };
            tensors.push(out);
            data.push(bytes);
        }
        let layout = memory_file::layout(model, entries, tensors)?;
        Ok(Self { layout, data, n_blocks: all.len() })
    }
}

/// A tensor of no block; of the vocabulary's `n_rows` rows.
fn shared<'a>(
    info: &TensorInfo<'a>,
    n_vocab: u64,
    n_rows: u64,
    vocabulary: Vocabulary<'a>,
) -> Result<(TensorOut<'a>, Data<'a>)> {
    let (mut dims, n_dims) = (info.dims(), info.n_dims());
    if n_dims == 0 || !VOCABULARY.contains(&info.name()) {
        return Ok((TensorOut::keep(info), Data::Bytes(info.bytes())));
    }
    // llama.cpp refuses some models where these differ, as in their full files.
    ensure!(
        dims[n_dims - 1] == n_vocab,
        "tensor {} has {} rows, but the vocabulary has {n_vocab} tokens",
        Quoted(info.name()),
        dims[n_dims - 1]
    );
    dims[n_dims - 1] = n_rows;
    let out = TensorOut::new(info.name(), &dims[..n_dims], info.tensor_type())?;
    let row_bytes = info.n_bytes().checked_div(n_vocab).unwrap_or(0);
    let bytes = info.bytes();
    let data = match vocabulary {
        Vocabulary::Tokens(rows) => Data::Rows { bytes, row_bytes: usize::try_from(row_bytes)?.max(1), rows },
        _ => Data::Bytes(bytes.get(..usize::try_from(out.n_bytes())?).unwrap_or(bytes)),
    };
    Ok((out, data))
}

/// Whether blocks compute the same alone, at least up to rounding.
#[must_use]
pub fn takes_streams(constraints: &Constraints) -> bool {
    !constraints.trusted && constraints.rules.alone != Alone::Unknown
}

/// Whether blocks compute alone what they do inside, bit for bit.
#[must_use]
pub fn is_exact(constraints: &Constraints) -> bool {
    !constraints.trusted && constraints.rules.alone == Alone::Exact
}

/// Tensors whose last dimension is the vocabulary's.
pub(in crate::engine) const VOCABULARY: &[&str] = &["token_embd.weight", "output.weight", "output.bias"];

/// `blocks`, and after them those that llama.cpp must find.
fn with_companions(model: &Model<'_>, constraints: &Constraints, blocks: &[BlockId]) -> Result<Vec<BlockId>> {
    ensure!(!blocks.is_empty(), "a segment of no blocks");
    ensure!(
        model.n_blocks() == model.n_trunk_blocks(),
        "the model has next-token prediction blocks, which a segment would have to carry"
    );
    let mut all = blocks.to_vec();
    for group in &constraints.groups {
        if all.iter().any(|block| group.blocks.contains(block)) {
            continue;
        }
        let later = group.blocks.iter().find(|block| Some(block) > all.last().as_ref());
        let companion = later.or(group.blocks.last());
        all.push(*companion.context("a group of no blocks")?);
    }
    if let Some((block, reason)) = constraints.must_stay.iter().find(|(block, _)| !all.contains(block)) {
        bail!("a segment without block {block} cannot be made: it {reason}");
    }
    constraints.check_count(model.n_trunk_blocks() - all.len())?;
    for (number, &block) in all.iter().enumerate() {
        for place in &constraints.places {
            ensure!(
                place.allows(block, number, all.len()),
                "llama.cpp does not take block {block} as block {number} of a model"
            );
        }
    }
    Ok(all)
}

/// Entries of the vocabulary: its tokenizer's list of tokens says how many.
pub(in crate::engine) fn n_vocab(model: &Model<'_>) -> Result<u64> {
    let key = "tokenizer.ggml.tokens";
    let entry = model.metadata().get(key).with_context(|| format!("metadata {} is missing", Quoted(key)))?;
    Ok(entry.value().as_array()?.len() as u64)
}

/// The entries for these blocks, with `n_rows` vocabulary tokens without text.
fn entries<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
    n_rows: u64,
) -> Result<Vec<EntryOut<'a>>> {
    let vocab_size = format!("{}.vocab_size", model.architecture());
    let mut entries = segment_entries(model, constraints, renumbering)?;
    entries.retain(|entry| !entry.key().starts_with("tokenizer.") && entry.key() != vocab_size);
    entries.push(EntryOut::string("tokenizer.ggml.model", "no_vocab"));
    entries.push(EntryOut::new(vocab_size, ValueOut::u32(u32::try_from(n_rows)?)));
    Ok(entries)
}
