//! Losses of sets of removed blocks, each measured once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use crate::engine::segment::Subsets;
use crate::measure::loss::{Loss, Objective, TaskLoss};
use crate::model::BlockId;
use crate::model::block::BlockSet;

/// Measures what removals cost.
pub trait Measure {
    /// How many windows there are.
    fn n_windows(&self) -> usize;

    /// The loss of each of `sets` over the first `n_windows` windows.
    ///
    /// # Errors
    /// Whatever keeps the engine from evaluating a set.
    fn losses(&mut self, n_windows: usize, sets: &[BlockSet]) -> Result<Vec<Loss>>;

    /// The loss of each of `sets` in the tasks.
    ///
    /// # Errors
    /// Whatever keeps the engine from doing them; no tasks.
    fn tasks(&mut self, sets: &[BlockSet]) -> Result<Vec<TaskLoss>> {
        bail!("bug: no tasks for {} sets", sets.len())
    }
}

/// Does tasks without some blocks.
pub trait Tasks {
    /// The loss without `removed`; of the whole model where that is empty.
    ///
    /// # Errors
    /// Whatever keeps the engine from doing the tasks.
    fn loss(&mut self, removed: &BlockSet) -> Result<TaskLoss>;
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The loss of a set on the window with this number.
    Window(BlockSet, usize, Loss),
    /// The loss of a set in all tasks.
    Tasks(BlockSet, TaskLoss),
}

/// Measures with an engine, and remembers. What was measured in this run, or in one that was interrupted, is not measured
/// again.
pub struct Memo<'s> {
    subsets: &'s mut dyn Subsets,
    tasks: Option<&'s mut dyn Tasks>,
    n_blocks: usize,
    known: BTreeMap<(BlockSet, usize), Loss>,
    known_tasks: BTreeMap<BlockSet, TaskLoss>,
    /// Called with each new measurement.
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
        let mut memo = Self {
            subsets,
            tasks: None,
            n_blocks,
            known: BTreeMap::new(),
            known_tasks: BTreeMap::new(),
            record,
        };
        for record in known {
            match record {
                Record::Window(set, window, loss) => {
                    memo.known.insert((set, window), loss);
                }
                Record::Tasks(set, loss) => {
                    memo.known_tasks.insert(set, loss);
                }
            }
        }
        memo
    }

    /// The same, which can do tasks, too.
    #[must_use]
    pub fn with_tasks(self, tasks: Option<&'s mut dyn Tasks>) -> Self {
        Self { tasks, ..self }
    }
}

impl Memo<'_> {
    /// The sets of `n` blocks with the lowest losses, `most` at most. Only those count that were measured on every window. The
    /// lowest comes first.
    #[must_use]
    pub fn best_known(&self, n: usize, objective: Objective, most: usize) -> Vec<BlockSet> {
        let mut sums: BTreeMap<&BlockSet, (usize, Loss)> = BTreeMap::new();
        for ((set, _), loss) in self.known.iter().filter(|((set, _), _)| set.len() == n) {
            let (n_windows, sum) = sums.entry(set).or_default();
            *n_windows += 1;
            *sum = [*sum, *loss].into_iter().sum();
        }
        let n_all = self.subsets.n_windows();
        let mut measured: Vec<(&BlockSet, f64)> = sums
            .into_iter()
            .filter(|(_, (n_windows, _))| *n_windows == n_all)
            .map(|(set, (_, loss))| (set, loss.mean(objective)))
            .collect();
        measured.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        let best = measured.into_iter().take(most);
        best.map(|(set, _)| set.clone()).collect()
    }

    fn measure(&mut self, windows: &[usize], sets: &[BlockSet]) -> Result<()> {
        let kept: Vec<Vec<BlockId>> = sets
            .iter()
            .map(|set| (0..self.n_blocks).map(BlockId::new).filter(|block| !set.contains(block)).collect())
            .collect();
        let (known, record) = (&mut self.known, &mut *self.record);
        self.subsets.visit(windows, &kept, &mut |outcome| {
            let loss = Loss::of(outcome.tokens, outcome.parent, outcome.logits)
                .with_context(|| format!("window {}", outcome.window + 1))?;
            let set = &sets[outcome.set];
            record(&Record::Window(set.clone(), outcome.window, loss))?;
            known.insert((set.clone(), outcome.window), loss);
            Ok(())
        })
    }
}

impl Measure for Memo<'_> {
    fn n_windows(&self) -> usize {
        self.subsets.n_windows()
    }

    fn losses(&mut self, n_windows: usize, sets: &[BlockSet]) -> Result<Vec<Loss>> {
        let wanted: BTreeSet<&BlockSet> = sets.iter().collect();
        let missing = |known: &BTreeMap<(BlockSet, usize), Loss>, window| -> Vec<BlockSet> {
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
            let n_same = (first..n_windows).take_while(|&window| missing(&self.known, window) == new).count();
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

    fn tasks(&mut self, sets: &[BlockSet]) -> Result<Vec<TaskLoss>> {
        let tasks = self.tasks.as_mut().context("bug: no tasks were given")?;
        sets.iter()
            .map(|set| {
                if let Some(&loss) = self.known_tasks.get(set) {
                    return Ok(loss);
                }
                let loss = tasks.loss(set)?;
                (self.record)(&Record::Tasks(set.clone(), loss))?;
                self.known_tasks.insert(set.clone(), loss);
                Ok(loss)
            })
            .collect()
    }
}
