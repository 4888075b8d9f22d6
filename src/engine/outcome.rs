//! The calibration text in a result.

use crate::engine::conversion::Conversion;
use crate::engine::text::CalibrationSet;
use serde::Serialize;

/// How scores were measured.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationReport {
    /// `built-in`, the files, or `self` for what the model wrote.
    pub source: String,
    /// Of what the model wrote, the number that chose it. Null of other text.
    pub seed: Option<u64>,
    /// Hash of the text; of what the model wrote, of its tokens.
    pub blake3: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens of all windows.
    pub tokens: usize,
    /// Whether every window begins with the model's BOS token.
    pub bos: bool,
    /// Time of the evaluation, without loading the model. Of scores from the cache, what it took then.
    pub seconds: f64,
    /// What the weights of blocks were converted to before they were evaluated.
    pub conversion: Conversion,
    /// Whether the scores were in the cache, so that nothing was evaluated.
    pub cached: bool,
    /// The hash by which the model was looked up there.
    #[serde(skip)]
    pub scored: Option<blake3::Hash>,
}

impl CalibrationReport {
    /// Of a calibration with `set` that took `seconds`.
    #[must_use]
    pub fn new(set: &CalibrationSet, seconds: f64) -> Self {
        Self {
            source: set.source.to_string(),
            seed: set.source.seed(),
            blake3: set.blake3.to_hex().to_string(),
            windows: set.windows().len(),
            window: set.window,
            tokens: set.n_tokens(),
            bos: set.bos,
            seconds,
            conversion: Conversion::None,
            cached: false,
            scored: None,
        }
    }
}
