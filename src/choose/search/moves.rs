//! Moves: the sets that may follow a set of removed blocks.

use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::plan::Constraints;

/// The longest run that goes at once where no single block may. The periods of llama.cpp's patterns are not longer.
const LONGEST_RUN: usize = 8;

/// The allowed sets, up to `most` blocks, with one more block removed. Where no single block may go, with the shortest runs
/// of kept blocks that may.
pub(super) fn next(
    constraints: &Constraints,
    keep: &BlockSet,
    removed: &BlockSet,
    most: usize,
) -> Vec<BlockSet> {
    let kept = kept(constraints, keep, removed);
    let room = most.saturating_sub(removed.len()).min(LONGEST_RUN);
    for n in 1..=room {
        let sets: Vec<BlockSet> = kept
            .windows(n)
            .map(|run| removed.iter().chain(run).copied().collect())
            .filter(|set| constraints.check(set).is_ok())
            .collect();
        if !sets.is_empty() {
            return sets;
        }
    }
    Vec::new()
}

/// The allowed sets with one removed and one kept block exchanged.
pub(super) fn swaps(constraints: &Constraints, keep: &BlockSet, removed: &BlockSet) -> Vec<BlockSet> {
    let kept = kept(constraints, keep, removed);
    let mut sets: Vec<BlockSet> = Vec::new();
    for back in removed {
        for gone in &kept {
            let mut set = removed.clone();
            set.remove(back);
            set.insert(*gone);
            if constraints.check(&set).is_ok() {
                sets.push(set);
            }
        }
    }
    sets.sort();
    sets
}

/// The blocks that could go, first to last.
fn kept(constraints: &Constraints, keep: &BlockSet, removed: &BlockSet) -> Vec<BlockId> {
    (0..constraints.n_trunk_blocks)
        .map(BlockId::new)
        .filter(|block| !removed.contains(block) && !keep.contains(block))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{EntryOut, File, Layout, TensorOut, TensorType, write};
    use crate::model::Model;
    use crate::model::block::blocks;

    /// A model of smollm3, where every fourth block has no rotary embedding.
    fn smollm3(n_blocks: u32) -> Vec<u8> {
        let entries = vec![
            EntryOut::string("general.architecture", "smollm3"),
            EntryOut::u32("smollm3.block_count", n_blocks),
        ];
        let tensors = (0..n_blocks)
            .map(|i| TensorOut::new(format!("blk.{i}.w"), &[8], TensorType::F32).unwrap())
            .collect();
        let layout = Layout::new(3, 32, entries, tensors, true).unwrap();
        let mut bytes = Vec::new();
        write(&layout, &mut bytes, |_, out| out.write_all(&[0; 32])).unwrap();
        bytes
    }

    #[test]
    fn runs_go_where_no_block_may_go_alone() {
        let bytes = smollm3(8);
        let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let next = |keep: &BlockSet, most| next(&constraints, keep, &BlockSet::new(), most);
        // After the last block of a period nothing moves up. So only that one may go alone.
        assert_eq!(next(&BlockSet::new(), 8), [blocks(&[7])]);
        // The last one may go alone; taking it from the choice leaves runs of four.
        let keep = blocks(&[7]);
        let runs = next(&keep, 8);
        let expected: Vec<BlockSet> = (0..4).map(|i| blocks(&[i, i + 1, i + 2, i + 3])).collect();
        assert_eq!(runs, expected);
        assert!(next(&keep, 3).is_empty());
    }
}
