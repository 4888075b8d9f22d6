//! The output in a result.

use crate::model::convert::Converted;
use crate::model::input::Input;
use crate::model::{BlockId, Model};
use crate::output::Parent;
use crate::output::save::Naming;
use crate::plan::Splitting;
use crate::plan::imatrix::Planned;
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::plan::parts::Part;
use crate::plan::{ChangeKind, TensorChange};
use crate::plan::{Plan, attention, parts};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputReport {
    /// Where it is. Of a split model, its first part; null in a dry run without a place.
    pub path: Option<String>,
    /// Number of blocks.
    pub block_count: usize,
    /// `general.architecture`: the input's, unless blocks lost their attention.
    pub architecture: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Hash of all bytes, part after part; null in a dry run.
    pub blake3: Option<String>,
    /// Time of writing; null in a dry run.
    pub seconds: Option<f64>,
    /// Its files in order: one, or all parts of a split model.
    pub parts: Vec<PartReport>,
    /// The importance matrix that was renumbered with it. Null if none was asked for.
    pub imatrix: Option<ImatrixReport>,
    /// The model of Ollama's that was made of it. Null if none was asked for.
    pub ollama: Option<OllamaReport>,
    /// Tensors that are not the input's with all their bytes.
    pub changes: Vec<TensorChange>,
    /// Notes about its metadata.
    pub notes: Vec<String>,
}

impl OutputReport {
    /// Of the planned output with these files. What is known only once it is written is not there yet.
    pub(crate) fn new(
        parent: Parent<'_>,
        plan: &Plan<'_>,
        parts: Vec<PartReport>,
        imatrix: Option<ImatrixReport>,
    ) -> Self {
        Self {
            path: parts.first().and_then(|part| part.path.clone()),
            block_count: plan.renumbering.kept().len(),
            architecture: match plan.attention_removed.is_empty() {
                true => parent.model.architecture().to_owned(),
                false => attention::TO.to_owned(),
            },
            bytes: parts.iter().map(|part| part.bytes).sum(),
            parameters: plan.n_parameters,
            blake3: None,
            seconds: None,
            parts,
            imatrix,
            ollama: None,
            changes: [plan.changes.clone(), converted_changes(parent.input)].concat(),
            notes: plan.notes.clone(),
        }
    }
}

/// The experts that stay.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertsReport {
    /// How they were chosen.
    pub method: String,
    /// How many each block keeps.
    pub kept_count: usize,
    /// How many each block of the input has.
    pub count: usize,
    /// The input's numbers of those that stay, by block.
    pub kept: BTreeMap<usize, Vec<usize>>,
}

impl ExpertsReport {
    /// Of the planned output; `None` where no expert goes.
    #[must_use]
    pub fn of(model: &Model<'_>, plan: &Plan<'_>) -> Option<Self> {
        let cut = plan.experts.as_ref()?;
        let stays = |block: &BlockId| !plan.removed.contains(block);
        let kept = cut.kept.iter().filter(|(block, _)| stays(block));
        let kept: BTreeMap<_, _> = kept.map(|(block, kept)| (block.index(), kept.clone())).collect();
        Some(Self {
            method: cut.method.clone(),
            kept_count: kept.values().next().map_or(0, Vec::len),
            count: model.count("expert_count").ok().flatten().unwrap_or(0),
            kept,
        })
    }
}

/// The line `96 of 128 in each of 48 blocks`.
impl fmt::Display for ExpertsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept_count, count, kept, .. } = self;
        write!(f, "{kept_count} of {count} stay in each of {} blocks", kept.len())
    }
}

/// A model of Ollama's.
#[derive(Clone, Debug, Serialize)]
pub struct OllamaReport {
    /// Its name.
    pub name: String,
    /// The Modelfile that it is made from.
    pub modelfile: String,
    /// Whether it was made. Else there is no `ollama` here, or it was a dry run.
    pub created: bool,
}

/// A renumbered importance matrix.
#[derive(Clone, Debug, Serialize)]
pub struct ImatrixReport {
    /// Where it is.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Weights that it has values for.
    pub entries: usize,
    /// Weights of removed blocks, whose values are left out.
    pub removed: usize,
}

/// An importance matrix that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct MeasuredReport {
    /// Where it is.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Weights that it has values for.
    pub entries: usize,
    /// Windows that it is of.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Expert matrices that no token reached, and so without values.
    pub unused_experts: usize,
}

impl MeasuredReport {
    pub(crate) fn new(path: &Path, measured: &MeasuredImatrix, planned: &Planned<'_>) -> Self {
        Self {
            path: path.display().to_string(),
            bytes: planned.n_bytes(),
            entries: planned.n_entries,
            windows: measured.n_windows,
            window: measured.window,
            unused_experts: measured.n_unused(),
        }
    }
}

/// One file of the output.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Where it is; null in a dry run without a place.
    pub path: Option<String>,
    /// Its bytes.
    pub bytes: u64,
}

/// The tensors outside of a converted model's text part.
#[must_use]
pub fn converted_changes(input: &Input) -> Vec<TensorChange> {
    let left_out = |converted: &Converted| {
        let names = converted.left_out.iter();
        names
            .map(|(name, _)| TensorChange {
                tensor: None,
                parent: Some(name.clone()),
                change: ChangeKind::LeftOut,
                why: Converted::WHY_LEFT_OUT.to_owned(),
            })
            .collect()
    };
    input.converted().map_or_else(Vec::new, left_out)
}

/// The files that would be written.
pub(crate) fn planned_files(
    model: &Model<'_>,
    plan: &Plan<'_>,
    input: &Input,
    output: Option<&Path>,
    splitting: Splitting,
) -> Result<Vec<PartReport>> {
    let place = |path: &Path| Naming::new(path, splitting, input)?.files(model, plan);
    let files = match output.map(place).transpose()? {
        Some(files) => files.into_iter().map(|(path, part)| (Some(path), part)).collect(),
        None => {
            let parts = parts::parts(model, plan, splitting)?;
            parts.into_iter().map(|part| (None, part)).collect::<Vec<_>>()
        }
    };
    let report = |(path, part): (Option<PathBuf>, Part<'_>)| PartReport {
        path: path.map(|path| path.display().to_string()),
        bytes: part.layout.file_len(),
    };
    Ok(files.into_iter().map(report).collect())
}
