//! How the blocks to remove are chosen, as settings.

use crate::choose::search::Goal;
use crate::choose::stability::Confidence;
use crate::engine::settings::Calibration;
use crate::measure::loss::Objective;
use crate::model::Model;
use crate::model::block::BlockList;
use crate::named::named;
use crate::plan::experts::{ExpertBudget, ExpertMethod};
use crate::plan::{Budget, Constraints, Method, Splitting};
use anyhow::Result;
use std::path::PathBuf;
use std::str::FromStr;

/// The choice of blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// None, or none but prediction blocks.
    Nothing {
        /// Blocks that stay.
        keep: Option<BlockList>,
    },
    /// Exactly these.
    Blocks(BlockList),
    /// All but these; prediction blocks stay in any case.
    Layers(BlockList),
    /// The best of this many.
    Best {
        /// How many.
        budget: Budget,
        /// By which importance.
        method: Method,
        /// Blocks that stay.
        keep: Option<BlockList>,
    },
    /// The best of as many as a goal says.
    Goal {
        /// The goal.
        goal: Goal,
        /// At most this many.
        most: Option<Budget>,
        /// By which importance.
        method: Method,
        /// Blocks that stay.
        keep: Option<BlockList>,
    },
}

/// The choice of experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ExpertChoice {
    /// All stay.
    #[default]
    All,
    /// These stay, the same in each block.
    Same(BlockList),
    /// Those of a JSON file stay, a list for each block.
    File(PathBuf),
    /// All but this many of each block, the lowest by a score.
    Lowest(ExpertBudget, ExpertMethod),
}

impl Choice {
    /// The method, of a choice that is not by a list.
    #[must_use]
    pub fn method(&self) -> Option<Method> {
        match self {
            Self::Nothing { .. } | Self::Blocks(_) | Self::Layers(_) => None,
            Self::Best { method, .. } | Self::Goal { method, .. } => Some(*method),
        }
    }
}

named! {
    /// How much is measured for a choice.
    pub enum Effort {
        /// Method bi
        Quick = "quick",
        /// Method auto
        Normal = "normal",
        /// Method search, healed as --heal auto does it
        Thorough = "thorough",
    }
}

impl Effort {
    /// The method that it stands for; `otherwise` where nothing is said.
    #[must_use]
    pub fn method(self, otherwise: Method) -> Method {
        match self {
            Self::Quick => Method::Bi,
            Self::Normal => otherwise,
            Self::Thorough => Method::Search,
        }
    }
}

/// Numbers of blocks such as `1..9` or `1,3,7` or `10%,25%`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DropList(Vec<Budget>);

impl DropList {
    /// How many blocks each row loses, of `n_blocks` evaluated blocks. The order is that of the list, each number once.
    #[must_use]
    pub fn numbers(&self, n_blocks: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = Vec::new();
        for budget in &self.0 {
            let n = budget.n_removed(n_blocks);
            if !numbers.contains(&n) {
                numbers.push(n);
            }
        }
        numbers
    }
}

impl FromStr for DropList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut budgets = Vec::new();
        for item in text.split(',').map(str::trim) {
            let Some((first, last)) = item.split_once("..").or_else(|| item.split_once('-')) else {
                budgets.push(item.parse()?);
                continue;
            };
            let end = |text: &str| match text.trim().parse() {
                Ok(Budget::Blocks(n)) => Ok(n),
                Ok(Budget::Percent(_)) => Err("a range is of numbers, such as 1..9".to_owned()),
                Err(error) => Err(error),
            };
            let (first, last) = (end(first)?, end(last)?);
            if first > last {
                return Err(format!("the range {first}..{last} runs backwards"));
            }
            budgets.extend((first..=last).map(Budget::Blocks));
        }
        Ok(Self(budgets))
    }
}

/// Rows of fewer blocks and experts, and how they are chosen.
#[derive(Clone, Debug)]
pub struct Drops {
    /// How many blocks to remove.
    pub list: DropList,
    /// How many experts to remove.
    pub experts: Vec<ExpertBudget>,
    /// By which score of experts.
    pub experts_by: ExpertMethod,
    /// By which importance.
    pub method: Method,
    /// The objective of methods that measure losses.
    pub objective: Objective,
    /// Blocks that stay in any case.
    pub keep: Option<BlockList>,
    /// The rules for every row.
    pub rules: CutRules,
    /// The text they are chosen on.
    pub calibration: Calibration,
    /// Whether healing will choose among the best few sets.
    pub heals: bool,
}

/// Rules for a removal beside those of the architecture.
#[derive(Clone, Copy, Debug, Default)]
pub struct CutRules {
    /// Prediction blocks are removed too.
    pub drop_mtp: bool,
    /// No list takes the place of a built-in pattern.
    pub portable: bool,
    /// The user answers for the cut.
    pub trust_any_cut: bool,
}

impl CutRules {
    /// The sets of `model`'s blocks that may be removed under these rules.
    ///
    /// # Errors
    /// An architecture or metadata that is not known; no prediction blocks to drop.
    pub fn constraints(self, model: &Model<'_>) -> Result<Constraints> {
        let mut constraints = Constraints::new(model, self.trust_any_cut)?;
        if self.drop_mtp {
            constraints = constraints.dropping_prediction_blocks()?;
        }
        if self.portable {
            constraints = constraints.portable();
        }
        Ok(constraints)
    }
}

/// How the blocks to remove are chosen.
#[derive(Clone, Debug)]
pub struct Choosing {
    /// Which whole blocks.
    pub choice: Choice,
    /// Which of those that stay lose their attention.
    pub attention: Choice,
    /// Which experts stay.
    pub experts: ExpertChoice,
    /// The rules for it.
    pub rules: CutRules,
    /// The files of the output, whose bytes a goal may count.
    pub splitting: Splitting,
    /// The objective of methods that measure losses.
    pub objective: Objective,
    /// How sure the set must be for the calibration to stop early. `None`: it does not.
    pub confidence: Option<Confidence>,
    /// Tasks that candidates do, and how many at most.
    pub tasks: Option<(PathBuf, usize)>,
    /// Where a search keeps what it has measured. `None` for the system's folder for caches.
    pub scratch: Option<PathBuf>,
    /// How to calibrate.
    pub calibration: Calibration,
    /// Whether healing will choose among the best few sets.
    pub heals: bool,
    /// Whether the importance matrix of the model is measured too.
    pub imatrix: bool,
}

/// No removal at all, to which a program adds its choice.
impl Default for Choosing {
    fn default() -> Self {
        Self {
            choice: Choice::Nothing { keep: None },
            attention: Choice::Nothing { keep: None },
            experts: ExpertChoice::All,
            rules: CutRules::default(),
            splitting: Splitting::default(),
            objective: Objective::Kl,
            confidence: None,
            tasks: None,
            scratch: None,
            calibration: Calibration::default(),
            heals: false,
            imatrix: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_lists_are_numbers_ranges_and_shares() {
        let of = |text: &str| text.parse::<DropList>().map(|list| list.numbers(30));
        assert_eq!(of("1..4").unwrap(), [1, 2, 3, 4]);
        assert_eq!(of("2-3").unwrap(), [2, 3]);
        assert_eq!(of("7, 1,3,7").unwrap(), [7, 1, 3]);
        assert_eq!(of("1..3,10%,25%").unwrap(), [1, 2, 3, 7]);
        assert_eq!(of("5..5").unwrap(), [5]);
        for wrong in [
            "",
            "0",
            "0..3",
            "3..1",
            "1..",
            "..3",
            "1,",
            "a",
            "-1",
            "1..10%",
            "100%",
            "1...3",
            "1..600",
            "1..99999999999999999999",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
