//! How much each block changes the hidden state: formulas and accumulators only.
//!
//! Block Influence is `BI_i = 1 - E_{X,t}[cos(X_{i,t}, X_{i+1,t})]`, equation 2 of Men et al. 2024, arXiv:2403.03853, over
//! every token of every window. `X_i` is the residual stream before block `i`, `X_{i+1}` that after it, before any final norm.
//! Relative Magnitude is `E[|f(x)| / |x + f(x)|]`, norms per token, `f(x) = X_{i+1} - X_i` (Samragh et al. 2023,
//! arXiv:2309.14381).
//!
//! The authors' code of ShortGPT adds up in the model's precision, has no padding mask and turns a similarity that is not
//! a number into 0.5. Here sums are f64, no padding exists, and a row of zeros is counted and reported: its
//! direction is undefined, so it takes no part in the means.

mod metric;
mod rows;
mod sums;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::hidden_state::{HiddenStates, Passage, Position, Token};
use crate::measure::mean::Mean;
use crate::model::BlockId;

pub use metric::{Each, Metric};
pub use rows::cosine_distance;
pub use sums::WindowSums;
use sums::{BlockSums, count};

/// The scores of a block, or of half of one. Their standard errors are over windows, and none for a single window.
pub type BlockScores = Each<Mean>;

/// What was measured of one block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockImportance {
    /// The block, in the input's numbering.
    pub block: BlockId,
    /// Its scores.
    pub scores: BlockScores,
    /// Tokens left out, whose state before or after is all zeros.
    pub n_zero_rows: u64,
    /// The scores of its two halves, where states between were shown.
    pub halves: Option<Halves>,
}

/// The scores of the two halves of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Halves {
    /// Attention, or what a block has in its place. From what enters the block to the stream after it.
    pub attention: BlockScores,
    /// The feed-forward network, or what a block has in its place. From there to what leaves the block.
    pub ffn: BlockScores,
}

/// The scores of all evaluated blocks, first to last.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// One entry for each evaluated block, in order.
    pub blocks: Vec<BlockImportance>,
    /// Windows evaluated.
    pub n_windows: usize,
    /// Tokens evaluated, over all windows.
    pub n_tokens: usize,
    /// What each evaluated window gave, by block. Windows are in the order of the text.
    pub windows: Vec<Vec<WindowSums>>,
    /// The place of each block in the order of LoRP, from 0. `None` unless pairs of states were measured for it.
    pub lorp: Option<Vec<f64>>,
}

/// The scores of each block, `[n_blocks]`, as choices are made from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// By each metric.
    pub means: Each<Vec<f64>>,
    /// Places in the order of LoRP, where they were measured.
    pub lorp: Option<Vec<f64>>,
}

impl Importance {
    /// Evaluates every window and scores every block. `progress` is called with the tokens of each finished window.
    ///
    /// # Errors
    /// Those of [`Measuring::window`]; no window.
    pub fn measure<'w>(
        states: &mut dyn HiddenStates,
        windows: impl Iterator<Item = &'w [Token]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut measuring = Measuring::new(states.n_blocks());
        for (number, window) in windows.enumerate() {
            measuring.window(states, number, window)?;
            progress(window.len());
        }
        measuring.importance()
    }

    /// The scores of all blocks.
    #[must_use]
    pub fn scores(&self) -> Scores {
        Scores {
            means: Each::new(|metric| self.blocks.iter().map(|block| block.scores[metric].mean).collect()),
            lorp: self.lorp.clone(),
        }
    }

    /// The scores of all blocks without each window in turn. The order is that of [`Importance::windows`]. Not numbers where
    /// no token of a block is left.
    pub fn scores_without_each(&self) -> impl Iterator<Item = Scores> {
        let n_tokens: Vec<u64> =
            (self.windows.iter()).map(|windows| windows.iter().map(|sums| sums.n).sum()).collect();
        (0..self.n_windows).map(move |window| {
            let without = |metric: Metric| {
                let of_block = |(block, windows): (&BlockImportance, &Vec<WindowSums>)| {
                    let (mean, gone) = (block.scores[metric].mean, windows[window]);
                    let rest = count(n_tokens[block.block.index()] - gone.n);
                    // By the difference to the mean: a window like all others changes no digit.
                    mean - (gone.sums[metric] - mean * count(gone.n)) / rest
                };
                self.blocks.iter().zip(&self.windows).map(of_block).collect()
            };
            Scores { means: Each::new(without), lorp: None }
        })
    }
}

/// An evaluation of windows in any order, which can stop after each.
///
/// Memory is two hidden states of one window, three where the middles of blocks are shown, and a few numbers for each block
/// and window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measuring {
    blocks: Vec<BlockSums>,
    attention: Vec<BlockSums>,
    ffn: Vec<BlockSums>,
    /// Numbers of the finished windows in the text.
    numbers: Vec<usize>,
    n_tokens: usize,
}

impl Measuring {
    /// Of `n_blocks` blocks, before the first window.
    #[must_use]
    pub fn new(n_blocks: usize) -> Self {
        let sums = vec![BlockSums::default(); n_blocks];
        Self { blocks: sums.clone(), attention: sums.clone(), ffn: sums, numbers: Vec::new(), n_tokens: 0 }
    }

    /// How many windows are finished.
    #[must_use]
    pub fn n_windows(&self) -> usize {
        self.numbers.len()
    }

    /// Evaluates the window with this number in the text.
    ///
    /// # Errors
    /// Those of `states`; a hidden state that is not finite, or not of the promised shape.
    pub fn window(&mut self, states: &mut dyn HiddenStates, number: usize, window: &[Token]) -> Result<()> {
        let n_embd = states.n_embd();
        let expected = window.len() * n_embd;
        let mut before: Vec<f32> = Vec::new();
        let mut middle: Vec<f32> = Vec::new();
        states.visit(window, &mut |position, state| {
            ensure!(
                state.len() == expected,
                "a hidden state has {} numbers, expected {} tokens of {n_embd}",
                state.len(),
                window.len()
            );
            let add = |sums: &mut [BlockSums], block: BlockId, before: &[f32], place: &str| {
                ensure!(before.len() == expected, "block {block} has no input");
                let Some(sums) = sums.get_mut(block.index()) else {
                    bail!("block {block} was evaluated, but is not in the model");
                };
                sums.add_state(before, state, n_embd);
                if !sums.is_finite() {
                    bail!(not_finite(place, block, number));
                }
                Ok(())
            };
            match position {
                Position::Input => {}
                Position::Middle(block) => {
                    add(&mut self.attention, block, &before, "inside of")?;
                    middle.clear();
                    middle.extend_from_slice(state);
                    return Ok(());
                }
                Position::Output(block) => {
                    add(&mut self.blocks, block, &before, "after")?;
                    if !middle.is_empty() {
                        add(&mut self.ffn, block, &middle, "after")?;
                        middle.clear();
                    }
                }
            }
            before.clear();
            before.extend_from_slice(state);
            Ok(())
        })?;
        let halves = self.attention.iter_mut().chain(&mut self.ffn);
        for sums in self.blocks.iter_mut().chain(halves) {
            sums.end_window();
        }
        self.numbers.push(number);
        self.n_tokens += window.len();
        Ok(())
    }

    /// Adds what one block made of a window. Windows come in the order of the text, blocks one after another.
    ///
    /// # Errors
    /// A hidden state that is not finite; a block that is not in the model.
    pub fn passage(&mut self, passage: &Passage<'_>, n_embd: usize) -> Result<()> {
        let Passage { block, window, before, middle, after } = *passage;
        let number = block.index();
        let halves = middle.map(|middle| {
            [(&mut self.attention, before, middle, "inside of"), (&mut self.ffn, middle, after, "after")]
        });
        let whole = [(&mut self.blocks, before, after, "after")];
        for (sums, before, after, place) in halves.into_iter().flatten().chain(whole) {
            let sums = sums.get_mut(number).context("bug: a block that is not in the model")?;
            sums.add_state(before, after, n_embd);
            ensure!(sums.is_finite(), not_finite(place, block, window));
            sums.end_window();
        }
        if number == 0 {
            self.numbers.push(window);
            self.n_tokens += after.len() / n_embd;
        }
        Ok(())
    }

    /// The scores over the windows that are finished. They are added up in the order of the text, so in whatever order
    /// windows were evaluated, the result is the same in every bit.
    ///
    /// # Errors
    /// No window; a block without a score.
    pub fn importance(&self) -> Result<Importance> {
        ensure!(!self.numbers.is_empty(), "the calibration set has no window");
        let mut order: Vec<usize> = (0..self.numbers.len()).collect();
        order.sort_by_key(|&at| self.numbers[at]);
        let blocks = self
            .blocks
            .iter()
            .enumerate()
            .map(|(i, sums)| {
                let block = BlockId::new(i);
                let halves = match (&self.attention[i], &self.ffn[i]) {
                    (attention, _) if !attention.was_added_to() => None,
                    (attention, ffn) => Some(Halves {
                        attention: attention.importance(block, &order)?.scores,
                        ffn: ffn.importance(block, &order)?.scores,
                    }),
                };
                Ok(BlockImportance { halves, ..sums.importance(block, &order)? })
            })
            .collect::<Result<_>>()?;
        let in_order = |sums: &BlockSums| order.iter().map(|&at| sums.windows[at]).collect();
        Ok(Importance {
            blocks,
            n_windows: self.numbers.len(),
            n_tokens: self.n_tokens,
            windows: self.blocks.iter().map(in_order).collect(),
            lorp: None,
        })
    }
}

/// Why a window has no scores.
fn not_finite(place: &str, block: BlockId, window: usize) -> String {
    format!(
        "the hidden state {place} block {block} is not finite in window {window}: the model's own weights overflow"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::hidden_state::Recorded;
    use crate::measure::noise::noise;

    fn recorded(n_windows: usize, n_blocks: usize, n_tokens: usize, n_embd: usize) -> Recorded {
        let mut next = noise(7);
        let mut recorded = Recorded::default();
        recorded.n_blocks = n_blocks;
        recorded.n_embd = n_embd;
        for _ in 0..n_windows {
            let mut state = |scale: f32| (0..n_tokens * n_embd).map(|_| next() * scale).collect();
            let mut window = vec![(Position::Input, state(1.0))];
            for block in 0..n_blocks {
                window.push((Position::Output(BlockId::new(block)), state(2.0)));
            }
            recorded.windows.push(window);
        }
        recorded
    }

    fn measure(recorded: &Recorded, n_tokens: usize) -> Result<Importance> {
        let window = vec![0; n_tokens];
        let windows = recorded.windows.iter().map(|_| &window[..]);
        Importance::measure(&mut recorded.clone(), windows, &mut |_| {})
    }

    /// Equation 2 for all tokens at once, by the textbook cosine.
    fn naive(recorded: &Recorded, block: usize) -> (f64, f64) {
        let n_embd = recorded.n_embd;
        let (mut distance, mut magnitude, mut n) = (0.0, 0.0, 0.0);
        for window in &recorded.windows {
            let (x, y) = (&window[block].1, &window[block + 1].1);
            for t in 0..x.len() / n_embd {
                let at = |v: &[f32], j: usize| f64::from(v[t * n_embd + j]);
                let dot = |f: &dyn Fn(usize) -> f64| (0..n_embd).map(f).sum::<f64>();
                let xy = dot(&|j| at(x, j) * at(y, j));
                let xx = dot(&|j| at(x, j) * at(x, j));
                let yy = dot(&|j| at(y, j) * at(y, j));
                let ff = dot(&|j| (at(y, j) - at(x, j)).powi(2));
                distance += 1.0 - xy / (xx.sqrt() * yy.sqrt());
                magnitude += ff.sqrt() / yy.sqrt();
                n += 1.0;
            }
        }
        (distance / n, magnitude / n)
    }

    fn assert_near(scores: &BlockScores, naive: (f64, f64)) {
        let found = Metric::ALL.map(|metric| scores[metric].mean);
        assert!(
            (found[0] - naive.0).abs() < 1e-12 && (found[1] - naive.1).abs() < 1e-12,
            "{found:?} {naive:?}"
        );
    }

    #[test]
    fn scores_equal_the_naive_twin() {
        let recorded = recorded(3, 4, 5, 37);
        let importance = measure(&recorded, 5).unwrap();
        assert_eq!((importance.n_windows, importance.n_tokens), (3, 15));
        for (i, block) in importance.blocks.iter().enumerate() {
            assert_near(&block.scores, naive(&recorded, i));
        }
    }

    /// As [`recorded`], with the middle of every block.
    fn with_middles(n_windows: usize, n_blocks: usize, n_tokens: usize, n_embd: usize) -> Recorded {
        let mut halves = recorded(n_windows, 2 * n_blocks, n_tokens, n_embd);
        halves.n_blocks = n_blocks;
        for (position, _) in halves.windows.iter_mut().flatten() {
            if let Position::Output(half) = *position {
                let block = BlockId::new(half.index() / 2);
                *position = match half.index() % 2 {
                    0 => Position::Middle(block),
                    _ => Position::Output(block),
                };
            }
        }
        halves
    }

    #[test]
    fn halves_equal_the_naive_twin_and_leave_the_block_as_it_is() {
        // The naive twin takes every half for a block of its own.
        let halves = with_middles(3, 4, 5, 37);
        let importance = measure(&halves, 5).unwrap();
        let mut whole = halves.clone();
        for window in &mut whole.windows {
            window.retain(|(position, _)| !matches!(position, Position::Middle(_)));
        }
        let without = measure(&whole, 5).unwrap();
        for (i, block) in importance.blocks.iter().enumerate() {
            let scores = block.halves.unwrap();
            for (half, scores) in [(2 * i, scores.attention), (2 * i + 1, scores.ffn)] {
                assert_near(&scores, naive(&halves, half));
                let means: Vec<f64> = (0..3)
                    .map(|w| {
                        let mut one = halves.clone();
                        one.windows = vec![halves.windows[w].clone()];
                        naive(&one, half).0
                    })
                    .collect();
                let mean = means.iter().sum::<f64>() / 3.0;
                let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 2.0;
                assert!(
                    (scores[Metric::BlockInfluence].stderr.unwrap() - (variance / 3.0).sqrt()).abs() < 1e-12
                );
            }
            let block = BlockImportance { halves: None, ..*block };
            assert_eq!(block, without.blocks[i]);
        }
    }

    #[test]
    fn standard_error_is_that_of_the_window_means() {
        let recorded = recorded(4, 1, 3, 8);
        let means: Vec<f64> = (0..4)
            .map(|w| {
                let mut one = recorded.clone();
                one.windows = vec![recorded.windows[w].clone()];
                naive(&one, 0).0
            })
            .collect();
        let mean = means.iter().sum::<f64>() / 4.0;
        let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 3.0;
        let stderr = |recorded: &Recorded| {
            measure(recorded, 3).unwrap().blocks[0].scores[Metric::BlockInfluence].stderr
        };
        assert!((stderr(&recorded).unwrap() - (variance / 4.0).sqrt()).abs() < 1e-12);
        let mut single = recorded;
        single.windows.truncate(1);
        assert_eq!(stderr(&single), None);
    }

    #[test]
    fn the_order_of_windows_changes_no_bit() {
        let recorded = with_middles(5, 3, 4, 16);
        let expected = measure(&recorded, 4).unwrap();
        let mut measuring = Measuring::new(3);
        for number in [3, 0, 4, 2, 1] {
            let mut one = recorded.clone();
            one.windows = vec![recorded.windows[number].clone()];
            measuring.window(&mut one, number, &[0; 4]).unwrap();
        }
        assert_eq!(measuring.importance().unwrap(), expected);
        assert_eq!(measuring.n_windows(), 5);
    }

    #[test]
    fn blocks_one_after_another_change_no_bit() {
        let recorded = with_middles(4, 3, 4, 16);
        let mut measuring = Measuring::new(3);
        for block in 0..3 {
            for (number, window) in recorded.windows.iter().enumerate() {
                let state = |at: usize| &window[2 * block + at].1[..];
                let block = BlockId::new(block);
                let (before, middle, after) = (state(0), Some(state(1)), state(2));
                let passage = Passage { block, window: number, before, middle, after };
                measuring.passage(&passage, 16).unwrap();
                // As a checkpoint keeps it.
                measuring = serde_json::from_str(&serde_json::to_string(&measuring).unwrap()).unwrap();
            }
        }
        assert_eq!(measuring.importance().unwrap(), measure(&recorded, 4).unwrap());
    }

    #[test]
    fn scores_without_a_window_are_those_of_the_others() {
        let mut recorded = recorded(4, 3, 5, 8);
        // Windows of different weight.
        recorded.windows[1][2].1[..8].fill(0.0);
        let importance = measure(&recorded, 5).unwrap();
        let without: Vec<Scores> = importance.scores_without_each().collect();
        assert_eq!(without.len(), 4);
        for (window, found) in without.into_iter().enumerate() {
            let mut others = recorded.clone();
            others.windows.remove(window);
            let expected = measure(&others, 5).unwrap().scores();
            for metric in Metric::ALL {
                for (a, b) in found.means[metric].iter().zip(&expected.means[metric]) {
                    assert!((a - b).abs() < 1e-12, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn zero_rows_are_counted_and_left_out() {
        let mut recorded = recorded(1, 1, 2, 4);
        recorded.windows[0][0].1[..4].fill(0.0);
        let block = measure(&recorded, 2).unwrap().blocks[0];
        assert_eq!(block.n_zero_rows, 1);
        assert!(block.scores[Metric::BlockInfluence].mean.is_finite());
    }

    #[test]
    fn a_state_that_is_not_finite_is_an_error() {
        let mut recorded = recorded(2, 3, 2, 4);
        recorded.windows[1][2].1[5] = f32::NAN;
        let error = measure(&recorded, 2).unwrap_err().to_string();
        assert!(error.starts_with("the hidden state after block 1 is not finite in window 1"), "{error}");
    }

    #[test]
    fn a_state_of_another_shape_is_an_error() {
        let error = measure(&recorded(1, 1, 2, 4), 3).unwrap_err().to_string();
        assert_eq!(error, "a hidden state has 8 numbers, expected 3 tokens of 4");
    }
}
