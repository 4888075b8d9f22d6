//! Plan: which blocks go, and what every entry and tensor of the output will be. Pure: no I/O.
//!
//! In reading order: [`kinds`] says what each block is, [`constraints`] what may be removed, [`removal`] chooses,
//! `metadata` decides every entry, [`parts`] cuts the output into files.

pub mod kinds;

pub mod constraints;

pub mod removal;

mod metadata;

pub mod parts;

use std::collections::BTreeSet;

use anyhow::Result;

use crate::gguf::{Layout, TensorOut};
use crate::model::{BlockId, Model};

pub use constraints::Constraints;
pub use metadata::Provenance;
pub use parts::Splitting;
pub use removal::{Budget, Method};

/// The number that each kept block has in the output. Computed from the whole set of blocks before any name is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renumbering {
    kept: Vec<BlockId>,
    new_number: Vec<Option<usize>>,
}

impl Renumbering {
    /// Keeps every block of `n_blocks` that is not in `removed`, in order.
    #[must_use]
    pub fn new(n_blocks: usize, removed: &BTreeSet<BlockId>) -> Self {
        let kept: Vec<BlockId> = (0..n_blocks)
            .map(BlockId::new)
            .filter(|block| !removed.contains(block))
            .collect();
        let mut new_number = vec![None; n_blocks];
        for (number, block) in kept.iter().enumerate() {
            new_number[block.index()] = Some(number);
        }
        Self { kept, new_number }
    }

    /// How many blocks there were.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.new_number.len()
    }

    /// The kept blocks, in order: the block at position `i` becomes block `i`.
    #[must_use]
    pub fn kept(&self) -> &[BlockId] {
        &self.kept
    }

    /// The number of `block` in the output, unless it is removed.
    #[must_use]
    pub fn number(&self, block: BlockId) -> Option<usize> {
        self.new_number.get(block.index()).copied().flatten()
    }
}

/// The output, planned to the byte.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The blocks that go.
    pub removed: BTreeSet<BlockId>,
    /// The blocks that stay, and their new numbers.
    pub renumbering: Renumbering,
    /// Every position of the output.
    pub layout: Layout<'a>,
    /// For each tensor of the layout, its index among the model's tensors.
    pub sources: Vec<usize>,
    /// Number of weights of the output.
    pub n_parameters: u64,
    /// What the output says about where it comes from.
    pub provenance: Provenance,
}

impl<'a> Plan<'a> {
    /// Plans the removal of `removed`, which `constraints` must allow, and of the blocks that go with any cut.
    ///
    /// # Errors
    /// A set that is not allowed; a metadata entry that cannot be shortened.
    pub fn new(
        model: &Model<'a>,
        constraints: &Constraints,
        mut removed: BTreeSet<BlockId>,
        provenance: &Provenance,
    ) -> Result<Self> {
        removed.extend(&constraints.dropped);
        constraints.check(&removed)?;
        let renumbering = Renumbering::new(model.n_blocks(), &removed);
        let entries = metadata::decide(model, constraints, &renumbering, provenance)?;
        let mut sources = Vec::new();
        let mut tensors = Vec::new();
        let mut n_parameters = 0;
        for (i, tensor) in model.tensors().iter().enumerate() {
            let out = match tensor.block {
                None => TensorOut::keep(&tensor.info),
                Some((block, rest)) => match renumbering.number(block) {
                    Some(number) => TensorOut::rename(&tensor.info, format!("blk.{number}.{rest}")),
                    None => continue,
                },
            };
            sources.push(i);
            tensors.push(out);
            n_parameters += tensor.info.n_elements();
        }
        let first = model.first();
        let last = model.parts().last().unwrap_or(first);
        let layout = Layout::new(
            first.header().version,
            first.alignment(),
            entries,
            tensors,
            last.ends_padded(),
        )?;
        Ok(Self {
            removed,
            renumbering,
            layout,
            sources,
            n_parameters,
            provenance: provenance.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renumbering_closes_the_gaps() {
        let removed = [1, 3].map(BlockId::new).into();
        let renumbering = Renumbering::new(5, &removed);
        assert_eq!(renumbering.kept(), [0, 2, 4].map(BlockId::new));
        let numbers: Vec<_> = (0..5)
            .map(|i| renumbering.number(BlockId::new(i)))
            .collect();
        assert_eq!(numbers, [Some(0), None, Some(1), None, Some(2)]);
        assert_eq!(renumbering.number(BlockId::new(5)), None);
    }
}
