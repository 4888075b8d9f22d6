//! How sure a choice by scores is. Another text, or the rest of this one, might lead to another set.
//!
//! The scores are means over windows, and all blocks are scored on the same windows. Therefore two blocks are compared by the
//! differences of their scores window by window, whose spread is far smaller: the paired t-test (Student 1908, Biometrika 6).
//! Scores that are not means (method `safe`) are treated by leaving out one window at a time (the jackknife: Efron and
//! Tibshirani 1993, chapter 11). For means that is the same ([`Sample`]).
//!
//! The question is whether texts of the kind of this one would lead to the same set. Windows are taken for independent draws
//! from such texts, as the standard errors of the scores take them, and differences of their means for nearly normal.
//! Neighbouring windows of one text are more alike than independent draws, so where a text is all of one piece the answer
//! is too sure of other texts.
//!
//! A calibration that may stop early ([`Stopping`]) asks the same of the windows so far. They are evaluated in an order that is
//! as good as random ([`crate::engine::order`]), so they are a simple random sample. What is said of the rest of this text then
//! holds however much windows are alike. A sample without replacement has a variance that is smaller, by the finite population
//! correction (Cochran 1977, equation 2.20). That is not made use of: with it, a small difference becomes certain shortly
//! before the end, and a single unusual window among the last would turn it round. Without, a difference that is certain after
//! `n` windows has a sum of more than `t * sqrt(n)` standard deviations of a window, which one window does not easily outweigh.
//!
//! All verdicts of a table hold together with the given confidence, by Bonferroni's inequality: [`ties`] says over how many
//! comparisons, [`interim`] over how many analyses of unfinished results.

pub mod sample;

pub mod ties;

pub mod ranks;

pub mod interim;

pub mod stop;

pub mod correlation;

mod student;

use std::fmt;
use std::str::FromStr;

pub use interim::InterimAnalyses;
pub use sample::Sample;
pub use stop::{Goal, Stopping};
pub use ties::Ties;

/// The least probability with which all verdicts of a table are right. It is 0.5 or more and less than 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence(f64);

impl Confidence {
    /// As a number.
    #[must_use]
    pub fn level(self) -> f64 {
        self.0
    }

    /// The largest probability of any wrong verdict.
    #[must_use]
    pub fn alpha(self) -> f64 {
        1.0 - self.0
    }
}

impl Default for Confidence {
    fn default() -> Self {
        Self(0.99)
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Confidence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(level) if (0.5..1.0).contains(&level) => Ok(Self(level)),
            Ok(_) => Err("a confidence is at least 0.5 and less than 1".to_owned()),
            Err(_) => Err("expected a confidence such as 0.99".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Confidence;

    #[test]
    fn a_confidence_lies_between_a_half_and_one() {
        assert_eq!("0.99".parse::<Confidence>(), Ok(Confidence::default()));
        assert_eq!("0.5".parse::<Confidence>().unwrap().alpha(), 0.5);
        for text in ["1", "0.49", "-1", "99", "NaN", "inf"] {
            assert_eq!(
                text.parse::<Confidence>().unwrap_err(),
                "a confidence is at least 0.5 and less than 1"
            );
        }
        assert!("99%".parse::<Confidence>().is_err());
        assert!("".parse::<Confidence>().is_err());
    }
}
