//! An entry of the cache: scores, and what they depend on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::engine::conversion::Conversion;
use crate::engine::experts::{BlockExperts, RoutedSums};
use crate::measure::importance::{BlockImportance, Importance, WindowSums};
use crate::measure::pairs::Pairs;
use crate::model::BlockId;

/// What scores depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Version of this program, with the revision of its source.
    pub gguf_shorten: String,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: String,
    /// Hash of the model's bytes.
    pub model: String,
    /// Of the texts, and where one ends and the next begins.
    pub texts: String,
    /// At most this many of its tokens.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Whether a model with a shorter context has shorter windows.
    pub window_is_default: bool,
    /// As in llama.cpp; null is its default.
    pub gpu_layers: Option<i32>,
    /// Servers that evaluate, each of which may round in its own way.
    pub rpc: String,
    /// What weights of blocks are to be converted to. Null is what is fastest.
    pub conversion: Option<Conversion>,
    /// What was scored.
    pub scored: Scored,
}

/// What was scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scored {
    /// Every block.
    Blocks,
    /// Every block, and its two halves.
    Halves,
    /// Every run of this many blocks.
    Runs(usize),
    /// Any two positions of the stream.
    Pairs,
    /// What experts do.
    Experts,
}

/// What was measured, beside the scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens of all windows.
    pub tokens: usize,
    /// Whether every window begins with the model's BOS token.
    pub bos: bool,
    /// Where the text came from.
    pub source: String,
    /// Hash of the text, as results have it.
    pub blake3: String,
    /// Time that it took.
    pub seconds: f64,
    /// What weights of blocks were converted to.
    pub conversion: Conversion,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What the scores depend on.
    pub key: Key,
    /// Where the model was.
    pub path: String,
    /// When it was written, in seconds since 1970.
    pub written: u64,
    /// What was measured.
    pub measured: Measured,
    /// Of each block; of runs none.
    blocks: Vec<BlockImportance>,
    /// Of each block the sums of every window.
    windows: Vec<Vec<WindowSums>>,
    /// The distance over each run; of blocks none.
    runs: Vec<f64>,
    /// Of any two positions of the stream, where those were scored.
    #[serde(default)]
    pairs: Option<Pairs>,
    /// What experts do, where they were scored.
    #[serde(default)]
    experts: Option<RoutedSums>,
}

impl Entry {
    /// Of scores of blocks.
    #[must_use]
    pub fn of_blocks(key: Key, path: String, measured: Measured, importance: &Importance) -> Self {
        Self {
            blocks: importance.blocks.clone(),
            windows: importance.windows.clone(),
            ..Self::of_runs(key, path, measured, &[])
        }
    }

    /// Of scores of runs.
    #[must_use]
    pub fn of_runs(key: Key, path: String, measured: Measured, distances: &[f64]) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            key,
            path,
            written: since.map_or(0, |since| since.as_secs()),
            measured,
            blocks: Vec::new(),
            windows: Vec::new(),
            runs: distances.to_vec(),
            pairs: None,
            experts: None,
        }
    }

    /// Of what experts do.
    #[must_use]
    pub fn of_experts(key: Key, path: String, measured: Measured, experts: &RoutedSums) -> Self {
        Self { experts: Some(experts.clone()), ..Self::of_runs(key, path, measured, &[]) }
    }

    /// Of pairs of positions.
    #[must_use]
    pub fn of_pairs(key: Key, path: String, measured: Measured, pairs: &Pairs) -> Self {
        Self { pairs: Some(pairs.clone()), ..Self::of_runs(key, path, measured, &[]) }
    }

    /// The scores of `n_blocks` blocks, if that is what it has.
    #[must_use]
    pub fn blocks(&self, n_blocks: usize) -> Option<Importance> {
        let has_halves = match self.key.scored {
            Scored::Blocks => false,
            Scored::Halves => true,
            Scored::Runs(_) | Scored::Pairs | Scored::Experts => return None,
        };
        let is_block = |(i, block): (usize, &BlockImportance)| {
            block.block.index() == i && block.halves.is_some() == has_halves
        };
        let n_rows = |sum: u64, of: &WindowSums| sum.checked_add(of.n)?.checked_add(of.n_zero_rows);
        let is_whole = |windows: &Vec<WindowSums>| {
            windows.len() == self.measured.windows && windows.iter().try_fold(0, n_rows).is_some()
        };
        let is_so = (self.blocks.len(), self.windows.len()) == (n_blocks, n_blocks)
            && self.blocks.iter().enumerate().all(is_block)
            && self.windows.iter().all(is_whole);
        is_so.then(|| Importance {
            blocks: self.blocks.clone(),
            n_windows: self.measured.windows,
            n_tokens: self.measured.tokens,
            windows: self.windows.clone(),
            lorp: None,
        })
    }

    /// The scores of all runs of a model of `n_blocks`, if held.
    #[must_use]
    pub fn runs(&self, n_blocks: usize) -> Option<Vec<f64>> {
        let Scored::Runs(n) = self.key.scored else {
            return None;
        };
        (self.runs.len() + n == n_blocks + 1).then(|| self.runs.clone())
    }

    /// The pairs of positions of a model of `n_blocks`, if held.
    #[must_use]
    pub fn pairs(&self, n_blocks: usize) -> Option<Pairs> {
        self.pairs.clone().filter(|pairs| pairs.are_of(n_blocks))
    }

    /// What the experts of a model of `n_blocks` blocks do, if known.
    #[must_use]
    pub fn experts(&self, n_blocks: usize) -> Option<RoutedSums> {
        let windows = self.measured.windows as u64;
        let is_block = |(block, sums): (&BlockId, &BlockExperts)| {
            block.index() < n_blocks && sums.n_windows == windows && !sums.experts.is_empty()
        };
        self.experts.clone().filter(|experts| experts.0.iter().all(is_block))
    }
}
