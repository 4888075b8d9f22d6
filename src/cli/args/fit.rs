//! Arguments of `fit`.

use std::path::PathBuf;

use clap::Args;

use crate::choose::search::goal::KlLimit;
use crate::cli::args::CommonArgs;
use crate::cli::args::text::CalibrationArgs;
use crate::files::byte_size::ByteSize;
use crate::model::block::BlockList;

/// Arguments of `fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// The model; of a split model, any or all of its parts
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// The least damage within this size of the file, such as 4GiB, 3.5G or 500M
    #[arg(long, value_name = "SIZE", required_unless_present_any = ["closest_within", "plan"], conflicts_with_all = ["closest_within", "plan"])]
    pub target_size: Option<ByteSize>,

    /// The smallest file whose mean KL divergence from the model's predictions is within this, in nats
    #[arg(long, value_name = "X", conflicts_with = "plan")]
    pub closest_within: Option<KlLimit>,

    /// The types that tensors may become, such as Q6_K,Q4_K,IQ4_NL,Q3_K,Q2_K [default: 11 types, 16 with an importance matrix]
    #[arg(long, value_name = "TYPES", value_delimiter = ',', conflicts_with = "plan")]
    pub types: Vec<String>,

    /// Remove at most this many blocks; 0 for types alone [default: as many as help]
    #[arg(long, value_name = "N", conflicts_with = "plan")]
    pub max_drop: Option<usize>,

    /// Leave these blocks as they are
    #[arg(long, value_name = "LIST", conflicts_with = "plan")]
    pub keep: Option<BlockList>,

    /// Round weights by this importance matrix of the model, of either form
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix_out")]
    pub imatrix: Option<PathBuf>,

    /// Measure the importance matrix by the text of --calibration, round weights by it, and write it here
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    pub imatrix_out: Option<PathBuf>,

    /// Apply the plan that --plan-only wrote
    #[arg(long, value_name = "FILE", conflicts_with = "plan_only")]
    pub plan: Option<PathBuf>,

    /// Write the plan as JSON to the place of the output, and no model
    #[arg(long)]
    pub plan_only: bool,

    /// Where to write the model, or the plan; - is stdout for a plan
    #[arg(short, long, value_name = "FILE", required = true)]
    pub output: Option<PathBuf>,

    /// Overwrite the output if it exists
    #[arg(long)]
    pub force: bool,

    /// Write nothing that would leave less than this free on the disk of the output, such as 2G
    #[arg(long, value_name = "SIZE")]
    pub min_free: Option<ByteSize>,

    /// Folder for measurements, to resume from after an interrupt [default: the system's for caches]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,

    /// Calibration.
    #[command(flatten)]
    pub calibration: CalibrationArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
