//! Renumbering: the number that each kept block has in the output.

use crate::model::BlockId;
use crate::model::block::BlockSet;

/// The number that each kept block has in the output. Computed from the whole set of blocks before any name is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renumbering {
    kept: Vec<BlockId>,
    new_number: Vec<Option<usize>>,
}

impl Renumbering {
    /// Keeps every block of `n_blocks` that is not in `removed`, in order.
    #[must_use]
    pub fn new(n_blocks: usize, removed: &BlockSet) -> Self {
        let kept: Vec<BlockId> =
            (0..n_blocks).map(BlockId::new).filter(|block| !removed.contains(block)).collect();
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

    /// The blocks of a segment, in the segment's order.
    pub fn in_order(n_blocks: usize, kept: Vec<BlockId>) -> Self {
        let mut new_number = vec![None; n_blocks];
        for (number, block) in kept.iter().enumerate() {
            new_number[block.index()] = Some(number);
        }
        Self { kept, new_number }
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

    /// Whether block `number` is removed, or gets another number.
    pub(crate) fn moves(&self, number: usize) -> bool {
        number < self.n_blocks() && self.new_number[number] != Some(number)
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
        let numbers: Vec<_> = (0..5).map(|i| renumbering.number(BlockId::new(i))).collect();
        assert_eq!(numbers, [Some(0), None, Some(1), None, Some(2)]);
        assert_eq!(renumbering.number(BlockId::new(5)), None);
    }
}
