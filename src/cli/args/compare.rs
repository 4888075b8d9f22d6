//! Arguments of `compare`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use ggml::FileType;

use crate::choose::settings::DropList;
use crate::cli::args::CommonArgs;
use crate::cli::args::text::TextArgs;
use crate::cli::args::words::one_of;
use crate::heal::settings::HealArg;
use crate::measure::loss::Objective;
use crate::model::block::BlockList;
use crate::plan::Method;
use crate::plan::experts::{ExpertBudget, ExpertMethod};

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
