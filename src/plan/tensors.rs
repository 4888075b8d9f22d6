//! The decision on every tensor of the output: a name, a shape, and what its data is.

use anyhow::Result;

use super::{Renumbering, TensorData, Tensors};
use crate::gguf::TensorOut;
use crate::model::Model;

/// The tensors of the output, in the order of the model's.
pub(super) fn decide<'a>(model: &Model<'a>, renumbering: &Renumbering) -> Result<Tensors<'a>> {
    let mut tensors = Tensors::default();
    for (source, tensor) in model.tensors().iter().enumerate() {
        let out = match tensor.block {
            None => TensorOut::keep(&tensor.info),
            Some((block, rest)) => match renumbering.number(block) {
                Some(number) => TensorOut::rename(&tensor.info, format!("blk.{number}.{rest}")),
                None => continue,
            },
        };
        tensors.planned.push((out, TensorData::Whole { source }));
    }
    Ok(tensors)
}
