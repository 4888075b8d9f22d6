//! Settings of `fit`, checked.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::calibration::check_matrix;
use super::{Printing, one_model};
use crate::cli::args::FitArgs;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::error::Usage;
use crate::files::byte_size::ByteSize;
use crate::fit::settings::{self, Aim};
use crate::gguf::TensorType;
use crate::output::outputs::Files;

/// A fit, checked.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The input.
    pub model: PathBuf,
    /// What is to be found, and how; or where it was found before.
    pub how: How,
    /// The place of a plan alone.
    pub plan_only: Option<PathBuf>,
    /// The importance matrix that weights are rounded by.
    pub imatrix: Option<PathBuf>,
    /// CPU threads.
    pub threads: usize,
    /// The files to write.
    pub files: Files,
    /// The output of the command.
    pub printing: Printing,
}

/// Where types come from.
#[derive(Clone, Debug)]
pub enum How {
    /// They are measured.
    Measured(Box<settings::Fit>),
    /// This plan.
    Plan(PathBuf),
}

impl Fit {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for arguments that do not fit together.
    pub fn new(args: &FitArgs) -> Result<Self> {
        let model = one_model(&args.model, None, None)?;
        let calibration = Calibration::new(&args.calibration)?;
        check_matrix(args.imatrix_out.as_deref(), &calibration)?;
        if calibration.window < MIN_WINDOW {
            bail!(Usage(format!(
                "--window {} leaves no token to score, expected {MIN_WINDOW} or more",
                calibration.window
            )));
        }
        if !calibration.rpc.is_empty() {
            bail!(Usage("--rpc does not go with fit, which evaluates blocks here".to_owned()));
        }
        let is_stdout = args.output.as_deref() == Some("-".as_ref());
        if is_stdout && !args.plan_only {
            bail!(Usage("--output - is for --plan-only alone".to_owned()));
        }
        if is_stdout && args.common.json.as_deref() == Some("-".as_ref()) {
            bail!(Usage("stdout is named for both --output and --json".to_owned()));
        }
        let threads = calibration.threads;
        let read =
            calibration.source.files().iter().chain(&args.plan).chain(&args.imatrix).cloned().collect();
        let aim = match (args.target_size, args.closest_within) {
            (Some(ByteSize(n_bytes)), _) => Some(Aim::Size(n_bytes)),
            (None, limit) => limit.map(|limit| Aim::Kl(limit.0)),
        };
        let how = match (&args.plan, aim) {
            (Some(plan), _) => How::Plan(plan.clone()),
            (None, Some(aim)) => How::Measured(Box::new(settings::Fit {
                aim,
                types: types(&args.types)?,
                most_removed: args.max_drop,
                keep: args.keep.clone(),
                imatrix: args.imatrix.clone(),
                measures_imatrix: args.imatrix_out.is_some(),
                scratch: args.scratch.clone(),
                calibration,
            })),
            (None, None) => bail!(Usage("--target-size, --closest-within or --plan is needed".to_owned())),
        };
        Ok(Self {
            model,
            how,
            plan_only: args.output.clone().filter(|_| args.plan_only),
            imatrix: args.imatrix.clone(),
            threads,
            files: Files {
                output: args.output.clone().filter(|_| !args.plan_only),
                imatrix_out: args.imatrix_out.clone(),
                read,
                json: args.common.json.clone(),
                force: args.force,
                min_free: args.min_free.map_or(0, |ByteSize(n_bytes)| n_bytes),
                ..Files::default()
            },
            printing: Printing::new(&args.common),
        })
    }
}

/// The types of these names.
fn types(names: &[String]) -> Result<Vec<TensorType>> {
    let mut types = Vec::new();
    for name in names {
        let found = TensorType::all().find(|of| of.name().eq_ignore_ascii_case(name.trim()));
        let Some(found) = found.filter(|of| ggml::quantize::can_quantize(of.id())) else {
            bail!(Usage(format!(
                "--types: '{name}' is no type that weights can be rounded to, expected types of tensors such as Q6_K, Q4_K, IQ4_NL \
                 or Q2_K"
            )));
        };
        if !types.contains(&found) {
            types.push(found);
        }
    }
    Ok(types)
}
