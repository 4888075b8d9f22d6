//! Blocks found by their tensors' bytes, whatever a file says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::gguf::{self, TensorInfo};
use crate::model::block::block_of;
use crate::model::{BlockId, MAX_BLOCKS, Model};

/// The tensors of a block: the hash of each, by its name in the block.
type Tensors<'n> = BTreeMap<&'n str, blake3::Hash>;

/// The parent's numbers of `out`'s blocks, rising, by most equal tensors.
///
/// # Errors
/// More blocks than the parent has; a block that has no tensor of the parent's.
pub(super) fn find(parent: &Model<'_>, out: &[gguf::File<'_>]) -> Result<Vec<BlockId>> {
    let prefix = parent.block_prefix();
    let of_parent = hashed(parent.tensors().iter().map(|tensor| &tensor.info), prefix);
    let of_out = hashed(out.iter().flat_map(|file| file.tensors().iter()), prefix);
    ensure!(!of_out.is_empty(), "has no blocks: no tensor's name begins with '{prefix}'");
    let n = of_out.keys().last().map_or(0, |last| last + 1);
    ensure!(n == of_out.len(), "has {} blocks of tensors with numbers up to {}", of_out.len(), n - 1);
    ensure!(n <= parent.n_blocks(), "has {n} blocks, more than the parent's {}", parent.n_blocks());
    let out: Vec<&Tensors<'_>> = of_out.values().collect();
    let empty = Tensors::new();
    let parents: Vec<&Tensors<'_>> =
        (0..parent.n_blocks()).map(|i| of_parent.get(&i).unwrap_or(&empty)).collect();
    let same =
        |a: &Tensors<'_>, b: &Tensors<'_>| a.iter().filter(|(name, hash)| b.get(*name) == Some(hash)).count();
    let same: Vec<Vec<usize>> =
        out.iter().map(|block| parents.iter().map(|other| same(block, other)).collect()).collect();
    let found = best(&same).context("bug: fewer blocks than the parent, and no way to place them")?;
    for (block, &at) in found.iter().enumerate() {
        ensure!(
            same[block][at] > 0,
            "block {block} has no tensor that a block of the parent has at such a place"
        );
    }
    Ok(found.into_iter().map(BlockId::new).collect())
}

/// The hashes of the tensors of each block.
fn hashed<'n>(
    tensors: impl Iterator<Item = &'n TensorInfo<'n>>,
    prefix: &str,
) -> BTreeMap<usize, Tensors<'n>> {
    let of_block = |tensor: &'n TensorInfo<'n>| {
        let (block, rest) = block_of(tensor.name(), prefix)?;
        (block.index() < MAX_BLOCKS).then_some((block.index(), rest, tensor))
    };
    let tensors: Vec<(usize, &str, &TensorInfo<'_>)> = tensors.filter_map(of_block).collect();
    let hashes: Vec<blake3::Hash> = tensors.par_iter().map(|(_, _, tensor)| hash(tensor)).collect();
    let mut blocks: BTreeMap<usize, Tensors<'_>> = BTreeMap::new();
    for ((number, rest, _), hash) in tensors.into_iter().zip(hashes) {
        blocks.entry(number).or_default().insert(rest, hash);
    }
    blocks
}

/// The hash of a tensor's type, shape and data.
fn hash(tensor: &TensorInfo<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&tensor.tensor_type().id().to_le_bytes());
    for dim in tensor.dims() {
        hasher.update(&dim.to_le_bytes());
    }
    hasher.update(tensor.bytes()).finalize()
}

/// A rising place for each row so that the sum of `same` is largest. `None` where there are more rows than places.
fn best(same: &[Vec<usize>]) -> Option<Vec<usize>> {
    let n_places = same.first().map_or(0, Vec::len);
    // For each row and place the largest sum with that row before that place, and whether it stands right before it.
    let mut sums: Vec<Option<usize>> = vec![Some(0); n_places + 1];
    let mut takes: Vec<Vec<bool>> = Vec::new();
    for row in same {
        let mut next = vec![None; n_places + 1];
        let mut taken = vec![false; n_places + 1];
        for place in 0..n_places {
            let here = sums[place].map(|sum| sum + row[place]);
            let earlier = next[place];
            // Of equals the first place.
            taken[place + 1] = here > earlier;
            next[place + 1] = here.max(earlier);
        }
        sums = next;
        takes.push(taken);
    }
    sums[n_places]?;
    let mut places = Vec::new();
    let mut end = n_places;
    for taken in takes.iter().rev() {
        while !taken[end] {
            end = end.checked_sub(1)?;
        }
        end -= 1;
        places.push(end);
    }
    places.reverse();
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn rows_take_rising_places_of_the_largest_sum() {
        assert_eq!(best(&[vec![0, 3, 0], vec![0, 0, 3]]), Some(vec![1, 2]));
        // The first row would rather stand where only the second can.
        assert_eq!(best(&[vec![1, 0, 2], vec![0, 0, 3]]), Some(vec![0, 2]));
        // Equal blocks: the first places.
        assert_eq!(best(&[vec![2, 2, 2], vec![2, 2, 2]]), Some(vec![0, 1]));
        assert_eq!(best(&[vec![9], vec![9]]), None);
    }

    #[test]
    fn the_sum_is_as_large_as_that_of_any_choice() {
        // All choices of 3 of 6 places, by bits, for tables of small numbers.
        let mut state = 1u32;
        for _ in 0..200 {
            let mut number = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 28) as usize % 4
            };
            let same: Vec<Vec<usize>> = (0..3).map(|_| (0..6).map(|_| number()).collect()).collect();
            let sum =
                |places: &[usize]| places.iter().zip(&same).map(|(place, row)| row[*place]).sum::<usize>();
            let choices = (0u32..64).filter(|bits| bits.count_ones() == 3);
            let places = choices.map(|bits| (0..6).filter(|i| bits >> i & 1 == 1).collect::<Vec<_>>());
            let most = places.map(|places| sum(&places)).max();
            let found = best(&same).unwrap();
            assert!(found.is_sorted_by(|a, b| a < b));
            assert_eq!(Some(sum(&found)), most);
        }
    }
}
