//! The importance matrices of a fit: one by which weights are rounded, one by which errors are weighted.

use std::path::Path;

use anyhow::{Context, Result};
use ggml::Mapping;

use crate::model::Model;
use crate::plan::imatrix::Imatrix;
use crate::plan::imatrix::measured::MeasuredImatrix;

/// The bytes of an importance matrix.
pub(super) enum Matrix {
    File(Mapping),
    Measured(Vec<u8>),
}

impl Matrix {
    /// Of a file, checked against `model`.
    pub(super) fn open(path: &Path, model: &Model<'_>) -> Result<Self> {
        let open = || -> Result<Self> {
            let mapping = Mapping::open(path)?;
            let matrix = Imatrix::parse(&mapping)?;
            matrix.check(model)?;
            for tensor in model.tensors() {
                matrix.importance(tensor.info.name())?;
            }
            Ok(Self::File(mapping))
        };
        open().with_context(|| path.display().to_string())
    }

    /// Of sums that were measured: the file that would be written.
    pub(super) fn measured(sums: &MeasuredImatrix) -> Result<Self> {
        let mut bytes = Vec::new();
        sums.plan()?.write(&mut bytes)?;
        Ok(Self::Measured(bytes))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::File(mapping) => mapping,
            Self::Measured(bytes) => bytes,
        }
    }

    /// Its content.
    pub(super) fn parse(&self) -> Result<Imatrix<'_>> {
        Imatrix::parse(self.bytes())
    }

    /// The hash of the file.
    pub(super) fn blake3(&self) -> blake3::Hash {
        blake3::hash(self.bytes())
    }
}
