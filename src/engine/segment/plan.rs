//! What a segment's file holds. Pure: no I/O.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::gguf::{EntryOut, Layout, Quoted, TensorOut, ValueOut};
use crate::model::arch::Alone;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints, segment_entries};

/// Whether a segment ends in logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Head {
    /// It ends in a hidden state; one row of the vocabulary's tensors is there, so that llama.cpp finds them.
    Without,
    /// It ends in the model's logits.
    With,
}

/// Where the bytes of a tensor come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The first bytes of the model's tensor with this index: all of them, or some rows.
    Tensor(usize),
    /// Zeros: the tensor belongs to a block that is there for its kind alone.
    Zeros,
    /// Other weights of the model's tensor with this index.
    Changed(usize),
}

/// A file of some blocks, to be evaluated from a hidden state on.
///
/// llama.cpp does not load some models without a block of a certain kind, such as one with a sliding window. Where the
/// blocks of the segment have none of that kind, one follows them whose weights are zeros. Evaluation stops before it, or,
/// on the way to logits, passes it unchanged: a block of zeros adds nothing to the stream.
#[derive(Debug)]
pub struct SegmentPlan<'a> {
    /// Every position of the file.
    pub layout: Layout<'a>,
    /// For each tensor of the layout, where its bytes come from.
    pub sources: Vec<Source>,
    /// All its blocks, those of zeros included.
    pub n_blocks: usize,
}

impl<'a> SegmentPlan<'a> {
    /// Plans the file of `blocks`, in order, in which the tensors of `changed` have other weights.
    ///
    /// # Errors
    /// Blocks that llama.cpp would take for something else in a model of their own.
    pub fn new(
        model: &Model<'a>,
        constraints: &Constraints,
        blocks: &[BlockId],
        head: Head,
        changed: &ChangedTensors,
    ) -> Result<Self> {
        let all = with_companions(model, constraints, blocks)?;
        let renumbering = Renumbering::in_order(model.n_blocks(), all.clone());
        let n_vocab = n_vocab(model)?;
        let n_rows = match head {
            Head::Without => 1,
            Head::With => n_vocab,
        };
        let entries = entries(model, constraints, &renumbering, n_rows)?;
        let evaluated: BTreeMap<BlockId, usize> =
            blocks.iter().enumerate().map(|(number, &block)| (block, number)).collect();
        let mut sources = Vec::new();
        let mut tensors = Vec::new();
        for (i, tensor) in model.tensors().iter().enumerate() {
            let (out, source) = match tensor.block {
                Some((block, rest)) => {
                    let Some(number) = renumbering.number(block) else {
                        continue;
                    };
                    let name = format!("{}{number}.{rest}", model.block_prefix());
                    let is_evaluated = evaluated.contains_key(&block);
                    match changed.get(&i).filter(|_| is_evaluated) {
                        Some(change) => {
                            let dims = tensor.info.dims();
                            let dims = &dims[..tensor.info.n_dims()];
                            let out = TensorOut::new(name, dims, change.tensor_type)?;
                            (out, Source::Changed(i))
                        }
                        None => {
                            let source = match is_evaluated {
                                true => Source::Tensor(i),
                                false => Source::Zeros,
                            };
                            (TensorOut::rename(&tensor.info, name), source)
                        }
                    }
                }
                None => {
                    let (dims, n_dims) = (tensor.info.dims(), tensor.info.n_dims());
                    let out = if VOCABULARY.contains(&tensor.info.name()) && n_dims > 0 {
                        // llama.cpp gives up on some models where these differ, as they do in theirs.
                        ensure!(
                            dims[n_dims - 1] == n_vocab,
                            "tensor {} has {} rows, but the vocabulary has {n_vocab} tokens",
                            Quoted(tensor.info.name()),
                            dims[n_dims - 1]
                        );
                        let mut dims = dims;
                        dims[n_dims - 1] = n_rows;
                        TensorOut::new(tensor.info.name(), &dims[..n_dims], tensor.info.tensor_type())?
                    } else {
                        TensorOut::keep(&tensor.info)
                    };
                    (out, Source::Tensor(i))
                }
            };
            tensors.push(out);
            sources.push(source);
        }
        let first = model.first();
        let layout = Layout::mappable(first.header().version, first.alignment(), entries, tensors, true)?;
        Ok(Self { layout, sources, n_blocks: all.len() })
    }
}

/// Whether blocks of such a model compute alone what they do inside of it, up to rounding at least.
#[must_use]
pub fn takes_streams(constraints: &Constraints) -> bool {
    !constraints.trusted && constraints.rules.alone != Alone::Unknown
}

/// Tensors whose last dimension is the vocabulary's.
pub(super) const VOCABULARY: &[&str] = &["token_embd.weight", "output.weight", "output.bias"];

/// `blocks`, and behind them what llama.cpp must find in a model of this architecture.
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
        let behind = group.blocks.iter().find(|block| Some(block) > all.last().as_ref());
        let companion = behind.or(group.blocks.last());
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
                "block {block} cannot be block {number} of a segment"
            );
        }
    }
    Ok(all)
}

/// Entries of the vocabulary: its tokenizer's list of tokens says how many.
fn n_vocab(model: &Model<'_>) -> Result<u64> {
    let key = "tokenizer.ggml.tokens";
    let entry = model.metadata().get(key).with_context(|| format!("metadata {} is missing", Quoted(key)))?;
    Ok(entry.value().as_array()?.len() as u64)
}

/// The model's entries for these blocks, without its tokenizer, and with a vocabulary of `n_rows` tokens that have no text.
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
