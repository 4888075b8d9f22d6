//! Search: the blocks whose removal costs least when it is measured.
//!
//! SLEB (Song et al. 2024, arXiv:2402.09025) removes, one after another, the block without which the loss is smallest, and
//! measures all that are left again after each. The same here, with four savings and one addition:
//! - what candidates have in common is evaluated once ([`crate::engine::segment::Chain`]);
//! - After the first removal only blocks are tried that cost little when they were measured last. What a removal costs changes
//!   with those before it, but its rank changes little.
//! - all candidates are measured on a few windows, the better third on more, and only the best on all (successive halving:
//!   Jamieson and Talwalkar 2016, arXiv:1502.07943);
//! - a measurement is never made twice ([`measure::Memo`]);
//! - at the end, removed blocks change places with kept ones as long as that lowers the loss.
//!
//! In reading order: [`crate::measure::loss`] says what is measured, [`measure`] measures, [`journal`] keeps measurements over
//! an interrupt. Then `race` finds the best of several sets, and `moves` says what can go next. [`goal`] stops a search where a
//! goal says so, and [`draft`] is the worth of a draft model.

pub mod measure;

pub mod journal;

mod race;

mod moves;

pub mod goal;

pub mod draft;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::measure::loss::{Loss, Objective, TaskLoss};
use crate::model::block::BlockSet;
use crate::plan::Constraints;
pub use goal::{Bound, Goal, Growth};
pub use measure::{Measure, Memo, Record};
use race::{best_of, n_contenders};
pub use race::{expected_losses, race};

/// How a search looks for a set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The objective.
    pub objective: Objective,
    /// Blocks that stay.
    pub keep: BlockSet,
    /// How many sets are carried from one removal to the next. 1 is greedy.
    pub beam: usize,
    /// Most exchanges of a removed and a kept block at the end.
    pub swaps: usize,
}

/// A set and its loss over all windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The blocks to remove.
    pub removed: BlockSet,
    /// Its loss.
    pub loss: Loss,
    /// Its loss in tasks; `None` unless they are the objective.
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

/// Measures a set on all windows, and in tasks for that objective.
///
/// # Errors
/// Those of `measure`.
pub fn measured(measure: &mut dyn Measure, removed: BlockSet, objective: Objective) -> Result<Measured> {
    let set = std::slice::from_ref(&removed);
    let losses = measure.losses(measure.n_windows(), set)?;
    let tasks = match objective {
        Objective::Task => measure.tasks(set)?.first().copied(),
        _ => None,
    };
    Ok(Measured { removed, loss: losses.into_iter().sum(), tasks })
}

/// One removal after another, from none. Each call of [`Search::step`] removes one block more, or where no single one may
/// go, a run of them.
pub struct Search<'c> {
    constraints: &'c Constraints,
    settings: Settings,
    beam: Vec<Measured>,
    /// What has been tried in addition to a set, cheapest first. It goes by what it cost when it was measured last.
    ranking: Vec<BlockSet>,
}

impl<'c> Search<'c> {
    /// Begins with all blocks in place.
    #[must_use]
    pub fn new(constraints: &'c Constraints, settings: Settings) -> Self {
        let nothing = Measured { removed: BlockSet::new(), loss: Loss::default(), tasks: None };
        Self { constraints, settings, beam: vec![nothing], ranking: Vec::new() }
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
        // Each with what is new in it.
        let mut candidates: BTreeMap<BlockSet, BlockSet> = BTreeMap::new();
        for from in &self.beam {
            let next = moves::next(self.constraints, &self.settings.keep, &from.removed, most);
            for set in self.contenders(&from.removed, next) {
                let new = &set - &from.removed;
                candidates.insert(set, new);
            }
        }
        if candidates.is_empty() {
            return Ok(false);
        }
        let raced = best_of(
            measure,
            self.settings.objective,
            candidates.keys().cloned().collect(),
            self.settings.beam,
        )?;
        let mut ranking: Vec<BlockSet> = Vec::new();
        let tried = raced.ranking.iter().filter_map(|set| candidates.get(set));
        for new in tried.chain(&self.ranking) {
            if !ranking.contains(new) {
                ranking.push(new.clone());
            }
        }
        self.ranking = ranking;
        self.beam = raced.best;
        Ok(true)
    }

    /// Those of `sets` that are worth a measurement. What they have beside `from` was never tried, or was among what cost
    /// least.
    fn contenders(&self, from: &BlockSet, sets: Vec<BlockSet>) -> Vec<BlockSet> {
        let place = |set: &BlockSet| {
            let new = set - from;
            self.ranking.iter().position(|tried| *tried == new)
        };
        let places: BTreeSet<usize> = sets.iter().filter_map(place).collect();
        let last = places.iter().take(n_contenders(places.len())).next_back();
        sets.into_iter().filter(|set| place(set) <= last.copied()).collect()
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
                bail!("no allowed removal leads from {} to {n} blocks", self.best().removed.len());
            }
            progress(self.best());
        }
        let greedy = self.best().clone();
        self.swap(measure, &greedy, &mut goal::Unbound, progress)
    }

    /// Lets blocks of `from` change places with kept ones. That goes on as long as it lowers the loss and stays within `bound`.
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
            let sets = moves::swaps(self.constraints, &self.settings.keep, &best.removed);
            for set in self.contenders(&best.removed, sets) {
                if bound.may(&set)? {
                    candidates.push(set);
                }
            }
            if candidates.is_empty() {
                break;
            }
            let found = best_of(measure, objective, candidates, 1)?;
            match found.best.into_iter().next() {
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
    use super::race::SHORTLIST;
    use super::*;
    use crate::model::BlockId;
    use crate::model::block::blocks;
    use crate::plan::constraints::{Group, Place};

    pub const N_BLOCKS: usize = 9;

    pub fn constraints() -> Constraints {
        Constraints::of_any_set(N_BLOCKS)
    }

    pub fn settings(swaps: usize) -> Settings {
        Settings { objective: Objective::Kl, keep: BlockSet::new(), beam: 1, swaps }
    }

    /// A loss that is known. Each block has a price in each window, and some pairs cost more together.
    pub struct Priced {
        n_windows: usize,
        /// By how much a price differs from window to window.
        noise: f64,
        pub n_measured: usize,
    }

    impl Priced {
        pub fn new(n_windows: usize, noise: f64) -> Self {
            Self { n_windows, noise, n_measured: 0 }
        }

        fn loss(&self, set: &BlockSet, window: usize) -> f64 {
            let number = |i: usize| ((i * 7919 + 104_729) % 1009) as f64 / 1009.0;
            let single: f64 = set
                .iter()
                .map(|block| number(block.index()) + self.noise * number(block.index() * 31 + window * 17))
                .sum();
            let pairs: f64 = set
                .iter()
                .flat_map(|a| set.iter().map(move |b| (a.index(), b.index())))
                .filter(|(a, b)| a < b)
                .map(|(a, b)| number(a * 101 + b * 13) * 0.8)
                .sum();
            single + pairs
        }

        pub fn total(&self, set: &BlockSet) -> f64 {
            (0..self.n_windows).map(|window| self.loss(set, window)).sum()
        }
    }

    impl Measure for Priced {
        fn n_windows(&self) -> usize {
            self.n_windows
        }

        #[expect(clippy::cast_possible_truncation, reason = "a share of a million")]
        fn losses(&mut self, n_windows: usize, sets: &[BlockSet]) -> Result<Vec<Loss>> {
            self.n_measured += sets.len() * n_windows;
            Ok(sets
                .iter()
                .map(|set| {
                    let kl: f64 = (0..n_windows).map(|window| self.loss(set, window)).sum();
                    // The higher the loss, the more seldom both agree.
                    let same = 1e6 * (-kl / n_windows as f64 / 4.0).exp() * n_windows as f64;
                    Loss {
                        n_tokens: 1_000_000 * n_windows as u64,
                        kl: 1e6 * kl,
                        n_same_top: same as u64,
                        ..Loss::default()
                    }
                })
                .collect())
        }

        /// The sum of block numbers stands for the cross entropy of tasks. Of sets of the same size the lower one is better.
        fn tasks(&mut self, sets: &[BlockSet]) -> Result<Vec<TaskLoss>> {
            Ok(sets
                .iter()
                .map(|set| TaskLoss {
                    n_tasks: 1,
                    n_correct: 0,
                    cross_entropy: set.iter().map(|block| block.index()).sum::<usize>() as f64,
                })
                .collect())
        }
    }

    /// SLEB's loop as its paper has it: all that are left are measured on everything.
    fn sleb(priced: &Priced, n_blocks: usize, n: usize) -> BlockSet {
        let mut removed = BlockSet::new();
        while removed.len() < n {
            let with = |block: usize| {
                let mut set = removed.clone();
                set.insert(BlockId::new(block));
                set
            };
            removed = (0..n_blocks)
                .filter(|&block| !removed.contains(&BlockId::new(block)))
                .map(with)
                .min_by(|a, b| priced.total(a).total_cmp(&priced.total(b)))
                .unwrap();
        }
        removed
    }

    fn search(priced: &mut Priced, constraints: &Constraints, settings: Settings, n: usize) -> Measured {
        Search::new(constraints, settings).remove(priced, n, &mut |_| {}).unwrap()
    }

    #[test]
    fn without_swaps_and_noise_it_is_sleb_for_less() {
        let constraints = constraints();
        for n in 1..N_BLOCKS - 1 {
            let mut priced = Priced::new(18, 0.0);
            let found = search(&mut priced, &constraints, settings(0), n);
            assert_eq!(found.removed, sleb(&priced, N_BLOCKS, n), "{n} blocks");
            let of_sleb: usize = (0..n).map(|i| (N_BLOCKS - i) * 18).sum();
            assert!(priced.n_measured < of_sleb * 6 / 10, "{} {of_sleb}", priced.n_measured);
            assert!((found.loss.kl / 1e6 - priced.total(&found.removed)).abs() < 1e-9);
        }
    }

    #[test]
    fn with_few_contenders_and_swaps_it_is_no_worse_than_sleb_for_less() {
        const N_ALL: usize = 30;
        let constraints = Constraints::of_any_set(N_ALL);
        let (mut all_ours, mut all_theirs) = (0.0, 0.0);
        for n in 2..=10 {
            let mut priced = Priced::new(18, 0.3);
            let found = search(&mut priced, &constraints, settings(2), n);
            let of_sleb = sleb(&priced, N_ALL, n);
            let (ours, theirs) = (priced.total(&found.removed), priced.total(&of_sleb));
            assert!(ours <= 1.1 * theirs, "{n}: {ours} {theirs}");
            all_ours += ours;
            all_theirs += theirs;
            let n_of_sleb: usize = (0..n).map(|i| (N_ALL - i) * 18).sum();
            assert!(priced.n_measured < n_of_sleb * 6 / 10, "{n}: {} {n_of_sleb}", priced.n_measured);
        }
        assert!(all_ours <= all_theirs, "{all_ours} {all_theirs}");
    }

    #[test]
    fn what_was_never_tried_is_a_contender() {
        let constraints = Constraints::of_any_set(30);
        let mut search = Search::new(&constraints, settings(0));
        search.ranking = (0..29).map(|block| blocks(&[block])).collect();
        let sets = moves::next(&constraints, &BlockSet::new(), &BlockSet::new(), 30);
        let found: Vec<BlockSet> = search.contenders(&BlockSet::new(), sets);
        let expected: Vec<BlockSet> = (0..15).chain([29]).map(|block| blocks(&[block])).collect();
        assert_eq!(found, expected);
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
            for set in moves::swaps(&constraints, &BlockSet::new(), &swapped.removed) {
                assert!(priced.total(&set) >= best);
            }
        }
    }

    #[test]
    fn a_wide_beam_finds_the_best_set_of_all() {
        let constraints = constraints();
        let mut priced = Priced::new(1, 0.3);
        let all = Settings { beam: 1 << N_BLOCKS, ..settings(0) };
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
        constraints.groups.push(Group { blocks: blocks(&[0]), what: "x" });
        constraints.places.push(Place::Last { may: (0..N_BLOCKS).map(|i| i % 3 == 2).collect(), why: "x" });
        let mut priced = Priced::new(2, 0.3);
        let found = search(&mut priced, &constraints, settings(3), 3);
        assert!(constraints.check(&found.removed).is_ok());
        assert!(!found.removed.contains(&BlockId::new(0)));
    }

    #[test]
    fn kept_blocks_stay_and_a_number_out_of_reach_is_an_error() {
        let constraints = constraints();
        let keep = Settings { keep: blocks(&[0, 1, 2, 3, 4, 5]), ..settings(3) };
        let mut priced = Priced::new(1, 0.0);
        let found = search(&mut priced, &constraints, keep.clone(), 2);
        assert!(found.removed.is_disjoint(&keep.keep));
        let error =
            Search::new(&constraints, keep).remove(&mut priced, 4, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(error, "no allowed removal leads from 3 to 4 blocks");
    }

    /// Counts each pair of a set and a window once.
    struct Counted(Priced, BTreeSet<(BlockSet, usize)>);

    impl Measure for Counted {
        fn n_windows(&self) -> usize {
            self.0.n_windows()
        }

        fn losses(&mut self, n_windows: usize, sets: &[BlockSet]) -> Result<Vec<Loss>> {
            for set in sets {
                self.1.extend((0..n_windows).map(|window| (set.clone(), window)));
            }
            self.0.losses(n_windows, sets)
        }
    }

    #[test]
    fn the_expected_number_of_losses_is_that_of_a_greedy_search() {
        let constraints = constraints();
        for n_windows in [1, 2, 5, 9, 16, 18] {
            for n in 1..N_BLOCKS - 1 {
                let mut counted = Counted(Priced::new(n_windows, 0.1), BTreeSet::new());
                let mut search = Search::new(&constraints, settings(0));
                let mut last = None;
                search
                    .remove(&mut counted, n, &mut |best| {
                        last = Some(best.removed.len());
                    })
                    .unwrap();
                assert_eq!(last, Some(n));
                let expected = expected_losses(&settings(0), N_BLOCKS, 0..n, n_windows);
                assert_eq!(counted.1.len() as u64, expected, "{n} {n_windows}");
            }
        }
        assert_eq!(expected_losses(&settings(0), N_BLOCKS, 3..3, 16), 0);
    }

    #[test]
    fn tasks_decide_among_the_few_with_the_lowest_divergence() {
        let constraints = constraints();
        let mut priced = Priced::new(1, 0.3);
        let task = Settings { objective: Objective::Task, ..settings(0) };
        let mut search = Search::new(&constraints, task);
        assert!(search.step(&mut priced, 1).unwrap());
        let mut singles: Vec<BlockSet> = (0..N_BLOCKS).map(|i| blocks(&[i])).collect();
        singles.sort_by(|a, b| priced.total(a).total_cmp(&priced.total(b)));
        let best = singles[..SHORTLIST].iter().min().unwrap();
        assert_eq!(&search.best().removed, best);
        assert_ne!(best, &singles[0]);
        assert!(search.best().tasks.is_some());
    }
}
