//! Checked settings of `compare`.

use super::{Printing, models, rpc, scored_text};
use crate::choose::settings::{CutRules, Drops};
use crate::cli::args::{AmountArgs, CalibrationArgs, CompareArgs};
use crate::engine::settings::Calibration;
use crate::error::Usage;
use crate::files::staged::folder_of;
use crate::heal::settings::{Heal, HealArg};
use crate::measure::loss::Objective;
use crate::model::stores;
use crate::plan::Method;
use crate::plan::experts::ExpertMethod;
use anyhow::{Result, bail};
use ggml::FileType;
use std::path::PathBuf;

/// A comparison, checked.
#[derive(Clone, Debug)]
pub struct Compare {
    /// The model that all are compared with.
    pub parent: PathBuf,
    /// Other files.
    pub files: Vec<PathBuf>,
    /// Rows of fewer blocks and of fewer experts.
    pub drops: Option<Drops>,
    /// How those are healed.
    pub heal: Heal,
    /// Rows of other types.
    pub types: Vec<FileType>,
    /// Whether rows of fewer blocks are also quantized to each of those.
    pub mixed: bool,
    /// Where files lie as long as they are needed: of other types, and of models that do not fit in memory.
    pub scratch: PathBuf,
    /// The text that is scored, and how.
    pub text: Calibration,
    /// The output of the command.
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
        let text = scored_text(&args.text)?;
        let text = Calibration { cache: !args.no_cache, scratch: args.scratch.clone(), ..text };
        let is_shorter = args.drop.is_some() || !args.drop_experts.is_empty();
        if files.is_empty() && !is_shorter && args.requantize.is_empty() {
            bail!(Usage(
                "there is nothing to compare with: name another model, or give --drop or --requantize"
                    .to_owned()
            ));
        }
        let mut types: Vec<FileType> = Vec::new();
        for file_type in &args.requantize {
            if !types.contains(file_type) {
                types.push(*file_type);
            }
        }
        let drops = is_shorter.then(|| drops(args, &text)).transpose()?;
        Ok(Self {
            parent: parent.clone(),
            files: files.to_vec(),
            heal: drops.as_ref().map_or_else(Heal::default, |drops| heal(args, drops)),
            drops,
            types,
            mixed: args.mixed,
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

/// The rows of fewer blocks and of fewer experts.
fn drops(args: &CompareArgs, text: &Calibration) -> Result<Drops> {
    if args.choose_tokens == Some(0) {
        bail!(Usage("--choose-tokens is at least 1".to_owned()));
    }
    let objective = args.objective.unwrap_or(Objective::Kl);
    if !matches!(objective, Objective::Kl | Objective::Ppl) {
        bail!(Usage(format!(
            "--objective {objective} belongs to the main job; compare chooses by kl or ppl"
        )));
    }
    let method = args.method.unwrap_or(Method::Auto);
    if method.needs_losses() && !text.rpc.is_empty() {
        bail!(rpc::refused(&format!("method '{method}'")));
    }
    if args.heal.is_some_and(|how| how != HealArg::None) && !text.rpc.is_empty() {
        bail!(rpc::refused("--heal"));
    }
    let mut drops = Drops {
        list: args.drop.clone().unwrap_or_default(),
        experts: args.drop_experts.clone(),
        experts_by: args.experts_by.unwrap_or(ExpertMethod::Auto),
        method,
        objective,
        keep: args.keep.clone(),
        rules: CutRules {
            drop_mtp: args.drop_mtp,
            portable: args.portable,
            trust_any_cut: args.trust_any_cut,
        },
        calibration: Calibration {
            scratch: args.scratch.clone(),
            ..Calibration::new(&CalibrationArgs {
                calibration: args.choose_on.clone(),
                amount: AmountArgs { seed: args.text.amount.seed, tokens: args.choose_tokens },
                window: None,
                machine: args.text.machine.clone(),
                convert: None,
                no_cache: args.no_cache,
            })?
        },
        heals: false,
    };
    drops.heals = heal(args, &drops).may_choose();
    Ok(drops)
}

/// How the rows of fewer blocks are healed.
fn heal(args: &CompareArgs, drops: &Drops) -> Heal {
    Heal {
        how: args.heal.unwrap_or(HealArg::None),
        tokens_are_default: args.choose_tokens.is_none(),
        objective: drops.objective,
        calibration: drops.calibration.clone(),
        ..Heal::default()
    }
}
