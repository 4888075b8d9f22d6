//! The model in a result.

use crate::model::Model;
use crate::model::input::Input;
use serde::Serialize;
use std::path::Path;

/// The input.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Where it is; of a split model, its first part.
    pub path: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Number of blocks.
    pub block_count: usize,
    /// How many of them, the last, are for multi-token prediction.
    pub prediction_block_count: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Hash of all bytes; null where no command needed it.
    pub blake3: Option<String>,
    /// How a file in a layout of Ollama's own is read. Null of any other.
    pub layout: Option<LayoutReport>,
}

/// How a file in a layout of Ollama's own is read.
#[derive(Clone, Debug, Serialize)]
pub struct LayoutReport {
    /// `general.architecture` of the file.
    pub found: &'static str,
    /// `general.architecture` under which its text part is read.
    pub read_as: &'static str,
    /// Tensors that are not of the text part.
    pub tensors_left_out: usize,
    /// Their bytes.
    pub bytes_left_out: u64,
}

impl ModelReport {
    /// Of `model`, at `path`.
    #[must_use]
    pub fn new(model: &Model<'_>, path: &Path, blake3: Option<blake3::Hash>) -> Self {
        Self {
            path: path.display().to_string(),
            architecture: model.architecture().to_owned(),
            block_count: model.n_blocks(),
            prediction_block_count: model.prediction_blocks().count(),
            bytes: model.n_bytes(),
            parameters: model.n_parameters(),
            blake3: blake3.map(|hash| hash.to_hex().to_string()),
            layout: None,
        }
    }

    /// Of `model`, which is what `input` shows.
    #[must_use]
    pub fn of(model: &Model<'_>, input: &Input, blake3: Option<blake3::Hash>) -> Self {
        Self {
            layout: input.converted().map(|converted| LayoutReport {
                found: converted.found,
                read_as: converted.stock,
                tensors_left_out: converted.left_out.len(),
                bytes_left_out: converted.n_bytes_left_out(),
            }),
            ..Self::new(model, input.path(), blake3)
        }
    }
}
