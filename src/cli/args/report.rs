//! Arguments of `report`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::words::one_of;
use crate::report::pages::format::PageFormat;

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Saved results: what --json wrote, of any commands, and the lines of a batch; @FILE is a list of such files, one a line
    #[arg(required = true, value_name = "RESULT")]
    pub results: Vec<PathBuf>,

    /// Where the page goes; - is stdout; for svg a file for all charts, or a folder for a file of each
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// What it is written as [default: what the name of FILE ends in, else html]
    #[arg(long, value_parser = one_of::<PageFormat>())]
    pub format: Option<PageFormat>,

    /// No notes
    #[arg(short, long)]
    pub quiet: bool,
}
