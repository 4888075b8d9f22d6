//! Checked settings of `compare`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use ggml::FileType;

use super::{BlockList, Calibration, Printing, models, rpc, scored_text};
use crate::cli::{CalibrationArgs, CompareArgs};
use crate::commit::folder_of;
use crate::error::Usage;
use crate::plan::{Budget, Method};
use crate::search::Objective;
use crate::stores;

/// Numbers of blocks such as `1..9` or `1,3,7` or `10%,25%`.
#[derive(Clone, Debug, PartialEq)]
pub struct DropList(Vec<Budget>);

impl DropList {
    /// How many blocks each row loses, of a model with `n_blocks` that an evaluation runs: in the order of the list, each
    /// number once.
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

/// The rows of fewer blocks, and how blocks are chosen for them.
#[derive(Clone, Debug)]
pub struct Drops {
    /// How many go.
    pub list: DropList,
    /// By which importance.
    pub method: Method,
    /// What methods that measure losses make small.
    pub objective: Objective,
    /// Blocks that stay in any case.
    pub keep: Option<BlockList>,
    /// Prediction blocks go too.
    pub drop_mtp: bool,
    /// No list takes the place of a built-in pattern.
    pub portable: bool,
    /// The user answers for the cut.
    pub trust_any_cut: bool,
    /// The text they are chosen on.
    pub calibration: Calibration,
}

/// A comparison, checked.
#[derive(Clone, Debug)]
pub struct Compare {
    /// What all are compared with.
    pub parent: PathBuf,
    /// Other files.
    pub files: Vec<PathBuf>,
    /// Rows of fewer blocks.
    pub drops: Option<Drops>,
    /// Rows of other types.
    pub types: Vec<FileType>,
    /// Where files of other types lie as long as they are needed.
    pub scratch: PathBuf,
    /// The text that is scored, and how.
    pub text: Calibration,
    /// What to print.
    pub printing: Printing,
}

impl Compare {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for arguments that do not fit together.
    pub fn new(args: &CompareArgs) -> Result<Self> {
        let models = models(&args.models, args.parent.as_deref());
        let (parent, files) = match (&args.parent, &models[..]) {
            (Some(parent), files) => (parent, files),
            (None, [parent, files @ ..]) => (parent, files),
            (None, []) => bail!(Usage("a model is needed".to_owned())),
        };
        let text = Calibration {
            cache: !args.no_cache,
            ..scored_text(&args.text)?
        };
        if files.is_empty() && args.drop.is_none() && args.requantize.is_empty() {
            bail!(Usage(
                "there is nothing to compare with: name another model, or give --drop or --requantize".to_owned()
            ));
        }
        let mut types: Vec<FileType> = Vec::new();
        for file_type in &args.requantize {
            if !types.contains(file_type) {
                types.push(*file_type);
            }
        }
        let drops = match &args.drop {
            None => None,
            Some(list) => {
                if args.choose_tokens == Some(0) {
                    bail!(Usage("--choose-tokens is at least 1".to_owned()));
                }
                let objective = args.objective.unwrap_or(Objective::Kl);
                if !matches!(objective, Objective::Kl | Objective::Ppl) {
                    bail!(Usage(format!(
                        "--objective {objective} belongs to the main job; compare chooses by kl or ppl"
                    )));
                }
                let method = args.method.unwrap_or(Method::Bi);
                if method.needs_losses() && !text.rpc.is_empty() {
                    bail!(rpc::refused(&format!("method '{method}'")));
                }
                Some(Drops {
                    list: list.clone(),
                    method,
                    objective,
                    keep: args.keep.clone(),
                    drop_mtp: args.drop_mtp,
                    portable: args.portable,
                    trust_any_cut: args.trust_any_cut,
                    calibration: Calibration::new(&CalibrationArgs {
                        calibration: args.choose_on.clone(),
                        seed: args.text.seed,
                        tokens: args.choose_tokens,
                        window: None,
                        threads: args.text.threads,
                        gpu_layers: args.text.gpu_layers,
                        rpc: args.text.rpc.clone(),
                        no_cache: args.no_cache,
                    })?,
                })
            }
        };
        Ok(Self {
            parent: parent.clone(),
            files: files.to_vec(),
            drops,
            types,
            scratch: match &args.scratch {
                Some(folder) => folder.clone(),
                // Stores hold what they themselves put there.
                None if stores::is_named(parent) => std::env::temp_dir(),
                None => folder_of(parent).to_owned(),
            },
            text,
            printing: Printing::new(&args.common),
        })
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
