//! Blocks or experts that go, whatever the types of the rest.

use crate::model::block::BlockSet;
use crate::plan::ExpertCut;

/// Blocks or experts to remove, before types are chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Removal {
    pub(super) blocks: BlockSet,
    /// The experts that stay, where some go.
    pub(super) experts: Option<ExpertCut>,
    pub(super) method: String,
    /// The mean KL divergence without them, in nats.
    pub(super) kl: f64,
}
