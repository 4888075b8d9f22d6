//! Blocks without their attention: only their feed-forward network stays.
//!
//! llama.cpp runs such blocks in the architecture `deci` (`deci.cpp`): a block with no heads has no tensors of attention,
//! and what enters it is what its feed-forward network reads. A dense `llama` model is the same graph as `deci` otherwise
//! (`llama.cpp`, `deci.cpp`): its keys get the other prefix, and the counts that `deci` reads block by block become lists.
//! In the parent, a block whose attention writes zeros computes the same.

use super::Tensors;
use crate::gguf::{EntryOut, Quoted, ValueOut, ValueType};
use crate::model::block::BlockSet;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model, ModelTensor};
use anyhow::{Context, Result, bail, ensure};

/// The architecture whose models can lose attention.
const FROM: &str = "llama";

/// The architecture as which they are written.
pub const TO: &str = "deci";

/// The prefix of every attention tensor of a block, after `blk.<i>.`.
const ATTENTION: &str = "attn_";

/// Block tensors that `deci` reads as `llama` does, after `blk.<i>.`. Scales of weights are not among them: it would load those
/// of the feed-forward network and not apply them.
const BLOCK_TENSORS: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_q.bias",
    "attn_k.weight",
    "attn_k.bias",
    "attn_v.weight",
    "attn_v.bias",
    "attn_qkv.weight",
    "attn_qkv.bias",
    "attn_output.weight",
    "attn_output.bias",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_gate.bias",
    "ffn_up.weight",
    "ffn_up.bias",
    "ffn_down.weight",
    "ffn_down.bias",
];

/// The tensors of no block that it reads as `llama` does.
const OTHER_TENSORS: &[&str] = &[
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// Blocks that stay, but lose their attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionCut {
    /// The blocks.
    pub blocks: BlockSet,
    /// How they were chosen.
    pub method: String,
}

impl AttentionCut {
    /// Whether a tensor of the model goes with it.
    #[must_use]
    pub fn takes(&self, tensor: &ModelTensor<'_>) -> bool {
        tensor.block.is_some_and(|(block, rest)| self.blocks.contains(&block) && is_attention(rest))
    }
}

/// Whether a block's tensor of this name, without the block, is its attention's.
#[must_use]
pub fn is_attention(rest: &str) -> bool {
    rest.starts_with(ATTENTION)
}

/// Checks that blocks of `model` can lose their attention at all.
///
/// # Errors
/// A model that cannot be written as `deci`, with the reason.
pub fn check_model(model: &Model<'_>) -> Result<()> {
    Heads::of(model).map(|_| ())
}

/// Checks that the attention of `blocks` is removable, besides the `removed` blocks.
///
/// # Errors
/// A block that does not exist, goes as a whole, or would be the first.
pub fn check(model: &Model<'_>, removed: &BlockSet, blocks: &BlockSet) -> Result<()> {
    ensure!(!blocks.is_empty(), "no block is to lose its attention");
    for block in blocks {
        ensure!(
            block.index() < model.n_blocks(),
            "cannot remove the attention of block {block}: the model has {} blocks, 0 to {}",
            model.n_blocks(),
            model.n_blocks() - 1
        );
        ensure!(
            !removed.contains(block),
            "cannot remove the attention of block {block}: all of the block is to go"
        );
    }
    if let Some(first) = first_kept(model, removed)
        && blocks.contains(&first)
    {
        bail!(
            "cannot remove the attention of block {first}: it is the first of the output, from whose heads llama.cpp takes \
             the head size"
        );
    }
    Ok(())
}

pub(crate) fn first_kept(model: &Model<'_>, removed: &BlockSet) -> Option<BlockId> {
    (0..model.n_trunk_blocks()).map(BlockId::new).find(|block| !removed.contains(block))
}

/// Leaves out the tensors of the attention of the blocks of `cut`.
pub(super) fn leave_out(model: &Model<'_>, tensors: &mut Tensors<'_>, cut: &AttentionCut) {
    let mut left_out = Vec::new();
    tensors.planned.retain(|(_, data)| {
        let Some(source) = data.source() else {
            return true;
        };
        let goes = model.tensors().get(source).is_some_and(|tensor| cut.takes(tensor));
        if goes {
            left_out.push((source, "its block stays without attention".to_owned()));
        }
        !goes
    });
    tensors.left_out.extend(left_out);
}

/// The counts that `deci` reads per block, and sizes derived from them.
struct Heads {
    n_head: i32,
    n_head_kv: i32,
    n_ff: i32,
    key_length: u32,
    value_length: u32,
    n_rot: u32,
}

impl Heads {
    fn of(model: &Model<'_>) -> Result<Self> {
        let name = model.architecture();
        ensure!(
            name == FROM,
            "cannot remove the attention of blocks from architecture {}: only of '{FROM}' is it known how to write that \
             for llama.cpp",
            Quoted(name)
        );
        let cannot = format!(
            "cannot remove the attention of blocks: the output would be of architecture '{TO}', in which llama.cpp"
        );
        ensure!(
            model.count("expert_count")?.unwrap_or(0) == 0,
            "{cannot} has no experts, but '{FROM}.expert_count' is not 0"
        );
        ensure!(
            model.n_trunk_blocks() == model.n_blocks(),
            "{cannot} has no prediction blocks, but '{FROM}.nextn_predict_layers' is not 0"
        );
        for tensor in model.tensors() {
            let known = match tensor.block {
                Some((_, rest)) => BLOCK_TENSORS.contains(&rest),
                None => OTHER_TENSORS.contains(&tensor.info.name()),
            };
            ensure!(known, "{cannot} does not read tensor {} as in '{FROM}'", Quoted(tensor.info.name()));
        }
        let count = |name: &str| -> Result<Option<u32>> {
            let Some(n) = uniform(model, name)? else {
                return Ok(None);
            };
            // Lists hold them with a sign.
            let fits = i32::try_from(n).ok().and_then(|_| u32::try_from(n).ok());
            let n = fits.with_context(|| format!("metadata '{FROM}.{name}' is {n}, which is too large"))?;
            Ok(Some(n))
        };
        let require = |name: &str| -> Result<u32> {
            count(name)?
                .filter(|&n| n > 0)
                .with_context(|| format!("metadata '{FROM}.{name}' is missing or 0"))
        };
        let n_head = require("attention.head_count")?;
        let n_head_kv = count("attention.head_count_kv")?.unwrap_or(n_head);
        ensure!(n_head_kv > 0, "metadata '{FROM}.attention.head_count_kv' is 0");
        // llama-model.cpp: load_hparams.
        let by_width = require("embedding_length")? / n_head;
        let key_length = count("attention.key_length")?.unwrap_or(by_width);
        Ok(Self {
            n_head: n_head.cast_signed(),
            n_head_kv: n_head_kv.cast_signed(),
            n_ff: require("feed_forward_length")?.cast_signed(),
            key_length,
            value_length: count("attention.value_length")?.unwrap_or(by_width),
            n_rot: count("rope.dimension_count")?.unwrap_or(key_length),
        })
    }
}

/// The number under `llama.<name>`, or in every entry of the list there. `llama` takes the first for all blocks.
fn uniform(model: &Model<'_>, name: &str) -> Result<Option<usize>> {
    let key = format!("{FROM}.{name}");
    let Some(entry) = model.metadata().get(&key) else {
        return Ok(None);
    };
    if entry.value().value_type() != ValueType::Array {
        return model.count(name);
    }
    let mut numbers = entry.value().as_array()?.i64s();
    let Some(first) = numbers.next().transpose()? else {
        return Ok(None);
    };
    for number in numbers {
        let number = number?;
        ensure!(
            number == first,
            "metadata '{key}' has {first} and {number}, but llama.cpp takes the first for all blocks"
        );
    }
    Ok(Some(usize::try_from(first)?))
}

/// Converts the entries of a shortened `llama` model to `deci`. The blocks of `cut` have no heads.
pub(super) fn convert<'a>(
    model: &Model<'a>,
    entries: Vec<EntryOut<'a>>,
    renumbering: &Renumbering,
    cut: &AttentionCut,
) -> Result<Vec<EntryOut<'a>>> {
    let heads = Heads::of(model)?;
    let kept = renumbering.kept();
    let unless_cut = |count: i32| -> ValueOut {
        let counts: Vec<i32> =
            kept.iter().map(|block| if cut.blocks.contains(block) { 0 } else { count }).collect();
        ValueOut::i32s(&counts)
    };
    let key = |name: &str| format!("{TO}.{name}");
    let mut values = vec![
        ("general.architecture".to_owned(), ValueOut::string(TO)),
        (key("attention.head_count"), unless_cut(heads.n_head)),
        (key("attention.head_count_kv"), unless_cut(heads.n_head_kv)),
        (key("feed_forward_length"), ValueOut::i32s(&vec![heads.n_ff; kept.len()])),
        (key("attention.key_length"), ValueOut::u32(heads.key_length)),
        (key("attention.value_length"), ValueOut::u32(heads.value_length)),
        (key("rope.dimension_count"), ValueOut::u32(heads.n_rot)),
    ];
    if let Some(name) = model.name() {
        let suffix = format!(
            " ({} of {} blocks, {} without attention)",
            kept.len(),
            model.n_blocks(),
            cut.blocks.len()
        );
        let name = ValueOut::string(&[name, suffix.as_bytes()].concat());
        values.push(("general.name".to_owned(), name));
    }
    let prefix = format!("{FROM}.");
    let mut converted = Vec::new();
    for entry in entries {
        let renamed = entry.key().strip_prefix(&prefix).map(&key);
        let entry = match renamed {
            Some(key) => entry.renamed(key),
            None => entry,
        };
        match values.iter().position(|(key, _)| key == entry.key()) {
            Some(at) => {
                let (key, value) = values.remove(at);
                converted.push(EntryOut::new(key, value));
            }
            None => converted.push(entry),
        }
    }
    converted.extend(values.into_iter().map(|(key, value)| EntryOut::new(key, value)));
    let numbers: Vec<i32> =
        cut.blocks.iter().map(|block| i32::try_from(block.index())).collect::<Result<_, _>>()?;
    converted.extend([
        EntryOut::new(REMOVED_KEY, ValueOut::i32s(&numbers)),
        EntryOut::string(METHOD_KEY, &cut.method),
    ]);
    Ok(converted)
}

/// The parent's numbers of the blocks that lost their attention.
pub const REMOVED_KEY: &str = "gguf_shorten.attention_removed";

/// How they were chosen.
pub const METHOD_KEY: &str = "gguf_shorten.attention_method";
