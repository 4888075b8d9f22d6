//! Blocks, attention or experts that go, whatever the types of the rest.

use crate::model::ModelTensor;
use crate::model::block::{BlockSet, numbers};
use crate::plan::{AttentionCut, Cut, ExpertCut};

/// Blocks, attention or experts to remove, before types are chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Removal {
    pub(super) blocks: BlockSet,
    /// The blocks that stay without their attention.
    pub(super) attention: Option<AttentionCut>,
    /// The experts that stay, where some go.
    pub(super) experts: Option<ExpertCut>,
    pub(super) method: String,
    /// The mean KL divergence without them, in nats.
    pub(super) kl: f64,
}

impl Removal {
    /// Whether a tensor of the model goes with it.
    pub(super) fn takes(&self, tensor: &ModelTensor<'_>) -> bool {
        let with_block = tensor.block.is_some_and(|(block, _)| self.blocks.contains(&block));
        with_block || self.attention.as_ref().is_some_and(|cut| cut.takes(tensor))
    }

    /// What stays of a tensor of the model: so many of so many parts.
    pub(super) fn share_of(&self, tensor: &ModelTensor<'_>) -> (u64, u64) {
        match &self.experts {
            _ if self.takes(tensor) => (0, 1),
            Some(experts) => experts.share_of(tensor).unwrap_or((1, 1)),
            None => (1, 1),
        }
    }

    /// The numbers of the blocks that stay without their attention.
    pub(super) fn without_attention(&self) -> Vec<usize> {
        self.attention.as_ref().map_or_else(Vec::new, |cut| numbers(&cut.blocks))
    }

    /// Whether both leave out the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.blocks, &self.attention, &self.experts) == (&other.blocks, &other.attention, &other.experts)
    }

    /// The removal alone.
    pub(super) fn cut(&self) -> Cut {
        let (attention, experts) = (self.attention.clone(), self.experts.clone());
        Cut { attention, experts, ..Cut::new(self.blocks.clone(), &self.method) }
    }
}
