//! How removed blocks are made up for, as settings.

use crate::heal::healer::HealType;
use crate::measure::loss::Objective;
use crate::named::named;

named! {
    /// What makes up for the removed blocks.
    pub enum HealArg {
        /// Nothing: the output computes exactly the input without the removed blocks
        None = "none",
        /// The stream behind each cut multiplied by a number, through scales alone: what blocks add to it is divided by that
        Scale = "scale",
        /// The feed-forward matrix before each cut refitted by least squares, and behind it, as long as that helps, attention's and
        /// the feed-forward matrix; the norms behind them, where there are such
        Linear = "linear",
        /// Of each run of removed blocks one stays as its feed-forward network alone, refitted, with the matrix before the cut or
        /// without (dense llama, written as deci)
        Block = "block",
        /// What is best of all on text that nothing was fitted to
        Auto = "auto",
    }
}

/// What makes up for the removed blocks, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heal {
    /// How.
    pub how: HealArg,
    /// What weights are rounded to.
    pub heal_type: HealType,
    /// Most bytes that it may take.
    pub max_memory: Option<u64>,
    /// Whether the number of tokens was left to the program.
    pub tokens_are_default: bool,
}

impl Heal {
    /// Whether a search is to name sets that may be better than its best once they are healed.
    #[must_use]
    pub fn may_choose(&self, objective: Objective) -> bool {
        matches!(self.how, HealArg::Linear | HealArg::Auto)
            && matches!(objective, Objective::Kl | Objective::Ppl)
    }
}
