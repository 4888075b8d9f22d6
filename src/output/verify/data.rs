//! The data of tensors, at the speed of memory or disk. One pass over the parent hashes it and compares what was kept of it.

use std::ops::Range;

use rayon::prelude::*;

use super::difference::first_different;
use super::{Difference, Differences, Expected, Pair};
use crate::gguf::{self, Place, TensorInfo};
use crate::plan::Runs;

/// Bytes of the parent that are hashed and compared together. The second of the two finds them in the cache. A power of two, as
/// BLAKE3's tree wants it.
const CHUNK_BYTES: usize = 4 << 20;

/// Bytes that one task compares.
const PIECE_BYTES: usize = 256 << 10;

/// The findings of a pass.
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
    /// Where in the output's tensor they start.
    start: usize,
    expected: &'p [u8],
    out: &'p [u8],
}

/// Hashes the parent and compares every pair. Both files are read once, in order; bytes that the plan made are compared
/// first.
pub(super) fn compare(
    parts: &[gguf::File<'_>],
    pairs: &[Pair<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Outcome {
    let mut hasher = blake3::Hasher::new();
    let mut first: Vec<Option<u64>> = vec![None; pairs.len()];
    let mut made = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        if let Expected::Made(bytes) = &pair.expected {
            push_pieces(index, 0, bytes, pair.out.bytes(), &mut made);
        }
    }
    note(differing(&made), &mut first);
    for (part, file) in parts.iter().enumerate() {
        let mut of_part: Vec<OfParent<'_>> =
            pairs.iter().enumerate().filter_map(|(index, pair)| OfParent::of(index, pair, part)).collect();
        of_part.sort_by_key(|tensor| tensor.position);
        let mut left = &of_part[..];
        for (i, chunk) in file.bytes().chunks(CHUNK_BYTES).enumerate() {
            let start = i * CHUNK_BYTES;
            let end = start + chunk.len();
            let mut pieces = Vec::new();
            for tensor in left.iter().take_while(|tensor| tensor.position < end) {
                tensor.push_pieces(start..end, &mut pieces);
            }
            let is_done = |tensor: &&OfParent<'_>| tensor.position + tensor.bytes.len() <= end;
            left = &left[left.iter().take_while(is_done).count()..];
            let (_, found) = rayon::join(|| hasher.update_rayon(chunk), || differing(&pieces));
            note(found, &mut first);
            progress(chunk.len() as u64);
        }
    }
    Outcome { parent_blake3: hasher.finalize(), first_different: first }
}

/// A pair compared with bytes of one part of the parent.
struct OfParent<'p> {
    /// The pair's index.
    pair: usize,
    /// Where the parent's tensor starts in its file.
    position: usize,
    /// All bytes of the parent's tensor.
    bytes: &'p [u8],
    /// Those that are expected.
    runs: &'p Runs,
    out: &'p [u8],
}

impl<'p> OfParent<'p> {
    /// The pair `index`, if it is compared with bytes of that part.
    fn of(index: usize, pair: &'p Pair<'p>, part: usize) -> Option<Self> {
        let Expected::Parent { tensor, runs, .. } = &pair.expected else {
            return None;
        };
        (tensor.part == part && !tensor.info.bytes().is_empty()).then(|| Self {
            pair: index,
            // Positions lie in a slice, so they fit.
            position: usize::try_from(tensor.info.position().0).unwrap_or(usize::MAX),
            bytes: tensor.info.bytes(),
            runs,
            out: pair.out.bytes(),
        })
    }

    /// The pieces of it that lie in this range of the file.
    fn push_pieces(&self, range: Range<usize>, pieces: &mut Vec<Piece<'p>>) {
        let start = range.start.max(self.position) - self.position;
        let end = (range.end - self.position).min(self.bytes.len());
        for (run, out_start) in self.runs.within(start..end) {
            let out = &self.out[out_start..out_start + run.len()];
            push_pieces(self.pair, out_start, &self.bytes[run], out, pieces);
        }
    }
}

/// Cuts two ranges of bytes that should be the same into pieces.
fn push_pieces<'p>(
    pair: usize,
    start: usize,
    expected: &'p [u8],
    out: &'p [u8],
    pieces: &mut Vec<Piece<'p>>,
) {
    let both = expected.chunks(PIECE_BYTES).zip(out.chunks(PIECE_BYTES));
    for (i, (expected, out)) in both.enumerate() {
        pieces.push(Piece { pair, start: start + i * PIECE_BYTES, expected, out });
    }
}

/// Takes over the first differing byte of each pair.
fn note(found: Vec<(usize, u64)>, first: &mut [Option<u64>]) {
    for (pair, byte) in found {
        let known = first[pair].unwrap_or(u64::MAX);
        first[pair] = Some(known.min(byte));
    }
}

/// The first differing byte of each piece with one, and its pair.
fn differing(pieces: &[Piece<'_>]) -> Vec<(usize, u64)> {
    pieces
        .par_iter()
        .filter_map(|piece| {
            let byte = first_different(piece.expected, piece.out)?;
            Some((piece.pair, (piece.start + byte) as u64))
        })
        .collect()
}

/// Checks that all data bytes outside of tensors are zero.
pub(super) fn check_padding(out: &gguf::File<'_>, differences: &mut Differences) {
    let mut tensors: Vec<&TensorInfo<'_>> = out.tensors().iter().collect();
    tensors.sort_by_key(|tensor| (tensor.position(), tensor.end()));
    let mut before: Option<&TensorInfo<'_>> = None;
    // Bytes after the last padding show in the length of the file.
    let end = (out.bytes().len() - out.trailing_bytes().len()) as u64;
    for tensor in tensors {
        let start = before.map_or(out.data_start(), TensorInfo::end);
        check_gap(out, before, start.0, tensor.position().0, differences);
        if before.is_none_or(|before| before.end() < tensor.end()) {
            before = Some(tensor);
        }
    }
    if before.is_some() {
        let start = before.map_or(out.data_start(), TensorInfo::end);
        check_gap(out, before, start.0, end, differences);
    }
}

fn check_gap(
    out: &gguf::File<'_>,
    before: Option<&TensorInfo<'_>>,
    start: u64,
    end: u64,
    differences: &mut Differences,
) {
    let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
    let gap = out.bytes().get(index(start)..index(end)).unwrap_or_default();
    if let Some(byte) = gap.iter().position(|&byte| byte != 0) {
        differences.push(Difference::Padding {
            follows: before.map_or(Place::HeadPadding, |tensor| Place::Tensor(tensor.name().to_owned())),
            byte,
            found: gap[byte],
            n_bytes: gap.len(),
        });
    }
}
