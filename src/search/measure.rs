//! Losses of sets of removed blocks, each measured once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::loss::Loss;
use crate::model::BlockId;
use crate::segment::Subsets;

/// Blocks that a candidate removes.
pub type Removed = BTreeSet<BlockId>;

/// Measures what removals cost.
pub trait Measure {
    /// How many windows there are.
    fn n_windows(&self) -> usize;

    /// The loss of each of `sets` over the windows from 0 to `n_windows`.
    ///
    /// # Errors
    /// Whatever keeps the engine from evaluating a set.
    fn losses(&mut self, n_windows: usize, sets: &[Removed]) -> Result<Vec<Loss>>;
}

/// One measurement: the set, the window, its loss.
pub type Record = (Removed, usize, Loss);

/// Measures with an engine and remembers: what was measured in this run, or in one that was interrupted, is not measured
/// again.
pub struct Memo<'s> {
    subsets: &'s mut dyn Subsets,
    n_blocks: usize,
    known: BTreeMap<(Removed, usize), Loss>,
    /// Told of each new measurement.
    record: &'s mut dyn FnMut(&Record) -> Result<()>,
}

impl<'s> Memo<'s> {
    /// Measures sets of `n_blocks` blocks; `known` was measured before.
    pub fn new(
        subsets: &'s mut dyn Subsets,
        n_blocks: usize,
        known: Vec<Record>,
        record: &'s mut dyn FnMut(&Record) -> Result<()>,
    ) -> Self {
        Self {
            subsets,
            n_blocks,
            known: known
                .into_iter()
                .map(|(set, window, loss)| ((set, window), loss))
                .collect(),
            record,
        }
    }
}

impl Memo<'_> {
    fn measure(&mut self, windows: &[usize], sets: &[Removed]) -> Result<()> {
        let kept: Vec<Vec<BlockId>> = sets
            .iter()
            .map(|set| {
                (0..self.n_blocks)
                    .map(BlockId::new)
                    .filter(|block| !set.contains(block))
                    .collect()
            })
            .collect();
        let (known, record) = (&mut self.known, &mut *self.record);
        self.subsets.visit(windows, &kept, &mut |outcome| {
            let loss = Loss::of(outcome.tokens, outcome.parent, outcome.logits)
                .with_context(|| format!("window {}", outcome.window + 1))?;
            let set = &sets[outcome.set];
            record(&(set.clone(), outcome.window, loss))?;
            known.insert((set.clone(), outcome.window), loss);
            Ok(())
        })
    }
}

impl Measure for Memo<'_> {
    fn n_windows(&self) -> usize {
        self.subsets.n_windows()
    }

    fn losses(&mut self, n_windows: usize, sets: &[Removed]) -> Result<Vec<Loss>> {
        let wanted: BTreeSet<&Removed> = sets.iter().collect();
        let missing = |known: &BTreeMap<(Removed, usize), Loss>, window| -> Vec<Removed> {
            wanted
                .iter()
                .filter(|set| !known.contains_key(&((**set).clone(), window)))
                .map(|set| (*set).clone())
                .collect()
        };
        let mut first = 0;
        while first < n_windows {
            // Windows that miss the same sets are evaluated together.
            let new = missing(&self.known, first);
            let n_same = (first..n_windows)
                .take_while(|&window| missing(&self.known, window) == new)
                .count();
            let windows: Vec<usize> = (first..first + n_same).collect();
            first += n_same;
            if !new.is_empty() {
                self.measure(&windows, &new)?;
            }
        }
        sets.iter()
            .map(|set| {
                (0..n_windows)
                    .map(|window| {
                        self.known
                            .get(&(set.clone(), window))
                            .copied()
                            .context("bug: a set that was not measured")
                    })
                    .sum()
            })
            .collect()
    }
}
