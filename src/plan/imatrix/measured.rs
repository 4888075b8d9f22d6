//! An importance matrix that was measured here: sums of squared inputs, as `llama-imatrix` writes them. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{COUNTS, Content, Planned, SUMS};
use crate::gguf::{EntryOut, Layout, Quoted, TensorOut, TensorType, ValueOut};
use crate::model::Model;
use crate::model::companion::IMATRIX;

/// Version and alignment of the file, as ggml writes them (`gguf.cpp`).
const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;

/// The sums of one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightSums {
    /// Sums of squares of each column, `[n_matrices, n_columns]`.
    squares: Vec<f64>,
    n_columns: usize,
    /// Rows that were added up. One number for all matrices of a dense weight, one for each expert.
    counts: Vec<u64>,
}

/// A sum as the file holds it.
#[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
fn single(sum: f64) -> f32 {
    sum as f32
}

/// The shape of a weight, as its sums have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Length of its rows.
    pub n_columns: usize,
    /// Its matrices.
    pub n_matrices: usize,
    /// Whether rows go to single matrices, each with its own count.
    pub has_experts: bool,
}

impl WeightSums {
    fn new(shape: Shape) -> Self {
        Self {
            squares: vec![0.0; shape.n_columns * shape.n_matrices],
            n_columns: shape.n_columns,
            counts: vec![0; if shape.has_experts { shape.n_matrices } else { 1 }],
        }
    }

    /// Adds rows that a matrix multiplies, `[n_rows, n_columns]`; they are not counted.
    pub fn add(&mut self, matrix: usize, rows: &[f32]) {
        let n_columns = self.n_columns.max(1);
        let Some(squares) = self.squares.chunks_exact_mut(n_columns).nth(matrix) else {
            return;
        };
        pulp::Arch::new().dispatch(|| {
            for row in rows.chunks_exact(n_columns) {
                for (sum, &x) in squares.iter_mut().zip(row) {
                    *sum += f64::from(x) * f64::from(x);
                }
            }
        });
    }

    /// Counts rows of an expert.
    pub fn count_of(&mut self, expert: usize, n_rows: u64) {
        if let Some(count) = self.counts.get_mut(expert) {
            *count += n_rows;
        }
    }

    /// Counts rows of all matrices.
    pub fn count(&mut self, n_rows: u64) {
        self.counts.iter_mut().for_each(|count| *count += n_rows);
    }

    /// Whether every sum is a number that the file can hold.
    fn is_finite(&self) -> bool {
        self.squares.iter().all(|sum| single(*sum).is_finite())
    }
}

/// The sums of all weights that were seen, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums(BTreeMap<String, WeightSums>);

impl Sums {
    /// Bytes in memory of those of all blocks of `model`, at most.
    #[must_use]
    pub fn n_bytes(model: &Model<'_>) -> u64 {
        let weights = model.tensors().iter().filter(|tensor| tensor.block.is_some());
        let n_sums = weights.filter(|tensor| tensor.info.n_dims() > 1).map(|tensor| {
            let [n_columns, _, n2, n3] = tensor.info.dims();
            n_columns.saturating_mul(n2).saturating_mul(n3)
        });
        n_sums.fold(0u64, u64::saturating_add).saturating_mul(8)
    }

    /// The sums of a weight, zeros at first.
    ///
    /// # Errors
    /// A weight that had another shape before.
    pub fn weight(&mut self, name: &str, shape: Shape) -> Result<&mut WeightSums> {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), WeightSums::new(shape));
        }
        let sums = self.0.get_mut(name).with_context(|| format!("no sums of {}", Quoted(name)))?;
        let expected = shape.n_columns * shape.n_matrices;
        ensure!(
            sums.n_columns == shape.n_columns && sums.squares.len() == expected,
            "{} is multiplied with {} matrices of {} columns, and before with {} numbers in all",
            Quoted(name),
            shape.n_matrices,
            shape.n_columns,
            sums.squares.len()
        );
        if shape.has_experts && sums.counts.len() == 1 {
            // All its experts were multiplied before, each with every row.
            sums.counts = vec![sums.counts[0]; shape.n_matrices];
        }
        Ok(sums)
    }

    /// Adds the sums of other windows, or of other blocks.
    ///
    /// # Errors
    /// A weight of which both have sums of different shapes.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        for (name, sums) in other.0 {
            let shape = Shape {
                n_columns: sums.n_columns,
                n_matrices: sums.squares.len() / sums.n_columns.max(1),
                has_experts: sums.counts.len() > 1,
            };
            let own = self.weight(&name, shape)?;
            own.squares.iter_mut().zip(sums.squares).for_each(|(own, other)| *own += other);
            let counts = sums.counts.iter().cycle();
            own.counts.iter_mut().zip(counts).for_each(|(own, other)| *own += other);
        }
        Ok(())
    }

    /// Checks that the file can hold the sums of a weight.
    ///
    /// # Errors
    /// A sum that is not finite, or too large for F32.
    pub fn check(&self, name: &str) -> Result<()> {
        ensure!(
            self.0.get(name).is_none_or(WeightSums::is_finite),
            "the squared inputs of {} do not add up to a finite F32: the model's own weights overflow",
            Quoted(name)
        );
        Ok(())
    }

    /// The weights, with each column's sum of squares and the row counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f64], &[u64])> {
        self.0.iter().map(|(name, sums)| (name.as_str(), &sums.squares[..], &sums.counts[..]))
    }
}

/// An importance matrix that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredImatrix {
    /// What was added up.
    pub sums: Sums,
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Windows that were evaluated.
    pub n_windows: usize,
    /// Tokens of a window.
    pub window: usize,
}

impl MeasuredImatrix {
    /// Matrices of experts to which no row came.
    #[must_use]
    pub fn n_unused(&self) -> usize {
        self.sums.iter().flat_map(|(_, _, counts)| counts).filter(|count| **count == 0).count()
    }

    /// Plans the file, as ggml writes it (`tools/imatrix/imatrix.cpp: save_imatrix`). Each weight `W`, in the order of names,
    /// has `W.in_sum2` `[n_columns, n_matrices]` and `W.counts` `[1, n_matrices]`, F32, in ggml's order of dimensions.
    ///
    /// # Errors
    /// No weight; a name too long for a file; sums that are not finite.
    pub fn plan(&self) -> Result<Planned<'_>> {
        let weights = &self.sums.0;
        ensure!(!weights.is_empty(), "llama.cpp's graph multiplies no weight of a block");
        let mut tensors = Vec::new();
        for (name, sums) in weights {
            self.sums.check(name)?;
            let n_counts = sums.counts.len() as u64;
            let n_values = sums.squares.len() as u64;
            for (ending, n) in [(SUMS, n_values / n_counts.max(1)), (COUNTS, 1)] {
                // ggml stores no last dimension of 1.
                let dims = &[n, n_counts][..if n_counts == 1 { 1 } else { 2 }];
                tensors.push(TensorOut::new(format!("{name}{ending}"), dims, TensorType::F32)?);
            }
        }
        let number = |n: usize| u32::try_from(n).map(ValueOut::u32);
        let entries = vec![
            EntryOut::string("general.type", IMATRIX),
            EntryOut::new("imatrix.datasets", ValueOut::strings(&self.datasets)),
            EntryOut::new("imatrix.chunk_count", number(self.n_windows)?),
            EntryOut::new("imatrix.chunk_size", number(self.window)?),
        ];
        let layout = Box::new(Layout::new(VERSION, ALIGNMENT, entries, tensors, true)?);
        let content = Content::Measured { layout, weights: weights.values().collect() };
        Ok(Planned { n_entries: weights.len(), n_removed: 0, content })
    }
}

impl WeightSums {
    /// Writes the data of one of its two tensors.
    pub(super) fn write(&self, is_counts: bool, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        match is_counts {
            true => self.counts.iter().try_for_each(|n| out.write_all(&(*n as f32).to_le_bytes())),
            false => self.squares.iter().try_for_each(|sum| out.write_all(&single(*sum).to_le_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::File;

    const DENSE: Shape = Shape { n_columns: 3, n_matrices: 1, has_experts: false };
    const EXPERTS: Shape = Shape { n_columns: 2, n_matrices: 3, has_experts: true };

    fn sums() -> Sums {
        let mut sums = Sums::default();
        let dense = sums.weight("blk.1.attn_q.weight", DENSE).unwrap();
        dense.add(0, &[1.0, 2.0, 3.0, 4.0, 5.0, -6.0]);
        dense.count(2);
        let experts = sums.weight("blk.0.ffn_up_exps.weight", EXPERTS).unwrap();
        for (expert, row) in [(0, [1.0, 2.0]), (2, [3.0, 0.5]), (2, [1.0, 1.0])] {
            experts.add(expert, &row);
            experts.count_of(expert, 1);
        }
        sums
    }

    fn measured(sums: Sums) -> MeasuredImatrix {
        MeasuredImatrix {
            sums,
            datasets: vec!["a.txt".to_owned(), "self".to_owned()],
            n_windows: 7,
            window: 512,
        }
    }

    #[test]
    fn the_file_is_as_llama_imatrix_writes_it() {
        let measured = measured(sums());
        assert_eq!(measured.n_unused(), 1);
        let planned = measured.plan().unwrap();
        let mut bytes = Vec::new();
        planned.write(&mut bytes).unwrap();
        assert_eq!((planned.n_entries, planned.n_bytes()), (2, bytes.len() as u64));
        let file = File::parse(&bytes).unwrap();
        let keys: Vec<_> = file.metadata().iter().map(|entry| entry.key()).collect();
        assert_eq!(keys, ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]);
        let found: Vec<_> = file
            .tensors()
            .iter()
            .map(|tensor| {
                let floats: Vec<f32> =
                    tensor.bytes().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                (tensor.name(), tensor.dims()[..tensor.n_dims()].to_vec(), floats)
            })
            .collect();
        let expected = [
            ("blk.0.ffn_up_exps.weight.in_sum2", vec![2, 3], vec![1.0, 4.0, 0.0, 0.0, 10.0, 1.25]),
            ("blk.0.ffn_up_exps.weight.counts", vec![1, 3], vec![1.0, 0.0, 2.0]),
            ("blk.1.attn_q.weight.in_sum2", vec![3], vec![17.0, 29.0, 45.0]),
            ("blk.1.attn_q.weight.counts", vec![1], vec![2.0]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn sums_of_parts_are_those_of_the_whole() {
        let mut twice = sums();
        twice.merge(sums()).unwrap();
        for ((_, once, counts), (_, both, both_counts)) in sums().iter().zip(twice.iter()) {
            assert!(once.iter().zip(both).all(|(once, both)| 2.0 * once == *both));
            assert!(counts.iter().zip(both_counts).all(|(once, both)| 2 * once == *both));
        }
        let mut other = Sums::default();
        other.weight("blk.1.attn_q.weight", EXPERTS).unwrap();
        assert!(twice.merge(other).is_err());
    }

    #[test]
    fn a_weight_without_experts_before_counts_for_each_of_them() {
        let mut sums = Sums::default();
        sums.weight("w", Shape { has_experts: false, ..EXPERTS }).unwrap().count(5);
        sums.weight("w", EXPERTS).unwrap().count_of(1, 2);
        assert_eq!(sums.iter().next().unwrap().2, [5, 7, 5]);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for x in [f32::NAN, f32::INFINITY, 1e20] {
            let mut sums = sums();
            sums.weight("blk.1.attn_q.weight", DENSE).unwrap().add(0, &[0.0, x, 0.0]);
            let error = measured(sums).plan().unwrap_err().to_string();
            assert!(error.contains("'blk.1.attn_q.weight'"), "{error}");
        }
        assert!(measured(Sums::default()).plan().is_err());
    }
}
