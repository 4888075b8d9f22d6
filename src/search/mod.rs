//! Search: which blocks go, by what their removal costs when it is measured.
//!
//! SLEB (Song et al. 2024, arXiv:2402.09025) removes, one after another, the block without which the loss is smallest, and
//! measures all that are left again after each. The same here, with three savings and one addition:
//! - what candidates have in common is evaluated once ([`crate::segment::Chain`]);
//! - all candidates are measured on a few windows, the better third on more, and only the best on all (successive halving:
//!   Jamieson and Talwalkar 2016, arXiv:1502.07943);
//! - a measurement is never made twice ([`measure::Memo`]);
//! - at the end, removed blocks change places with kept ones as long as that lowers the loss.
//!
//! In reading order: [`loss`] says what is measured, [`measure`] measures, [`journal`] keeps measurements over an
//! interrupt, `moves` says what can go next, [`goal`] stops a search where a goal says so, and [`draft`] is the worth of a
//! draft model.

pub mod loss;

pub mod measure;

pub mod journal;

mod moves;

pub mod goal;

pub mod draft;

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Result, bail};

use crate::plan::Constraints;
pub use goal::{Bound, Goal, Growth};
pub use loss::{Loss, Objective, TaskLoss};
pub use measure::{Measure, Memo, Record, Removed};

/// How a search looks for a set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is made small.
    pub objective: Objective,
    /// Blocks that stay.
    pub keep: Removed,
    /// How many sets are carried from one removal to the next; 1 is greedy.
    pub beam: usize,
    /// How often, at most, a removed block changes places with a kept one at the end.
    pub swaps: usize,
}

/// A set and its loss over all windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The blocks that go.
    pub removed: Removed,
    /// What that costs.
    pub loss: Loss,
    /// What it costs in tasks; `None` unless they are the objective.
    pub tasks: Option<TaskLoss>,
}

impl Measured {
    /// What `objective` makes small.
    #[must_use]
    pub fn cost(&self, objective: Objective) -> f64 {
        match (objective, &self.tasks) {
            (Objective::Task, Some(tasks)) => tasks.mean(),
            _ => self.loss.mean(objective),
        }
    }
}

/// Candidates that do tasks: those with the lowest KL divergence.
const SHORTLIST: usize = 4;

/// A share of the candidates that goes on to more windows is one in so many.
const RACE: usize = 3;

/// The candidates with the smallest loss over all windows, best first, `n` at most, of a race: each round measures those
/// that are left on more windows and keeps a third.
///
/// # Errors
/// Those of `measure`.
pub fn race(
    measure: &mut dyn Measure,
    objective: Objective,
    candidates: Vec<Removed>,
    n: usize,
) -> Result<Vec<Measured>> {
    let n_windows = measure.n_windows();
    let mut left = candidates;
    let mut n_seen = n_windows.div_ceil(RACE * RACE).max(1);
    loop {
        let is_last = n_seen == n_windows || left.len() <= n.max(1);
        let n_now = if is_last { n_windows } else { n_seen };
        let losses = measure.losses(n_now, &left)?;
        let mut measured: Vec<Measured> = left
            .into_iter()
            .zip(losses)
            .map(|(removed, loss)| Measured {
                removed,
                loss,
                tasks: None,
            })
            .collect();
        // Sets come in ascending order, and the sort is stable: of equals the first. A share of tokens has equals.
        measured.sort_by(|a, b| {
            let mean = |measured: &Measured, objective| measured.loss.mean(objective);
            let by = |objective| mean(a, objective).total_cmp(&mean(b, objective));
            by(objective).then(by(Objective::Kl))
        });
        if is_last {
            measured.truncate(n.max(1));
            return Ok(measured);
        }
        let n_left = measured.len().div_ceil(RACE).max(n).max(2);
        left = measured
            .into_iter()
            .take(n_left)
            .map(|measured| measured.removed)
            .collect();
        n_seen = (n_seen * RACE).min(n_windows);
    }
}

/// Losses that removing blocks one by one takes, from as many as `n` begins with to as many as it ends with, of `n_free`
/// that may go, with the exchanges at the end: what is to be expected if every one of them may go alone.
#[must_use]
pub fn expected_losses(
    settings: &Settings,
    n_free: usize,
    n: Range<usize>,
    n_windows: usize,
) -> u64 {
    let n_best = match settings.objective {
        Objective::Task => settings.beam.max(SHORTLIST),
        _ => settings.beam,
    };
    let steps = n.clone().map(|gone| {
        let n_candidates = n_free.saturating_sub(gone) * settings.beam.min(gone.max(1));
        race_losses(n_candidates, n_windows, n_best)
    });
    let exchanges = race_losses(n.end * n_free.saturating_sub(n.end), n_windows, n_best);
    steps.sum::<u64>() + exchanges * settings.swaps as u64
}

/// Losses that a [`race`] takes, each measured once.
fn race_losses(n_candidates: usize, n_windows: usize, n: usize) -> u64 {
    let (mut left, mut n_before) = (n_candidates, 0);
    let mut n_seen = n_windows.div_ceil(RACE * RACE).max(1);
    let mut sum = 0;
    loop {
        let is_last = n_seen == n_windows || left <= n.max(1);
        let n_now = if is_last { n_windows } else { n_seen };
        sum += left * (n_now - n_before);
        if is_last {
            return sum as u64;
        }
        n_before = n_now;
        left = left.div_ceil(RACE).max(n).max(2);
        n_seen = (n_seen * RACE).min(n_windows);
    }
}

/// Measures one set on all windows, and in tasks where they are the objective.
///
/// # Errors
/// Those of `measure`.
pub fn measured(
    measure: &mut dyn Measure,
    removed: Removed,
    objective: Objective,
) -> Result<Measured> {
    let set = std::slice::from_ref(&removed);
    let losses = measure.losses(measure.n_windows(), set)?;
    let tasks = match objective {
        Objective::Task => measure.tasks(set)?.first().copied(),
        _ => None,
    };
    Ok(Measured {
        removed,
        loss: losses.into_iter().sum(),
        tasks,
    })
}

/// As [`race`]; where tasks are the objective, the best by KL divergence do them.
///
/// # Errors
/// Those of `measure`.
fn best_of(
    measure: &mut dyn Measure,
    objective: Objective,
    candidates: Vec<Removed>,
    n: usize,
) -> Result<Vec<Measured>> {
    if objective != Objective::Task {
        return race(measure, objective, candidates, n);
    }
    let mut found = race(measure, objective, candidates, n.max(SHORTLIST))?;
    let sets: Vec<Removed> = found.iter().map(|set| set.removed.clone()).collect();
    for (measured, tasks) in found.iter_mut().zip(measure.tasks(&sets)?) {
        measured.tasks = Some(tasks);
    }
    found.sort_by(|a, b| a.cost(objective).total_cmp(&b.cost(objective)));
    found.truncate(n.max(1));
    Ok(found)
}

/// One removal after another, from none. Each call of [`Search::step`] removes one block more, or where no single one may
/// go, a run of them.
pub struct Search<'c> {
    constraints: &'c Constraints,
    settings: Settings,
    beam: Vec<Measured>,
}

impl<'c> Search<'c> {
    /// Begins with all blocks in place.
    #[must_use]
    pub fn new(constraints: &'c Constraints, settings: Settings) -> Self {
        let nothing = Measured {
            removed: Removed::new(),
            loss: Loss::default(),
            tasks: None,
        };
        Self {
            constraints,
            settings,
            beam: vec![nothing],
        }
    }

    /// The best set so far.
    #[must_use]
    pub fn best(&self) -> &Measured {
        &self.beam[0]
    }

    /// Removes more, up to `most` blocks in all. Returns whether anything could go.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn step(&mut self, measure: &mut dyn Measure, most: usize) -> Result<bool> {
        let candidates: BTreeSet<Removed> = self
            .beam
            .iter()
            .flat_map(|from| {
                moves::next(self.constraints, &self.settings.keep, &from.removed, most)
            })
            .collect();
        if candidates.is_empty() {
            return Ok(false);
        }
        self.beam = best_of(
            measure,
            self.settings.objective,
            candidates.into_iter().collect(),
            self.settings.beam,
        )?;
        Ok(true)
    }

    /// Removes exactly `n` blocks, and lets blocks change places at the end.
    ///
    /// # Errors
    /// Those of `measure`; a number that no allowed sequence of removals reaches.
    pub fn remove(
        &mut self,
        measure: &mut dyn Measure,
        n: usize,
        progress: &mut dyn FnMut(&Measured),
    ) -> Result<Measured> {
        while self.best().removed.len() < n {
            if !self.step(measure, n)? {
                bail!(
                    "no allowed removal leads from {} to {n} blocks",
                    self.best().removed.len()
                );
            }
            progress(self.best());
        }
        let greedy = self.best().clone();
        self.swap(measure, &greedy, &mut goal::Unbound, progress)
    }

    /// Lets blocks of `from` change places with kept ones as long as that lowers the loss and stays within `bound`.
    fn swap(
        &self,
        measure: &mut dyn Measure,
        from: &Measured,
        bound: &mut dyn Bound,
        progress: &mut dyn FnMut(&Measured),
    ) -> Result<Measured> {
        let objective = self.settings.objective;
        let mut best = from.clone();
        for _ in 0..self.settings.swaps {
            let mut candidates = Vec::new();
            for set in moves::swaps(self.constraints, &self.settings.keep, &best.removed) {
                if bound.may(&set)? {
                    candidates.push(set);
                }
            }
            if candidates.is_empty() {
                break;
            }
            let found = best_of(measure, objective, candidates, 1)?;
            match found.into_iter().next() {
                Some(found)
                    if found.cost(objective) < best.cost(objective)
                        && (bound.holds(&found)? || !bound.holds(&best)?) =>
                {
                    best = found;
                }
                _ => break,
            }
            progress(&best);
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::arch::Architecture;
    use crate::model::BlockId;
    use crate::plan::constraints::{Group, Place};
    use crate::plan::kinds::Kinds;

    const N_BLOCKS: usize = 9;

    fn constraints() -> Constraints {
        Constraints {
            n_blocks: N_BLOCKS,
            n_trunk_blocks: N_BLOCKS,
            must_stay: BTreeMap::new(),
            groups: Vec::new(),
            places: Vec::new(),
            counts: crate::plan::counts::Counts::default(),
            dropped: Removed::new(),
            portable: false,
            kinds: Kinds::default(),
            rules: Architecture::trusted(),
            trusted: false,
        }
    }

    fn blocks(numbers: &[usize]) -> Removed {
        numbers.iter().copied().map(BlockId::new).collect()
    }

    fn settings(swaps: usize) -> Settings {
        Settings {
            objective: Objective::Kl,
            keep: Removed::new(),
            beam: 1,
            swaps,
        }
    }

    /// A loss that is known: each block has a price in each window, and some pairs cost more together.
    struct Priced {
        n_windows: usize,
        /// By how much a price differs from window to window.
        noise: f64,
        n_measured: usize,
    }

    impl Priced {
        fn new(n_windows: usize, noise: f64) -> Self {
            Self {
                n_windows,
                noise,
                n_measured: 0,
            }
        }

        fn loss(&self, set: &Removed, window: usize) -> f64 {
            let number = |i: usize| ((i * 7919 + 104_729) % 1009) as f64 / 1009.0;
            let single: f64 = set
                .iter()
                .map(|block| {
                    number(block.index()) + self.noise * number(block.index() * 31 + window * 17)
                })
                .sum();
            let pairs: f64 = set
                .iter()
                .flat_map(|a| set.iter().map(move |b| (a.index(), b.index())))
                .filter(|(a, b)| a < b)
                .map(|(a, b)| number(a * 101 + b * 13) * 0.8)
                .sum();
            single + pairs
        }

        fn total(&self, set: &Removed) -> f64 {
            (0..self.n_windows)
                .map(|window| self.loss(set, window))
                .sum()
        }
    }

    impl Measure for Priced {
        fn n_windows(&self) -> usize {
            self.n_windows
        }

        fn losses(&mut self, n_windows: usize, sets: &[Removed]) -> Result<Vec<Loss>> {
            self.n_measured += sets.len() * n_windows;
            Ok(sets
                .iter()
                .map(|set| Loss {
                    n_tokens: n_windows as u64,
                    kl: (0..n_windows).map(|window| self.loss(set, window)).sum(),
                    ..Loss::default()
                })
                .collect())
        }
    }

    /// SLEB's loop as its paper has it: all that are left are measured on everything.
    fn sleb(priced: &Priced, n: usize) -> Removed {
        let mut removed = Removed::new();
        while removed.len() < n {
            let with = |block: usize| {
                let mut set = removed.clone();
                set.insert(BlockId::new(block));
                set
            };
            removed = (0..N_BLOCKS)
                .filter(|&block| !removed.contains(&BlockId::new(block)))
                .map(with)
                .min_by(|a, b| priced.total(a).total_cmp(&priced.total(b)))
                .unwrap();
        }
        removed
    }

    fn search(
        priced: &mut Priced,
        constraints: &Constraints,
        settings: Settings,
        n: usize,
    ) -> Measured {
        Search::new(constraints, settings)
            .remove(priced, n, &mut |_| {})
            .unwrap()
    }

    #[test]
    fn without_swaps_and_noise_it_is_sleb_for_less() {
        let constraints = constraints();
        for n in 1..N_BLOCKS - 1 {
            let mut priced = Priced::new(18, 0.0);
            let found = search(&mut priced, &constraints, settings(0), n);
            assert_eq!(found.removed, sleb(&priced, n), "{n} blocks");
            let of_sleb: usize = (0..n).map(|i| (N_BLOCKS - i) * 18).sum();
            assert!(
                priced.n_measured < of_sleb * 6 / 10,
                "{} {of_sleb}",
                priced.n_measured
            );
            assert!((found.loss.kl - priced.total(&found.removed)).abs() < 1e-9);
        }
    }

    #[test]
    fn swaps_end_where_no_swap_is_better_and_never_lose() {
        let constraints = constraints();
        for n in 2..6 {
            let mut priced = Priced::new(1, 0.3);
            let greedy = search(&mut priced, &constraints, settings(0), n);
            let swapped = search(&mut priced, &constraints, settings(50), n);
            let best = priced.total(&swapped.removed);
            assert!(best <= priced.total(&greedy.removed));
            for set in moves::swaps(&constraints, &Removed::new(), &swapped.removed) {
                assert!(priced.total(&set) >= best);
            }
        }
    }

    #[test]
    fn a_wide_beam_finds_the_best_set_of_all() {
        let constraints = constraints();
        let mut priced = Priced::new(1, 0.3);
        let all = Settings {
            beam: 1 << N_BLOCKS,
            ..settings(0)
        };
        let found = search(&mut priced, &constraints, all, 4);
        let best = (0u32..1 << N_BLOCKS)
            .filter(|bits| bits.count_ones() == 4)
            .map(|bits| {
                let on: Vec<_> = (0..N_BLOCKS).filter(|i| bits & (1 << i) != 0).collect();
                blocks(&on)
            })
            .min_by(|a, b| priced.total(a).total_cmp(&priced.total(b)))
            .unwrap();
        assert_eq!(found.removed, best);
    }

    #[test]
    fn only_allowed_sets_are_chosen() {
        let mut constraints = constraints();
        constraints.groups.push(Group {
            blocks: blocks(&[0]),
            what: "x",
        });
        constraints.places.push(Place::Last {
            may: (0..N_BLOCKS).map(|i| i % 3 == 2).collect(),
            why: "x",
        });
        let mut priced = Priced::new(2, 0.3);
        let found = search(&mut priced, &constraints, settings(3), 3);
        assert!(constraints.check(&found.removed).is_ok());
        assert!(!found.removed.contains(&BlockId::new(0)));
    }

    #[test]
    fn kept_blocks_stay_and_a_number_out_of_reach_is_an_error() {
        let constraints = constraints();
        let keep = Settings {
            keep: blocks(&[0, 1, 2, 3, 4, 5]),
            ..settings(3)
        };
        let mut priced = Priced::new(1, 0.0);
        let found = search(&mut priced, &constraints, keep.clone(), 2);
        assert!(found.removed.is_disjoint(&keep.keep));
        let error = Search::new(&constraints, keep)
            .remove(&mut priced, 4, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert_eq!(error, "no allowed removal leads from 3 to 4 blocks");
    }
}
