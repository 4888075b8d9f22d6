//! The command line: clap definitions and nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::options::{BlockList, ByteSize, HealArg};
use crate::plan::{Budget, Method};
use crate::search::Objective;

/// Make a GGUF model shorter
///
/// Measures how much every block of a quantized model changes the hidden state, removes those that change it least, and
/// writes a shorter GGUF for llama.cpp and Ollama. Kept tensors stay byte-identical.
#[derive(Debug, Parser)]
#[command(
    name = "gguf-shorten",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do; without a command: shorten
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The main job.
    #[command(flatten)]
    pub shorten: ShortenArgs,

    /// Print version, and that of the bundled llama.cpp
    #[arg(short = 'V', long, exclusive = true)]
    pub version: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Remove blocks and write a shorter model (what no command means)
    Shorten(ShortenArgs),
    /// Measure the importance of every block
    Score(ScoreArgs),
    /// Show header, metadata, blocks, sizes, and what may be removed
    Show(ShowArgs),
    /// Prove that a shortened model is its parent without the removed blocks
    Verify(VerifyArgs),
    /// Measure how well a model predicts text, how far it is from its parent, and how fast it is
    Eval(EvalArgs),
    /// List or clear the cache of scores
    Cache {
        /// What to do
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show what is in it
    List(CommonArgs),
    /// Remove all that is in it
    Clear(CommonArgs),
}

/// Arguments of the main job.
#[derive(Debug, Args)]
pub struct ShortenArgs {
    /// The model: a file, of a split model any of its parts, or ollama:NAME[:TAG], hf:ORG/REPO[/FILE] or
    /// lmstudio:ORG/REPO[/FILE], looked up in the local stores of those programs
    #[arg(required = true)]
    pub model: Option<PathBuf>,

    /// How many blocks to remove: a number, or a share such as 25%
    #[arg(
        long,
        value_name = "N|P%",
        required_unless_present_any = ["blocks", "drop_mtp", "drop_attention", "attention_blocks"],
        conflicts_with = "blocks"
    )]
    pub drop: Option<Budget>,

    /// Remove exactly these blocks, 0-based, such as 21-29,31 (no calibration)
    #[arg(long, value_name = "LIST", conflicts_with_all = ["keep", "method"])]
    pub blocks: Option<BlockList>,

    /// Drop the blocks for multi-token prediction (MTP, NextN) at the end too, or with neither --drop nor --blocks only them
    #[arg(long)]
    pub drop_mtp: bool,

    /// Remove only the attention of this many of the blocks that stay; for dense llama models, written as deci
    #[arg(long, value_name = "N|P%", conflicts_with = "attention_blocks")]
    pub drop_attention: Option<Budget>,

    /// Remove only the attention of exactly these blocks (no calibration)
    #[arg(long, value_name = "LIST")]
    pub attention_blocks: Option<BlockList>,

    /// Never remove these blocks, nor their attention
    #[arg(long, value_name = "LIST")]
    pub keep: Option<BlockList>,

    /// How to choose the blocks
    #[arg(long, value_enum, default_value_t = Method::Bi)]
    pub method: Method,

    /// What methods ablate and search make small
    #[arg(long, value_enum, default_value_t = Objective::Kl)]
    pub objective: Objective,

    /// What makes up for the removed blocks
    #[arg(long, value_enum, default_value_t = HealArg::None)]
    pub heal: HealArg,

    /// Only sets that keep a pattern of sliding windows or recurrent blocks as older llama.cpp has it built in, so that no
    /// list is written that such a one ignores
    #[arg(long, conflicts_with = "trust_any_cut")]
    pub portable: bool,

    /// Take any cut, and an architecture or per-block metadata that is not known, on your word
    #[arg(long)]
    pub trust_any_cut: bool,

    /// Where to write the shorter model; of a split one, what the names of its parts begin with
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,

    /// Write parts of at most this size, such as 4G, 500M or 2GiB, for llama.cpp's split models; metadata comes on top
    #[arg(long, value_name = "SIZE", conflicts_with = "keep_split")]
    pub split_max_size: Option<ByteSize>,

    /// Write parts as the input has them, if it is a split model
    #[arg(long)]
    pub keep_split: bool,

    /// Also renumber the model's importance matrix, of either form, and write it to OUT
    #[arg(long, num_args = 2, value_names = ["IN", "OUT"])]
    pub imatrix: Option<Vec<PathBuf>>,

    /// Write a Modelfile beside the output, with the template, parameters and system text of a parent named ollama:..., and run
    /// `ollama create NAME` if there is an Ollama
    #[arg(long, value_name = "NAME", conflicts_with_all = ["split_max_size", "keep_split"])]
    pub ollama: Option<String>,

    /// Overwrite the output if it exists
    #[arg(long)]
    pub force: bool,

    /// Say what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Calibration.
    #[command(flatten)]
    pub calibration: CalibrationArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// The model; of a split model, any of its parts
    pub model: PathBuf,

    /// Score attention and feed-forward network of every block apart, too
    #[arg(long)]
    pub sub_blocks: bool,

    /// Calibration.
    #[command(flatten)]
    pub calibration: CalibrationArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The file; of a split model, any of its parts
    pub model: PathBuf,

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

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The shortened model; of a split model, any of its parts
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// The model that it was made from; of a split model, any of its parts
    #[arg(long, value_name = "MODEL")]
    pub parent: PathBuf,

    /// Compare a file that was written with --trust-any-cut too, whatever the rules say to its cut
    #[arg(long)]
    pub trust_any_cut: bool,

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

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The model; of a split model, any of its parts
    pub model: PathBuf,

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

    /// What is scored.
    #[command(flatten)]
    pub text: TextArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The text that is scored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Scored text")]
pub struct TextArgs {
    /// Text to score, repeatable [default: the text built into the program]
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,

    /// How much of it to use, in tokens from its start [default: 8192]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,

    /// Length of the windows it is cut into, in tokens; the second half of each is scored [default: 512, or the model's
    /// context if shorter]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,

    /// CPU threads [default: the number of physical cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Blocks whose weights go to the GPU, as in llama.cpp
    #[arg(
        long,
        visible_alias = "ngl",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub gpu_layers: Option<i32>,
}

/// How a model is calibrated.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationArgs {
    /// Text to calibrate on, repeatable [default: the text built into the program]
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,

    /// How much of it to use, in tokens from its start [default: 8192]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,

    /// Length of the windows it is cut into, in tokens [default: 512, or the model's context if shorter]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,

    /// CPU threads [default: the number of physical cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Blocks whose weights go to the GPU, as in llama.cpp
    #[arg(
        long,
        visible_alias = "ngl",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub gpu_layers: Option<i32>,

    /// Measure anew, and keep nothing in the cache of scores
    #[arg(long)]
    pub no_cache: bool,
}

/// What every command prints.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct CommonArgs {
    /// Write the result as JSON; - is stdout
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// No progress and no notes
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Show what llama.cpp says
    #[arg(short, long)]
    pub verbose: bool,
}
