//! Arguments of `batch`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::CommonArgs;
use crate::cli::args::flags::Flags;
use crate::cli::args::task::Task;

/// Arguments of `batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Models: files, folders with all folders in them, patterns such as 'models/**/*Q4*.gguf', models of stores such as
    /// ollama:NAME, lists of those (@FILE, one a line)
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,

    /// The folder of the shorter models and of the results; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out_dir: PathBuf,

    /// Options of single models: a TOML file with a table for each pattern of names, and flags of the main job as keys
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Suffix of the name of a model, before .gguf [default: -drop9 of --drop 9, -drop25pct of --drop 25%, else -short]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub suffix: Option<String>,

    /// Where results are kept, as JSON lines [default: results.jsonl in the folder of outputs]
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,

    /// How many models at a time; each gets its share of the cores [default: one for every 4 cores, 4 at most]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<usize>,

    /// Do again what is done
    #[arg(long)]
    pub redo: bool,

    /// Take this share of the models, as I/N, of tasks 1/N to N/N [default: that of Slurm's array variables, if they are set]
    #[arg(long, value_name = "I/N")]
    pub task: Option<Task>,

    /// The main job's flags.
    #[command(flatten)]
    pub flags: Flags,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}
