//! A model's predictions of a text, and their divergence from its parent. Formulas and accumulators only.
//!
//! Figures are those of llama-perplexity (llama.cpp: `tools/perplexity/perplexity.cpp`), so that they can be compared with it.
//! Of each window the second half is scored, the first only gives context. Standard errors are those of a mean over tokens, as
//! if tokens were independent. Sums here are f64 where llama-perplexity has f32, and the parent's probabilities are exact where
//! its file of logits keeps 16 bits of those above `e^-16`.
//!
//! In reading order:
//! - [`log_softmax`]: one row of logits as log-probabilities.
//! - [`perplexity`]: how well a text is predicted.
//! - [`divergence`]: how far a model's predictions lie from its parent's.
//! - [`measure`]: both, over all windows of a text.
//! - [`side_by_side`]: several models against one parent.
//! - [`choice`]: tasks with several answers, one of them right.

pub mod log_softmax;

pub mod perplexity;

pub mod divergence;

pub mod measure;

pub mod side_by_side;

pub mod choice;

#[cfg(test)]
pub(crate) mod recorded;
