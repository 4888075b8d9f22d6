//! Arguments of `verify`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::CommonArgs;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The shortened model; of a split model, any or all of its parts
    #[arg(required = true, value_name = "OUT")]
    pub output: Vec<PathBuf>,

    /// The model that it was made from; of a split model, any of its parts
    #[arg(long, value_name = "MODEL")]
    pub parent: PathBuf,

    /// Compare a file that was written with --trust-any-cut too, whatever the rules say to its cut
    #[arg(long)]
    pub trust_any_cut: bool,

    /// The importance matrix that `fit` used, to round its weights again
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,

    /// Compare weights alone: every tensor by name and bytes in any order, and by value the metadata of the computation; for files that
    /// another program rewrote, and for several cuts against the first parent
    #[arg(long)]
    pub weights: bool,

    /// Also run both with llama.cpp, the parent with the removed blocks zeroed, and compare the logits bit for bit
    #[arg(long)]
    pub run: bool,

    /// CPU threads [default: the number of physical cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
