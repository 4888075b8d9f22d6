//! Tasks with several answers, one of them right. The answer whose tokens are the likeliest on average is the model's.
//!
//! This is the normalised accuracy of llama-perplexity's `--hellaswag` and `--multiple-choice`
//! (`perplexity.cpp: hellaswag_score, multiple_choice_score`). Other programs divide by bytes instead of tokens.

use anyhow::{Result, ensure};

use super::log_softmax::Row;
use crate::engine::hidden_state::Token;
use crate::measure::mean::Mean;

/// The texts of one task as tokens: the question followed by each answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    sequences: Vec<Vec<Token>>,
    n_shared: usize,
}

impl Sequences {
    /// Finds the tokens that all sequences begin with. Of each at least the last one is its own.
    ///
    /// # Errors
    /// Sequences that do not begin with the same token: nothing predicts the first one.
    pub fn new(sequences: Vec<Vec<Token>>) -> Result<Self> {
        let shortest = sequences.iter().map(Vec::len).min().unwrap_or(0);
        let same = |at: usize| sequences.iter().all(|tokens| tokens[at] == sequences[0][at]);
        let n_shared = (0..shortest.saturating_sub(1)).take_while(|&at| same(at)).count();
        ensure!(n_shared > 0, "the answers have no first token in common, so nothing predicts them");
        Ok(Self { sequences, n_shared })
    }

    /// The tokens that all begin with, at least one.
    #[must_use]
    pub fn shared(&self) -> &[Token] {
        &self.sequences[0][..self.n_shared]
    }

    /// Of each answer the tokens after those, at least one.
    pub fn own(&self) -> impl ExactSizeIterator<Item = &[Token]> {
        self.sequences.iter().map(|tokens| &tokens[self.n_shared..])
    }

    /// Each answer whole.
    #[must_use]
    pub fn whole(&self) -> &[Vec<Token>] {
        &self.sequences
    }

    /// Tokens to be evaluated if what is shared is evaluated once. The last token of an answer predicts nothing.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_shared + self.own().map(|own| own.len() - 1).sum::<usize>()
    }
}

/// The mean log-probability of an answer's `own` tokens. `first` is the prediction after what is shared, `rest` those after
/// each of its own tokens but the last.
///
/// # Panics
/// If `own` is not one longer than `rest`.
#[must_use]
pub fn mean_log_probability(first: &Row<'_>, rest: &[Row<'_>], own: &[Token]) -> f64 {
    assert_eq!(own.len(), rest.len() + 1, "a prediction for each token");
    let rows = std::iter::once(first).chain(rest);
    let nll: f64 = rows.zip(own).map(|(row, &token)| row.nll(token)).sum();
    -nll / own.len() as f64
}

/// The answer with the largest score, the first of several.
#[must_use]
pub fn best(scores: &[f64]) -> Option<usize> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter().position(|&score| score == largest)
}

/// How many tasks a model gets right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Tasks.
    pub n_tasks: usize,
    /// Those that the model gets right.
    pub n_correct: usize,
    /// Their share, with a binomial standard error. It is `sqrt(p (1 - p) / (n - 1))`.
    pub share: Mean,
    /// The share that guessing gets right on average: the mean of one over the number of answers.
    pub chance: f64,
}

impl Accuracy {
    /// Of tasks, each with its correctness and number of answers. `None` for no task.
    #[must_use]
    pub fn of(tasks: &[(bool, usize)]) -> Option<Self> {
        let n_tasks = tasks.len();
        let n_correct = tasks.iter().filter(|(correct, _)| *correct).count();
        let guesses: f64 = tasks.iter().map(|(_, n)| 1.0 / *n as f64).sum();
        (n_tasks > 0).then(|| Self {
            n_tasks,
            n_correct,
            share: Mean::of_share(n_correct, n_tasks),
            chance: guesses / n_tasks as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_share_is_found_and_each_keeps_a_token() {
        let of = |sequences: &[&[Token]]| {
            let sequences = sequences.iter().map(|tokens| tokens.to_vec()).collect();
            Sequences::new(sequences).map(|s| (s.shared().to_vec(), s.n_tokens()))
        };
        assert_eq!(of(&[&[1, 2, 3, 4], &[1, 2, 5]]).unwrap(), (vec![1, 2], 3));
        // One answer is the beginning of the other.
        assert_eq!(of(&[&[1, 2], &[1, 2, 5]]).unwrap(), (vec![1], 2));
        // All the same.
        assert_eq!(of(&[&[1, 2], &[1, 2]]).unwrap(), (vec![1], 1));
        for none in [&[&[1, 2][..], &[3, 2]][..], &[&[1], &[1, 2]], &[&[], &[1]]] {
            assert!(of(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn the_mean_log_probability_is_that_of_the_tokens() {
        // Probabilities 1/4 and 3/4; 1/2 and 1/2.
        let (a, b) = ([0.0, 3f32.ln()], [1.0, 1.0]);
        let (a, b) = (Row::new(&a).unwrap(), Row::new(&b).unwrap());
        assert!((mean_log_probability(&a, &[], &[0]) - 0.25f64.ln()).abs() < 1e-7);
        let both = (0.75f64.ln() + 0.5f64.ln()) / 2.0;
        assert!((mean_log_probability(&a, &[b], &[1, 0]) - both).abs() < 1e-7);
    }

    #[test]
    fn the_first_of_the_best_wins() {
        assert_eq!(best(&[-2.0, -1.0, -1.0]), Some(1));
        assert_eq!(best(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), Some(0));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn accuracy_stands_beside_chance() {
        let found = Accuracy::of(&[(true, 4), (false, 2), (true, 4), (true, 5)]).unwrap();
        assert_eq!((found.n_tasks, found.n_correct, found.share.mean), (4, 3, 0.75));
        assert!((found.share.stderr.unwrap() - 0.25).abs() < 1e-15);
        assert!((found.chance - 1.2 / 4.0).abs() < 1e-15);
        assert_eq!(Accuracy::of(&[]), None);
    }
}
