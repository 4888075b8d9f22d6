//! How far a model's predictions lie from its parent's: what llama-perplexity prints with `--kl-divergence`.

use super::log_softmax::Row;
use super::perplexity::Perplexity;
use crate::engine::hidden_state::Token;
use crate::measure::mean::Mean;

/// One scored token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenDivergence {
    /// Negative log-likelihood of the next token.
    pub nll: f64,
    /// The same, of the parent.
    pub parent_nll: f64,
    /// `KL(parent || model)` in nats.
    pub kl: f64,
    /// Whether both hold the same token to be the likeliest.
    pub same_top: bool,
}

impl TokenDivergence {
    /// Of the prediction `row` against the parent's, where `next` came.
    #[must_use]
    pub fn of(row: &Row<'_>, parent: &Row<'_>, next: Token) -> Self {
        Self {
            nll: row.nll(next),
            parent_nll: parent.nll(next),
            kl: row.kl_from(parent),
            same_top: row.top() == parent.top(),
        }
    }

    /// How the probability of the next token changed, -1 to 1.
    fn probability_change(&self) -> f64 {
        (-self.nll).exp() - (-self.parent_nll).exp()
    }
}

/// A model compared with its parent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// The parent's perplexity on the same text.
    pub parent: Perplexity,
    /// `ln(perplexity / parent's)`; the error is that of the paired difference.
    pub log_ratio: Mean,
    /// `KL(parent || model)` in nats.
    pub kl: Mean,
    /// Its median over tokens.
    pub kl_median: f64,
    /// The value that 90 % of tokens do not exceed, interpolated.
    pub kl_p90: f64,
    /// The same for 99 %.
    pub kl_p99: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of tokens after which both have the same likeliest token.
    pub same_top: Mean,
    /// Change of the next token's probability.
    pub probability_change: Mean,
    /// Root of its mean square.
    pub probability_change_rms: Mean,
}

impl Divergence {
    /// Of all scored tokens.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of(tokens: &[TokenDivergence]) -> Self {
        let all = |f: &dyn Fn(&TokenDivergence) -> f64| tokens.iter().map(f).collect::<Vec<f64>>();
        let mut kl = all(&|token| token.kl);
        let kl_mean = Mean::of(&kl);
        kl.sort_unstable_by(f64::total_cmp);
        let square = Mean::of(&all(&|token| token.probability_change().powi(2)));
        let rms = square.mean.sqrt();
        let n_same = tokens.iter().filter(|token| token.same_top).count();
        Self {
            parent: Perplexity::of(&all(&|token| token.parent_nll)),
            log_ratio: Mean::of(&all(&|token| token.nll - token.parent_nll)),
            kl: kl_mean,
            kl_median: quantile(&kl, 0.5),
            kl_p90: quantile(&kl, 0.9),
            kl_p99: quantile(&kl, 0.99),
            kl_max: quantile(&kl, 1.0),
            same_top: Mean::of_share(n_same, tokens.len()),
            probability_change: Mean::of(&all(&TokenDivergence::probability_change)),
            probability_change_rms: Mean {
                mean: rms,
                // The error of a square root: that of the square, over twice the root. Of no change at all there is none.
                stderr: (square.stderr).map(|stderr| if rms > 0.0 { stderr / (2.0 * rms) } else { 0.0 }),
            },
        }
    }
}

/// The quantile of `sorted` at `share`, interpolated between neighbours (`perplexity.cpp: percentile`).
#[expect(
    clippy::cast_possible_truncation,
    reason = "counts stay far below 2^53, and a share of one is between 0 and it"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    let at = share * last as f64;
    let low = (at as usize).min(last);
    let high = (low + 1).min(last);
    let rest = at - low as f64;
    (1.0 - rest) * sorted[low] + rest * sorted[high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let sorted = [0.0, 1.0, 2.0, 10.0];
        assert_eq!(quantile(&sorted, 0.0), 0.0);
        assert_eq!(quantile(&sorted, 0.5), 1.5);
        assert!((quantile(&sorted, 0.9) - (0.3 * 2.0 + 0.7 * 10.0)).abs() < 1e-12);
        assert_eq!(quantile(&sorted, 1.0), 10.0);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 7.0], 0.5), 2.0);
    }

    #[test]
    fn figures_of_two_tokens_by_hand() {
        let token = |nll: f64, parent_nll: f64, kl: f64, same_top: bool| TokenDivergence {
            nll,
            parent_nll,
            kl,
            same_top,
        };
        // Probabilities 1/2 and 1/4 where the parent has 1/4 and 1/4.
        let (half, quarter) = (2f64.ln(), 4f64.ln());
        let found = Divergence::of(&[token(half, quarter, 0.2, true), token(quarter, quarter, 0.4, false)]);
        assert_eq!(found.parent.value, quarter.exp());
        assert!((found.log_ratio.mean + half / 2.0).abs() < 1e-15);
        assert!((found.log_ratio.stderr.unwrap() - half / 2.0).abs() < 1e-15);
        assert!((found.kl.mean - 0.3).abs() < 1e-15 && found.kl_max == 0.4);
        assert!((found.kl.stderr.unwrap() - 0.1).abs() < 1e-15);
        assert_eq!(found.same_top, Mean::of_share(1, 2));
        assert!((found.probability_change.mean - 0.125).abs() < 1e-15);
        // Root of (1/16 + 0) / 2, and llama-perplexity's error of it.
        let rms = (1.0f64 / 32.0).sqrt();
        assert!((found.probability_change_rms.mean - rms).abs() < 1e-15);
        let error = 0.5 / rms * (((1.0f64 / 256.0) / 2.0 - (1.0f64 / 32.0).powi(2)) / 1.0).sqrt();
        assert!((found.probability_change_rms.stderr.unwrap() - error).abs() < 1e-15);
    }
}
