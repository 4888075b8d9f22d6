//! Ties: blocks that another text could move into the set or out of it.
//!
//! A chosen set is certain if every other allowed set is worse for certain.
//!
//! Where any blocks may go together, the set is the `n` lowest scores of the blocks that may go. It is certain if every removed
//! block is lower for certain than every kept one. Such a verdict on a wrong set contains a wrong one about the block `a` that
//! is the `n`-th in truth. If `a` was kept, a block that should stay was removed and found lower than `a`. If it was removed,
//! another that should go was kept and found higher than `a`. There is one comparison with `a` for each other block. So the
//! probability of error is divided by their number, not by that of pairs (as for comparisons with the best: Hsu 1981, Annals of
//! Statistics 9).
//!
//! Where rules allow only some sets, another set may differ in several blocks at once. Then every score has a confidence
//! interval, all of them right together. The set is certain if it is the best allowed one in the worst case (robust
//! optimisation: Bertsimas and Sim 2003). There its blocks have the upper and all others the lower ends. The search that chose
//! it finds that one, too. Since sets are equally large, intervals are those of scores over their mean in each window. The set
//! may still be the `n` lowest, so both are tried, each with half of the probability of error.

use std::collections::BTreeSet;

use super::Sample;
use crate::choose::removal;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::plan::Constraints;

/// How sure a chosen set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ties {
    /// The blocks that may go instead, or that may stay instead. None if the set is certain.
    pub tied: BlockSet,
}

/// A choice that was made by scores.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'c> {
    /// Which sets are allowed.
    pub constraints: &'c Constraints,
    /// Blocks that stay in any case.
    pub keep: &'c BlockSet,
    /// The best set.
    pub removed: &'c BlockSet,
}

impl Ties {
    /// Of a set chosen by `sample`'s scores, with error probability `alpha`.
    #[must_use]
    pub fn of(chosen: Chosen<'_>, sample: &Sample, alpha: f64) -> Self {
        let free: Vec<usize> = (0..sample.n_blocks())
            .filter(|&i| !removal::stays(chosen.constraints, chosen.keep, BlockId::new(i)))
            .collect();
        let is_removed = |&block: &usize| chosen.removed.contains(&BlockId::new(block));
        let (removed, kept): (Vec<usize>, Vec<usize>) = free.iter().partition(|b| is_removed(b));
        let may_bind = may_bind(chosen, &free);
        let alpha = if may_bind { alpha / 2.0 } else { alpha };
        let are_lowest =
            removed.iter().all(|&low| kept.iter().all(|&high| sample.score(low) <= sample.score(high)));
        let tied = match may_bind && !are_lowest {
            false => by_pairs(sample, &removed, &kept, alpha),
            true => by_intervals(chosen, sample, &free, alpha),
        };
        Self { tied: tied.into_iter().map(BlockId::new).collect() }
    }

    /// Whether no other set comes into question.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.tied.is_empty()
    }
}

/// Whether the rules may keep the lowest scores from going together. Does not depend on scores.
fn may_bind(chosen: Chosen<'_>, free: &[usize]) -> bool {
    let constraints = chosen.constraints;
    let may_go = |group: &BlockSet| {
        group.len() <= chosen.removed.len() && group.iter().all(|block| free.contains(&block.index()))
    };
    !constraints.trusted
        && (!constraints.places.is_empty() || constraints.groups.iter().any(|group| may_go(&group.blocks)))
}

/// The blocks of pairs whose order is not certain.
fn by_pairs(sample: &Sample, removed: &[usize], kept: &[usize], alpha: f64) -> BTreeSet<usize> {
    let alpha = alpha / count((removed.len() + kept.len()).saturating_sub(1).max(1));
    let mut tied = BTreeSet::new();
    for &low in removed {
        for &high in kept {
            if sample.p_value(low, high) >= alpha {
                tied.extend([low, high]);
            }
        }
    }
    tied
}

/// The blocks whose change may be better in the worst case. There all scores are at the wrong end of their intervals.
fn by_intervals(chosen: Chosen<'_>, sample: &Sample, free: &[usize], alpha: f64) -> BTreeSet<usize> {
    let n = chosen.removed.len();
    let is_removed = |block: usize| chosen.removed.contains(&BlockId::new(block));
    let p = alpha / count(2 * free.len().max(1));
    let mut scores: Vec<f64> = (0..sample.n_blocks()).map(|i| sample.score(i)).collect();
    for &block in free {
        let width = sample.half_width(block, free, p);
        scores[block] += if is_removed(block) { width } else { -width };
    }
    if scores.iter().any(|score| !score.is_finite()) {
        return free.iter().copied().collect();
    }
    let total = |set: &BlockSet| set.iter().map(|b| scores[b.index()]).sum::<f64>();
    let of_chosen = total(chosen.removed);
    // Enough to let a block go in any case.
    let most = 1.0 + 2.0 * scores.iter().map(|score| score.abs()).sum::<f64>();
    let changes = |&&block: &&usize| {
        let mut keep = chosen.keep.clone();
        let mut forced = scores.clone();
        if is_removed(block) {
            keep.insert(BlockId::new(block));
        } else {
            forced[block] -= most;
        }
        removal::lowest_if_any(chosen.constraints, &forced, &keep, n).is_some_and(|other| {
            other.contains(&BlockId::new(block)) != is_removed(block) && total(&other) <= of_chosen
        })
    };
    free.iter().filter(changes).copied().collect()
}

fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::choose::stability::sample::tests::of_windows;
    use crate::measure::noise::noise;
    use crate::model::block::blocks;
    use crate::plan::constraints::{Group, Place};

    /// Any set of `n_blocks`.
    pub fn constraints(n_blocks: usize) -> Constraints {
        Constraints::of_any_set(n_blocks)
    }

    /// Windows of scores around these. They are spread by `spread` in each block and as much in all blocks alike.
    pub fn windows(seed: u64, n: usize, scores: &[f64], spread: f64) -> Vec<Vec<f64>> {
        let mut next = noise(seed);
        // Nearly normal, with a variance of one.
        let mut normal = move || (0..6).map(|_| f64::from(next())).sum::<f64>() / 2f64.sqrt();
        (0..n)
            .map(|_| {
                let common = spread * normal();
                let of_block = |score: &f64| score + common + spread * normal();
                scores.iter().map(of_block).collect()
            })
            .collect()
    }

    fn ties(constraints: &Constraints, keep: &[usize], sample: &Sample, n: usize) -> Ties {
        let keep = blocks(keep);
        let scores: Vec<f64> = (0..sample.n_blocks()).map(|i| sample.score(i)).collect();
        let removed = removal::lowest(constraints, &scores, &keep, n).unwrap();
        let chosen = Chosen { constraints, keep: &keep, removed: &removed };
        Ties::of(chosen, sample, 0.01)
    }

    #[test]
    fn blocks_at_the_edge_are_tied_and_no_others() {
        let sample = of_windows(&windows(1, 40, &[5.0, 1.0, 3.0, 3.01, 9.0, 3.02], 0.5));
        let tied = |keep: &[usize], n| ties(&constraints(6), keep, &sample, n).tied;
        assert_eq!(tied(&[], 1), blocks(&[]));
        assert_eq!(tied(&[], 2), blocks(&[2, 3, 5]));
        assert_eq!(tied(&[], 3), blocks(&[2, 3, 5]));
        assert_eq!(tied(&[], 4), blocks(&[]));
        // What stays in any case is no alternative.
        assert_eq!(tied(&[3, 5], 2), blocks(&[]));
        assert_eq!(tied(&[2], 2), blocks(&[3, 5]));
        // Of a group as large as the set one stays: without the rule 2, 3 and 5 would go before 0.
        let mut grouped = constraints(6);
        grouped.groups.push(Group { blocks: blocks(&[1, 2]), what: "x" });
        let found = ties(&grouped, &[], &sample, 2);
        assert!(found.tied.contains(&BlockId::new(3)) && !found.is_certain());
        assert!(!found.tied.contains(&BlockId::new(4)));
    }

    #[test]
    fn worst_cases_are_those_of_all_allowed_sets() {
        const N: usize = 7;
        let mut constraints = constraints(N);
        constraints.places.push(Place::Last { may: (0..N).map(|i| i % 3 == 1).collect(), why: "x" });
        constraints.groups.push(Group { blocks: blocks(&[0, 2]), what: "x" });
        let (mut n_tied, mut n_certain) = (0, 0);
        for seed in 0..60 {
            let mut next = noise(1000 + seed);
            let scores: Vec<f64> = (0..N).map(|_| f64::from(next())).collect();
            let sample = of_windows(&windows(seed, 30, &scores, 0.2));
            for n in 2..5 {
                let means: Vec<f64> = (0..N).map(|i| sample.score(i)).collect();
                let removed = removal::lowest(&constraints, &means, &blocks(&[]), n).unwrap();
                let chosen = Chosen { constraints: &constraints, keep: &blocks(&[]), removed: &removed };
                let free: Vec<usize> = (0..N).collect();
                let found = by_intervals(chosen, &sample, &free, 0.01);
                // Every allowed set, at the wrong ends of the intervals.
                let worst = |i: usize| {
                    let width = sample.half_width(i, &free, 0.01 / 14.0);
                    let sign = if removed.contains(&BlockId::new(i)) { 1.0 } else { -1.0 };
                    sample.score(i) + sign * width
                };
                let total = |set: &BlockSet| set.iter().map(|b| worst(b.index())).sum::<f64>();
                let mut expected = BTreeSet::new();
                for bits in 0u32..1 << N {
                    let on: Vec<_> = (0..N).filter(|i| bits & (1 << i) != 0).collect();
                    let set = blocks(&on);
                    if on.len() == n && constraints.check(&set).is_ok() && total(&set) <= total(&removed) {
                        expected.extend(set.symmetric_difference(&removed).map(|b| b.index()));
                    }
                }
                assert_eq!(found, expected, "seed {seed}, {n} blocks");
                n_tied += usize::from(!found.is_empty());
                n_certain += usize::from(found.is_empty());
            }
        }
        assert!(n_tied > 20 && n_certain > 20, "{n_tied} {n_certain}");
    }

    #[test]
    fn ties_are_marked_wrongly_certain_no_more_often_than_said() {
        // Three blocks whose scores are the same in truth: whichever goes, no order of them is certain.
        let scores = [1.0, 2.0, 2.0, 2.0, 3.0];
        let runs = 2000u32;
        let wrong = (0..runs)
            .filter(|&seed| {
                let sample = of_windows(&windows(u64::from(seed), 12, &scores, 0.5));
                let keep = blocks(&[]);
                let removed = removal::lowest(
                    &constraints(5),
                    &(0..5).map(|i| sample.score(i)).collect::<Vec<_>>(),
                    &keep,
                    2,
                );
                let chosen = Chosen { constraints: &constraints(5), keep: &keep, removed: &removed.unwrap() };
                Ties::of(chosen, &sample, 0.1).is_certain()
            })
            .count();
        // At most 10 %; without a division by the number of comparisons it would be more.
        assert!(wrong <= 200, "{wrong} of {runs}");
        assert!(wrong > 0);
    }
}
