//! Arguments of `show`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::CommonArgs;

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The file; of a split model, any or all of its parts
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// List everything but offsets and sizes, so that two files can be compared with diff
    #[arg(long)]
    pub diffable: bool,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
