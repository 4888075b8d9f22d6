//! Calibration text that the model writes itself: tokens drawn from its own predictions.
//!
//! A model's own text shows what it computes with, where no text of its domain is at hand (LLM-QAT, arXiv:2305.17888,
//! calibrates quantization so). Tokens are drawn at temperature 1 from all of the vocabulary, since every other rule makes
//! text that is more of one kind than what the model was trained on. Every second text begins with an opening of a list, so
//! that together they cover many subjects, languages and kinds of code.

use anyhow::{Context, Result, bail, ensure};
use ggml::{Batch, Decoder};
use rayon::prelude::*;

use crate::engine::hidden_state::Token;
use crate::engine::openings::{Openings, chance};

/// Sequences that are written at once. Each takes memory for keys and values.
const SEQUENCES: usize = 8;

/// The text to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Tokens of a window.
    pub window: usize,
    /// How many windows.
    pub n_windows: usize,
    /// Another number gives another text.
    pub seed: u64,
}

/// Lets `model` write windows of tokens, one after another in the result.
///
/// Every window begins with the token that begins a text. Where the model ends one, a new text begins in the same window, which
/// knows nothing of the one before. The token that begins it takes the place of the one that ends the other. Every second text
/// then has an opening of a list. Which token is drawn, and which opening a text has, depends on the predictions, the seed, the
/// window's number and the place in it alone.
///
/// `progress` gets the tokens that were written since it was last called.
///
/// # Errors
/// A model without a tokenizer or a token that begins a text, or that does not predict the next one; llama.cpp's.
pub fn write(
    model: &ggml::Model,
    order: Order,
    threads: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Token>> {
    let first = first_token(model)?;
    let openings = Openings::new(model, order.seed, order.window)?;
    let mut tokens: Vec<Token> = Vec::new();
    let n_sequences = SEQUENCES.min(order.n_windows).max(1);
    let mut sampler = Sampler {
        model,
        decoder: Decoder::apart(model, n_sequences, order.window, threads)?,
        order,
        first,
        pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build()?,
    };
    for start in (0..order.n_windows).step_by(n_sequences) {
        let numbers = start..order.n_windows.min(start + n_sequences);
        let numbers: Vec<usize> = numbers.collect();
        let windows = sampler.write(&numbers, &openings, progress).context("the model's own text")?;
        tokens.extend(windows.into_iter().flatten());
    }
    Ok(tokens)
}

/// The token with which every window begins.
///
/// # Errors
/// A model that cannot write.
pub fn first_token(model: &ggml::Model) -> Result<Token> {
    ensure!(model.has_tokenizer(), "the model has no tokenizer, so it cannot write a text of its own");
    ensure!(
        !model.is_diffusion(),
        "the model fills in masked tokens instead of predicting the next one, so it cannot write a text of its own"
    );
    model.first_token().context(
        "the vocabulary has no token that begins a text (metadata 'tokenizer.ggml.bos_token_id'), so the model cannot write \
         one of its own",
    )
}

/// Draws tokens from the predictions of a model.
struct Sampler<'m> {
    model: &'m ggml::Model,
    decoder: Decoder<'m>,
    order: Order,
    /// The token that begins a text.
    first: Token,
    /// The threads of ggml rest while these work.
    pool: rayon::ThreadPool,
}

impl Sampler<'_> {
    /// Writes the windows with these numbers at once.
    fn write(
        &mut self,
        numbers: &[usize],
        openings: &Openings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Token>>> {
        self.decoder.clear();
        let mut windows = vec![vec![self.first]; numbers.len()];
        // Where in its text the last token of each window is.
        let mut positions = vec![0; numbers.len()];
        // What is left of the opening that each text has.
        let mut ahead: Vec<&[Token]> = numbers.iter().map(|&number| openings.of(number, 0)).collect();
        progress(numbers.len());
        for at in 1..self.order.window {
            let mut batch = Batch::default();
            for (sequence, window) in windows.iter().enumerate() {
                batch.push(window[window.len() - 1], positions[sequence], &[sequence], true);
            }
            for (sequence, drawn) in self.next(&batch, numbers, at)?.into_iter().enumerate() {
                let opening = ahead[sequence].split_off_first();
                let token = opening.copied().unwrap_or(drawn);
                if opening.is_none() && self.model.ends_text(token) {
                    self.decoder.forget(sequence);
                    windows[sequence].push(self.first);
                    positions[sequence] = 0;
                    ahead[sequence] = openings.of(numbers[sequence], at);
                } else {
                    windows[sequence].push(token);
                    positions[sequence] += 1;
                }
            }
            progress(numbers.len());
        }
        Ok(windows)
    }

    /// The token at this place of each window.
    fn next(&mut self, batch: &Batch, numbers: &[usize], at: usize) -> Result<Vec<Token>> {
        let logits = self.decoder.decode_and_rest(batch)?;
        ensure!(
            logits.iter().any(|&logit| logit != 0.0),
            "the model gives no logits, so it predicts nothing"
        );
        let (n_vocab, seed) = (self.model.n_vocab(), self.order.seed);
        self.pool.install(|| {
            let rows = logits.par_chunks_exact(n_vocab).zip(numbers);
            rows.map(|(row, &number)| Ok(Token::try_from(draw(row, chance(seed, number, at))?)?)).collect()
        })
    }
}

/// The entry at which the cumulative probability of `logits` passes `chance`.
///
/// # Errors
/// Logits of no distribution: one that is not a number or plus infinity, or nothing that is possible.
fn draw(logits: &[f32], chance: f64) -> Result<usize> {
    let mut max = f32::NEG_INFINITY;
    for (i, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            bail!("the logit of vocabulary entry {i} is {logit}");
        }
        max = max.max(logit);
    }
    ensure!(max.is_finite(), "all logits are minus infinity");
    let weight = |logit: f32| f64::from(logit - max).exp();
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let mut left = chance * total;
    let mut last = 0;
    for (i, &logit) in logits.iter().enumerate() {
        let weight = weight(logit);
        if weight > 0.0 {
            last = i;
            if left < weight {
                break;
            }
            left -= weight;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_the_model_says() {
        let logits = [2.0f32, f32::NEG_INFINITY, -1.0, 0.5];
        let exps: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let n = 40_000;
        let mut counts = [0u32; 4];
        for at in 0..n {
            counts[draw(&logits, chance(3, at / 100, at % 100)).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        for (count, exp) in counts.iter().zip(&exps) {
            let p = exp / sum;
            let error = (f64::from(*count) / n as f64 - p).abs();
            // Four standard errors.
            assert!(error <= 4.0 * (p * (1.0 - p) / n as f64).sqrt(), "{error}");
        }
    }

    #[test]
    fn chances_lie_between_0_and_1_and_differ() {
        let all: std::collections::BTreeSet<u64> = (0..1000)
            .map(|i| chance(i / 100, (i / 10 % 10) as usize, (i % 10) as usize))
            .inspect(|chance| assert!((0.0..1.0).contains(chance)))
            .map(f64::to_bits)
            .collect();
        assert_eq!(all.len(), 1000);
        assert_eq!(chance(1, 2, 3), chance(1, 2, 3));
    }

    #[test]
    fn the_ends_of_the_range_are_possible_entries() {
        let logits = [f32::NEG_INFINITY, 0.0, 1.0, f32::NEG_INFINITY];
        assert_eq!(draw(&logits, 0.0).unwrap(), 1);
        assert_eq!(draw(&logits, 1.0 - 1e-16).unwrap(), 2);
    }

    #[test]
    fn logits_of_no_distribution_are_errors() {
        let error = |logits: &[f32]| draw(logits, 0.5).unwrap_err().to_string();
        assert_eq!(error(&[0.0, f32::NAN]), "the logit of vocabulary entry 1 is NaN");
        assert_eq!(error(&[f32::INFINITY, 0.0]), "the logit of vocabulary entry 0 is inf");
        assert_eq!(error(&[f32::NEG_INFINITY]), "all logits are minus infinity");
    }
}
