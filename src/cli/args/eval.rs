//! Arguments of `eval`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::CommonArgs;
use crate::cli::args::text::TextArgs;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The model; of a split model, any or all of its parts
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// Compare its predictions with those of this model, of the same vocabulary
    #[arg(long, value_name = "MODEL")]
    pub parent: Option<PathBuf>,

    /// Also do the tasks of this HellaSwag file, in llama.cpp's text form of six lines each
    #[arg(long, value_name = "FILE")]
    pub hellaswag: Option<PathBuf>,

    /// Also do the multiple-choice tasks of this file of JSON lines, in the shape of ARC or MMLU
    #[arg(long, value_name = "FILE")]
    pub multiple_choice: Option<PathBuf>,

    /// How many tasks of a file to do, from its start [default: 400]
    #[arg(long, value_name = "N")]
    pub tasks: Option<usize>,

    /// Folder for hidden states of a model that does not fit in memory [default: none, they are kept in memory]
    #[arg(long, value_name = "DIR", help_heading = "Scored text")]
    pub scratch: Option<PathBuf>,

    /// What is scored.
    #[command(flatten)]
    pub text: TextArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
