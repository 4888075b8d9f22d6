//! Cuts the planned output into the files of a split model. Pure.
//!
//! As `llama-gguf-split` cuts (`tools/gguf-split/gguf-split.cpp` of llama.cpp): tensors stay in order, and all metadata is in
//! the first part. Each part says its number (`split.no`, u16), how many there are (`split.count`, u16), and how many tensors
//! all have together (`split.tensors.count`, i32).

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::Plan;
use crate::gguf::{ALIGNMENT_KEY, EntryOut, Layout, PlannedTensor, ValueOut, ValueType, align_up};
use crate::model::Model;

/// How an output is cut into files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splitting {
    /// Not: one file.
    #[default]
    Whole,
    /// Into parts whose tensors have at most this many bytes together. A single tensor may have more.
    MaxBytes(u64),
    /// As the input. Every tensor stays in its part, and a part that loses all its tensors goes.
    AsInput,
}

/// One file of the output.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Every position of it.
    pub layout: Layout<'a>,
    /// Which of the plan's tensors it holds.
    pub tensors: Range<usize>,
}

/// The planned files, in order. One, without a word of splitting, for [`Splitting::Whole`] and for an input that is not
/// split and stays as it was.
///
/// # Errors
/// More parts than can be counted.
pub fn parts<'a>(model: &Model<'_>, plan: &Plan<'a>, splitting: Splitting) -> Result<Vec<Part<'a>>> {
    let ranges = match splitting {
        Splitting::MaxBytes(max) => by_size(&plan.layout, max),
        Splitting::AsInput if model.parts().len() > 1 => as_input(model, plan)?,
        Splitting::Whole | Splitting::AsInput => {
            return Ok(vec![Part { layout: plan.layout.clone(), tensors: 0..plan.layout.tensors().len() }]);
        }
    };
    cut(&plan.layout, &ranges)
}

/// Bytes of all files that `plan` is written as.
///
/// # Errors
/// As [`parts`].
pub fn n_bytes(model: &Model<'_>, plan: &Plan<'_>, splitting: Splitting) -> Result<u64> {
    Ok(parts(model, plan, splitting)?.iter().map(|part| part.layout.file_len()).sum())
}

/// The files of a split model of `layout`'s entries and tensors. The layout itself has no split keys. `ranges` say
/// which tensors each file has, in order and without gaps.
///
/// # Errors
/// More parts or tensors than can be counted.
pub fn cut<'a>(layout: &Layout<'a>, ranges: &[Range<usize>]) -> Result<Vec<Part<'a>>> {
    let n_parts = ranges.len();
    let n_tensors = i32::try_from(layout.tensors().len())
        .with_context(|| format!("{} tensors cannot be split", layout.tensors().len()))?;
    let count = u16_of(n_parts)
        .with_context(|| format!("the output needs {n_parts} parts, expected at most {}", u16::MAX))?;
    let entries = || layout.metadata().iter().map(|planned| planned.entry());
    ranges
        .iter()
        .enumerate()
        .map(|(number, range)| {
            // Offsets of every part are aligned as those of the first.
            let of_all = |entry: &&EntryOut<'a>| number == 0 || entry.key() == ALIGNMENT_KEY;
            let mut metadata: Vec<EntryOut<'a>> = entries().filter(of_all).cloned().collect();
            metadata.extend([
                EntryOut::new("split.no", u16_of(number).unwrap_or_else(|| count.clone())),
                EntryOut::new("split.count", count.clone()),
                EntryOut::i32("split.tensors.count", n_tensors),
            ]);
            let tensors = layout.tensors().get(range.clone());
            let tensors = tensors.context("bug: a part of tensors that are not planned")?;
            let tensors = tensors.iter().map(|planned| planned.tensor().clone());
            let layout =
                Layout::new(layout.version(), layout.alignment(), metadata, tensors.collect(), true)?;
            Ok(Part { layout, tensors: range.clone() })
        })
        .collect()
}

fn u16_of(number: usize) -> Option<ValueOut> {
    ValueOut::integer(ValueType::U16, number as u64)
}

/// As many tensors per part as fit, with padding and without metadata. One that is larger has a part of its own.
fn by_size(layout: &Layout<'_>, max: u64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut n_bytes) = (0, 0);
    for (i, tensor) in layout.tensors().iter().enumerate() {
        let padded = padded(tensor, layout);
        // At most the file's length, which the layout has checked.
        n_bytes += padded;
        if n_bytes > max && i > start {
            ranges.push(start..i);
            (start, n_bytes) = (i, padded);
        }
    }
    ranges.push(start..layout.tensors().len());
    ranges
}

fn padded(tensor: &PlannedTensor<'_>, layout: &Layout<'_>) -> u64 {
    align_up(tensor.tensor().n_bytes(), layout.alignment()).unwrap_or(u64::MAX)
}

/// The first tensor above a part's maximum size, and its bytes.
#[must_use]
pub fn too_large<'l>(layout: &'l Layout<'_>, splitting: Splitting) -> Option<(&'l str, u64)> {
    let Splitting::MaxBytes(max) = splitting else {
        return None;
    };
    let tensors = layout.tensors().iter();
    tensors.map(|tensor| (tensor.tensor().name(), padded(tensor, layout))).find(|(_, padded)| *padded > max)
}

/// The tensors of each part of the input. A part that had none, as the first of `--no-tensor-first-split`, stays.
fn as_input(model: &Model<'_>, plan: &Plan<'_>) -> Result<Vec<Range<usize>>> {
    let mut n_kept = vec![0usize; model.parts().len()];
    let mut last = 0;
    for data in &plan.data {
        // A new tensor follows the one before it.
        let part = data.source_in(model)?.map_or(last, |tensor| tensor.part);
        ensure!(last <= part, "bug: the plan has tensors of part {part} after {last}");
        last = part;
        n_kept[part] += 1;
    }
    let mut ranges = Vec::new();
    let mut start = 0;
    for (part, n_kept) in model.parts().iter().zip(n_kept) {
        if n_kept > 0 || part.tensors().is_empty() {
            ranges.push(start..start + n_kept);
            start += n_kept;
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{TensorOut, TensorType};

    /// A file of tensors of these many bytes.
    fn layout(n_bytes: &[u64]) -> Layout<'static> {
        let byte = TensorType::all().find(|t| t.name() == "I8").unwrap();
        let tensors = n_bytes
            .iter()
            .enumerate()
            .map(|(i, &n_bytes)| TensorOut::new(format!("t{i}"), &[n_bytes], byte).unwrap());
        let entries = vec![EntryOut::u32("a", 1), EntryOut::u32(ALIGNMENT_KEY, 64)];
        Layout::new(3, 64, entries, tensors.collect(), true).unwrap()
    }

    #[test]
    fn as_many_tensors_as_fit_go_into_a_part() {
        // 64, 128, 64, 192 and 64 bytes with their padding.
        let layout = layout(&[1, 65, 64, 129, 10]);
        let ranges = |max| by_size(&layout, max);
        let is_whole = |max| ranges(max).len() == 1;
        assert_eq!(ranges(u64::MAX)[0], 0..5);
        assert!(is_whole(u64::MAX) && is_whole(512));
        assert_eq!(ranges(511), [0..4, 4..5]);
        assert_eq!(ranges(256), [0..3, 3..5]);
        assert_eq!(ranges(255), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(ranges(192), [0..2, 2..3, 3..4, 4..5]);
        // One that is too large is alone, also where it comes first.
        assert_eq!(ranges(191), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(ranges(1), [0..1, 1..2, 2..3, 3..4, 4..5]);
        let found = |max| too_large(&layout, Splitting::MaxBytes(max));
        assert_eq!((found(192), found(191)), (None, Some(("t3", 192))));
    }

    #[test]
    fn every_part_has_the_alignment_and_the_first_all_metadata() {
        let whole = layout(&[1, 65, 64]);
        let parts = cut(&whole, &[0..0, 0..2, 2..3]).unwrap();
        let keys = |part: &Part<'_>| -> Vec<String> {
            let entries = part.layout.metadata().iter();
            entries.map(|planned| planned.entry().key().to_owned()).collect()
        };
        let split = ["split.no", "split.count", "split.tensors.count"];
        assert_eq!(keys(&parts[0]), [&["a", ALIGNMENT_KEY][..], &split].concat());
        assert_eq!(keys(&parts[2]), [&[ALIGNMENT_KEY][..], &split].concat());
        let n_tensors: Vec<_> = parts.iter().map(|part| part.layout.tensors().len()).collect();
        assert_eq!(n_tensors, [0, 2, 1]);
        assert!(parts.iter().all(|part| part.layout.alignment() == 64));
    }

    #[test]
    fn more_parts_than_can_be_counted_are_refused() {
        let whole = layout(&[1; 3]);
        let ranges = vec![0..0; 65_536];
        assert_eq!(
            cut(&whole, &ranges).unwrap_err().to_string(),
            "the output needs 65536 parts, expected at most 65535"
        );
    }
}
