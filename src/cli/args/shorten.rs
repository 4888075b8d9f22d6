//! Arguments of the main job, its goals and its search.

use std::path::PathBuf;

use clap::Args;
use ggml::FileType;

use crate::choose::search::goal::{KlLimit, PerplexityLimit};
use crate::choose::settings::Effort;
use crate::choose::stability::Confidence;
use crate::cli::args::CommonArgs;
use crate::cli::args::text::CalibrationArgs;
use crate::cli::args::words::one_of;
use crate::files::byte_size::ByteSize;
use crate::heal::healer::HealType;
use crate::heal::settings::HealArg;
use crate::measure::loss::Objective;
use crate::model::block::BlockList;
use crate::plan::experts::{ExpertBudget, ExpertMethod};
use crate::plan::{Budget, Method};

/// Arguments of the main job.
#[derive(Debug, Args)]
pub struct ShortenArgs {
    /// The model: a file, of a split model any or all of its parts, or ollama:NAME, ollama:NAME:TAG, hf:ORG/REPO,
    /// hf:ORG/REPO:QUANT, hf:ORG/REPO/FILE or lmstudio:ORG/REPO, looked up in the local stores of those programs
    #[arg(required = true, value_name = "MODEL")]
    pub model: Vec<PathBuf>,

    /// How many blocks to remove: a number, or a share such as 25%
    #[arg(
        long,
        value_name = "N|P%",
        required_unless_present_any = [
            "blocks", "layers", "drop_mtp", "drop_attention", "attention_blocks", "target_size", "max_ppl", "max_kl", "objective",
            "experts", "keep_experts", "drop_experts"
        ],
        conflicts_with_all = ["blocks", "layers"],
        help_heading = "What is removed"
    )]
    pub drop: Option<Budget>,

    /// Remove exactly these blocks, 0-based, such as 21-29,31 (no calibration)
    #[arg(long, value_name = "LIST", conflicts_with_all = ["keep", "method", "objective"], help_heading = "What is removed")]
    pub blocks: Option<BlockList>,

    /// Keep exactly these blocks, both ends of a range among them, such as 0-20,28-31 (mergekit's layer_range [0, 21] is without
    /// its end: here that is 0-20)
    #[arg(long, value_name = "LIST", conflicts_with_all = ["blocks", "keep", "method", "objective"], help_heading = "What is removed")]
    pub layers: Option<BlockList>,

    /// Drop the blocks for multi-token prediction (MTP, NextN) at the end too, or with neither --drop nor --blocks only them
    #[arg(long, help_heading = "What is removed")]
    pub drop_mtp: bool,

    /// Remove only the attention of this many of the blocks that stay; for dense llama models, written as deci
    #[arg(long, value_name = "N|P%", conflicts_with = "attention_blocks", help_heading = "What is removed")]
    pub drop_attention: Option<Budget>,

    /// Remove only the attention of exactly these blocks (no calibration)
    #[arg(long, value_name = "LIST", help_heading = "What is removed")]
    pub attention_blocks: Option<BlockList>,

    /// How many experts of each block to remove: a number, or a share such as 25%
    #[arg(long, value_name = "N|P%", conflicts_with_all = ["experts", "keep_experts"], help_heading = "What is removed")]
    pub drop_experts: Option<ExpertBudget>,

    /// By which score of experts [default: auto; reap with --effort quick]
    #[arg(long, value_parser = one_of::<ExpertMethod>(), requires = "drop_experts", conflicts_with_all = ["experts", "keep_experts"], help_heading = "What is removed")]
    pub experts_by: Option<ExpertMethod>,

    /// Keep only these experts, the same in each block, such as 0-95 (no calibration)
    #[arg(long, value_name = "LIST", conflicts_with = "experts", help_heading = "What is removed")]
    pub keep_experts: Option<BlockList>,

    /// Keep only the experts of this JSON file, a list for each block that has some, all of one length, such as
    /// {"0": [0, 3], "1": [2, 5]} (no calibration)
    #[arg(long, value_name = "FILE", help_heading = "What is removed")]
    pub experts: Option<PathBuf>,

    /// Never remove these blocks, nor their attention
    #[arg(long, value_name = "LIST", help_heading = "What is removed")]
    pub keep: Option<BlockList>,

    /// How to choose the blocks
    #[arg(long, value_parser = one_of::<Method>(), default_value_t = Method::Auto, help_heading = "How it is chosen")]
    pub method: Method,

    /// How much is measured for the choice
    #[arg(long, value_parser = one_of::<Effort>(), default_value_t = Effort::Normal, conflicts_with_all = ["method", "blocks", "layers"], help_heading = "How it is chosen")]
    pub effort: Effort,

    /// What methods ablate and search make small, and auto compares by [default: kl; ppl with --max-ppl]
    #[arg(long, value_parser = one_of::<Objective>(), help_heading = "How it is chosen")]
    pub objective: Option<Objective>,

    /// Stop measuring as soon as the rest of the text cannot change which blocks go, with this confidence, such as 0.99;
    /// --tokens is then the most that is used
    #[arg(long, value_name = "P", help_heading = "Calibration")]
    pub confidence: Option<Confidence>,

    /// What makes up for the removed blocks [default: none; auto with --effort thorough]
    #[arg(long, value_parser = one_of::<HealArg>(), help_heading = "Healing")]
    pub heal: Option<HealArg>,

    /// What healed weights are rounded to: their own type (keep), the smallest that keeps 95 % of what healing gains (auto), or
    /// a type such as Q8_0 or F16 [default: auto]
    #[arg(long, value_name = "TYPE", help_heading = "Healing")]
    pub heal_type: Option<HealType>,

    /// The memory that hidden states and sums of healing may take beside the model, such as 4G: less text is used unless --tokens
    /// says how much, and what does not fit is refused before anything is measured
    #[arg(long, value_name = "SIZE", help_heading = "Healing")]
    pub max_memory: Option<ByteSize>,

    /// Also round the tensors that stay to these types of llama-quantize, such as Q4_K_M, each once; by the importance matrix of
    /// --imatrix or --imatrix-out, where one is given
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["heal", "drop_experts", "keep_experts", "experts"], help_heading = "Files")]
    pub requantize: Option<FileType>,

    /// Only sets that keep a pattern of sliding windows or recurrent blocks as older llama.cpp has it built in, so that no
    /// list is written that such a one ignores
    #[arg(long, conflicts_with = "trust_any_cut", help_heading = "Safety")]
    pub portable: bool,

    /// Skip the safety rules: allow any set of blocks, unknown architectures and unknown per-block metadata
    #[arg(long, help_heading = "Safety")]
    pub trust_any_cut: bool,

    /// Where to write the shorter model; of a split one, what the names of its parts begin with
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run", help_heading = "Files")]
    pub output: Option<PathBuf>,

    /// Write parts of at most this size, such as 4G, 500M or 2GiB, for llama.cpp's split models; metadata comes on top
    #[arg(long, value_name = "SIZE", conflicts_with = "keep_split", help_heading = "Files")]
    pub split_max_size: Option<ByteSize>,

    /// Write parts as the input has them, if it is a split model
    #[arg(long, help_heading = "Files")]
    pub keep_split: bool,

    /// Also renumber the model's importance matrix, of either form, and write it to OUT
    #[arg(long, num_args = 2, value_names = ["IN", "OUT"], help_heading = "Files")]
    pub imatrix: Option<Vec<PathBuf>>,

    /// Also write the importance matrix of the model as it is, by the text of --calibration, as llama-imatrix does
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub imatrix_out: Option<PathBuf>,

    /// Write a Modelfile beside the output, with the template, parameters and system text of a parent named ollama:..., and run
    /// `ollama create NAME` if there is an Ollama
    #[arg(long, value_name = "NAME", conflicts_with_all = ["split_max_size", "keep_split"], help_heading = "Files")]
    pub ollama: Option<String>,
    /// Also write a model card, ready to publish with the output: measures quality and speed of output and input, on the
    /// text after the part that chose the blocks
    #[arg(long, value_name = "FILE.md", conflicts_with = "dry_run", help_heading = "Files")]
    pub card: Option<PathBuf>,

    /// Overwrite the output if it exists
    #[arg(long, help_heading = "Files")]
    pub force: bool,

    /// Write nothing that would leave less than this free on the disk of the output, such as 2G
    #[arg(long, value_name = "SIZE", help_heading = "Files")]
    pub min_free: Option<ByteSize>,

    /// Say what would be done, and write nothing
    #[arg(long, help_heading = "Files")]
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
        conflicts_with_all = ["drop", "blocks", "layers", "drop_attention", "attention_blocks", "max_ppl", "max_kl"]
    )]
    pub target_size: Option<ByteSize>,

    /// Remove as many blocks as keep the perplexity of the calibration text within that of the model and this, such as +10%,
    /// or within a value such as 25.3
    #[arg(
        long,
        value_name = "+P%|X",
        conflicts_with_all = ["drop", "blocks", "layers", "drop_attention", "attention_blocks", "max_kl"]
    )]
    pub max_ppl: Option<PerplexityLimit>,

    /// Remove as many blocks as keep the mean KL divergence from the model's predictions within this, in nats
    #[arg(
        long,
        value_name = "X",
        conflicts_with_all = ["drop", "blocks", "layers", "drop_attention", "attention_blocks"]
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
