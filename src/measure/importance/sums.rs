//! Sums over the tokens of each window, and scores made from them.

use anyhow::{Result, ensure};

use super::BlockImportance;
use super::rows::products;
use crate::model::BlockId;

/// Sums of one block, or of half a block.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockSums {
    /// Of the window that is being evaluated.
    pub(super) window: WindowSums,
    /// Of each finished one.
    pub(super) windows: Vec<WindowSums>,
}

impl BlockSums {
    /// Adds every token of one window. A block that runs several times on a window (a looped model) is the mean of
    /// its runs.
    pub(super) fn add_state(&mut self, before: &[f32], after: &[f32], n_embd: usize) {
        for (x, y) in before.chunks_exact(n_embd).zip(after.chunks_exact(n_embd)) {
            self.window.add_token(x, y);
        }
    }

    pub(super) fn is_finite(&self) -> bool {
        self.window.distance.is_finite() && self.window.relative_magnitude.is_finite()
    }

    pub(super) fn was_added_to(&self) -> bool {
        self.windows.iter().any(|sums| sums.n + sums.n_zero_rows > 0)
    }

    pub(super) fn end_window(&mut self) {
        self.windows.push(std::mem::take(&mut self.window));
    }

    /// Over the finished windows, added up in this order.
    pub(super) fn importance(&self, block: BlockId, order: &[usize]) -> Result<BlockImportance> {
        ensure!(self.was_added_to(), "block {block} was never evaluated");
        let mut total = WindowSums::default();
        let mut bi = WindowMeans::default();
        let mut relative_magnitude = WindowMeans::default();
        for window in order.iter().map(|&at| &self.windows[at]) {
            if window.n > 0 {
                bi.add(window.mean(window.distance));
                relative_magnitude.add(window.mean(window.relative_magnitude));
            }
            total.n += window.n;
            total.n_zero_rows += window.n_zero_rows;
            total.distance += window.distance;
            total.relative_magnitude += window.relative_magnitude;
        }
        ensure!(
            total.n > 0,
            "the hidden state around block {block} is zero for every token, so its influence is undefined"
        );
        Ok(BlockImportance {
            block,
            bi: total.mean(total.distance),
            bi_stderr: bi.standard_error(),
            relative_magnitude: total.mean(total.relative_magnitude),
            relative_magnitude_stderr: relative_magnitude.standard_error(),
            n_zero_rows: total.n_zero_rows,
            halves: None,
        })
    }
}

/// Sums over the tokens of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowSums {
    /// Tokens.
    pub n: u64,
    /// Tokens that are left out, as their hidden state before or after the block is all zeros.
    pub n_zero_rows: u64,
    /// Of `1 - cos(x, y)`.
    pub distance: f64,
    /// Of `|y - x| / |y|`.
    pub relative_magnitude: f64,
}

impl WindowSums {
    fn add_token(&mut self, x: &[f32], y: &[f32]) {
        let products = products(x, y);
        if products.xx == 0.0 || products.yy == 0.0 {
            self.n_zero_rows += 1;
            return;
        }
        self.n += 1;
        self.distance += products.cosine_distance();
        self.relative_magnitude += (products.dd / products.yy).sqrt();
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / count(self.n)
    }
}

pub(super) fn count(n: u64) -> f64 {
    n as f64
}

/// Mean and spread of the windows' means (Welford's recurrence).
#[derive(Clone, Copy, Debug, Default)]
struct WindowMeans {
    n: f64,
    mean: f64,
    /// Sum of squared differences from the mean.
    m2: f64,
}

impl WindowMeans {
    fn add(&mut self, value: f64) {
        self.n += 1.0;
        let delta = value - self.mean;
        self.mean += delta / self.n;
        self.m2 += delta * (value - self.mean);
    }

    /// Standard error of the mean over windows, `sqrt(s^2 / n)` with the unbiased variance `s^2`.
    fn standard_error(&self) -> Option<f64> {
        (self.n > 1.0).then(|| (self.m2 / (self.n - 1.0) / self.n).sqrt())
    }
}
