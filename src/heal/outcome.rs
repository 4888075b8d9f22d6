//! What healing changed, in a result.

use crate::plan::Cut;
use serde::Serialize;

/// A healed cut.
#[derive(Clone, Debug)]
pub struct Healed {
    /// The cut with the weights that make up for it. As it was, if nothing helped.
    pub cut: Cut,
    /// The trials.
    pub report: HealReport,
}

/// The result of healing. Its fields are the JSON contract.
#[derive(Clone, Debug, Serialize)]
pub struct HealReport {
    /// What was asked for.
    pub requested: String,
    /// What was kept: `none` if nothing helped.
    pub method: String,
    /// Which variant of it; null for `none`.
    pub variant: Option<String>,
    /// The tensors with other weights.
    pub tensors: Vec<HealedTensorReport>,
    /// Tokens that weights were fitted to.
    pub tokens: usize,
    /// The ridge of the first tensor, relative to its inputs. Those count by the mean of the diagonal of their second moments.
    /// Null for `none`.
    pub ridge: Option<f64>,
    /// What was measured on windows that neither weights nor ridge saw. Null where nothing was measured.
    pub held_out: Option<HeldOutReport>,
    /// Everything that was tried.
    pub candidates: Vec<HealCandidateReport>,
    /// The search's sets compared once healed at their cuts, by first block. Empty where none were.
    pub shortlist: Vec<HealedSetReport>,
    /// Time of all of it.
    pub seconds: f64,
    /// What speaks against trusting the result.
    pub warnings: Vec<String>,
}

/// A set of blocks of a search.
#[derive(Clone, Debug, Serialize)]
pub struct HealedSetReport {
    /// The blocks.
    pub removed: Vec<usize>,
    /// The objective on the held-out windows without them, in nats per token.
    pub loss: f64,
    /// The same with each cut healed.
    pub loss_healed: f64,
}

/// A tensor with other weights.
#[derive(Clone, Debug, Serialize)]
pub struct HealedTensorReport {
    /// Its name in the input.
    pub name: String,
    /// The type that it had.
    pub from_type: String,
    /// The type that it has.
    pub r#type: String,
    /// By how many bytes it is larger.
    pub bytes_added: i64,
    /// The ridge of its fit; null where none was needed.
    pub ridge: Option<f64>,
    /// The share of the stream's error that is left after it. It is of tokens that it was not fitted to.
    ///
    /// Null where it was not fitted to the stream.
    pub error_left: Option<f64>,
}

/// What was measured on windows that nothing was fitted to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HeldOutReport {
    /// How many.
    pub windows: usize,
    /// The objective without other weights, in nats per token.
    pub loss_none: f64,
    /// With them.
    pub loss_healed: f64,
    /// `kl` or `ppl`.
    pub objective: &'static str,
    /// Perplexity of the whole model.
    pub parent_perplexity: f64,
    /// Without other weights.
    pub perplexity_none: f64,
    /// With them.
    pub perplexity_healed: f64,
}

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct HealCandidateReport {
    /// `none`, `linear`, `block`, ...
    pub method: String,
    /// Which variant; null for `none`.
    pub variant: Option<String>,
    /// The objective on the held-out windows, in nats per token. Null if it could not be measured, or no weight was changed.
    pub loss: Option<f64>,
    /// The perplexity there.
    pub perplexity: Option<f64>,
    /// By how many bytes its tensors are larger.
    pub bytes_added: i64,
    /// Whether it was kept.
    pub kept: bool,
}
