//! Heal: other weights for kept tensors, which make up for removed blocks.
//!
//! They are found in closed form from forward passes alone. The matrix that writes to the stream before a cut, `ffn_down`,
//! multiplies `h`. Beside its own product it can add the part of what is missing after the cut that is linear in `h`. That is
//! the least squares of `r - D h` over tokens, plus a ridge toward `D = 0`. Here `r` is the parent's stream after the removed
//! blocks minus the shortened model's stream. Where ReplaceMe (arXiv:2505.02819) folds a map of the stream into that matrix,
//! here every input of it counts.
//!
//! In reading order: [`target_matrix`] is such a matrix, [`split`] says what each window is for, [`normal`] keeps the sums over
//! tokens, [`ridge`] solves, and [`rounding`] rounds. Where a norm stands between that matrix and the stream ([`post_norms`]),
//! [`channels`] fits the weights of the norm.
//!
//! A cut also leaves the stream shorter than the blocks after it expect. [`scale`] multiplies a tensor by its scales alone,
//! [`projections`] are the tensors that write to the stream, and [`magnitude`] finds the number that they are divided by.

pub mod settings;

pub mod outcome;

pub mod run;

pub(crate) mod repairs;

pub(crate) mod trials;

pub mod healer;

pub mod target_matrix;

pub mod split;

pub mod normal;

pub mod ridge;

pub mod rounding;

pub mod scale;

pub mod post_norms;

pub mod projections;

pub mod magnitude;

pub mod channels;

use std::fmt;

/// How much each token counts in a fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weighting {
    /// The same for each. So the few tokens with very long streams count most.
    Plain,
    /// By one over the length of the parent's stream.
    InverseNorm,
    /// By one over the squared length: norms see the stream's direction alone.
    InverseSquaredNorm,
}

impl Weighting {
    /// Of a token with this stream in the parent.
    #[must_use]
    pub fn of(self, target: &[f32]) -> f64 {
        let square = || -> f64 { target.iter().map(|&x| f64::from(x) * f64::from(x)).sum() };
        // A stream of nothing has no direction.
        let inverse = |of: f64| if of > 0.0 { 1.0 / of } else { 0.0 };
        match self {
            Self::Plain => 1.0,
            Self::InverseNorm => inverse(square().sqrt()),
            Self::InverseSquaredNorm => inverse(square()),
        }
    }

    /// Of each token, by their streams in the parent, `[n_tokens, n_embd]`.
    #[must_use]
    pub fn of_tokens(self, targets: &[f32], n_embd: usize) -> Vec<f64> {
        targets.chunks_exact(n_embd).map(|target| self.of(target)).collect()
    }
}

impl fmt::Display for Weighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::InverseNorm => "length",
            Self::InverseSquaredNorm => "direction",
        })
    }
}
