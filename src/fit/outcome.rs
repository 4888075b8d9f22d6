//! A fit in a result.

use serde::Serialize;

/// The result of a fit. Its fields are the JSON contract.
#[derive(Clone, Debug, Serialize)]
pub struct FitReport {
    /// Bytes that the file may have; null where a divergence was the aim.
    pub target_bytes: Option<u64>,
    /// The mean KL divergence that it may have, in nats; null where a size was the aim.
    pub target_kl: Option<f64>,
    /// Bytes of the file.
    pub bytes: u64,
    /// The expected mean KL divergence from the parent, in nats. It is the sum of single losses; null of a plan that was
    /// applied.
    pub expected_kl: Option<f64>,
    /// As measured on the model as it is shipped, in nats; null where it was not.
    pub kl_divergence: Option<f64>,
    /// Its standard error over windows.
    pub kl_divergence_stderr: Option<f64>,
    /// The perplexity of the same windows.
    pub perplexity: Option<f64>,
    /// The parent's.
    pub parent_perplexity: Option<f64>,
    /// Share of tokens whose likeliest successor is the parent's.
    pub same_top: Option<f64>,
    /// Windows on which that was measured; they had a part in the choice.
    pub windows: usize,
    /// The tensors that might become smaller.
    pub tensors: Vec<FittedTensorReport>,
    /// The blocks of the parent.
    pub blocks: Vec<FittedBlockReport>,
    /// The least sum of losses by file size, without removed blocks.
    pub curve: Vec<CurvePoint>,
    /// All choices that were measured, in that order.
    pub candidates: Vec<FitCandidateReport>,
    /// Whether no types of those blocks have a lower sum of losses.
    pub exact: bool,
    /// `segments`, or `whole` where single losses were measured in whole models; null of a plan that was applied.
    pub evaluated: Option<&'static str>,
    /// Losses that were known from an earlier run.
    pub known_losses: usize,
    /// Passes of the default calibration text through all blocks that it took.
    pub passes: f64,
    /// Time of all of it.
    pub seconds: f64,
}

/// A tensor that might become smaller.
#[derive(Clone, Debug, Serialize)]
pub struct FittedTensorReport {
    /// Its name in the parent.
    pub name: String,
    /// The parent's type.
    pub from_type: &'static str,
    /// The output's; null if it goes.
    pub r#type: Option<&'static str>,
    /// Bytes in the parent.
    pub parent_bytes: u64,
    /// Bytes in the output.
    pub bytes: u64,
    /// The mean KL divergence of this tensor's new type alone, in nats. It is what was measured for one type, and for others
    /// in proportion to the error of the weights; null of a plan that was applied.
    pub loss: Option<f64>,
}

/// A block of the parent.
#[derive(Clone, Debug, Serialize)]
pub struct FittedBlockReport {
    /// Its number in the parent.
    pub block: usize,
    /// `kept`, `removed`, or its new types; then `without attention` where that goes.
    pub rung: String,
    /// Bits per weight in the output.
    pub bits: f64,
}

/// A point of the curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CurvePoint {
    /// Bytes of the file.
    pub bytes: u64,
    /// The sum of losses, in nats.
    pub expected_kl: f64,
}

/// A choice that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct FitCandidateReport {
    /// The blocks that it removes.
    pub removed: Vec<usize>,
    /// The blocks that stay without their attention.
    pub attention_removed: Vec<usize>,
    /// How many experts each block keeps; null where none go.
    pub experts_kept: Option<usize>,
    /// Bytes of the file.
    pub bytes: u64,
    /// The sum of losses, in nats.
    pub expected_kl: f64,
    /// As measured, in nats.
    pub kl_divergence: f64,
    /// Whether it is the one.
    pub chosen: bool,
}
