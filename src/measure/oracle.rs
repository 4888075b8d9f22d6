//! The zero oracle. What a shortened model computes, compared with the parent in which the removed blocks are zeroed.
//!
//! In a pre-norm model a block adds to the stream what its output projections give. With zeros in their place it adds nothing,
//! and zero bytes decode to zero in every block format. So the parent with those tensors zeroed is the parent without those
//! blocks, and llama.cpp runs it as it is. Both must give the same logits, bit for bit, on the same machine with the same
//! settings. The sequence is longer than a sliding window where the context allows it, so that a block with the wrong window
//! shows.
//!
//! In memory are the logits of one model, `[n_tokens, n_vocab]`, beside those that llama.cpp is computing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ggml::{Backend, Context, ContextOptions, ModelOptions, Token};

use crate::engine::blockwise::need::{self, Need, Size};
use crate::engine::imatrix::Gathers;
use crate::engine::llama;
use crate::gguf::{self, EntryOut, Layout, Quoted, TensorOut, TensorType};
use crate::model::arch::OutputScale;
use crate::model::block::BlockSet;
use crate::model::input::Input;
use crate::model::temporary::Temporary;
use crate::model::{Model, ModelTensor};
use crate::plan::ChangedTensors;
use crate::plan::kinds::Kinds;
use crate::plan::writers::WRITERS;

/// Tokens of the sequence, where neither window nor context wants another number.
pub const DEFAULT_TOKENS: usize = 700;

/// By how much the sequence is longer than a sliding window.
const PAST_WINDOW: usize = 128;

/// The start of names of attention's output projection.
const ATTENTION_WRITER: &str = "attn_output.";

/// A factor on what a block gives; see [`OutputScale`].
const SCALE: &str = "layer_output_scale.";

/// What was evaluated, and how it compares.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Run {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// The model's sliding window, in tokens.
    pub sliding_window: Option<usize>,
    /// Logits compared.
    pub floats: u64,
    /// Those that differ in any bit but a zero's sign.
    pub floats_different: u64,
    /// Time of all of it.
    pub seconds: f64,
}

/// What takes the place of a tensor's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Zeros,
    /// F32 ones.
    Ones,
}

/// The parent's bytes to overwrite so that removed blocks add nothing.
#[derive(Debug)]
pub struct ZeroedBlocks {
    /// In each part, what to overwrite.
    parts: Vec<Vec<(Range<u64>, Fill)>>,
    /// The same by the index of the tensor.
    tensors: BTreeMap<usize, Fill>,
    sliding_window: Option<usize>,
}

/// Checks that a block with zero output projections is the identity.
///
/// # Errors
/// An architecture in which it is not, or is not known to be.
pub fn check(model: &Model<'_>) -> Result<()> {
    let name = model.architecture();
    let Some(rules) = model.rules() else {
        bail!(
            "cannot be compared by a run: where blocks of {} write to the stream is not known",
            Quoted(name)
        );
    };
    ensure!(
        rules.stream.is_sum(),
        "cannot be compared by a run: in {} the stream passes more than what blocks add to it, so a zeroed block is not \
         the same as none",
        Quoted(name)
    );
    llama::check_ends(model)
}

impl ZeroedBlocks {
    /// Finds the output projections of the `removed` blocks. Prediction blocks need none: an evaluation does not run them.
    ///
    /// # Errors
    /// Those of [`check`]; a block without a projection that is known.
    pub fn of(model: &Model<'_>, removed: &BlockSet) -> Result<Self> {
        Self::with_attention(model, removed, &BTreeSet::new())
    }

    /// As [`ZeroedBlocks::of`]; of the blocks of `attention`, only that of their attention.
    ///
    /// # Errors
    /// As [`ZeroedBlocks::of`].
    pub fn with_attention(model: &Model<'_>, removed: &BlockSet, attention: &BlockSet) -> Result<Self> {
        check(model)?;
        check_kinds(model, removed)?;
        let output_scale = model.rules().map_or(OutputScale::Stream, |rules| rules.residual.output_scale);
        let mut parts = vec![Vec::new(); model.parts().len()];
        let mut tensors = BTreeMap::new();
        let mut silent = BTreeSet::new();
        for (index, tensor) in model.tensors().iter().enumerate() {
            let Some((block, rest)) = tensor.block else {
                continue;
            };
            let is_of_attention = attention.contains(&block) && rest.starts_with(ATTENTION_WRITER);
            if !removed.contains(&block) && !is_of_attention {
                continue;
            }
            let fill = if WRITERS.iter().any(|writer| rest.starts_with(writer)) {
                silent.insert(block);
                Fill::Zeros
            } else if rest.starts_with(SCALE) && output_scale == OutputScale::Embedding {
                Fill::Zeros
            } else if rest.starts_with(SCALE) {
                ensure!(
                    tensor.info.tensor_type() == TensorType::F32,
                    "cannot be compared by a run: tensor {} is not F32",
                    Quoted(tensor.info.name())
                );
                Fill::Ones
            } else {
                continue;
            };
            tensors.insert(index, fill);
            parts[tensor.part].push((tensor.info.position().0..tensor.info.end().0, fill));
        }
        let mut blocks = removed.union(attention).filter(|block| block.index() < model.n_trunk_blocks());
        if let Some(block) = blocks.find(|block| !silent.contains(block)) {
            bail!("cannot be compared by a run: block {block} has no output projection that is known");
        }
        Ok(Self {
            parts,
            tensors,
            sliding_window: model.count("attention.sliding_window")?.filter(|&n| n > 0),
        })
    }
}

/// Checks that the removed blocks only add to the stream. Zeros leave the rest.
fn check_kinds(model: &Model<'_>, removed: &BlockSet) -> Result<()> {
    let Some(rules) = model.rules() else {
        return Ok(());
    };
    let kinds = Kinds::of(model, rules)?;
    let acts = kinds.by_position.iter().filter(|kind| kind.in_period);
    for kind in acts {
        if let Some(block) = removed.iter().find(|block| kind.holds(block.index())) {
            bail!(
                "cannot be compared by a run: block {block} has {}, and a zeroed block still has",
                kind.what
            );
        }
    }
    Ok(())
}

/// Compares the logits of the zeroed parent and the model at `out`. Both are evaluated on `threads` CPU threads. The tensors
/// of `changed` have these weights in the parent, too: what is compared is all else.
///
/// # Errors
/// No room for a copy of the parent in the system's folder for temporary files; llama.cpp's; logits that prove nothing.
pub fn run(
    zeroed: &ZeroedBlocks,
    model: &Model<'_>,
    parent: &Input,
    changed: &ChangedTensors,
    out: &Path,
    threads: usize,
) -> Result<Run> {
    let start = Instant::now();
    check_memory(zeroed, model, None).with_context(|| parent.path().display().to_string())?;
    let backend = Backend::init();
    let announce = |path: &Path| {
        backend.on_abort(&format!("gguf-shorten: {}: ", path.display()));
    };
    announce(parent.path());
    let (tokens, expected) = {
        let copies = match changed.is_empty() {
            true => zeroed
                .parts
                .iter()
                .enumerate()
                .map(|(number, fills)| copy(parent, number, fills))
                .collect::<Result<Vec<_>>>(),
            false => write(model, zeroed, changed).map(|copy| vec![copy]),
        };
        let copies = copies.context("the zeroed copy of the parent")?;
        let paths: Vec<&Path> = copies.iter().map(Temporary::path).collect();
        let at_path = || format!("{}: with zeroed blocks", parent.path().display());
        let counts = llama::counts(model);
        let engine = ggml::Model::load_parts(backend, &paths, counts).with_context(at_path)?;
        let tokens = sequence(&engine, zeroed.sliding_window);
        let expected = logits(&engine, &tokens, threads, <[f32]>::to_vec).with_context(at_path)?;
        check_meaning(&expected).with_context(at_path)?;
        (tokens, expected)
    };
    announce(out);
    let at_path = || out.display().to_string();
    let engine = ggml::Model::load(backend, out, ModelOptions::default()).with_context(at_path)?;
    let compare = |found: &[f32]| -> Result<u64> {
        ensure!(
            found.len() == expected.len(),
            "gives {} logits for {} tokens, but the parent {}",
            found.len(),
            tokens.len(),
            expected.len()
        );
        Ok(n_different(&expected, found))
    };
    let floats_different =
        logits(&engine, &tokens, threads, compare).and_then(|result| result).with_context(at_path)?;
    Ok(Run {
        tokens: tokens.len(),
        sliding_window: zeroed.sliding_window,
        floats: expected.len() as u64,
        floats_different,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The model's BOS, if any, then tokens from all the vocabulary. They look random and are always the same.
fn sequence(model: &ggml::Model, sliding_window: Option<usize>) -> Vec<Token> {
    let n_tokens = length(model.n_ctx_train(), sliding_window);
    let n_vocab = model.n_vocab().max(1) as u64;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let random = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A token id fits: the vocabulary was counted in the same type.
        Token::try_from((state >> 32) % n_vocab).unwrap_or(0)
    });
    model.bos().into_iter().chain(random).take(n_tokens).collect()
}

/// Tokens of the sequence, for a context of `n_ctx`.
fn length(n_ctx: usize, sliding_window: Option<usize>) -> usize {
    let past_window = sliding_window.map_or(0, |window| window.saturating_add(PAST_WINDOW));
    match n_ctx {
        0 => DEFAULT_TOKENS,
        n_ctx => DEFAULT_TOKENS.max(past_window).min(n_ctx),
    }
}

/// Refuses a model that does not fit beside the logits of both.
///
/// # Errors
/// What it would take.
pub fn check_memory(zeroed: &ZeroedBlocks, model: &Model<'_>, limit: Option<u64>) -> Result<()> {
    if limit.is_none() && Backend::init().supports_gpu_offload() {
        return Ok(());
    }
    let window = length(model.count("context_length")?.unwrap_or(0), zeroed.sliding_window);
    // Each row twice where it is computed, and once more of the parent.
    let size =
        Size { window, n_windows: 1, n_logits: window + window.div_ceil(2), gathers: Gathers::default() };
    let n_bytes = Need::of_whole(model, size);
    need::check_whole(n_bytes, limit, "each of the two is run as a whole")
}

/// Calls `look` with the logits of every token of the sequence.
fn logits<R>(
    model: &ggml::Model,
    tokens: &[Token],
    threads: usize,
    look: impl FnOnce(&[f32]) -> R,
) -> Result<R> {
    let options = ContextOptions { window: tokens.len(), threads };
    let mut context = Context::new(model, options)?;
    Ok(look(context.logits(tokens)?))
}

/// Logits may be minus infinity where a head is padded. A model that gives nothing else proves nothing.
fn check_meaning(logits: &[f32]) -> Result<()> {
    ensure!(!logits.iter().any(|logit| logit.is_nan()), "some logits are not numbers, so they prove nothing");
    ensure!(
        logits.iter().any(|&logit| logit.is_finite() && logit != 0.0),
        "gives no logits, so there is nothing to compare"
    );
    Ok(())
}

/// Floats that differ in any bit but a zero's sign. The sum of a stream and nothing may change that.
fn n_different(expected: &[f32], found: &[f32]) -> u64 {
    let differs = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits() && !(**a == 0.0 && **b == 0.0);
    expected.iter().zip(found).filter(differs).count() as u64
}

/// A copy of part `number` with some bytes overwritten. It is the parent's part, as llama.cpp reads it.
fn copy(parent: &Input, number: usize, fills: &[(Range<u64>, Fill)]) -> Result<Temporary> {
    let part = &parent.parts()[number];
    let Some(shown) = parent.to_copy(number)? else {
        let copy = Temporary::copy(part)?;
        fill(copy.file(), fills, &Some)?;
        return Ok(copy);
    };
    let (copy, positions) = Temporary::of_shown(part, &shown)?;
    // Fills lie where the parent's tensors do.
    let place = |position: u64| {
        let mut tensors = shown.tensors().iter().zip(&positions);
        tensors.find_map(|(tensor, start)| {
            let range = tensor.position().0..tensor.end().0;
            range.contains(&position).then(|| start + position - range.start)
        })
    };
    fill(copy.file(), fills, &place)?;
    Ok(copy)
}

/// Overwrites bytes of a copy. `place` says where in it a position of the parent is.
fn fill(mut file: &File, fills: &[(Range<u64>, Fill)], place: &dyn Fn(u64) -> Option<u64>) -> Result<()> {
    for (range, fill) in fills {
        let start = place(range.start).context("bug: bytes of no tensor are to be overwritten")?;
        file.seek(SeekFrom::Start(start))?;
        fill.write(range.end - range.start, file)?;
    }
    file.flush()?;
    Ok(())
}

impl Fill {
    fn write(self, n_bytes: u64, mut file: &File) -> io::Result<()> {
        match self {
            Self::Zeros => {
                io::copy(&mut io::repeat(0).take(n_bytes), &mut file)?;
            }
            Self::Ones => {
                let ones = (0..n_bytes / 4).flat_map(|_| 1f32.to_le_bytes());
                file.write_all(&ones.collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }
}

/// The parent in one file, blocks and with the tensors of `changed`.
fn write(model: &Model<'_>, zeroed: &ZeroedBlocks, changed: &ChangedTensors) -> Result<Temporary> {
    let copy = Temporary::new()?;
    let mut file = copy.file();
    let entries = model.metadata().iter();
    let entries = entries.filter(|entry| !entry.key().starts_with("split."));
    let tensor = |(i, tensor): (usize, &ModelTensor<'_>)| -> Result<TensorOut<'static>> {
        let info = &tensor.info;
        let of = changed.get(&i).map_or(info.tensor_type(), |changed| changed.tensor_type);
        let name = info.name().to_owned();
        Ok(TensorOut::new(name, &info.dims()[..info.n_dims()], of)?)
    };
    let tensors = model.tensors().iter().enumerate().map(tensor);
    let first = model.first();
    let layout = Layout::mappable(
        first.header().version,
        first.alignment(),
        entries.map(EntryOut::keep).collect(),
        tensors.collect::<Result<_>>()?,
        true,
    )?;
    file.set_len(layout.file_len())?;
    let mut head = BufWriter::with_capacity(1 << 16, file);
    gguf::write_head(&layout, &mut head)?;
    head.flush()?;
    drop(head);
    for (i, planned) in layout.tensors().iter().enumerate() {
        file.seek(SeekFrom::Start(planned.position().0))?;
        match (zeroed.tensors.get(&i), changed.get(&i)) {
            (Some(fill), _) => fill.write(planned.tensor().n_bytes(), file)?,
            (None, Some(changed)) => file.write_all(&changed.bytes)?,
            (None, None) => file.write_all(model.tensors()[i].info.bytes())?,
        }
    }
    file.flush()?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_differ_in_any_bit_but_the_sign_of_zero() {
        let a = [0.0, 1.0, f32::NEG_INFINITY, 2.0];
        assert_eq!(n_different(&a, &a), 0);
        assert_eq!(n_different(&a, &[-0.0, 1.0, f32::NEG_INFINITY, 2.0]), 0);
        let next = f32::from_bits(2f32.to_bits() + 1);
        assert_eq!(n_different(&a, &[0.0, 1.0, f32::NAN, next]), 2);
    }

    #[test]
    fn logits_that_prove_nothing_are_refused() {
        assert!(check_meaning(&[0.0, f32::NEG_INFINITY, 1.0]).is_ok());
        assert!(check_meaning(&[0.0, f32::NEG_INFINITY]).is_err());
        assert!(check_meaning(&[1.0, f32::NAN]).is_err());
    }
}
