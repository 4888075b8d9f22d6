//! Settings of healing.

use crate::engine::settings::Calibration;
use crate::heal::healer::HealType;
use crate::measure::loss::Objective;
use crate::named::named;

named! {
    /// Ways to make up for the removed blocks.
    pub enum HealArg {
        /// Nothing: the output computes exactly the input without the removed blocks
        None = "none",
        /// The stream after each cut multiplied by a number, through scales alone: what blocks add to it is divided by that
        Scale = "scale",
        /// The feed-forward matrix before each cut refitted by least squares, and after it, as long as that helps, attention's and
        /// the feed-forward matrix; the norms after them, where there are such
        Linear = "linear",
        /// Of each run of removed blocks one stays as its feed-forward network alone, refitted, with the matrix before the cut or
        /// without (dense llama, written as deci)
        Block = "block",
        /// The best of all on held-out text
        Auto = "auto",
    }
}

/// Settings of healing, checked.
#[derive(Clone, Debug)]
pub struct Heal {
    /// How.
    pub how: HealArg,
    /// The type that weights are rounded to.
    pub heal_type: HealType,
    /// Most bytes that it may take.
    pub max_memory: Option<u64>,
    /// Whether the number of tokens was left to the program.
    pub tokens_are_default: bool,
    /// The objective.
    pub objective: Objective,
    /// The text that weights are fitted to, and how it is evaluated.
    pub calibration: Calibration,
}

/// No healing, to which a program adds its wishes.
impl Default for Heal {
    fn default() -> Self {
        Self {
            how: HealArg::None,
            heal_type: HealType::Auto,
            max_memory: None,
            tokens_are_default: false,
            objective: Objective::Kl,
            calibration: Calibration::default(),
        }
    }
}

impl Heal {
    /// Whether a search is to name more sets than its best. They may be better once they are healed.
    #[must_use]
    pub fn may_choose(&self) -> bool {
        matches!(self.how, HealArg::Linear | HealArg::Auto)
            && matches!(self.objective, Objective::Kl | Objective::Ppl)
    }
}
