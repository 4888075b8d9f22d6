//! How well a text is predicted: `exp` of the mean negative log-likelihood of its tokens.

use crate::measure::mean::Mean;

/// The perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp(mean nll)`.
    pub value: f64,
    /// Its standard error: that of the mean, times the perplexity (llama-perplexity's `+/-`). `None` for a single token.
    pub stderr: Option<f64>,
    /// Tokens scored.
    pub n_tokens: usize,
}

impl Perplexity {
    /// Of the negative log-likelihoods of all scored tokens.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of(nlls: &[f64]) -> Self {
        let mean = Mean::of(nlls);
        let value = mean.mean.exp();
        Self { value, stderr: mean.stderr.map(|stderr| stderr * value), n_tokens: nlls.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms_hold() {
        // All equally likely among 50.
        let even = Perplexity::of(&[50f64.ln(); 7]);
        assert!((even.value - 50.0).abs() < 1e-12);
        assert!(even.stderr.unwrap() < 1e-12);
        // Certain: 1; a single token has no standard error.
        assert_eq!(Perplexity::of(&[0.0]), Perplexity { value: 1.0, stderr: None, n_tokens: 1 });
        // Two tokens 1 and 3: mean 2, standard error 1.
        let two = Perplexity::of(&[1.0, 3.0]);
        assert_eq!((two.value, two.stderr), (2f64.exp(), Some(2f64.exp())));
    }
}
