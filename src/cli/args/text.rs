//! Text to calibrate on or to score, and where models are evaluated.

use std::path::PathBuf;

use clap::Args;
use ggml::rpc::Endpoints;

use crate::cli::args::words::one_of;
use crate::engine::conversion::Conversion;
use crate::files::byte_size::ByteSize;

/// The text that is scored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Scored text")]
pub struct TextArgs {
    /// Text to score, repeatable, or self, or self:TOKENS, for what the parent, else the model, writes itself [default: the text
    /// built into the program]
    #[arg(long, value_name = "FILE|self")]
    pub calibration: Vec<PathBuf>,

    /// How much of it.
    #[command(flatten)]
    pub amount: AmountArgs,

    /// Length of the windows it is cut into, in tokens; the second half of each is scored [default: 512, or the model's
    /// context if shorter]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,

    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// How a model is calibrated.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationArgs {
    /// Text to calibrate on, repeatable, or self, or self:TOKENS, for what the model writes itself [default: the text built into the
    /// program]
    #[arg(long, value_name = "FILE|self")]
    pub calibration: Vec<PathBuf>,

    /// How much of it.
    #[command(flatten)]
    pub amount: AmountArgs,

    /// Length of the windows it is cut into, in tokens [default: 512, or the model's context if shorter]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,

    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,

    /// Evaluate the weights of blocks for scores in another type, or not repacked [default: what is fastest here, as timed on one
    /// block]
    #[arg(long, value_name = "FORM", value_parser = one_of::<Conversion>())]
    pub convert: Option<Conversion>,

    /// Measure anew, and keep nothing in the cache of scores
    #[arg(long)]
    pub no_cache: bool,
}

/// How much text is used, and which where the model writes it itself.
#[derive(Clone, Debug, Args)]
pub struct AmountArgs {
    /// Chooses what --calibration self writes [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// How much of it to use, in tokens from its start [default: 8192]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
}

/// What evaluates a model.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// CPU threads [default: the number of physical cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Blocks whose weights go to the GPU, as in llama.cpp
    #[arg(long, visible_alias = "ngl", value_name = "N", allow_negative_numbers = true)]
    pub gpu_layers: Option<i32>,

    /// Memory that an evaluation may take, such as 4G or 1.5GiB; a larger model is evaluated block by block [default: what is free]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Servers whose memory takes blocks too, as llama.cpp's rpc-server offers it; for models that this machine alone cannot hold
    #[arg(long, value_name = "HOST:PORT,...")]
    pub rpc: Option<Endpoints>,
}
