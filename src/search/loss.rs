//! What a removal costs: the loss of a set of blocks on windows of text.

use std::fmt;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::hidden_state::Token;
use crate::quality::log_softmax::Row;
use crate::quality::scored;

/// What a search makes small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Objective {
    /// The KL divergence from the parent's predictions
    Kl,
    /// The perplexity
    Ppl,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kl => "kl",
            Self::Ppl => "ppl",
        })
    }
}

/// Sums over the scored tokens of one or more windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Loss {
    /// Scored tokens.
    pub n_tokens: u64,
    /// Of the negative log-likelihoods of the text's tokens, in nats.
    pub nll: f64,
    /// The same of the parent.
    pub parent_nll: f64,
    /// Of the KL divergences from the parent's predictions, in nats.
    pub kl: f64,
    /// Tokens whose likeliest successor is the parent's.
    pub n_same_top: u64,
}

impl Loss {
    /// Of a window: `logits` and the parent's, `[n_scored, n_vocab]`.
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub fn of(window: &[Token], parent: &[f32], logits: &[f32]) -> Result<Self> {
        ensure!(
            parent.iter().any(|&logit| logit != 0.0),
            "the model gives no logits, so it predicts nothing"
        );
        let rows = scored(window.len());
        let next = &window[rows.start + 1..=rows.end];
        let n_vocab = logits.len() / next.len().max(1);
        let losses: Vec<Self> = next
            .par_iter()
            .zip(parent.par_chunks_exact(n_vocab))
            .zip(logits.par_chunks_exact(n_vocab))
            .enumerate()
            .map(|(i, ((&next, parent), row))| {
                let at = || format!("the logits behind token {} of a window", rows.start + i);
                let parent = Row::new(parent).with_context(at).context("the parent")?;
                let row = Row::new(row).with_context(at)?;
                Ok(Self {
                    n_tokens: 1,
                    nll: row.nll(next),
                    parent_nll: parent.nll(next),
                    kl: row.kl_from(&parent),
                    n_same_top: u64::from(row.top() == parent.top()),
                })
            })
            .collect::<Result<_>>()?;
        // In order, so that the sum does not depend on the threads.
        Ok(losses.into_iter().sum())
    }

    /// The mean that `objective` makes small, in nats per token.
    #[must_use]
    pub fn mean(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Kl => self.mean_of(self.kl),
            Objective::Ppl => self.mean_of(self.nll),
        }
    }

    /// `exp` of the mean negative log-likelihood.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean_of(self.nll).exp()
    }

    /// The parent's.
    #[must_use]
    pub fn parent_perplexity(&self) -> f64 {
        self.mean_of(self.parent_nll).exp()
    }

    /// The mean KL divergence, in nats.
    #[must_use]
    pub fn kl_divergence(&self) -> f64 {
        self.mean_of(self.kl)
    }

    /// The share of tokens whose likeliest successor is the parent's.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "token counts stay far below 2^53"
    )]
    pub fn same_top(&self) -> f64 {
        self.mean_of(self.n_same_top as f64)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "token counts stay far below 2^53"
    )]
    fn mean_of(&self, sum: f64) -> f64 {
        sum / self.n_tokens.max(1) as f64
    }
}

impl std::iter::Sum for Loss {
    fn sum<I: Iterator<Item = Self>>(losses: I) -> Self {
        losses.fold(Self::default(), |a, b| Self {
            n_tokens: a.n_tokens + b.n_tokens,
            nll: a.nll + b.nll,
            parent_nll: a.parent_nll + b.parent_nll,
            kl: a.kl + b.kl,
            n_same_top: a.n_same_top + b.n_same_top,
        })
    }
}
