//! Cut: the difference between a parent and its shortened model.

use crate::model::block::BlockSet;
use crate::plan::attention::AttentionCut;
use crate::plan::experts::ExpertCut;
use crate::plan::healing::{HealMethod, Healing};
use crate::plan::requantized::Requantized;

/// Blocks to remove, attention and experts to leave out, weights to replace. Each has the method that found it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The blocks to remove, without those that are dropped with any cut.
    pub blocks: BlockSet,
    /// The method that chose them.
    pub method: String,
    /// Blocks that stay without their attention.
    pub attention: Option<AttentionCut>,
    /// Experts that stay, where others go.
    pub experts: Option<ExpertCut>,
    /// Replaced weights, which make up for removed blocks.
    pub healing: Option<Healing>,
    /// The method that found those; `none` without any.
    pub heal: String,
    /// Tensors in other types.
    pub types: Option<Requantized>,
}

impl Cut {
    /// The removal of `blocks`, which `method` chose, and nothing else.
    #[must_use]
    pub fn new(blocks: BlockSet, method: &str) -> Self {
        Self {
            blocks,
            method: method.to_owned(),
            attention: None,
            experts: None,
            healing: None,
            heal: HealMethod::None.to_string(),
            types: None,
        }
    }
}
