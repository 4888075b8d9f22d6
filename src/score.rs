//! Scores of a model in one call, without a word on the screen.

use anyhow::Result;

use crate::commands::{self, Asked};
use crate::importance::Importance;
use crate::input::Input;
use crate::model::Model;
use crate::options::{Calibration, Printing};
use crate::plan::Constraints;

/// Measures the importance of every block of `model`, which is what `input` shows, with llama.cpp. With `options.cache` scores
/// that were measured before come from the cache ([`crate::cache`]), and new ones go there.
///
/// # Errors
/// Whatever keeps the model from being evaluated: a text that is too short, no tokenizer, what llama.cpp refuses.
pub fn score(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Calibration,
) -> Result<Importance> {
    let printing = Printing {
        json: None,
        quiet: true,
        verbose: false,
    };
    let asked = Asked::default();
    Ok(commands::calibrate(model, constraints, input, options, &printing, asked)?.importance)
}
