//! The command line: clap definitions and nothing else.

pub mod task;

pub mod words;

pub mod flags;

mod text;

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use ggml::FileType;

use crate::choose::search::goal::{KlLimit, PerplexityLimit};
use crate::choose::settings::{DropList, Effort};
use crate::choose::stability::Confidence;
use crate::cli::args::flags::Flags;
use crate::cli::args::task::Task;
use crate::cli::args::words::one_of;
use crate::files::byte_size::ByteSize;
use crate::heal::healer::HealType;
use crate::heal::settings::HealArg;
use crate::measure::loss::Objective;
use crate::model::block::BlockList;
use crate::plan::experts::{ExpertBudget, ExpertMethod};
use crate::plan::{Budget, Method};
use crate::report::pages::format::PageFormat;

pub use text::{AmountArgs, CalibrationArgs, MachineArgs, TextArgs};

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
    max_term_width = 100
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

/// Arguments of the main job.
#[derive(Debug, Args)]
pub struct ShortenArgs {
    /// The model: a file, of a split model any or all of its parts, or ollama:NAME, ollama:NAME:TAG, hf:ORG/REPO,
    /// hf:ORG/REPO/FILE or lmstudio:ORG/REPO, looked up in the local stores of those programs
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// How many blocks to remove: a number, or a share such as 25%
    #[arg(
        long,
        value_name = "N|P%",
        required_unless_present_any = [
            "blocks", "drop_mtp", "drop_attention", "attention_blocks", "target_size", "max_ppl", "max_kl", "objective",
            "experts", "keep_experts", "drop_experts"
        ],
        conflicts_with = "blocks"
    )]
    pub drop: Option<Budget>,

    /// Remove exactly these blocks, 0-based, such as 21-29,31 (no calibration)
    #[arg(long, value_name = "LIST", conflicts_with_all = ["keep", "method", "objective"])]
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

    /// How many experts of each block to remove: a number, or a share such as 25%
    #[arg(long, value_name = "N|P%", conflicts_with_all = ["experts", "keep_experts"])]
    pub drop_experts: Option<ExpertBudget>,

    /// By which score of experts [default: auto; reap with --effort quick]
    #[arg(long, value_parser = one_of::<ExpertMethod>(), requires = "drop_experts")]
    pub experts_by: Option<ExpertMethod>,

    /// Keep only these experts, the same in each block, such as 0-95 (no calibration)
    #[arg(long, value_name = "LIST", conflicts_with = "experts")]
    pub keep_experts: Option<BlockList>,

    /// Keep only the experts of this JSON file, a list for each block that has some, all of one length, such as
    /// {"0": [0, 3], "1": [2, 5]} (no calibration)
    #[arg(long, value_name = "FILE")]
    pub experts: Option<PathBuf>,

    /// Never remove these blocks, nor their attention
    #[arg(long, value_name = "LIST")]
    pub keep: Option<BlockList>,

    /// How to choose the blocks
    #[arg(long, value_parser = one_of::<Method>(), default_value_t = Method::Auto)]
    pub method: Method,

    /// How much is measured for the choice
    #[arg(long, value_parser = one_of::<Effort>(), default_value_t = Effort::Normal, conflicts_with_all = ["method", "blocks"])]
    pub effort: Effort,

    /// What methods ablate and search make small, and auto compares by [default: kl; ppl with --max-ppl]
    #[arg(long, value_parser = one_of::<Objective>())]
    pub objective: Option<Objective>,

    /// Stop measuring as soon as the rest of the text cannot change which blocks go, with this confidence, such as 0.99;
    /// --tokens is then the most that is used
    #[arg(long, value_name = "P", help_heading = "Calibration")]
    pub confidence: Option<Confidence>,

    /// What makes up for the removed blocks [default: none; auto with --effort thorough]
    #[arg(long, value_parser = one_of::<HealArg>())]
    pub heal: Option<HealArg>,

    /// What healed weights are rounded to: their own type (keep), the smallest that keeps 95 % of what healing gains (auto), or
    /// a type such as Q8_0 or F16 [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub heal_type: Option<HealType>,

    /// The memory that hidden states and sums of healing may take beside the model, such as 4G: less text is used unless --tokens
    /// says how much, and what does not fit is refused before anything is measured
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,

    /// Only sets that keep a pattern of sliding windows or recurrent blocks as older llama.cpp has it built in, so that no
    /// list is written that such a one ignores
    #[arg(long, conflicts_with = "trust_any_cut")]
    pub portable: bool,

    /// Skip the safety rules: allow any set of blocks, unknown architectures and unknown per-block metadata
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

    /// Also write the importance matrix of the model as it is, by the text of --calibration, as llama-imatrix does
    #[arg(long, value_name = "FILE")]
    pub imatrix_out: Option<PathBuf>,

    /// Write a Modelfile beside the output, with the template, parameters and system text of a parent named ollama:..., and run
    /// `ollama create NAME` if there is an Ollama
    #[arg(long, value_name = "NAME", conflicts_with_all = ["split_max_size", "keep_split"])]
    pub ollama: Option<String>,
    /// Also write a model card, ready to publish with the output: measures quality and speed of output and input, on the
    /// text after the part that chose the blocks
    #[arg(long, value_name = "FILE.md", conflicts_with = "dry_run")]
    pub card: Option<PathBuf>,

    /// Overwrite the output if it exists
    #[arg(long)]
    pub force: bool,

    /// Write nothing that would leave less than this free on the disk of the output, such as 2G
    #[arg(long, value_name = "SIZE")]
    pub min_free: Option<ByteSize>,

    /// Say what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Goals.
    #[command(flatten)]
    pub goal: GoalArgs,

    /// Calibration.
    #[command(flatten)]
    pub calibration: CalibrationArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Goals in place of a number of blocks, and what a measured search needs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Goals and search")]
pub struct GoalArgs {
    /// Remove as few blocks as bring the output to this size, such as 4GiB, 3.5G or 500M, all its files together
    #[arg(
        long,
        value_name = "SIZE",
        conflicts_with_all = ["drop", "blocks", "drop_attention", "attention_blocks", "max_ppl", "max_kl"]
    )]
    pub target_size: Option<ByteSize>,

    /// Remove as many blocks as keep the perplexity of the calibration text within that of the model and this, such as +10%,
    /// or within a value such as 25.3
    #[arg(
        long,
        value_name = "+P%|X",
        conflicts_with_all = ["drop", "blocks", "drop_attention", "attention_blocks", "max_kl"]
    )]
    pub max_ppl: Option<PerplexityLimit>,

    /// Remove as many blocks as keep the mean KL divergence from the model's predictions within this, in nats
    #[arg(
        long,
        value_name = "X",
        conflicts_with_all = ["drop", "blocks", "drop_attention", "attention_blocks"]
    )]
    pub max_kl: Option<KlLimit>,

    /// Tasks for --objective task: HellaSwag in llama.cpp's text form, or JSON lines in the shape of ARC or MMLU
    #[arg(long, value_name = "FILE")]
    pub task_file: Option<PathBuf>,

    /// How many tasks of that file each candidate does, from its start [default: 50]
    #[arg(long, value_name = "N", requires = "task_file")]
    pub tasks: Option<usize>,

    /// Folder to resume from after an interrupt, and for hidden states of a model that does not fit in memory [default: the system's
    /// for caches; states in memory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

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

    /// Overwrite that file if it exists
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

/// Arguments of `compare`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("fewer").args(["drop", "drop_experts"]).multiple(true)))]
pub struct CompareArgs {
    /// The models; the first is the parent unless --parent names it; of a split model, any or all of its parts
    #[arg(value_name = "MODEL", required_unless_present = "parent")]
    pub models: Vec<PathBuf>,

    /// What all are compared with, of the same vocabulary [default: the first model]
    #[arg(long, value_name = "MODEL")]
    pub parent: Option<PathBuf>,

    /// Also the parent without this many blocks, for each number of a list such as 1..9 or 1,3,7 or 10%,25%; nothing is
    /// written
    #[arg(long, value_name = "LIST")]
    pub drop: Option<DropList>,

    /// Also the parent without this many experts of each block, for each number or share of a list such as 12%,25%,50%
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub drop_experts: Vec<ExpertBudget>,

    /// By which score of experts [default: auto]
    #[arg(long, value_parser = one_of::<ExpertMethod>(), requires = "drop_experts")]
    pub experts_by: Option<ExpertMethod>,

    /// Also the parent in these types of llama-quantize, such as Q6_K,Q4_K_M,Q3_K_M,Q2_K
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub requantize: Vec<FileType>,

    /// Folder for files that are needed as long as they are evaluated, and for hidden states of models that do not fit in memory
    /// [default: that of the parent, or of one named in a store the system's for temporary files; states in memory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,

    /// How --drop chooses the blocks [default: auto]
    #[arg(long, value_parser = one_of::<Method>(), requires = "drop")]
    pub method: Option<Method>,

    /// What methods ablate and search make small, and auto compares by [default: kl]
    #[arg(long, value_parser = one_of::<Objective>(), requires = "fewer")]
    pub objective: Option<Objective>,

    /// What makes up for the blocks of each row of --drop, as in the main job [default: none]
    #[arg(long, value_parser = one_of::<HealArg>(), requires = "drop")]
    pub heal: Option<HealArg>,

    /// Also the rows of --drop and --drop-experts in each type of --requantize: fewer blocks, healed where --heal is given, then
    /// quantized
    #[arg(long, requires = "fewer", requires = "requantize")]
    pub mixed: bool,

    /// Never remove these blocks
    #[arg(long, value_name = "LIST", requires = "drop")]
    pub keep: Option<BlockList>,

    /// Drop the blocks for multi-token prediction (MTP, NextN) at the end too
    #[arg(long, requires = "fewer")]
    pub drop_mtp: bool,

    /// Only sets that keep a pattern of sliding windows or recurrent blocks as older llama.cpp has it built in
    #[arg(long, requires = "drop", conflicts_with = "trust_any_cut")]
    pub portable: bool,

    /// Skip the safety rules: allow any set of blocks, unknown architectures and unknown per-block metadata
    #[arg(long, requires = "fewer")]
    pub trust_any_cut: bool,

    /// Text that --drop and --drop-experts choose on, repeatable [default: the text built into the program]
    #[arg(long, value_name = "FILE", requires = "fewer")]
    pub choose_on: Vec<PathBuf>,

    /// How much of that text to use, in tokens from its start [default: 8192]
    #[arg(long, value_name = "N", requires = "fewer")]
    pub choose_tokens: Option<usize>,

    /// Choose anew, and keep nothing in the cache of scores
    #[arg(long, requires = "fewer")]
    pub no_cache: bool,

    /// What is scored.
    #[command(flatten)]
    pub text: TextArgs,

    /// Output.
    #[command(flatten)]
    pub common: CommonArgs,
}

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
}
