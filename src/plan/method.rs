//! Method and budget: the words by which a choice of blocks is asked for, and which the output records.

use std::fmt;
use std::str::FromStr;

use crate::model::MAX_BLOCKS;
use crate::named::{Named, named};

/// How many blocks go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// This many.
    Blocks(usize),
    /// This share of the blocks, in percent, rounded down, at least one.
    Percent(f64),
}

impl Budget {
    /// The number of blocks to remove, of `n_blocks` that an evaluation runs.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "rounded down, between 0 and the number of blocks")]
    pub fn n_removed(self, n_blocks: usize) -> usize {
        match self {
            Self::Blocks(n) => n,
            // Rounding errors must not cost a block (29 % of 100).
            Self::Percent(share) => ((n_blocks as f64 * share / 100.0 + 1e-9) as usize).max(1),
        }
    }
}

named! {
    /// How blocks are chosen.
    pub enum Method {
        /// The best of the sets of bi, relative-magnitude, safe, run and lorp, by the loss of each on text that chose nothing
        Auto = "auto",
        /// Lowest Block Influence (ShortGPT)
        Bi = "bi",
        /// Lowest Relative Magnitude
        RelativeMagnitude = "relative-magnitude",
        /// Lowest of the larger one of the two, each as its distance from the mean of all blocks in standard deviations
        Safe = "safe",
        /// The consecutive run that turns the hidden state least (angular distance)
        Run = "run",
        /// Blocks of clusters with alike hidden states (LoRP); try another method beside it
        Lorp = "lorp",
        /// Lowest loss when the block alone is removed, measured
        Ablate = "ablate",
        /// One after another what costs least, measured again after each (SLEB), then exchanges
        Search = "search",
        /// The last blocks, whatever they do (no calibration)
        Sequential = "sequential",
        /// The first blocks, whatever they do (no calibration)
        Reverse = "reverse",
    }
}

/// How the blocks of an output were chosen, as it records that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// By a method.
    Method(Method),
    /// By hand, or with any cut.
    List,
    /// No whole block was removed.
    NoBlock,
}

impl ChosenBy {
    const LIST: &'static str = "blocks";
    const NO_BLOCK: &'static str = "none";

    /// The value of that word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        match word {
            Self::LIST => Some(Self::List),
            Self::NO_BLOCK => Some(Self::NoBlock),
            _ => Method::of_word(word).map(Self::Method),
        }
    }
}

impl fmt::Display for ChosenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(method) => method.fmt(f),
            Self::List => f.write_str(Self::LIST),
            Self::NoBlock => f.write_str(Self::NO_BLOCK),
        }
    }
}

/// The measure that a method orders blocks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The number of a block.
    Order,
    /// A score of each block, a mean over windows.
    Scores,
    /// The cosines between the hidden states of all pairs of blocks.
    Pairs,
    /// The angle of each run of consecutive blocks.
    Run,
    /// The loss of removals, measured.
    Losses,
    /// The loss of the sets of several methods, measured.
    Candidates,
}

impl Method {
    /// Its measure.
    #[must_use]
    pub fn basis(self) -> Basis {
        match self {
            Self::Bi | Self::RelativeMagnitude | Self::Safe => Basis::Scores,
            Self::Lorp => Basis::Pairs,
            Self::Run => Basis::Run,
            Self::Ablate | Self::Search => Basis::Losses,
            Self::Sequential | Self::Reverse => Basis::Order,
            Self::Auto => Basis::Candidates,
        }
    }

    /// Those of which that is so, in words: `bi, relative-magnitude or safe`.
    #[must_use]
    pub fn list(is_so: fn(Self) -> bool) -> String {
        let found = Self::NAMES.iter().filter(|(method, ..)| is_so(*method));
        let words: Vec<&str> = found.map(|(_, word, _)| *word).collect();
        match words.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    /// The method that takes its place where sets cannot be measured: `bi` for `auto`, of others itself.
    #[must_use]
    pub fn unmeasured(self) -> Self {
        match self {
            Self::Auto => Self::Bi,
            method => method,
        }
    }

    /// Whether the choice needs scores.
    #[must_use]
    pub fn needs_scores(self) -> bool {
        matches!(self.basis(), Basis::Scores | Basis::Pairs)
    }

    /// Whether the choice measures the loss of removals.
    #[must_use]
    pub fn needs_losses(self) -> bool {
        self.basis() == Basis::Losses
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a number of blocks such as 9, or a share such as 25%";
        if let Some(share) = text.strip_suffix('%') {
            return match share.trim().parse::<f64>() {
                Ok(share) if share > 0.0 && share < 100.0 => Ok(Self::Percent(share)),
                Ok(_) => Err("a share lies between 0% and 100%".to_owned()),
                Err(_) => Err(expected.to_owned()),
            };
        }
        match text.parse::<usize>() {
            Ok(0) => Err("at least one block has to go".to_owned()),
            Ok(n) if n < MAX_BLOCKS => Ok(Self::Blocks(n)),
            Ok(_) => Err(format!("no model has more than {MAX_BLOCKS} blocks")),
            Err(_) => Err(expected.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chose_blocks_is_known_by_its_word() {
        let methods = Method::NAMES.iter().map(|(method, ..)| ChosenBy::Method(*method));
        for chosen_by in methods.chain([ChosenBy::List, ChosenBy::NoBlock]) {
            assert_eq!(ChosenBy::of_word(&chosen_by.to_string()), Some(chosen_by));
        }
        assert_eq!(ChosenBy::of_word("x"), None);
    }

    #[test]
    fn methods_are_listed_in_words() {
        assert_eq!(Method::list(|method| method.basis() == Basis::Scores), "bi, relative-magnitude or safe");
        assert_eq!(Method::list(|method| method == Method::Run), "run");
        assert_eq!(Method::list(|_| false), "");
    }

    #[test]
    fn budgets_are_counts_and_shares() {
        assert_eq!("9".parse(), Ok(Budget::Blocks(9)));
        assert_eq!("25%".parse(), Ok(Budget::Percent(25.0)));
        assert_eq!("12.5%".parse(), Ok(Budget::Percent(12.5)));
        for wrong in ["0", "-1", "x", "", "%", "0%", "100%", "nan%", "1e3", "600"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_rounded_down_and_at_least_one() {
        assert_eq!(Budget::Percent(25.0).n_removed(30), 7);
        assert_eq!(Budget::Percent(29.0).n_removed(100), 29);
        assert_eq!(Budget::Percent(1.0).n_removed(30), 1);
        assert_eq!(Budget::Blocks(9).n_removed(30), 9);
    }
}
