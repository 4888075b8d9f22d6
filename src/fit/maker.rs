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

/// Rounds the tensors of one model, and keeps them as long as there is room for as many bytes as the model has.
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
}
