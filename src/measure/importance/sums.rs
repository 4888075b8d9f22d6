//! Sums over the tokens of each window, and scores made from them.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::rows::products;
use super::{BlockImportance, Each, Metric};
use crate::measure::mean::Mean;
use crate::model::BlockId;

/// Sums of one block, or of half a block.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
        Metric::ALL.iter().all(|&metric| self.window.sums[metric].is_finite())
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
        let mut means: Each<WindowMeans> = Each::default();
        for window in order.iter().map(|&at| &self.windows[at]) {
            total.n += window.n;
            total.n_zero_rows += window.n_zero_rows;
            for metric in Metric::ALL {
                total.sums[metric] += window.sums[metric];
                if window.n > 0 {
                    means[metric].add(window.mean(metric));
                }
            }
        }
        ensure!(
            total.n > 0,
            "the hidden state around block {block} is zero for every token, so its influence is undefined"
        );
        Ok(BlockImportance {
            block,
            scores: Each::new(|metric| Mean {
                mean: total.mean(metric),
                stderr: means[metric].standard_error(),
            }),
            n_zero_rows: total.n_zero_rows,
            halves: None,
        })
    }
}

/// Sums over the tokens of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowSums {
    /// Tokens.
    pub n: u64,
    /// Tokens left out, whose state before or after is all zeros.
    pub n_zero_rows: u64,
    /// Of each metric.
    pub sums: Each<f64>,
}

impl WindowSums {
    fn add_token(&mut self, x: &[f32], y: &[f32]) {
        let products = products(x, y);
        if products.xx == 0.0 || products.yy == 0.0 {
            self.n_zero_rows += 1;
            return;
        }
        self.n += 1;
        for metric in Metric::ALL {
            self.sums[metric] += metric.of(&products);
        }
    }

    fn mean(&self, metric: Metric) -> f64 {
        self.sums[metric] / count(self.n)
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

    /// Standard error of the mean over windows. It is `sqrt(s^2 / n)` with the unbiased variance `s^2`.
    fn standard_error(&self) -> Option<f64> {
        (self.n > 1.0).then(|| (self.m2 / (self.n - 1.0) / self.n).sqrt())
    }
}
