//! A mean with its standard error.

use serde::{Deserialize, Serialize};

/// A mean over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error, `sqrt(s^2 / n)` with the unbiased variance `s^2`. `None` for a single value.
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
