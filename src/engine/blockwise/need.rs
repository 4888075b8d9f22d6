//! The memory of an evaluation, estimated before loading, and its way.

use std::sync::Arc;

use anyhow::{Result, bail};
use ggml::ThreadPool;

use super::check;
use crate::engine::imatrix::Gathers;
use crate::engine::segment::{Segments, VOCABULARY, n_vocab};
use crate::error::Hint;
use crate::files::byte_size::ByteSize;
use crate::files::free_memory;
use crate::model::Model;
use crate::plan::imatrix::measured::Sums;
use crate::plan::{Constraints, experts};

/// What the program takes beside all that is counted, in bytes.
const PROGRAM: u64 = 48 << 20;

/// What a context takes beside all that depends on the window, in bytes.
const GRAPH: u64 = 8 << 20;

/// Bytes of an entry of the vocabulary in llama.cpp's tokenizer, about: its text twice, and its merge.
const TOKEN: u64 = 200;

/// Memory in bytes. What the kernel may take back at any time (pages of the mapped file) is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Of the whole model: its weights once, which llama.cpp may copy to pack them anew.
    pub whole: u64,
    /// Block by block, with the hidden states of the text in files.
    pub least: u64,
    /// Of these states in memory.
    pub states: u64,
    /// Of one more window that is evaluated at the same time.
    pub each: u64,
    /// Of a window in one more block: its keys and values.
    pub cache: u64,
    /// Of the room for logits that a model of all blocks has for a window, with the rows of the vocabulary that the text needs.
    pub outputs: u64,
}

/// The text of an evaluation, as far as memory depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Tokens of a window.
    pub window: usize,
    /// Windows.
    pub n_windows: usize,
    /// Tokens of a window whose logits are asked for.
    pub n_logits: usize,
    /// What is added up: the inputs of weights ([`Sums`]), or what experts do.
    pub gathers: Gathers,
}

/// How a model is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As a whole.
    Whole,
    /// Block by block, with the states of the text in memory.
    Blocks,
    /// Block by block, with the states in files.
    BlocksOnDisk,
}

impl Need {
    /// Of `model` on a text of this size.
    ///
    /// # Errors
    /// Metadata that is not what it should be.
    pub fn of(model: &Model<'_>, constraints: &Constraints, size: Size) -> Result<Self> {
        let Common { besides, compute, state, cache, n_vocab, logits } = Common::of(model, size);
        let largest = largest_block(model, constraints)?;
        // Vocabulary rows of the text, and room for as many logits.
        let n_tokens = (size.window as u64).saturating_mul(size.n_windows as u64).min(n_vocab);
        let embedding = vocabulary_bytes(model).checked_div(n_vocab).unwrap_or(0);
        let outputs = bytes(size.window, n_tokens);
        let rows = n_tokens.saturating_mul(embedding).saturating_add(outputs);
        let head = match size.n_logits {
            0 => 0,
            _ => vocabulary_bytes(model).saturating_add(logits),
        };
        let least = besides
            .saturating_add(largest)
            .saturating_add(largest_tensor(model))
            .saturating_add(cache)
            .saturating_add(rows.max(head));
        let whole = Self::of_whole(model, size);
        let states = state.saturating_mul(size.n_windows as u64);
        let each =
            GRAPH.saturating_add(compute).saturating_add(state.saturating_mul(8)).saturating_add(cache);
        Ok(Self { whole, least, states, each, cache, outputs })
    }

    /// Of the whole `model` alone.
    #[must_use]
    pub fn of_whole(model: &Model<'_>, size: Size) -> u64 {
        let Common { besides, cache, n_vocab, logits, .. } = Common::of(model, size);
        besides
            .saturating_add(model.n_bytes())
            .saturating_add(cache.saturating_mul(model.n_trunk_blocks() as u64))
            .saturating_add(logits.max(bytes(size.window, n_vocab)))
    }

    /// Bytes of `limit` (or of free memory) left by a block-by-block evaluation. States are in memory or in files.
    #[must_use]
    pub fn spare(&self, limit: Option<u64>, way: Way) -> Option<u64> {
        let states = if way == Way::BlocksOnDisk { 0 } else { self.states };
        let room = limit.or_else(free_memory::available).unwrap_or(u64::MAX);
        room.checked_sub(self.least.saturating_add(states))
    }

    /// The way that stays within `limit`, or else within what is free. `by_blocks` says whether the evaluation can go block by
    /// block at all, `on_disk` whether there is a folder for the states.
    ///
    /// # Errors
    /// That there is none, with the least that works.
    pub fn way(&self, limit: Option<u64>, by_blocks: Result<()>, on_disk: bool) -> Result<Way> {
        let Some(room) = limit.or_else(free_memory::available) else {
            return Ok(Way::Whole);
        };
        if self.whole <= room {
            return Ok(Way::Whole);
        }
        let there = format!("{} may be taken", ByteSize(room));
        if let Err(why) = by_blocks {
            bail!(too_large(self.whole, room, &format!("{why:#}")));
        }
        let in_memory = self.least.saturating_add(self.states);
        if in_memory <= room {
            return Ok(Way::Blocks);
        }
        if self.least <= room && on_disk {
            return Ok(Way::BlocksOnDisk);
        }
        let least = ByteSize(self.least);
        let error = match on_disk {
            true => anyhow::anyhow!(
                "evaluating the model block by block takes about {least} at least, but {there}"
            ),
            false => anyhow::anyhow!(
                "evaluating the model block by block takes about {}, but {there}",
                ByteSize(in_memory)
            ),
        };
        let hint = match (on_disk, self.least <= room) {
            (true, _) => return Err(error),
            (false, true) => format!("--scratch DIR keeps hidden states on disk: then {least} are enough"),
            (false, false) => {
                format!("with --scratch DIR, which keeps hidden states on disk, it takes {least}")
            }
        };
        Err(error.context(Hint(hint)))
    }
}

/// Refuses an evaluation that takes more than `limit`, or than is free.
///
/// # Errors
/// What it would take.
pub fn check_whole(n_bytes: u64, limit: Option<u64>, why: &str) -> Result<()> {
    match limit.or_else(free_memory::available) {
        Some(room) if n_bytes > room => bail!(too_large(n_bytes, room, why)),
        _ => Ok(()),
    }
}

fn too_large(n_bytes: u64, room: u64, why: &str) -> String {
    let [takes, room] = [n_bytes, room].map(ByteSize);
    format!("evaluating the whole model takes about {takes}, but {room} may be taken, and {why}")
}

/// What both ways take.
struct Common {
    /// Beside weights, keys and values, and logits.
    besides: u64,
    /// What a block makes of a window on the way.
    compute: u64,
    /// The hidden state of a window.
    state: u64,
    /// Keys and values of a block.
    cache: u64,
    /// Entries of the vocabulary. Without a list of tokens nothing of it is counted.
    n_vocab: u64,
    /// Logits where they are computed, and where they are kept.
    logits: u64,
}

impl Common {
    fn of(model: &Model<'_>, size: Size) -> Self {
        let n_embd = super::n_embd(model).unwrap_or(0) as u64;
        let widest = widest(model).max(n_embd);
        let n_vocab = n_vocab(model).unwrap_or(0);
        let state = bytes(size.window, n_embd);
        let compute = bytes(size.window, widest).saturating_mul(4);
        let sums = match size.gathers.imatrix {
            true => Sums::n_bytes(model).saturating_add(bytes(size.window, widest)),
            false => 0,
        };
        // What all chosen experts give.
        let outputs = match size.gathers.experts {
            true => bytes(size.window, n_embd.saturating_mul(experts::n_used(model).unwrap_or(0) as u64)),
            false => 0,
        };
        let besides = PROGRAM
            .saturating_add(sums)
            .saturating_add(outputs)
            .saturating_add(n_vocab.saturating_mul(TOKEN))
            .saturating_add(compute)
            .saturating_add(state.saturating_mul(4));
        // Keys and values in 16 bits, no wider than the stream, for whole pieces of 256 tokens (`llama-context.cpp`).
        let cache = bytes(size.window.next_multiple_of(256), n_embd);
        Self {
            besides,
            compute,
            state,
            cache,
            n_vocab,
            logits: bytes(size.n_logits, n_vocab).saturating_mul(2),
        }
    }
}

/// Bytes of `n` rows of floats.
fn bytes(n: usize, width: u64) -> u64 {
    (n as u64).saturating_mul(width).saturating_mul(4)
}

/// The widest row that a block makes of a token, in elements.
fn widest(model: &Model<'_>) -> u64 {
    let of_blocks = model.tensors().iter().filter(|tensor| tensor.block.is_some());
    of_blocks.map(|tensor| tensor.info.dims()[1]).max().unwrap_or(0)
}

fn largest_tensor(model: &Model<'_>) -> u64 {
    let of_blocks = model.tensors().iter().filter(|tensor| tensor.block.is_some());
    of_blocks.map(|tensor| tensor.info.n_bytes()).max().unwrap_or(0)
}

/// Bytes of the largest file of one block alone.
fn largest_block(model: &Model<'_>, constraints: &Constraints) -> Result<u64> {
    if check(model, constraints).is_err() {
        return Ok(model.n_bytes());
    }
    let segments = Segments::new(model, constraints, 1, &Arc::new(ThreadPool::new(1)?));
    // What cannot be planned is said where it is asked for.
    Ok(segments.largest().map_or(model.n_bytes(), |largest| largest.map_or(0, |(_, n_bytes)| n_bytes)))
}

fn vocabulary_bytes(model: &Model<'_>) -> u64 {
    let tensors = model.tensors().iter();
    tensors
        .filter(|tensor| VOCABULARY.contains(&tensor.info.name()))
        .map(|tensor| tensor.info.n_bytes())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_the_first_that_fits() {
        let need = Need { whole: 100, least: 10, states: 30, each: 5, cache: 1, outputs: 1 };
        let way = |limit, on_disk| need.way(Some(limit), Ok(()), on_disk);
        assert_eq!(way(100, false).unwrap(), Way::Whole);
        assert_eq!(way(99, true).unwrap(), Way::Blocks);
        assert_eq!(way(40, false).unwrap(), Way::Blocks);
        assert_eq!(way(39, true).unwrap(), Way::BlocksOnDisk);
        assert_eq!(way(10, true).unwrap(), Way::BlocksOnDisk);
        for (limit, on_disk, least) in [(9, true, "10 B"), (39, false, "40 B"), (9, false, "40 B")] {
            let error = format!("{:#}", way(limit, on_disk).unwrap_err());
            assert!(error.contains(least), "{error}");
        }
        let error = need.way(Some(50), Err(anyhow::anyhow!("it is so")), true).unwrap_err().to_string();
        assert!(error.contains("100 B") && error.ends_with("it is so"), "{error}");
    }
}
