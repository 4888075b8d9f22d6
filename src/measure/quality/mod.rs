//! How well a model predicts a text, and how far its predictions lie from its parent's: formulas and accumulators only.
//!
//! Figures are those of llama-perplexity (llama.cpp: `tools/perplexity/perplexity.cpp`), so that they can be compared with
//! it: of each window the second half is scored, the first only gives context; standard errors are those of a mean over
//! tokens, as if tokens were independent. Sums here are f64 where llama-perplexity has f32, and the parent's
//! probabilities are exact where its file of logits keeps 16 bits of those above `e^-16`.
//!
//! In reading order:
//! - [`log_softmax`]: one row of logits as log-probabilities.
//! - [`perplexity`]: how well a text is predicted.
//! - [`divergence`]: how far a model's predictions lie from its parent's.
//! - [`measure`]: both, over all windows of a text.
//! - [`side_by_side`]: several models against one parent.
//! - [`choice`]: tasks with several answers, one of them right.

use serde::{Deserialize, Serialize};

pub mod log_softmax;

pub mod perplexity;

pub mod divergence;

pub mod measure;

pub mod side_by_side;

pub mod choice;

#[cfg(test)]
pub(crate) mod recorded;

/// A mean over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error, `sqrt(s^2 / n)` with the unbiased variance `s^2`; `None` for a single value.
    pub stderr: Option<f64>,
}

impl Mean {
    /// Of `values`, in two passes, so that nothing is lost to cancellation.
    ///
    /// # Panics
    /// If there is no value.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "the mean of nothing");
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, stderr: (n > 1.0).then(|| (squares / n / (n - 1.0)).sqrt()) }
    }

    /// Of `n_true` ones among `n` ones and zeros.
    ///
    /// # Panics
    /// If `n` is 0.
    #[must_use]
    pub fn of_share(n_true: usize, n: usize) -> Self {
        assert!(n > 0, "a share of nothing");
        let n = n as f64;
        let share = n_true as f64 / n;
        Self { mean: share, stderr: (n > 1.0).then(|| (share * (1.0 - share) / (n - 1.0)).sqrt()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_errors_are_those_of_llama_perplexity() {
        let values = [0.5, 2.5, 1.0, 7.0];
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|v| v * v).sum::<f64>() / n;
        let expected = ((squares - mean * mean) / (n - 1.0)).sqrt();
        let found = Mean::of(&values);
        assert!((found.stderr.unwrap() / expected - 1.0).abs() < 1e-14);
        assert_eq!(found.mean, mean);
        assert_eq!(Mean::of(&[3.0]).stderr, None);
        // A share is the mean of ones and zeros.
        let (a, b) = (Mean::of_share(1, 4), Mean::of(&[0.0, 1.0, 0.0, 0.0]));
        assert_eq!(a.mean, b.mean);
        assert!((a.stderr.unwrap() / b.stderr.unwrap() - 1.0).abs() < 1e-14);
    }
}
