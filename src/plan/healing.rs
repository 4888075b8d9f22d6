//! Kept tensors with other weights, which make up for removed blocks.

use anyhow::{Context, Result};

use super::ChangedTensors;
use crate::gguf::{EntryOut, ValueOut};
use crate::model::Model;
use crate::named::named;

named! {
    /// How removed blocks were made up for, as an output records it.
    pub enum HealMethod {
        /// Not at all
        None = "none",
        /// The stream multiplied by a number after each cut
        Scale = "scale",
        /// Matrices or norms refitted
        Linear = "linear",
        /// Of each run of removed blocks one kept as its feed-forward network alone, refitted
        Block = "block",
        /// Both
        LinearBlock = "linear+block",
        /// Refitted, then multiplied
        LinearScale = "linear+scale",
        /// The same with a block kept
        BlockScale = "block+scale",
        /// All of them
        LinearBlockScale = "linear+block+scale",
    }
}

impl HealMethod {
    /// With the stream multiplied on top.
    #[must_use]
    pub fn with_scale(self) -> Self {
        match self {
            Self::None | Self::Scale => Self::Scale,
            Self::Linear | Self::LinearScale => Self::LinearScale,
            Self::Block | Self::BlockScale => Self::BlockScale,
            Self::LinearBlock | Self::LinearBlockScale => Self::LinearBlockScale,
        }
    }
}

/// The parent's names of the tensors that have other weights.
pub const TENSORS_KEY: &str = "gguf_shorten.heal.tensors";

/// BLAKE3 hash of the method's word, the losses and the replaced tensors. Of each such tensor it covers name, type and
/// data.
pub const HASH_KEY: &str = "gguf_shorten.heal.blake3";

/// What was measured on text that no weight was fitted to. In nats per token: without other weights, and with them.
pub const LOSS_KEY: &str = "gguf_shorten.heal.loss";

/// What makes up for removed blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Healing {
    /// The tensors, by their index among the model's.
    pub tensors: ChangedTensors,
    /// The loss without them and with them, in nats per token.
    pub loss: [f32; 2],
}

impl Healing {
    /// What the output says of it, where the method is called `method`.
    ///
    /// # Errors
    /// A tensor that the model does not have, which is a bug.
    pub(super) fn entries<'a>(&self, model: &Model<'a>, method: &str) -> Result<Vec<EntryOut<'a>>> {
        let mut names = Vec::new();
        let mut hasher = blake3::Hasher::new();
        hasher.update(method.as_bytes());
        for loss in self.loss {
            hasher.update(&loss.to_le_bytes());
        }
        for (&source, changed) in &self.tensors {
            let tensor = model.tensors().get(source);
            let tensor = tensor.context("bug: a changed tensor that the model does not have")?;
            names.push(tensor.info.name());
            hasher.update(tensor.info.name().as_bytes());
            hasher.update(&changed.tensor_type.id().to_le_bytes());
            hasher.update_rayon(&changed.bytes);
        }
        Ok(vec![
            EntryOut::new(TENSORS_KEY, ValueOut::strings(&names)),
            EntryOut::new(LOSS_KEY, ValueOut::f32s(&self.loss)),
            EntryOut::string(HASH_KEY, hasher.finalize().to_hex().as_str()),
        ])
    }
}
