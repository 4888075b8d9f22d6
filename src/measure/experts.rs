//! Scores of experts: formulas only.
//!
//! REAP is the mean, over the tokens that are routed to an expert, of its gate weight times the length of its output (Lasby et
//! al. 2025, arXiv:2510.13999, equation 9). Frequency is the share of all tokens that are routed to it. An expert to which none is
//! has a frequency and a REAP of zero.
//!
//! Standard errors are over windows. A mean over routed tokens is a ratio `R = sum s_w / sum n_w` of sums over windows, whose
//! standard error is `sqrt(W / (W - 1) * sum (s_w - R n_w)^2) / sum n_w` (Cochran, Sampling Techniques, section 6.4).

use serde::Serialize;

use crate::engine::experts::{BlockExperts, ExpertSums, OverWindows, RoutedSums};
use crate::measure::mean::Mean;
use crate::model::BlockId;

/// The scores of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ExpertScores {
    /// Tokens that are routed to it; without any it was never chosen.
    pub tokens: u64,
    /// The mean over them of gate weight times length of its output; 0 without any.
    pub reap: f64,
    /// Its standard error; null of a single window.
    pub reap_stderr: Option<f64>,
    /// The share of all tokens.
    pub frequency: f64,
    /// Its standard error.
    pub frequency_stderr: Option<f64>,
    /// The mean gate weight of routed tokens; 0 without any.
    pub gate: f64,
    /// Its standard error.
    pub gate_stderr: Option<f64>,
}

/// The scores of the experts of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockOfExperts {
    /// The block, in the input's numbering.
    pub block: BlockId,
    /// Of each expert.
    pub experts: Vec<ExpertScores>,
}

/// The scores of all blocks with experts.
#[must_use]
pub fn scores(sums: &RoutedSums) -> Vec<BlockOfExperts> {
    let of_block = |(&block, sums): (&BlockId, &BlockExperts)| BlockOfExperts {
        block,
        experts: sums.experts.iter().map(|expert| of_expert(sums, expert)).collect(),
    };
    sums.0.iter().map(of_block).collect()
}

fn of_expert(block: &BlockExperts, expert: &ExpertSums) -> ExpertScores {
    let n_windows = block.n_windows;
    let all = Weights { sum: block.n_tokens as f64, squares: block.squared_tokens };
    let routed = Weights { sum: expert.tokens.sum, squares: expert.tokens.squares };
    let (reap, gate) = (ratio(&expert.output, routed, n_windows), ratio(&expert.gate, routed, n_windows));
    let frequency = ratio(&expert.tokens, all, n_windows);
    ExpertScores {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of counts")]
        tokens: expert.tokens.sum as u64,
        reap: reap.mean,
        reap_stderr: reap.stderr,
        frequency: frequency.mean,
        frequency_stderr: frequency.stderr,
        gate: gate.mean,
        gate_stderr: gate.stderr,
    }
}

/// Tokens of a mean, and the sum of squares over windows.
#[derive(Clone, Copy)]
struct Weights {
    sum: f64,
    squares: f64,
}

fn ratio(of: &OverWindows, over: Weights, n_windows: u64) -> Mean {
    if over.sum <= 0.0 {
        return Mean { mean: 0.0, stderr: None };
    }
    let (mean, n) = (of.sum / over.sum, n_windows as f64);
    let residuals = of.squares - 2.0 * mean * of.by_tokens + mean * mean * over.squares;
    // Rounding may leave less than nothing.
    let error = (n / (n - 1.0) * residuals.max(0.0)).sqrt() / over.sum;
    Mean { mean, stderr: (n_windows > 1).then_some(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over windows of an expert's tokens, gate weights and outputs.
    fn sums(windows: &[(f64, f64)]) -> (OverWindows, Weights) {
        let mut sums = OverWindows::default();
        let mut weights = Weights { sum: 0.0, squares: 0.0 };
        for &(s, n) in windows {
            sums.sum += s;
            sums.squares += s * s;
            sums.by_tokens += s * n;
            weights.sum += n;
            weights.squares += n * n;
        }
        (sums, weights)
    }

    #[test]
    fn the_error_of_a_ratio_is_that_of_its_residuals() {
        let windows = [(3.0, 2.0), (10.0, 5.0), (0.0, 0.0), (4.5, 3.0)];
        let (of, over) = sums(&windows);
        let found = ratio(&of, over, 4);
        assert!((found.mean - 1.75).abs() < 1e-15);
        let residuals: f64 = windows.iter().map(|(s, n)| (s - 1.75 * n).powi(2)).sum();
        assert!((found.stderr.unwrap() - (4.0 / 3.0 * residuals).sqrt() / 10.0).abs() < 1e-14);
        // Windows of one length: the error of a mean.
        let equal = [(2.0, 4.0), (6.0, 4.0), (4.0, 4.0)];
        let (of, over) = sums(&equal);
        let expected = Mean::of(&equal.map(|(s, n)| s / n));
        let found = ratio(&of, over, 3);
        assert!((found.mean - expected.mean).abs() < 1e-15);
        assert!((found.stderr.unwrap() - expected.stderr.unwrap()).abs() < 1e-15);
    }

    #[test]
    fn an_expert_that_is_never_chosen_has_zeros() {
        let block = BlockExperts {
            n_windows: 2,
            n_tokens: 10,
            squared_tokens: 50.0,
            experts: vec![ExpertSums::default()],
        };
        let scores = scores(&RoutedSums([(BlockId::new(3), block)].into()));
        let found = scores[0].experts[0];
        assert_eq!((found.tokens, found.reap, found.reap_stderr, found.gate), (0, 0.0, None, 0.0));
        assert_eq!((found.frequency, found.frequency_stderr), (0.0, Some(0.0)));
    }
}
