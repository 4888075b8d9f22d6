//! A cut in a mixture of `llama-quantize`. Each tensor is rounded once, from the parent's weights.
//!
//! Which type a tensor becomes is asked of llama.cpp, for the model as it is without the blocks: its mixtures go by a block's
//! number, and by how many there are.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ggml::{Backend, FileType};
use serde::Serialize;

use super::maker::Maker;
use super::matrix::Matrix;
use crate::engine::load::check_types;
use crate::error::Hint;
use crate::files::unnamed::ScratchFile;
use crate::gguf::{self, Quoted, TensorType};
use crate::output::Parent;
use crate::output::rounding::{family, needs_importance};
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::plan::requantized::Requantized;
use crate::plan::{ChangedTensors, Cut, Plan, TensorData};
use crate::watch::{Unit, Watch};

/// The importance matrix by which weights are rounded.
#[derive(Clone, Copy, Debug)]
pub enum Importance<'i> {
    /// None.
    None,
    /// That of a file.
    File(&'i Path),
    /// One that was measured.
    Measured(&'i MeasuredImatrix),
}

/// How a cut was quantized.
#[derive(Clone, Debug, Serialize)]
pub struct MixtureReport {
    /// The mixture, such as `Q4_K_M`.
    #[serde(rename = "type")]
    pub file_type: &'static str,
    /// Tensors in another type than the input's.
    pub tensors: usize,
    /// Hash of the importance matrix by which they were rounded; null without one.
    pub imatrix_blake3: Option<String>,
}

/// The same cut with its tensors in the types of a mixture.
///
/// # Errors
/// Types that need an importance matrix, or that a tensor cannot take; an importance matrix of another model; healed weights or
/// experts that go, which are not rounded.
pub fn apply(
    parent: Parent<'_>,
    cut: Cut,
    to: FileType,
    importance: Importance<'_>,
    threads: usize,
    watch: &dyn Watch,
) -> Result<(Cut, MixtureReport)> {
    ensure!(
        cut.healing.is_none() && cut.experts.is_none(),
        "bug: weights that are healed or cut are rounded"
    );
    let matrix = match importance {
        Importance::None => None,
        Importance::File(path) => Some(Matrix::open(path, parent.model)?),
        Importance::Measured(sums) => Some(Matrix::measured(sums)?),
    };
    check_types(parent.model)?;
    let plan = Plan::draft(parent.model, parent.constraints, &cut)?;
    let types = types(&plan, to, matrix.is_some())?;
    let maker = Maker::new(parent.model, matrix.as_ref(), threads)?;
    let bar = watch.begin(format!("rounding to {}", to.name()).into(), Unit::Tensors, types.len() as u64);
    let mut tensors = ChangedTensors::new();
    for (&source, &tensor_type) in &types {
        tensors.insert(source, maker.made(source, tensor_type)?);
        bar.advance(1);
    }
    drop(bar);
    let imatrix = matrix.as_ref().map(Matrix::blake3);
    let report = MixtureReport {
        file_type: to.name(),
        tensors: tensors.len(),
        imatrix_blake3: imatrix.map(|hash| hash.to_hex().to_string()),
    };
    let types = Some(Requantized { tensors, loss: [f32::NAN; 2], ggml: family(), imatrix });
    Ok((Cut { types, ..cut }, report))
}

/// The types of the tensors that become others, by their index among the model's.
fn types(plan: &Plan<'_>, to: FileType, has_importance: bool) -> Result<BTreeMap<usize, TensorType>> {
    let file = head_alone(plan).context("a file for llama.cpp to read the tensors' names from")?;
    let found = ggml::requantize::types(Backend::init(), file.path(), to, has_importance)?;
    let found: BTreeMap<&str, &str> = found.iter().map(|(name, to)| (&**name, &**to)).collect();
    let mut types = BTreeMap::new();
    for (planned, data) in plan.layout.tensors().iter().zip(&plan.data) {
        let name = planned.tensor().name();
        let Some(name_of_type) = found.get(name) else {
            continue;
        };
        let tensor_type = TensorType::all().find(|of| of.name().eq_ignore_ascii_case(name_of_type));
        let tensor_type =
            tensor_type.with_context(|| format!("bug: llama.cpp has a type '{name_of_type}'"))?;
        let TensorData::Whole { source } = data else {
            bail!("tensor {} is not the input's with all its bytes, so it is not rounded", Quoted(name));
        };
        if needs_importance(tensor_type) && !has_importance {
            return Err(anyhow::anyhow!(
                "{} needs an importance matrix: tensor {} becomes {tensor_type}",
                to.name(),
                Quoted(name)
            )
            .context(Hint("--imatrix IN OUT names one, --imatrix-out FILE measures one".to_owned())));
        }
        types.insert(*source, tensor_type);
    }
    Ok(types)
}

/// A file of the planned head, and of zeros that take no place on a disk.
fn head_alone(plan: &Plan<'_>) -> Result<ScratchFile> {
    let scratch = ScratchFile::new(&std::env::temp_dir())?;
    let mut file = OpenOptions::new().write(true).open(scratch.path())?;
    let mut head = Vec::new();
    gguf::write_head(&plan.layout, &mut head)?;
    file.write_all(&head)?;
    file.set_len(plan.layout.file_len())?;
    Ok(scratch)
}
