//! What a run found and did, as rows ready to print. Pure: from results to text.

pub mod lines;

pub(crate) mod column;

pub mod card;

pub mod pages;

pub mod saved;

pub mod table;

pub mod verification;

pub mod evaluation;

pub mod experts;

pub mod stability;

pub mod batch;

pub mod comparison;

pub mod fit;

pub mod goal;

pub mod healing;

use crate::choose::outcome::GoalReport;
use crate::choose::outcome::PairsReport;
use crate::choose::outcome::SearchReport;
use crate::choose::outcome::{AutoReport, BlockReport, ExpertsAutoReport};
use crate::choose::rating::{AblateReport, AgainstReport, ConfidenceReport};
use crate::engine::outcome::CalibrationReport;
use crate::fit::mixture::MixtureReport;
use crate::fit::outcome::FitReport;
use crate::heal::outcome::HealReport;
use crate::measure::experts::BlockOfExperts;
use crate::measure::outcome::EvalReport;
use crate::model::outcome::ModelReport;
use crate::output::outcome::{ExpertsReport, MeasuredReport, OutputReport};
use serde::Serialize;

/// The result of one model. Its fields are the JSON contract: unknown values are null, never left out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub gguf_shorten: &'static str,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: &'static str,
    /// The command line, without the program's name; empty where there was none.
    pub arguments: Vec<String>,
    /// The input.
    pub model: ModelReport,
    /// How scores were measured; null if they were not.
    pub calibration: Option<CalibrationReport>,
    /// How blocks were chosen.
    pub method: String,
    /// `auto` where that chose the method; null otherwise.
    pub chosen_by: Option<&'static str>,
    /// The sets that it compared; null where it did not choose.
    pub auto: Option<AutoReport>,
    /// What was measured to choose them. Null where scores of a single pass or a list chose.
    pub search: Option<SearchReport>,
    /// What decided how many blocks go. Null where their number or a list was given.
    pub goal: Option<GoalReport>,
    /// What makes up for the removed blocks; null where nothing was to.
    pub heal: Option<HealReport>,
    /// How tensors were quantized; null where they keep their types.
    pub requantize: Option<MixtureReport>,
    /// How sure the choice is; null where no scores were measured.
    pub confidence: Option<ConfidenceReport>,
    /// The same scores on another text; null if none was given.
    pub against: Option<AgainstReport>,
    /// What each block alone costs; null if that was not measured.
    pub ablate: Option<AblateReport>,
    /// Every block of the input, first to last.
    pub blocks: Vec<BlockReport>,
    /// The blocks that go, in the input's numbering.
    pub removed: Vec<usize>,
    /// The blocks that stay but lose their attention, in the input's numbering.
    pub attention_removed: Vec<usize>,
    /// How those were chosen; null if there are none.
    pub attention_method: Option<String>,
    /// The experts that stay; null where none go.
    pub experts: Option<ExpertsReport>,
    /// `auto` where that chose their score; null otherwise.
    pub experts_chosen_by: Option<&'static str>,
    /// The sets of experts that it compared; null where it did not choose.
    pub experts_auto: Option<ExpertsAutoReport>,
    /// The scores of experts; null unless they were measured.
    pub expert_scores: Option<Vec<BlockOfExperts>>,
    /// How alike hidden states are; null unless that was asked for.
    pub pairs: Option<PairsReport>,
    /// The importance matrix that was measured; null unless one was written.
    pub imatrix_out: Option<MeasuredReport>,
    /// What was written. Of a command that writes nothing, not there at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputReport>,
    /// The types that were chosen. Of other commands than `fit` not there at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<FitReport>,
    /// What was measured of the output for its card. Null without one, or where it could not be measured.
    pub evaluation: Option<EvalReport>,
}

impl Report {
    /// Of the blocks of a model, without what only some commands find.
    #[must_use]
    pub fn new(arguments: Vec<String>, model: ModelReport, method: String, blocks: Vec<BlockReport>) -> Self {
        Self {
            gguf_shorten: env!("CARGO_PKG_VERSION"),
            llama_cpp: ggml::backend::llama_cpp_version(),
            arguments,
            model,
            calibration: None,
            method,
            chosen_by: None,
            auto: None,
            search: None,
            goal: None,
            heal: None,
            requantize: None,
            confidence: None,
            against: None,
            ablate: None,
            blocks,
            removed: Vec::new(),
            attention_removed: Vec::new(),
            attention_method: None,
            experts: None,
            experts_chosen_by: None,
            experts_auto: None,
            expert_scores: None,
            pairs: None,
            imatrix_out: None,
            output: None,
            fit: None,
            evaluation: None,
        }
    }
}
