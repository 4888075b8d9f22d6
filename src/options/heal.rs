//! How the cut is to be healed, checked.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::ByteSize;
use crate::cli::ShortenArgs;
use crate::error::Usage;
use crate::gguf::TensorType;
use crate::healer::HealType;

/// What makes up for the removed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HealArg {
    /// Nothing: the output computes exactly the input without the removed blocks
    None,
    /// The stream behind each cut multiplied by a number, through scales alone: what blocks add to it is divided by that
    Scale,
    /// The feed-forward matrix before each cut refitted by least squares, and behind it, as long as that helps, attention's and
    /// the feed-forward matrix; the norms behind them, where there are such
    Linear,
    /// Of each run of removed blocks one stays as its feed-forward network alone, refitted, with the matrix before the cut or
    /// without (dense llama, written as deci)
    Block,
    /// What is best of all on text that nothing was fitted to
    Auto,
}

impl fmt::Display for HealArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Scale => "scale",
            Self::Linear => "linear",
            Self::Block => "block",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for HealType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => return Ok(Self::Keep),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        TensorType::all()
            .find(|of| of.name().eq_ignore_ascii_case(text))
            .filter(|of| ggml::quantize::can_quantize(of.id()))
            .map(Self::To)
            .ok_or_else(|| {
                format!("'{text}' is no type that weights can be rounded to; expected keep, auto, or one such as Q8_0 or F16")
            })
    }
}

/// What makes up for the removed blocks, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heal {
    /// How.
    pub how: HealArg,
    /// What weights are rounded to.
    pub heal_type: HealType,
    /// Most bytes that it may take.
    pub max_memory: Option<u64>,
    /// Whether the number of tokens was left to the program.
    pub tokens_are_default: bool,
}

impl Heal {
    pub(super) fn new(args: &ShortenArgs) -> Result<Self> {
        if args.heal == HealArg::None && (args.heal_type.is_some() || args.max_memory.is_some()) {
            bail!(Usage(
                "--heal-type and --max-memory need --heal linear, block or auto".to_owned()
            ));
        }
        if args.heal == HealArg::Scale && args.heal_type.is_some() {
            bail!(Usage(
                "--heal-type needs --heal linear, block or auto".to_owned()
            ));
        }
        Ok(Self {
            how: args.heal,
            heal_type: args.heal_type.unwrap_or(HealType::Auto),
            max_memory: args.max_memory.map(|ByteSize(bytes)| bytes),
            tokens_are_default: args.calibration.tokens.is_none(),
        })
    }
}
