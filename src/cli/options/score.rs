//! What `score` is to do, checked.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::calibration::check_matrix;
use super::{Printing, check_not_stdout, one_model, rpc};
use crate::choose::stability::Confidence;
use crate::cli::args::ScoreArgs;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::engine::text::Source;
use crate::error::Usage;
use crate::model::block::BlockList;
use crate::output::outputs::Files;
use crate::plan::{Basis, Budget, Method};

/// A scoring, checked.
#[derive(Clone, Debug)]
pub struct Score {
    /// The model.
    pub model: PathBuf,
    /// Halves of blocks too.
    pub sub_blocks: bool,
    /// How alike the hidden states between any two blocks are, too.
    pub pairs: bool,
    /// What experts do, too.
    pub experts: bool,
    /// How many blocks would go; `None` if that is not asked.
    pub budget: Option<Budget>,
    /// By which scores.
    pub method: Method,
    /// Blocks that would stay in any case.
    pub keep: Option<BlockList>,
    /// How sure the set must be for the calibration to stop early. `None`: it does not.
    pub confidence: Option<Confidence>,
    /// A second text.
    pub against: Option<Calibration>,
    /// The loss of each block alone removed, too.
    pub ablate: bool,
    /// How to calibrate.
    pub calibration: Calibration,
    /// The files that are written.
    pub files: Files,
    /// The output of the command.
    pub printing: Printing,
}

impl Score {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for arguments that do not fit together.
    pub fn new(args: &ScoreArgs) -> Result<Self> {
        if !args.method.needs_scores() {
            bail!(Usage(format!(
                "method '{}' goes by no scores, expected {}",
                args.method,
                Method::list(Method::needs_scores)
            )));
        }
        if args.confidence.is_some() && args.drop.is_none() {
            bail!(Usage("--confidence needs --drop: it says how sure it must be which blocks go".to_owned()));
        }
        if args.confidence.is_some() && args.method.basis() != Basis::Scores {
            bail!(Usage(format!(
                "method '{}' is about all of the text, so it does not go with --confidence",
                args.method
            )));
        }
        if args.confidence.is_some() && args.pairs {
            bail!(Usage("--pairs is about all of the text, so it does not go with --confidence".to_owned()));
        }
        let calibration =
            Calibration { scratch: args.scratch.clone(), ..Calibration::new(&args.calibration)? };
        if args.ablate && calibration.window < MIN_WINDOW {
            bail!(Usage(format!(
                "--window {} leaves no token to score, expected {MIN_WINDOW} or more",
                calibration.window
            )));
        }
        check_matrix(args.imatrix_out.as_deref(), &calibration)?;
        let against = args
            .against_calibration
            .clone()
            .map(|file| Calibration { source: Source::Files(vec![file]), ..calibration.clone() });
        check_not_stdout("imatrix-out", args.imatrix_out.as_deref())?;
        let read = calibration.source.files().iter().chain(&args.against_calibration).cloned().collect();
        let options = Self {
            model: one_model(&args.model, None, None)?,
            sub_blocks: args.sub_blocks,
            pairs: args.pairs,
            experts: args.experts,
            budget: args.drop,
            method: args.method,
            keep: args.keep.clone(),
            confidence: args.confidence,
            against,
            ablate: args.ablate,
            calibration,
            files: Files {
                read,
                imatrix_out: args.imatrix_out.clone(),
                json: args.common.json.clone(),
                force: args.force,
                ..Files::default()
            },
            printing: Printing::new(&args.common),
        };
        rpc::check_score(&options)?;
        Ok(options)
    }
}
