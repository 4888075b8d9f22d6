//! An entry of the cache: scores, and what they depend on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::measure::importance::{BlockImportance, HalfImportance, Halves, Importance, WindowSums};
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
    /// Numbers: for each block five, and eight for its halves, or for each run one.
    scores: Vec<Vec<Option<f64>>>,
    /// Of each block the sums of every window; of runs none.
    windows: Vec<Vec<Sums>>,
}

/// Tokens, those left out, and both sums of a window: [`WindowSums`].
type Sums = (u64, u64, f64, f64);

impl Entry {
    /// Of scores of blocks.
    #[must_use]
    pub fn of_blocks(key: Key, path: String, measured: Measured, importance: &Importance) -> Self {
        let half = |half: &HalfImportance| {
            [Some(half.bi), half.bi_stderr, Some(half.relative_magnitude), half.relative_magnitude_stderr]
        };
        let scores = |block: &BlockImportance| {
            let n_zero_rows = block.n_zero_rows as f64;
            let mut scores = vec![
                Some(block.bi),
                block.bi_stderr,
                Some(block.relative_magnitude),
                block.relative_magnitude_stderr,
                Some(n_zero_rows),
            ];
            if let Some(halves) = &block.halves {
                scores.extend(half(&halves.attention));
                scores.extend(half(&halves.ffn));
            }
            scores
        };
        let sums =
            |window: &WindowSums| (window.n, window.n_zero_rows, window.distance, window.relative_magnitude);
        let windows = importance.windows.iter();
        Self {
            windows: windows.map(|windows| windows.iter().map(sums).collect()).collect(),
            ..Self::of(key, path, measured, importance.blocks.iter().map(scores).collect())
        }
    }

    /// Of scores of runs.
    #[must_use]
    pub fn of_runs(key: Key, path: String, measured: Measured, distances: &[f64]) -> Self {
        let scores = distances.iter().map(|&distance| vec![Some(distance)]).collect();
        Self::of(key, path, measured, scores)
    }

    fn of(key: Key, path: String, measured: Measured, scores: Vec<Vec<Option<f64>>>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            key,
            path,
            written: since.map_or(0, |since| since.as_secs()),
            measured,
            scores,
            windows: Vec::new(),
        }
    }

    /// The scores of `n_blocks` blocks, if that is what it has.
    #[must_use]
    pub fn blocks(&self, n_blocks: usize) -> Option<Importance> {
        let half = |scores: &[Option<f64>]| {
            Some(HalfImportance {
                bi: scores[0]?,
                bi_stderr: scores[1],
                relative_magnitude: scores[2]?,
                relative_magnitude_stderr: scores[3],
            })
        };
        let block = |(i, scores): (usize, &Vec<Option<f64>>)| {
            let whole = half(scores.get(..4)?)?;
            let zero_rows = (*scores.get(4)?)?;
            let halves = match (self.key.scored, scores.len()) {
                (Scored::Blocks, 5) => None,
                (Scored::Halves, 13) => {
                    Some(Halves { attention: half(&scores[5..9])?, ffn: half(&scores[9..13])? })
                }
                _ => return None,
            };
            #[expect(clippy::cast_possible_truncation, reason = "a count that was turned into a float")]
            Some(BlockImportance {
                block: BlockId::new(i),
                bi: whole.bi,
                bi_stderr: whole.bi_stderr,
                relative_magnitude: whole.relative_magnitude,
                relative_magnitude_stderr: whole.relative_magnitude_stderr,
                n_zero_rows: zero_rows as u64,
                halves,
            })
        };
        let blocks: Vec<_> = self.scores.iter().enumerate().map(block).collect::<Option<_>>()?;
        let sums = |&(n, n_zero_rows, distance, relative_magnitude): &Sums| WindowSums {
            n,
            n_zero_rows,
            distance,
            relative_magnitude,
        };
        let windows = |windows: &Vec<Sums>| -> Option<Vec<WindowSums>> {
            let n_rows = |sum: u64, of: &Sums| sum.checked_add(of.0)?.checked_add(of.1);
            windows.iter().try_fold(0, n_rows)?;
            let sums: Vec<_> = windows.iter().map(sums).collect();
            (sums.len() == self.measured.windows).then_some(sums)
        };
        let windows: Vec<_> = self.windows.iter().map(windows).collect::<Option<_>>()?;
        (blocks.len() == n_blocks && windows.len() == n_blocks).then_some(Importance {
            blocks,
            n_windows: self.measured.windows,
            n_tokens: self.measured.tokens,
            windows,
            lorp: None,
        })
    }

    /// The scores of all runs of a model of `n_blocks` blocks, if that is what it has.
    #[must_use]
    pub fn runs(&self, n_blocks: usize) -> Option<Vec<f64>> {
        let Scored::Runs(n) = self.key.scored else {
            return None;
        };
        let distance = |scores: &Vec<Option<f64>>| match scores[..] {
            [distance] => distance,
            _ => None,
        };
        let distances: Vec<f64> = self.scores.iter().map(distance).collect::<Option<_>>()?;
        (distances.len() + n == n_blocks + 1).then_some(distances)
    }
}
