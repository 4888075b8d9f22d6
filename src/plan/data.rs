//! What the data of every tensor of the output is. It is bytes of the model, all or some of them, or bytes that the plan made.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::gguf::{MAX_DIMS, Quoted, TensorInfo, TensorOut, TensorType};
use crate::model::{Model, ModelTensor};

/// Other weights of one of the model's tensors, of the same shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangedTensor {
    /// The type that they are rounded to.
    pub tensor_type: TensorType,
    /// The data.
    pub bytes: Vec<u8>,
}

/// Tensors with other weights, by their index among the model's.
pub type ChangedTensors = BTreeMap<usize, ChangedTensor>;

/// The data of one tensor of the output.
#[derive(Clone, Debug)]
pub enum TensorData<'a> {
    /// All bytes of a tensor of the model.
    Whole {
        /// Its index among the model's tensors.
        source: usize,
    },
    /// Some bytes of a tensor of the model, in order.
    Sliced {
        /// Its index among the model's tensors.
        source: usize,
        /// Which bytes.
        runs: Runs,
        /// Why not all.
        why: String,
    },
    /// Bytes that the plan made.
    Made {
        /// The index of the model's tensor that they take the place of. `None` for a new tensor.
        source: Option<usize>,
        /// The bytes.
        bytes: Cow<'a, [u8]>,
        /// What they are and why.
        why: String,
    },
}

impl TensorData<'_> {
    /// The index of the model's tensor that this is. It may be a part of it, or take its place.
    #[must_use]
    pub fn source(&self) -> Option<usize> {
        match self {
            Self::Whole { source } | Self::Sliced { source, .. } => Some(*source),
            Self::Made { source, .. } => *source,
        }
    }

    /// The tensor of `model` that this is, is part of, or replaces.
    ///
    /// # Errors
    /// A tensor that the model does not have, which is a bug.
    pub fn source_in<'m, 'a>(&self, model: &'m Model<'a>) -> Result<Option<&'m ModelTensor<'a>>> {
        self.source()
            .map(|source| {
                model.tensors().get(source).context("bug: a planned tensor that the model does not have")
            })
            .transpose()
    }

    /// Why it is not all bytes of a tensor of the model. `None` if it is.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Whole { .. } => None,
            Self::Sliced { why, .. } | Self::Made { why, .. } => Some(why),
        }
    }

    /// Number of bytes in the output. 0 where the model's tensor is not there.
    #[must_use]
    pub fn n_bytes(&self, model: &Model<'_>) -> u64 {
        let n_source = |source: &usize| {
            let tensor = model.tensors().get(*source);
            tensor.map_or(0, |tensor| tensor.info.n_bytes())
        };
        match self {
            Self::Whole { source } => n_source(source),
            Self::Sliced { source, runs, .. } => runs.n_bytes(n_source(source)),
            Self::Made { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Writes the data piece by piece. `model` is the one that was planned for.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, model: &Model<'_>, out: &mut dyn Write) -> io::Result<()> {
        let source = |source: &usize| -> &[u8] {
            let tensor = model.tensors().get(*source);
            tensor.map_or(&[], |tensor| tensor.info.bytes())
        };
        match self {
            Self::Whole { source: of } => out.write_all(source(of)),
            Self::Sliced { source: of, runs, .. } => {
                let bytes = source(of);
                for (range, _) in runs.within(0..bytes.len()) {
                    out.write_all(&bytes[range])?;
                }
                Ok(())
            }
            Self::Made { bytes, .. } => out.write_all(bytes),
        }
    }
}

/// The tensors of an output. Which there are, what their data is, and which of the model's are not there.
#[derive(Clone, Debug, Default)]
pub struct Tensors<'a> {
    /// The tensors, in file order, each with its data.
    pub planned: Vec<(TensorOut<'a>, TensorData<'a>)>,
    /// Tensors left out though of no removed block. By index, each with the reason.
    pub left_out: Vec<(usize, String)>,
}

impl Tensors<'_> {
    /// How they depart from the tensors of `model`.
    ///
    /// # Errors
    /// Data that is not as long as its tensor, which is a bug.
    pub(super) fn changes(&self, model: &Model<'_>) -> Result<Vec<TensorChange>> {
        let mut changes = Vec::new();
        for (out, data) in &self.planned {
            let n_bytes = data.n_bytes(model);
            ensure!(
                n_bytes == out.n_bytes(),
                "bug: tensor '{}' has {} bytes, but its data {n_bytes}",
                out.name(),
                out.n_bytes()
            );
            changes.extend(TensorChange::of(model, out, data));
        }
        for (source, why) in &self.left_out {
            let tensor = model.tensors().get(*source);
            changes.push(TensorChange {
                tensor: None,
                parent: tensor.map(|tensor| tensor.info.name().to_owned()),
                change: ChangeKind::LeftOut,
                why: why.clone(),
            });
        }
        Ok(changes)
    }

    /// Replaces the weights of the tensors in `changed`, for the reason `why`.
    ///
    /// # Errors
    /// A tensor that is not in the output, or for which there are not as many bytes as it has there.
    pub(super) fn change(&mut self, model: &Model<'_>, changed: &ChangedTensors, why: &str) -> Result<()> {
        let mut left: BTreeMap<usize, &ChangedTensor> =
            changed.iter().map(|(source, changed)| (*source, changed)).collect();
        for (out, data) in &mut self.planned {
            let (TensorData::Whole { source } | TensorData::Sliced { source, .. }) = *data else {
                continue;
            };
            let Some(changed) = left.get(&source) else {
                continue;
            };
            let dims = out.dims();
            let new = TensorOut::new(out.name().to_owned(), &dims[..out.n_dims()], changed.tensor_type)?;
            let is_sliced = matches!(data, TensorData::Sliced { .. });
            if is_sliced && new.n_bytes() != changed.bytes.len() as u64 {
                continue;
            }
            let changed = left.remove(&source).context("bug: a tensor that went")?;
            *out = new;
            *data = TensorData::Made {
                source: Some(source),
                bytes: changed.bytes.clone().into(),
                why: why.to_owned(),
            };
        }
        if let Some(&source) = left.keys().next() {
            let tensor = model.tensors().get(source);
            let name = tensor.map_or("", |tensor| tensor.info.name());
            bail!(
                "tensor {} is not in the output as it is in the model, so its weights cannot be others",
                Quoted(name)
            );
        }
        Ok(())
    }
}

/// The same runs of bytes of every period of a tensor's data.
///
/// ```text
/// data:  | a b c d | a b c d | a b c d |     a period is a row, where the first dimension is cut
/// kept:  | a   c d | a   c d | a   c d |     runs: a, cd
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Bytes of a period of the input's tensor.
    period: usize,
    /// The kept bytes of a period, from its start, ascending and disjoint.
    ranges: Vec<Range<usize>>,
    /// Kept bytes of a period.
    n_kept: usize,
}

impl Runs {
    /// All of `n_bytes` bytes.
    #[must_use]
    pub fn all(n_bytes: usize) -> Self {
        let mut runs = Self { period: n_bytes, ranges: Vec::new(), n_kept: 0 };
        runs.push(0..n_bytes);
        runs
    }

    /// The parts at `kept`, of `n_parts` equal ones of dimension `dim`. They are in rising order. The second is the tensor's
    /// dimensions with only them.
    ///
    /// # Errors
    /// A dimension that is not divided into such parts, or whose parts are not whole quantisation blocks.
    pub fn of_parts(
        tensor: &TensorInfo<'_>,
        dim: usize,
        n_parts: usize,
        kept: impl IntoIterator<Item = usize>,
    ) -> Result<(Self, [u64; MAX_DIMS])> {
        let mut dims = tensor.dims();
        let name = || Quoted(tensor.name());
        let n_elements = *dims.get(dim).context("bug: a dimension that is not")?;
        let part = n_elements
            .checked_div(n_parts as u64)
            .filter(|part| part * n_parts as u64 == n_elements)
            .with_context(|| {
                format!(
                    "tensor {} has {n_elements} elements in dimension {dim}, which is not the same number for each of \
                     {n_parts} blocks",
                    name()
                )
            })?;
        let tensor_type = tensor.tensor_type();
        // Bytes per element of `dim`. In dimension 0, bytes per part.
        let unit = if dim == 0 {
            tensor_type.row_bytes(part).with_context(|| {
                format!(
                    "tensor {} has {part} elements per row for each block, which are not whole quantisation blocks of \
                     {tensor_type} ({})",
                    name(),
                    tensor_type.block_size()
                )
            })?
        } else {
            let mut between = dims[1..dim].iter();
            tensor_type
                .row_bytes(dims[0])
                .and_then(|row| between.try_fold(row, |n, &dim| n.checked_mul(dim)))
                .and_then(|rows| rows.checked_mul(part))
                .with_context(|| format!("tensor {} has too many elements", name()))?
        };
        let unit = usize::try_from(unit)?;
        let mut runs = Self {
            period: unit.checked_mul(n_parts).context("bug: a period too long")?,
            ranges: Vec::new(),
            n_kept: 0,
        };
        let mut n_kept = 0;
        for part in kept {
            ensure!(part < n_parts, "bug: part {part} of {n_parts}");
            runs.push(part * unit..(part + 1) * unit);
            n_kept += 1;
        }
        dims[dim] = part * n_kept;
        Ok((runs, dims))
    }

    /// Keeps these bytes too, which follow those before.
    fn push(&mut self, range: Range<usize>) {
        self.n_kept += range.len();
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    /// How many bytes are kept of a tensor that has `n_source`.
    #[must_use]
    pub fn n_bytes(&self, n_source: u64) -> u64 {
        let n_periods = n_source.checked_div(self.period as u64).unwrap_or(0);
        n_periods.saturating_mul(self.n_kept as u64)
    }

    /// The kept bytes in `range` of the input's tensor, in order. Each is a range there, and where it starts in the output's.
    pub fn within(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let first = range.start.checked_div(self.period).unwrap_or(0);
        let end = range.end.checked_div(self.period).map_or(0, |n| n + 1);
        (first..end).flat_map(move |number| {
            let (start, out_start) = (number * self.period, number * self.n_kept);
            let mut before = out_start;
            let range = range.clone();
            self.ranges.iter().filter_map(move |run| {
                let out = before;
                before += run.len();
                let from = (start + run.start).max(range.start);
                let to = (start + run.end).min(range.end);
                (from < to).then(|| (from..to, out + from - (start + run.start)))
            })
        })
    }
}

/// The change of an output tensor, or of one left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorChange {
    /// Its name in the output; null if it is left out.
    pub tensor: Option<String>,
    /// The name of the model's tensor; null if it is new.
    pub parent: Option<String>,
    /// How.
    pub change: ChangeKind,
    /// Why.
    pub why: String,
}

/// How a tensor departs from the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Some of its bytes, unchanged.
    Sliced,
    /// Other bytes.
    Changed,
    /// A tensor that the model does not have.
    New,
    /// A tensor of no removed block that is not in the output.
    LeftOut,
}

impl TensorChange {
    /// How `out`, whose data is `data`, departs from the tensor of `model`. `None` if it has all its bytes.
    fn of(model: &Model<'_>, out: &TensorOut<'_>, data: &TensorData<'_>) -> Option<Self> {
        let source = data.source().and_then(|source| model.tensors().get(source));
        Some(Self {
            tensor: Some(out.name().to_owned()),
            parent: source.map(|tensor| tensor.info.name().to_owned()),
            change: match data {
                TensorData::Whole { .. } => return None,
                TensorData::Sliced { .. } => ChangeKind::Sliced,
                TensorData::Made { source: None, .. } => ChangeKind::New,
                TensorData::Made { .. } => ChangeKind::Changed,
            },
            why: data.why()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(period: usize, ranges: &[Range<usize>]) -> Runs {
        let mut runs = Runs { period, ranges: Vec::new(), n_kept: 0 };
        ranges.iter().cloned().for_each(|range| runs.push(range));
        runs
    }

    /// Byte by byte.
    fn naive(period: usize, ranges: &[Range<usize>], len: usize) -> Vec<usize> {
        let kept = |at: &usize| ranges.iter().any(|range| range.contains(&(at % period)));
        (0..len).filter(kept).collect()
    }

    #[test]
    fn runs_are_those_of_a_loop_over_bytes_whatever_the_range() {
        let cases: [(usize, &[Range<usize>]); 5] =
            [(7, &[0..2, 3..4, 4..6]), (5, &[0..5, 5..5]), (4, &[0..0, 3..4]), (3, &[]), (1, &[0..0, 0..1])];
        for (period, ranges) in cases {
            let runs = runs(period, ranges);
            let len = period * 4;
            let all = naive(period, ranges, len);
            assert_eq!(runs.n_bytes(len as u64), all.len() as u64);
            for from in 0..=len {
                for to in from..=len {
                    let mut found = Vec::new();
                    for (range, out) in runs.within(from..to) {
                        let at: Vec<usize> = range.collect();
                        assert_eq!(&all[out..out + at.len()], at);
                        found.extend(at);
                    }
                    let mut expected = all.clone();
                    expected.retain(|at| (from..to).contains(at));
                    assert_eq!(found, expected, "{from}..{to} of {len}");
                }
            }
        }
        let joined = runs(7, &[0..2, 2..4, 5..6]);
        assert_eq!(joined.ranges, [0..4, 5..6]);
    }

    #[test]
    fn no_bytes_have_no_runs() {
        assert_eq!(Runs::all(0).n_bytes(0), 0);
        assert_eq!(Runs::all(0).within(0..0).count(), 0);
        assert_eq!(Runs::all(5).within(2..4).next(), Some((2..4, 2)));
    }
}
