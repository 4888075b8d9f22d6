//! How the cut is to be healed, checked.

use crate::choose::settings::Effort;
use crate::cli::args::ShortenArgs;
use crate::engine::settings::Calibration;
use crate::error::Usage;
use crate::files::byte_size::ByteSize;
use crate::gguf::TensorType;
use crate::heal::healer::HealType;
use crate::heal::settings::Heal;
use crate::heal::settings::HealArg;
use crate::measure::loss::Objective;
use anyhow::{Result, bail};
use std::str::FromStr;

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

/// The way to heal.
pub(crate) fn how(args: &ShortenArgs) -> HealArg {
    args.heal.unwrap_or(match args.effort {
        Effort::Thorough => HealArg::Auto,
        Effort::Quick | Effort::Normal => HealArg::None,
    })
}

/// Checks that there is a fit for `--heal-type` and `--max-memory`.
pub(crate) fn check(args: &ShortenArgs) -> Result<()> {
    let how = how(args);
    if how == HealArg::None && (args.heal_type.is_some() || args.max_memory.is_some()) {
        bail!(Usage("--heal-type and --max-memory need --heal linear, block or auto".to_owned()));
    }
    if how == HealArg::Scale && args.heal_type.is_some() {
        bail!(Usage("--heal-type needs --heal linear, block or auto".to_owned()));
    }
    Ok(())
}

impl Heal {
    pub(crate) fn new(args: &ShortenArgs, objective: Objective, calibration: Calibration) -> Self {
        Self {
            how: how(args),
            heal_type: args.heal_type.unwrap_or(HealType::Auto),
            max_memory: args.max_memory.map(|ByteSize(bytes)| bytes),
            tokens_are_default: args.calibration.amount.tokens.is_none(),
            objective,
            calibration,
        }
    }
}
