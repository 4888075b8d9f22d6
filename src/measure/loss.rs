//! What a removal costs: the loss of a set of blocks on windows of text.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::engine::hidden_state::Token;
use crate::engine::scored::scored;
use crate::measure::quality::choice::best;
use crate::measure::quality::log_softmax::Row;
use crate::named::named;

named! {
    /// What a search makes small.
    pub enum Objective {
        /// The KL divergence from the parent's predictions
        Kl = "kl",
        /// The perplexity
        Ppl = "ppl",
        /// The cross entropy of the right answers of --task-file; of each step the few candidates with the lowest KL divergence
        /// do the tasks
        Task = "task",
        /// The share of tokens whose likeliest successor is another than the parent's, as a draft model; how many blocks go is
        /// what makes speculative decoding fastest, --drop being the most
        Draft = "draft",
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
    /// Of a window: `logits` and the parent's after the tokens that [`scored`] names, `[n_scored, n_vocab]`.
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub fn of(window: &[Token], parent: &[f32], logits: &[f32]) -> Result<Self> {
        Self::of_rows(window, scored(window.len()), parent, logits)
    }

    /// As [`Loss::of`], after the tokens at `rows`: `[rows.len(), n_vocab]`.
    ///
    /// # Errors
    /// As [`Loss::of`].
    ///
    /// # Panics
    /// If the last token of the window, which has no successor, is one of `rows`.
    pub fn of_rows(window: &[Token], rows: Range<usize>, parent: &[f32], logits: &[f32]) -> Result<Self> {
        ensure!(
            parent.iter().any(|&logit| logit != 0.0),
            "the model gives no logits, so it predicts nothing"
        );
        let next = &window[rows.start + 1..=rows.end];
        let n_vocab = logits.len() / next.len().max(1);
        let losses: Vec<Self> = next
            .par_iter()
            .zip(parent.par_chunks_exact(n_vocab))
            .zip(logits.par_chunks_exact(n_vocab))
            .enumerate()
            .map(|(i, ((&next, parent), row))| {
                let at = || format!("the logits after token {} of a window", rows.start + i);
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

    /// The mean that `objective` makes small. Nats per token, of a draft model a share of the tokens. For tasks it is the
    /// KL divergence, by which those are chosen that do them.
    #[must_use]
    pub fn mean(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Kl | Objective::Task => self.mean_of(self.kl),
            Objective::Ppl => self.mean_of(self.nll),
            Objective::Draft => 1.0 - self.same_top(),
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
    pub fn same_top(&self) -> f64 {
        self.mean_of(self.n_same_top as f64)
    }

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

/// Sums over tasks with several answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TaskLoss {
    /// Tasks.
    pub n_tasks: u64,
    /// Those that are right.
    pub n_correct: u64,
    /// Of the cross entropies of the right answers, in nats.
    pub cross_entropy: f64,
}

impl TaskLoss {
    /// Of tasks, each with its answers' scores and the right one's number.
    ///
    /// A score is the mean log-probability of an answer's tokens. The likeliest answer has the largest, and the cross entropy
    /// is that of a softmax over them, `ln sum_j exp(s_j) - s_right`. It says of every task how near it is to being right,
    /// where a share of right ones would be the same for most candidates.
    #[must_use]
    pub fn of<'s>(tasks: impl IntoIterator<Item = (&'s [f64], usize)>) -> Self {
        tasks.into_iter().fold(Self::default(), |sum, (scores, right)| {
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            Self {
                n_tasks: sum.n_tasks + 1,
                n_correct: sum.n_correct + u64::from(best(scores) == Some(right)),
                cross_entropy: sum.cross_entropy + (total.ln() - (scores[right] - max)),
            }
        })
    }

    /// The mean cross entropy of the right answer, in nats.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.cross_entropy / self.n_tasks.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cross_entropy_of_answers_is_that_of_a_softmax() {
        let (a, b) = ([-2.0, -1.0, -3.0], [-0.5, -0.25]);
        let found = TaskLoss::of([(&a[..], 1), (&b[..], 0)]);
        let softmax = |scores: &[f64], right: usize| {
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            -(scores[right].exp() / sum).ln()
        };
        assert!((found.cross_entropy - softmax(&a, 1) - softmax(&b, 0)).abs() < 1e-12);
        assert_eq!((found.n_tasks, found.n_correct), (2, 1));
        // Far from underflow.
        let far = TaskLoss::of([(&[-5000.0, -4999.0][..], 0)]);
        assert!((far.mean() - (1.0 + 1f64.exp()).ln()).abs() < 1e-12);
    }
}
