//! The decision on every tensor of the output: a name, a shape, and what its data is.

use anyhow::{Context, Result, ensure};
use byteorder::{ByteOrder, LittleEndian};

use super::counts::Rescaling;
use super::{Constraints, Runs, TensorData, Tensors};
use crate::gguf::{Quoted, TensorInfo, TensorOut, TensorType};
use crate::model::arch::{Architecture, PartsTensor, QueryScale};
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model};

/// Checks that tensors with a part per block can be cut anywhere.
pub(super) fn check(model: &Model<'_>, rules: &Architecture) -> Result<()> {
    for tensor in model.tensors() {
        if let Some(parts) = parts_of(rules, tensor.info.name()) {
            Runs::of_parts(&tensor.info, parts.dim, model.n_trunk_blocks(), [])?;
        }
    }
    Ok(())
}

/// How a tensor is divided into a part per block, if so.
fn parts_of(rules: &Architecture, name: &str) -> Option<PartsTensor> {
    rules.parts().find(|parts| parts.name == name)
}

/// The tensors of the output, in the order of the model's.
pub(super) fn decide<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
) -> Result<Tensors<'a>> {
    let kept = renumbering.kept().iter().copied();
    let trunk: Vec<BlockId> = kept.filter(|block| block.index() < constraints.n_trunk_blocks).collect();
    let rescaling = Rescaling::needed(model, constraints.rules, trunk.len())?;
    let mut tensors = Tensors::default();
    for (source, tensor) in model.tensors().iter().enumerate() {
        let whole = TensorData::Whole { source };
        let Some((block, rest)) = tensor.block else {
            match outside(constraints, source, &tensor.info, &trunk)? {
                Some(planned) => tensors.planned.push(planned),
                None => {
                    let why = "only blocks without a sliding window read it, and none is left";
                    tensors.left_out.push((source, why.to_owned()));
                }
            }
            continue;
        };
        let named = |number: usize, rest: &str| format!("{}{number}.{rest}", model.block_prefix());
        if block == BlockId::new(0) && constraints.rules.inherited() == Some(rest) {
            for heir in heirs(model, rest, &trunk) {
                let number = renumbering.number(heir);
                let number = number.context("bug: a kept block without a number")?;
                let out = TensorOut::rename(&tensor.info, named(number, rest));
                tensors.planned.push((out, whole.clone()));
            }
            continue;
        }
        let Some(number) = renumbering.number(block) else {
            continue;
        };
        let out = TensorOut::rename(&tensor.info, named(number, rest));
        match &rescaling {
            Some(rescaling) if holds_scale(rescaling.scale, rest) => {
                let data = TensorData::Made {
                    source: Some(source),
                    bytes: scaled(&tensor.info, rescaling.factor.value())?.into(),
                    why: rescaling.why(),
                };
                tensors.planned.push((out, data));
            }
            Some(rescaling) if needs_scale(model, rescaling.scale, tensor.block) => {
                tensors.planned.push((out, whole));
                #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
                let factor = rescaling.factor.value() as f32;
                let name = named(number, QueryScale::SCALE);
                let data = TensorData::Made {
                    source: None,
                    bytes: factor.to_le_bytes().to_vec().into(),
                    why: rescaling.why(),
                };
                let out = TensorOut::new(name, &[1], TensorType::F32)?;
                tensors.planned.push((out, data));
            }
            _ => tensors.planned.push((out, whole)),
        }
    }
    Ok(tensors)
}

/// A tensor of no block, where the blocks of `trunk` are kept. It has only their parts, if it has a part for each. `None` if no
/// kept block reads it.
fn outside<'a>(
    constraints: &Constraints,
    source: usize,
    info: &TensorInfo<'a>,
    trunk: &[BlockId],
) -> Result<Option<(TensorOut<'a>, TensorData<'a>)>> {
    let (name, rules) = (info.name(), constraints.rules);
    if let Some(parts) = parts_of(rules, name) {
        let kept = trunk.iter().map(|block| block.index());
        let (runs, dims) = Runs::of_parts(info, parts.dim, constraints.n_trunk_blocks, kept)?;
        let out = TensorOut::new(name, &dims[..info.n_dims()], info.tensor_type())?;
        let why = "without the parts of removed blocks".to_owned();
        return Ok(Some((out, TensorData::Sliced { source, runs, why })));
    }
    if let Some(windows) = &constraints.kinds.windows
        && rules.full_only().any(|full| full == name)
        && trunk.iter().all(|block| windows[block.index()])
    {
        return Ok(None);
    }
    Ok(Some((TensorOut::keep(info), TensorData::Whole { source })))
}

/// The `kept` blocks that get block 0's tensor `rest`, if read. It is block 0 if it stays. Else it is the new first
/// block, or where that has its own every block that has not.
fn heirs(model: &Model<'_>, rest: &str, kept: &[BlockId]) -> Vec<BlockId> {
    let has_own = |block: &BlockId| {
        let mut tensors = model.tensors().iter();
        tensors.any(|tensor| tensor.block == Some((*block, rest)))
    };
    match kept.first() {
        Some(first) if first.index() == 0 || !has_own(first) => vec![*first],
        _ => {
            let without = kept.iter().filter(|block| !has_own(block));
            without.copied().collect()
        }
    }
}

/// Whether a tensor of this name is to be multiplied.
fn holds_scale(scale: QueryScale, rest: &str) -> bool {
    match scale {
        QueryScale::Norm => rest == QueryScale::NORM,
        QueryScale::Tensor => rest == QueryScale::SCALE || rest == QueryScale::BIAS,
    }
}

/// Whether this tensor's queries have no scale of their own yet.
fn needs_scale(model: &Model<'_>, scale: QueryScale, tensor: Option<(BlockId, &str)>) -> bool {
    let Some((block, QueryScale::QUERIES)) = tensor else {
        return false;
    };
    let scales = Some((block, QueryScale::SCALE));
    scale == QueryScale::Tensor && !model.tensors().iter().any(|other| other.block == scales)
}

/// The F32 elements of a tensor times `factor`, each rounded once.
fn scaled(tensor: &TensorInfo<'_>, factor: f64) -> Result<Vec<u8>> {
    ensure!(
        tensor.tensor_type() == TensorType::F32,
        "tensor {} is {}, expected F32",
        Quoted(tensor.name()),
        tensor.tensor_type()
    );
    let mut bytes = tensor.bytes().to_vec();
    for element in bytes.chunks_exact_mut(4) {
        let value = f64::from(LittleEndian::read_f32(element)) * factor;
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        LittleEndian::write_f32(element, value as f32);
    }
    Ok(bytes)
}
