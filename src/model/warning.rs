//! Warnings: what a user should know of a model before its numbers are believed.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use indicatif::DecimalBytes;

use rayon::prelude::*;

use crate::gguf::{Metadata, Quoted, TensorInfo, ValueType};
use crate::model::Model;
use crate::model::arch::{Architecture, Recurrent};
use crate::model::block::block_list;
use crate::model::input::Input;
use crate::model::stores::ollama::Kind;
use crate::watch::Watch;

/// A doubt about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Ollama runs it with an adapter, which is not read.
    Adapter {
        /// The model's name in Ollama's store.
        name: String,
    },
    /// A BPE vocabulary without a pre-tokenizer.
    NoPreTokenizer,
    /// Model and parent cut text differently before pairs are merged.
    OtherPreTokenizer {
        /// The model's.
        own: Option<String>,
        /// The parent's.
        parent: Option<String>,
    },
    /// Weights are all zeros.
    Zeros {
        /// Blocks of which every byte is zero.
        blocks: Vec<usize>,
        /// Matrices of other blocks, and of none.
        tensors: Vec<String>,
    },
    /// Metadata says that blocks have no KV heads, but they hold attention.
    NoKvHeads {
        /// The key.
        key: String,
        /// The blocks.
        blocks: Vec<usize>,
        /// Whether llama.cpp takes such a block for a recurrent one.
        recurrent: bool,
    },
}

const KV_HEADS: &str = "attention.head_count_kv";
const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

/// Vocabularies that are cut before pairs are merged (`llama-vocab.cpp: llama_vocab::impl::load`).
const BPE: &[&str] = &["gpt2", "hybriddna", "whitespace"];

/// Bytes below which a matrix of zeros is no wonder.
const MIN_MATRIX_BYTES: u64 = 4096;

/// Bytes per sample, and samples per tensor before the whole is read.
const SAMPLE_BYTES: usize = 64;
const N_SAMPLES: usize = 16;

impl Warning {
    /// What is doubtful about the weights and metadata of `model`. Reads some bytes of every tensor, and all bytes of those that
    /// look like zeros.
    #[must_use]
    pub fn of_weights(model: &Model<'_>) -> Vec<Self> {
        [no_kv_heads(model), zeros(model)].into_iter().flatten().collect()
    }

    /// What is doubtful about how `model` cuts text into tokens.
    #[must_use]
    pub fn of_tokenizer(model: &Model<'_>) -> Option<Self> {
        let is_missing = is_bpe(model.metadata()) && pre_tokenizer(model.metadata()).is_none();
        is_missing.then_some(Self::NoPreTokenizer)
    }

    /// Whether `model` and its `parent` cut text differently.
    #[must_use]
    pub fn of_tokenizers(model: &Model<'_>, parent: &Model<'_>) -> Option<Self> {
        let of = |model: &Model<'_>| pre_tokenizer(model.metadata()).map(str::to_owned);
        let (own, parent_has) = (of(model), of(parent));
        let are_bpe = is_bpe(model.metadata()) && is_bpe(parent.metadata());
        (are_bpe && own != parent_has).then_some(Self::OtherPreTokenizer { own, parent: parent_has })
    }
}

fn text<'a>(metadata: &Metadata<'a>, key: &str) -> Option<&'a str> {
    metadata.get(key)?.value().as_str().ok()
}

fn is_bpe(metadata: &Metadata<'_>) -> bool {
    text(metadata, "tokenizer.ggml.model").is_some_and(|model| BPE.contains(&model))
}

fn pre_tokenizer<'a>(metadata: &Metadata<'a>) -> Option<&'a str> {
    text(metadata, PRE_TOKENIZER).filter(|pre| !pre.is_empty())
}

/// Blocks without KV heads that have attention tensors, and nothing recurrent.
fn no_kv_heads(model: &Model<'_>) -> Option<Warning> {
    let key = format!("{}.{KV_HEADS}", model.architecture());
    let value = model.metadata().get(&key)?.value();
    let is_none = |block: usize| match value.value_type() {
        ValueType::Array => {
            let heads = value.as_array().ok()?;
            Some(heads.i64s().nth(block)?.ok()? == 0)
        }
        _ => Some(value.as_i64().ok()? == 0),
    };
    let mut attends = vec![0; model.n_trunk_blocks()];
    let mut recurs = vec![false; model.n_trunk_blocks()];
    for (block, rest) in model.tensors().iter().filter_map(|tensor| tensor.block) {
        let is_state = ["ssm_", "shortconv.", "time_mix_"].iter().any(|start| rest.starts_with(start));
        if let Some(attends) = attends.get_mut(block.index()) {
            *attends += usize::from(matches!(rest, "attn_q.weight" | "attn_output.weight"));
        }
        if let Some(recurs) = recurs.get_mut(block.index()) {
            *recurs |= is_state;
        }
    }
    let blocks: Vec<usize> = (0..attends.len())
        .filter(|&block| attends[block] == 2 && !recurs[block] && is_none(block) == Some(true))
        .collect();
    let recurrent =
        matches!(model.rules().and_then(Architecture::recurrent), Some(Recurrent::WithoutKvHeads));
    (!blocks.is_empty()).then_some(Warning::NoKvHeads { key, blocks, recurrent })
}

/// Blocks and matrices that are all zeros.
fn zeros(model: &Model<'_>) -> Option<Warning> {
    let are_zeros: Vec<bool> =
        model.tensors().par_iter().map(|tensor| is_zero(tensor.info.bytes())).collect();
    let mut n_bytes = vec![0u64; model.n_blocks()];
    let mut is_whole = vec![true; model.n_blocks()];
    for (tensor, &is_zero) in model.tensors().iter().zip(&are_zeros) {
        if let Some((block, _)) = tensor.block {
            n_bytes[block.index()] += tensor.info.n_bytes();
            is_whole[block.index()] &= is_zero;
        }
    }
    let is_zero_block = |block: usize| is_whole[block] && n_bytes[block] > 0;
    let is_matrix = |tensor: &TensorInfo<'_>| {
        tensor.dims()[0] > 1 && tensor.dims()[1] > 1 && tensor.n_bytes() >= MIN_MATRIX_BYTES
    };
    let tensors: Vec<String> = model
        .tensors()
        .iter()
        .zip(&are_zeros)
        .filter(|(tensor, is_zero)| {
            let in_zero_block = tensor.block.is_some_and(|(b, _)| is_zero_block(b.index()));
            **is_zero && is_matrix(&tensor.info) && !in_zero_block
        })
        .map(|(tensor, _)| tensor.info.name().to_owned())
        .collect();
    let blocks: Vec<usize> = (0..model.n_blocks()).filter(|&b| is_zero_block(b)).collect();
    (!blocks.is_empty() || !tensors.is_empty()).then_some(Warning::Zeros { blocks, tensors })
}

/// Whether all bytes are zero. Some places are looked at first, so that of other data little is read.
fn is_zero(bytes: &[u8]) -> bool {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let step = (bytes.len() / N_SAMPLES).max(SAMPLE_BYTES);
    let samples = bytes.chunks(step).map(|c| &c[..c.len().min(SAMPLE_BYTES)]);
    let mut samples = samples.take(N_SAMPLES + 1);
    samples.all(is_zero) && is_zero(bytes)
}

/// A list of blocks with its noun.
fn blocks_called(blocks: &[usize]) -> String {
    let noun = if blocks.len() == 1 { "block" } else { "blocks" };
    format!("{noun} {}", block_list(blocks))
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter { name } => write!(
                f,
                "'ollama:{name}' is a model with a LoRA adapter, which takes no part: its base alone is read"
            ),
            Self::NoPreTokenizer => write!(
                f,
                "metadata '{PRE_TOKENIZER}' is missing: llama.cpp then cuts text by a default rule, into other tokens than \
                 most models were trained on, which costs quality; converting the model again adds it"
            ),
            Self::OtherPreTokenizer { own, parent } => {
                let shown = |pre: &Option<String>| match pre {
                    Some(pre) => Quoted(pre).to_string(),
                    None => "missing".to_owned(),
                };
                write!(
                    f,
                    "metadata '{PRE_TOKENIZER}' is {}, but {} in the parent: here both are scored on the same tokens, which \
                     hides that each cuts text in its own way",
                    shown(own),
                    shown(parent)
                )
            }
            Self::Zeros { blocks, tensors } => {
                let mut what = Vec::new();
                if !blocks.is_empty() {
                    what.push(blocks_called(blocks));
                }
                match &tensors[..] {
                    [] => {}
                    [one] => what.push(format!("tensor {}", Quoted(one))),
                    [first, rest @ ..] => {
                        what.push(format!("tensor {} and {} more", Quoted(first), rest.len()));
                    }
                }
                let verb = match blocks.len() + tensors.len() {
                    1 => "is",
                    _ => "are",
                };
                write!(f, "{} {verb} all zeros: the download may be incomplete", what.join(" and "))
            }
            Self::NoKvHeads { key, blocks, recurrent } => {
                let (they, are_taken_for) = match (blocks.len(), recurrent) {
                    (1, true) => ("it holds", "it for recurrent"),
                    (1, false) => ("it holds", "it for one without attention"),
                    (_, true) => ("they hold", "them for recurrent"),
                    (_, false) => ("they hold", "them for blocks without attention"),
                };
                write!(
                    f,
                    "metadata {} is 0 for {}, but {they} attention ('attn_q.weight'): llama.cpp takes {are_taken_for}",
                    Quoted(key),
                    blocks_called(blocks)
                )
            }
        }
    }
}

/// Says how the model is read. Warns about its weights.
pub fn of_weights(input: &Input, model: &Model<'_>, watch: &dyn Watch) {
    of_store(input, watch);
    // A warning that is not shown need not be found.
    if !watch.is_quiet() {
        say(input, Warning::of_weights(model), watch);
    }
}

/// Says how the model is read, and what of it is not.
pub fn of_store(input: &Input, watch: &dyn Watch) {
    note_layout(input, watch);
    let with_adapter = input.ollama().filter(|of| of.n_files(Kind::Adapter) > 0);
    let adapter = with_adapter.map(|stored| Warning::Adapter { name: stored.name().to_string() });
    say(input, adapter, watch);
}

/// Warns once about the tokenizer, before the model of `input` tokenizes text.
pub fn of_tokenizer(input: &Input, model: &Model<'_>, watch: &dyn Watch) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(input.path().to_owned()) {
        say(input, Warning::of_tokenizer(model), watch);
    }
}

/// Says that the model of `input` and its parent cut text differently.
pub fn of_tokenizers(input: &Input, model: &Model<'_>, parent: &Model<'_>, watch: &dyn Watch) {
    say(input, Warning::of_tokenizers(model, parent), watch);
}

fn say(input: &Input, warnings: impl IntoIterator<Item = Warning>, watch: &dyn Watch) {
    for warning in warnings {
        watch.warn(&format!("{}: {warning}", input.path().display()));
    }
}

/// Says how a file of Ollama's own layout is read.
fn note_layout(input: &Input, watch: &dyn Watch) {
    let Some(converted) = input.converted() else {
        return;
    };
    let left_out = match converted.left_out.len() {
        0 => String::new(),
        n => format!(
            "; {n} tensors of {} are left out: they are not of the text part, which alone llama.cpp reads",
            DecimalBytes(converted.n_bytes_left_out())
        ),
    };
    watch.note(&format!(
        "{} is in Ollama's own layout '{}' and is read as '{}'{left_out}",
        input.path().display(),
        converted.found,
        converted.stock
    ));
}
