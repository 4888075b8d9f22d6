//! The data of tensors, at the speed of memory or disk: one pass over the parent that hashes it and compares what was kept.

use rayon::prelude::*;

use super::difference::first_different;
use super::{Difference, Differences, Pair};
use crate::gguf::{self, Place, TensorInfo};

/// Bytes of the parent that are hashed and compared together, so that the second of the two finds them in the cache. A
/// power of two, as BLAKE3's tree wants it.
const CHUNK_BYTES: usize = 4 << 20;

/// Bytes that one task compares.
const PIECE_BYTES: usize = 256 << 10;

/// What a pass found.
pub(super) struct Outcome {
    /// Hash of all bytes of the parent, part after part.
    pub(super) parent_blake3: blake3::Hash,
    /// For each pair the first byte that differs.
    pub(super) first_different: Vec<Option<u64>>,
}

/// Two ranges of bytes that should be the same.
struct Piece<'p> {
    /// The pair that they belong to.
    pair: usize,
    /// Where in the tensor they start.
    start: usize,
    parent: &'p [u8],
    out: &'p [u8],
}

/// Hashes the parent and compares every pair. Both files are read once, in order.
pub(super) fn compare(
    parts: &[gguf::File<'_>],
    pairs: &[Pair<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Outcome {
    let mut hasher = blake3::Hasher::new();
    let mut first: Vec<Option<u64>> = vec![None; pairs.len()];
    for (part, file) in parts.iter().enumerate() {
        let mut of_part: Vec<usize> = (0..pairs.len())
            .filter(|&pair| pairs[pair].parent.part == part && !pairs[pair].out.bytes().is_empty())
            .collect();
        of_part.sort_by_key(|&pair| pairs[pair].parent.info.position());
        let mut left = &of_part[..];
        for (i, chunk) in file.bytes().chunks(CHUNK_BYTES).enumerate() {
            let start = i * CHUNK_BYTES;
            let end = start + chunk.len();
            let mut pieces = Vec::new();
            while let Some((&pair, rest)) = left.split_first() {
                // Positions lie in a slice, so they fit.
                let position =
                    usize::try_from(pairs[pair].parent.info.position().0).unwrap_or(usize::MAX);
                let n_bytes = pairs[pair].out.bytes().len();
                if position >= end {
                    break;
                }
                let range = start.max(position) - position..end.min(position + n_bytes) - position;
                push_pieces(&pairs[pair], pair, range, &mut pieces);
                if position + n_bytes > end {
                    break;
                }
                left = rest;
            }
            let (_, found) = rayon::join(|| hasher.update_rayon(chunk), || differing(&pieces));
            for (pair, byte) in found {
                let known = first[pair].unwrap_or(u64::MAX);
                first[pair] = Some(known.min(byte));
            }
            progress(chunk.len() as u64);
        }
    }
    Outcome {
        parent_blake3: hasher.finalize(),
        first_different: first,
    }
}

fn push_pieces<'p>(
    pair: &'p Pair<'p>,
    index: usize,
    range: std::ops::Range<usize>,
    pieces: &mut Vec<Piece<'p>>,
) {
    let parent = &pair.parent.info.bytes()[range.clone()];
    let out = &pair.out.bytes()[range.clone()];
    let both = parent.chunks(PIECE_BYTES).zip(out.chunks(PIECE_BYTES));
    for (i, (parent, out)) in both.enumerate() {
        pieces.push(Piece {
            pair: index,
            start: range.start + i * PIECE_BYTES,
            parent,
            out,
        });
    }
}

/// The first differing byte of every piece that has one, with its pair.
fn differing(pieces: &[Piece<'_>]) -> Vec<(usize, u64)> {
    pieces
        .par_iter()
        .filter_map(|piece| {
            let byte = first_different(piece.parent, piece.out)?;
            Some((piece.pair, (piece.start + byte) as u64))
        })
        .collect()
}

/// Checks that every byte of the data that belongs to no tensor is zero.
pub(super) fn check_padding(out: &gguf::File<'_>, differences: &mut Differences) {
    let mut tensors: Vec<&TensorInfo<'_>> = out.tensors().iter().collect();
    tensors.sort_by_key(|tensor| (tensor.position(), tensor.end()));
    let mut behind: Option<&TensorInfo<'_>> = None;
    // What stands behind the padding of the last tensor belongs to nothing, which the length of the file shows.
    let end = (out.bytes().len() - out.trailing_bytes().len()) as u64;
    for tensor in tensors {
        let start = behind.map_or(out.data_start(), TensorInfo::end);
        check_gap(out, behind, start.0, tensor.position().0, differences);
        if behind.is_none_or(|behind| behind.end() < tensor.end()) {
            behind = Some(tensor);
        }
    }
    if behind.is_some() {
        let start = behind.map_or(out.data_start(), TensorInfo::end);
        check_gap(out, behind, start.0, end, differences);
    }
}

fn check_gap(
    out: &gguf::File<'_>,
    behind: Option<&TensorInfo<'_>>,
    start: u64,
    end: u64,
    differences: &mut Differences,
) {
    let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
    let gap = out
        .bytes()
        .get(index(start)..index(end))
        .unwrap_or_default();
    if let Some(byte) = gap.iter().position(|&byte| byte != 0) {
        differences.push(Difference::Padding {
            behind: behind.map_or(Place::HeadPadding, |tensor| {
                Place::Tensor(tensor.name().to_owned())
            }),
            byte,
            found: gap[byte],
            n_bytes: gap.len(),
        });
    }
}
