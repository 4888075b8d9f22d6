//! The command line: clap definitions and nothing else, a file for each command.

mod batch;

mod compare;

mod eval;

mod fit;

pub mod flags;

mod report;

mod score;

mod short;

mod shorten;

mod show;

pub mod task;

mod text;

mod verify;

pub mod words;

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::cli::args::words::one_of;
use crate::cli::colour::{self, When};

pub use batch::BatchArgs;
pub use compare::CompareArgs;
pub use eval::EvalArgs;
pub use fit::FitArgs;
pub use report::ReportArgs;
pub use score::ScoreArgs;
pub use shorten::{GoalArgs, ShortenArgs};
pub use show::ShowArgs;
pub use text::{AmountArgs, CalibrationArgs, MachineArgs, TextArgs};
pub use verify::VerifyArgs;

/// Make a GGUF model shorter
///
/// Measures how much every block of a quantized model changes the hidden state, removes those that change it least, and
/// writes a shorter GGUF for llama.cpp and Ollama. Kept tensors stay byte-identical.
#[derive(Debug, Parser)]
#[command(
    name = "gguf-shorten",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 100,
    styles = colour::of_help()
)]
pub struct Cli {
    /// What to do; without a command: shorten
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The main job.
    #[command(flatten)]
    pub shorten: ShortenArgs,

    /// Print version, that of the bundled llama.cpp, and the devices that it finds
    #[arg(short = 'V', long, exclusive = true)]
    pub version: bool,
}

impl Cli {
    /// Parses `words`, the program's name first.
    ///
    /// # Errors
    /// Help, or what is wrong with the words.
    pub fn parsed(words: &[std::ffi::OsString]) -> Result<Self, clap::Error> {
        let texts: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let when = colour::in_words(&texts);
        // For what is wrong with the words, too.
        colour::set(when);
        let color = match when {
            When::Auto => clap::ColorChoice::Auto,
            When::Always => clap::ColorChoice::Always,
            When::Never => clap::ColorChoice::Never,
        };
        let mut command = Self::command().color(color);
        if texts.len() < 2 || texts.iter().any(|word| word == "-h") {
            command = short::short(command);
        }
        let mut matches = command.clone().try_get_matches_from(words)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }
}

/// The commands.
#[expect(clippy::large_enum_variant, reason = "one value in the life of the program")]
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
    /// Compare size, quality and speed of several files, or of one with fewer blocks and in smaller types
    Compare(CompareArgs),
    /// Make a model fit a size at the least measured damage: smaller types tensor by tensor, and fewer blocks where that costs less
    Fit(FitArgs),
    /// Shorten many models in one run that can be stopped and gone on with
    Batch(BatchArgs),
    /// Show saved results on one page, with charts and tables
    Report(ReportArgs),
    /// List the models of all stores, and whether they can be shortened
    List(CommonArgs),
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
    /// Print the help of a command, or a page on a topic; without either what there is
    Help {
        /// A command or a topic
        #[arg(value_name = "TOPIC")]
        words: Vec<String>,
    },
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show what is in it
    List(CommonArgs),
    /// Remove all that is in it
    Clear(CommonArgs),
}

/// What every command prints.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct CommonArgs {
    /// Write the result as JSON; - is stdout
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// No progress, notes or warnings
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Show what llama.cpp says
    #[arg(short, long)]
    pub verbose: bool,

    /// When colour is shown
    #[arg(long, value_name = "WHEN", value_parser = one_of::<When>(), default_value_t = When::Auto)]
    pub color: When,
}
