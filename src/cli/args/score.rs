//! Arguments of `score`.

use std::path::PathBuf;

use clap::Args;

use crate::choose::stability::Confidence;
use crate::cli::args::CommonArgs;
use crate::cli::args::text::CalibrationArgs;
use crate::cli::args::words::one_of;
use crate::model::block::BlockList;
use crate::plan::{Budget, Method};

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// The model; of a split model, any or all of its parts
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// Score attention and feed-forward network of every block apart, too
    #[arg(long)]
    pub sub_blocks: bool,

    /// Say which blocks would go: a number of them, or a share such as 25%
    #[arg(long, value_name = "N|P%")]
    pub drop: Option<Budget>,

    /// By which scores: bi, relative-magnitude, safe or lorp
    #[arg(long, value_parser = one_of::<Method>(), default_value_t = Method::Bi, hide_possible_values = true)]
    pub method: Method,

    /// Blocks that would stay in any case
    #[arg(long, value_name = "LIST", requires = "drop")]
    pub keep: Option<BlockList>,

    /// Stop measuring as soon as the rest of the text cannot change which blocks go, with this confidence, such as 0.99;
    /// --tokens is then the most that is used
    #[arg(long, value_name = "P", help_heading = "Calibration")]
    pub confidence: Option<Confidence>,

    /// Score the blocks on this text too, and say how far both agree
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    pub against_calibration: Option<PathBuf>,

    /// Measure also the KL divergence and perplexity of the model without each block alone
    #[arg(long)]
    pub ablate: bool,

    /// Also write the importance matrix of the text, as llama-imatrix does
    #[arg(long, value_name = "FILE")]
    pub imatrix_out: Option<PathBuf>,

    /// Overwrite the importance matrix if it exists
    #[arg(long, requires = "imatrix_out")]
    pub force: bool,

    /// Also score the experts of each block of a mixture: REAP, frequency and mean gate weight
    #[arg(long)]
    pub experts: bool,

    /// Also measure how alike the hidden states between any two blocks are, for `report`'s heat map
    #[arg(long)]
    pub pairs: bool,

    /// Folder for hidden states of a model that does not fit in memory, and to resume from after an interrupt [default: none, states
    /// in memory]
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    pub scratch: Option<PathBuf>,

    /// Calibration.
    #[command(flatten)]
    pub calibration: CalibrationArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
