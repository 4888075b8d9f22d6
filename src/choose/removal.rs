//! The choice of blocks to remove.

use crate::error::Hint;
use crate::measure::importance::Importance;
use crate::model::BlockId;
use crate::model::block::{BlockSet, counted};
use crate::plan::Constraints;
use crate::plan::method::Method;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

/// Checks a request before anything is measured for it. There must be an allowed set of `n` blocks without those of `keep`.
///
/// # Errors
/// No allowed set of that size; a block of `keep` that does not exist.
pub fn check(constraints: &Constraints, keep: &BlockSet, n: usize) -> Result<()> {
    // Whether there is a set does not depend on the scores.
    let scores = vec![0.0; constraints.n_trunk_blocks];
    lowest(constraints, &scores, keep, n).map(|_| ())
}

/// Chooses the allowed set of `n` blocks with the lowest total score. None of its blocks is of `keep`. Of equal scores the
/// later block goes.
///
/// # Errors
/// As [`check`]; a method that needs scores without any.
pub fn choose(
    constraints: &Constraints,
    method: Method,
    importance: Option<&Importance>,
    keep: &BlockSet,
    n: usize,
) -> Result<BlockSet> {
    let scores = method.scores(importance, constraints.n_trunk_blocks)?;
    lowest(constraints, &scores, keep, n)
}

/// Numbers of blocks that are tried where the wanted number is refused. Each takes a search, which for 512 blocks takes some
/// hundredths of a second.
const N_TRIED: usize = 16;

/// As [`choose`], by the total of `scores`, one for each block.
///
/// # Errors
/// As [`check`].
pub fn lowest(constraints: &Constraints, scores: &[f64], keep: &BlockSet, n: usize) -> Result<BlockSet> {
    let n_blocks = constraints.n_trunk_blocks;
    ensure!(scores.len() == n_blocks, "bug: {} scores for {n_blocks} blocks", scores.len());
    ensure!(n > 0, "nothing to remove: 0 blocks were asked for");
    ensure!(
        n < n_blocks,
        "cannot remove {}: the model has {n_blocks}, and at least one must stay",
        counted(n)
    );
    constraints.check_count(n)?;
    let stays = |block: BlockId| stays(constraints, keep, block);
    let n_staying = (0..n_blocks).filter(|&i| stays(BlockId::new(i))).count();
    ensure!(n_blocks - n_staying >= n, "cannot remove {}: {n_staying} of {n_blocks} must stay", counted(n));
    let found = Search::new(constraints, scores, &stays, n_blocks - n).best();
    found
        .with_context(|| {
            let mut others: Vec<usize> = (1..n_blocks).filter(|&other| other != n).collect();
            others.sort_by_key(|other| other.abs_diff(n));
            let all_tried = others.len() <= N_TRIED;
            let nearest = others.into_iter().take(N_TRIED).find(|&other| {
                constraints.check_count(other).is_ok()
                    && Search::new(constraints, scores, &stays, n_blocks - other).best().is_some()
            });
            match nearest {
                Some(other) => format!(
                    "no set of {} may be removed from this model; the nearest number that may is {other}",
                    counted(n)
                ),
                None if all_tried => "no set of blocks may be removed from this model".to_owned(),
                None => format!(
                    "no set of {} may be removed from this model, nor of any number near {n}",
                    counted(n)
                ),
            }
        })
        .map_err(|error| match constraints.portable {
            true => error
                .context(Hint("without --portable a list keeps what the pattern would change".to_owned())),
            false => error,
        })
}

/// As [`lowest`]; `None` where there is no such set, without looking for a reason.
#[must_use]
pub fn lowest_if_any(
    constraints: &Constraints,
    scores: &[f64],
    keep: &BlockSet,
    n: usize,
) -> Option<BlockSet> {
    let n_blocks = constraints.n_trunk_blocks;
    if n == 0 || n >= n_blocks || scores.len() != n_blocks || constraints.check_count(n).is_err() {
        return None;
    }
    let stays = |block: BlockId| stays(constraints, keep, block);
    Search::new(constraints, scores, &stays, n_blocks - n).best()
}

/// Whether a block stays in any case.
#[must_use]
pub fn stays(constraints: &Constraints, keep: &BlockSet, block: BlockId) -> bool {
    keep.contains(&block) || (!constraints.trusted && constraints.must_stay.contains_key(&block))
}

/// The allowed run of `n` blocks with the lowest score. Scores are by the first block of a run. No block of `keep` is in it. Of
/// equal scores the later run goes.
///
/// # Errors
/// As [`check`]; no allowed run.
pub fn best_run(constraints: &Constraints, scores: &[f64], keep: &BlockSet, n: usize) -> Result<BlockSet> {
    check(constraints, keep, n)?;
    scores
        .iter()
        .enumerate()
        .map(|(start, score)| {
            let run: BlockSet = (start..start + n).map(BlockId::new).collect();
            (score, run)
        })
        .filter(|(_, run)| run.is_disjoint(keep) && constraints.check(run).is_ok())
        .min_by(|(a, first), (b, second)| a.total_cmp(b).then(second.cmp(first)))
        .map(|(_, run)| run)
        .with_context(|| format!("no run of {n} consecutive blocks may be removed from this model"))
}

/// The allowed set of `wanted`'s size that differs in the fewest blocks. `None` if there is none. Blocks that go with any
/// cut are in neither.
#[must_use]
pub fn nearest(constraints: &Constraints, wanted: &BlockSet) -> Option<BlockSet> {
    let n_blocks = constraints.n_trunk_blocks;
    let n = wanted.difference(&constraints.dropped).count();
    if n == 0 || n >= n_blocks || constraints.check_count(n).is_err() {
        return None;
    }
    // Each block not wanted costs one, and a little by its distance.
    let cost = |i: usize| match wanted.contains(&BlockId::new(i)) {
        true => 0.0,
        false => {
            let distance = wanted.iter().map(|block| block.index().abs_diff(i)).min();
            1.0 + distance.unwrap_or(0) as f64 / 1e6
        }
    };
    let costs: Vec<f64> = (0..n_blocks).map(cost).collect();
    let stays = |block: BlockId| constraints.must_stay.contains_key(&block);
    Search::new(constraints, &costs, &stays, n_blocks - n).best()
}

/// The exact search for the allowed set with the lowest total score. It is a dynamic programme over blocks in order: how many
/// were kept so far, and of which groups one was kept (`n_blocks * n_kept * 2^groups` states).
struct Search<'s> {
    constraints: &'s Constraints,
    scores: &'s [f64],
    stays: Vec<bool>,
    n_kept: usize,
    groups: &'s [crate::plan::constraints::Group],
    /// For each state the lowest total of what is still to come. Infinite where nothing allowed comes.
    lowest: Vec<f64>,
}

impl<'s> Search<'s> {
    fn new(
        constraints: &'s Constraints,
        scores: &'s [f64],
        stays: &dyn Fn(BlockId) -> bool,
        n_kept: usize,
    ) -> Self {
        let groups: &[_] = if constraints.trusted { &[] } else { &constraints.groups };
        let n = constraints.n_trunk_blocks;
        let n_states = ((n + 1) * (n_kept + 1)) << groups.len();
        let mut search = Self {
            constraints,
            scores,
            stays: (0..n).map(|i| stays(BlockId::new(i))).collect(),
            n_kept,
            groups,
            lowest: vec![f64::INFINITY; n_states],
        };
        search.fill();
        search
    }

    fn all_groups(&self) -> usize {
        (1 << self.groups.len()) - 1
    }

    /// `block` blocks are decided, `kept` of them kept. One was kept of every group in the set `groups`.
    fn state(&self, block: usize, kept: usize, groups: usize) -> usize {
        ((block * (self.n_kept + 1) + kept) << self.groups.len()) + groups
    }

    fn fill(&mut self) {
        let n = self.constraints.n_trunk_blocks;
        let end = self.state(n, self.n_kept, self.all_groups());
        self.lowest[end] = 0.0;
        for block in (0..n).rev() {
            for kept in 0..=self.n_kept.min(block) {
                for groups in 0..=self.all_groups() {
                    let keep = self.if_kept(block, kept, groups);
                    let remove = self.if_removed(block, kept, groups);
                    let state = self.state(block, kept, groups);
                    self.lowest[state] = keep.min(remove);
                }
            }
        }
    }

    fn if_kept(&self, block: usize, kept: usize, groups: usize) -> f64 {
        let id = BlockId::new(block);
        let fits = kept < self.n_kept
            && (self.constraints.trusted
                || self.constraints.places.iter().all(|place| place.allows(id, kept, self.n_kept)));
        if !fits {
            return f64::INFINITY;
        }
        self.lowest[self.state(block + 1, kept + 1, self.with_groups_of(id, groups))]
    }

    fn if_removed(&self, block: usize, kept: usize, groups: usize) -> f64 {
        if self.stays[block] {
            return f64::INFINITY;
        }
        self.scores[block] + self.lowest[self.state(block + 1, kept, groups)]
    }

    fn with_groups_of(&self, block: BlockId, groups: usize) -> usize {
        self.groups
            .iter()
            .enumerate()
            .filter(|(_, group)| group.blocks.contains(&block))
            .fold(groups, |groups, (at, _)| groups | 1 << at)
    }

    /// The best set; of equal totals the one whose blocks come later.
    fn best(&self) -> Option<BlockSet> {
        if self.lowest[self.state(0, 0, 0)].is_infinite() {
            return None;
        }
        let mut removed = BTreeSet::new();
        let (mut kept, mut groups) = (0, 0);
        for block in 0..self.constraints.n_trunk_blocks {
            let id = BlockId::new(block);
            if self.if_kept(block, kept, groups) <= self.if_removed(block, kept, groups) {
                groups = self.with_groups_of(id, groups);
                kept += 1;
            } else {
                removed.insert(id);
            }
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::importance::{BlockImportance, Each, Metric};
    use crate::measure::mean::Mean;
    use crate::model::block::blocks;
    use crate::plan::constraints::Group;

    fn constraints(n_blocks: usize) -> Constraints {
        Constraints::of_any_set(n_blocks)
    }

    fn importance(bi: &[f64]) -> Importance {
        let block = |(i, bi): (usize, &f64)| BlockImportance {
            block: BlockId::new(i),
            scores: Each::new(|metric| Mean {
                mean: if metric == Metric::BlockInfluence { *bi } else { -bi },
                stderr: None,
            }),
            n_zero_rows: 0,
            halves: None,
        };
        Importance {
            blocks: bi.iter().enumerate().map(block).collect(),
            n_windows: 1,
            n_tokens: 1,
            windows: Vec::new(),
            lorp: None,
        }
    }

    const SCORES: [f64; 5] = [0.9, 0.1, 0.4, 0.1, 0.3];

    #[test]
    fn lowest_scores_go_and_the_later_of_equals() {
        let of =
            |method, n| choose(&constraints(5), method, Some(&importance(&SCORES)), &blocks(&[]), n).unwrap();
        assert_eq!(of(Method::Bi, 1), blocks(&[3]));
        assert_eq!(of(Method::Bi, 3), blocks(&[1, 3, 4]));
        assert_eq!(of(Method::RelativeMagnitude, 2), blocks(&[0, 2]));
        assert_eq!(of(Method::Sequential, 2), blocks(&[3, 4]));
        assert_eq!(of(Method::Reverse, 2), blocks(&[0, 1]));
    }

    #[test]
    fn safe_takes_the_worse_of_two_scores() {
        let mut importance = importance(&[1.0, 2.0, 3.0, 4.0]);
        for (block, magnitude) in importance.blocks.iter_mut().zip([40.0, 30.0, 10.0, 20.0]) {
            block.scores[Metric::RelativeMagnitude].mean = magnitude;
        }
        // In standard deviations, with the mean in the middle: -1.34, -0.45, 0.45, 1.34 of one, 1.34, 0.45, -1.34, -0.45 of
        // the other; the larger ones are 1.34, 0.45, 0.45, 1.34.
        let of = |n| choose(&constraints(4), Method::Safe, Some(&importance), &blocks(&[]), n).unwrap();
        assert_eq!(of(2), blocks(&[1, 2]));
    }

    #[test]
    fn the_best_allowed_run_goes_and_the_later_of_equals() {
        let scores = [0.5, 0.2, 0.3, 0.2];
        let of = |keep: &[usize]| best_run(&constraints(5), &scores, &blocks(keep), 2);
        assert_eq!(of(&[]).unwrap(), blocks(&[3, 4]));
        assert_eq!(of(&[4]).unwrap(), blocks(&[1, 2]));
        assert_eq!(
            of(&[1, 3]).unwrap_err().to_string(),
            "no run of 2 consecutive blocks may be removed from this model"
        );
    }

    #[test]
    fn blocks_that_must_stay_stay() {
        let mut constraints = constraints(5);
        constraints.must_stay.insert(BlockId::new(3), "x".to_owned());
        let importance = importance(&SCORES);
        let of = |n| choose(&constraints, Method::Bi, Some(&importance), &blocks(&[1]), n);
        assert_eq!(of(2).unwrap(), blocks(&[2, 4]));
        assert_eq!(of(4).unwrap_err().to_string(), "cannot remove 4 blocks: 2 of 5 must stay");
    }

    #[test]
    fn one_of_a_group_stays_and_the_choice_is_the_best_of_all_allowed() {
        let mut constraints = constraints(5);
        constraints.groups.push(Group { blocks: blocks(&[1, 3, 4]), what: "x" });
        let importance = importance(&SCORES);
        for n in 1..=3 {
            let chosen = choose(&constraints, Method::Bi, Some(&importance), &blocks(&[]), n).unwrap();
            let total = |set: &BlockSet| set.iter().map(|b| SCORES[b.index()]).sum::<f64>();
            // Every subset of that size, tried.
            let best = (0u32..32)
                .map(|bits| {
                    let on: Vec<_> = (0..5).filter(|i| bits & (1 << i) != 0).collect();
                    blocks(&on)
                })
                .filter(|set| set.len() == n && constraints.check(set).is_ok())
                .map(|set| total(&set))
                .min_by(f64::total_cmp)
                .unwrap();
            assert!((total(&chosen) - best).abs() < 1e-12);
            assert!(constraints.check(&chosen).is_ok());
        }
    }

    #[test]
    fn impossible_counts_are_refused() {
        let error =
            |n| choose(&constraints(5), Method::Sequential, None, &blocks(&[]), n).unwrap_err().to_string();
        assert_eq!(error(5), "cannot remove 5 blocks: the model has 5, and at least one must stay");
        assert_eq!(error(0), "nothing to remove: 0 blocks were asked for");
    }
}
