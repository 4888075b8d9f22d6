//! Makes tensors in other types, each once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rayon::ThreadPool;

use super::matrix::Matrix;
use crate::gguf::TensorType;
use crate::model::Model;
use crate::output::rounding::rounded;
use crate::plan::imatrix::Imatrix;
use crate::plan::{ChangedTensor, ChangedTensors};

/// Rounds the tensors of a model, and keeps the results. They take no more bytes than the model.
pub(super) struct Maker<'m, 'a> {
    model: &'m Model<'a>,
    matrix: Option<Imatrix<'m>>,
    threads: ThreadPool,
    made: RefCell<BTreeMap<(usize, u32), Vec<u8>>>,
    n_bytes: Cell<u64>,
}

impl<'m, 'a> Maker<'m, 'a> {
    pub(super) fn new(model: &'m Model<'a>, matrix: Option<&'m Matrix>, threads: usize) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let matrix = matrix.map(Matrix::parse).transpose()?;
        Ok(Self { model, matrix, threads, made: RefCell::default(), n_bytes: Cell::new(0) })
    }

    /// The tensors of these indices in these types.
    pub(super) fn all(&self, types: &BTreeMap<usize, TensorType>) -> Result<ChangedTensors> {
        types.iter().map(|(source, to)| Ok((*source, self.one(*source, *to)?))).collect()
    }

    /// The tensor of this index in another type, of which nothing is kept here.
    pub(super) fn made(&self, source: usize, to: TensorType) -> Result<ChangedTensor> {
        let info = &self.model.tensors().get(source).context("bug: no such tensor")?.info;
        let importance = self.matrix.as_ref().map(|matrix| matrix.importance(info.name()));
        let importance = importance.transpose()?.flatten();
        let bytes = self.threads.install(|| rounded(info, to, importance.as_deref()))?;
        Ok(ChangedTensor { tensor_type: to, bytes })
    }

    /// The tensor of this index in another type.
    pub(super) fn one(&self, source: usize, to: TensorType) -> Result<ChangedTensor> {
        let key = (source, to.id());
        if let Some(bytes) = self.made.borrow().get(&key) {
            return Ok(ChangedTensor { tensor_type: to, bytes: bytes.clone() });
        }
        let ChangedTensor { bytes, .. } = self.made(source, to)?;
        let n_bytes = self.n_bytes.get() + bytes.len() as u64;
        if n_bytes > self.model.n_bytes() {
            self.made.borrow_mut().clear();
            self.n_bytes.set(0);
        }
        self.n_bytes.set(self.n_bytes.get() + bytes.len() as u64);
        self.made.borrow_mut().insert(key, bytes.clone());
        Ok(ChangedTensor { tensor_type: to, bytes })
    }

    /// The tensor with every quantization block changed by the least step.
    pub(super) fn nudged(&self, source: usize) -> Result<ChangedTensor> {
        let info = &self.model.tensors().get(source).context("bug: no such tensor")?.info;
        let tensor_type = info.tensor_type();
        let n = usize::try_from(tensor_type.block_bytes())?.max(1);
        let mut bytes = info.bytes().to_vec();
        let middle = bytes.len() / n / 2 * n;
        let at =
            least_byte(tensor_type, bytes.get(middle..middle + n).context("bug: a tensor without data")?);
        bytes.iter_mut().skip(at).step_by(n).for_each(|byte| *byte ^= 1);
        Ok(ChangedTensor { tensor_type, bytes })
    }
}

/// The byte of a block whose lowest bit changes weights least.
fn least_byte(tensor_type: TensorType, block: &[u8]) -> usize {
    let weights = |bytes: &[u8]| ggml::quantize::dequantize(tensor_type.id(), bytes).unwrap_or_default();
    let before = weights(block);
    let change = |at: usize| {
        let mut changed = block.to_vec();
        changed[at] ^= 1;
        let squares = weights(&changed).into_iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>()
    };
    let changes = (0..block.len()).map(|at| (at, change(at)));
    let found = changes.filter(|(_, change)| change.is_finite() && *change > 0.0);
    found.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Q8_0 the lowest bit of the scale, of F32 that of the mantissa; with a scale of zero nothing changes.
    #[test]
    fn the_least_change_of_a_block_is_that_of_its_scale() {
        let q8_0 = TensorType::Q8_0;
        let scale = half::f16::from_f32(0.5).to_le_bytes();
        let block: Vec<u8> = scale.into_iter().chain((0..32).map(|i| i * 7)).collect();
        assert_eq!(least_byte(q8_0, &block), 0);
        assert_eq!(least_byte(q8_0, &[0; 34]), 0);
        assert_eq!(least_byte(TensorType::F32, &1.5f32.to_le_bytes()), 0);
        // One of the largest weights is off by 1 step of 127; the scale by 1 of 1,024.
        let steps: Vec<u8> = scale.into_iter().chain([0; 31]).chain([127]).collect();
        assert_eq!(least_byte(q8_0, &steps), 0);
    }
}
