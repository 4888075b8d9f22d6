//! A choice changed as long as that helps, measured as a whole.
//!
//! Losses of single tensors do not add up exactly: some kinds of tensors, or some depths, cost more together than alone. So the
//! losses of one kind, or of one third of the blocks, are taken to be larger or smaller, the choice is made again within the same
//! bytes, and the better one stays. Each trial swaps rungs between many tensors at once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::alone::losses;
use super::candidate::{Candidate, Group, Problem};
use super::notebook::Notebook;
use super::removal::Removal;
use super::whole::Whole;
use crate::gguf::TensorType;
use crate::measure::loss::Loss;
use crate::plan::ChangedTensors;
use crate::watch::{Unit, Watch};

/// By how much losses are taken to be larger, or smaller.
const STEP: f64 = 2.0;

/// What measures choices as they are shipped.
pub(super) struct Measuring<'r, 'p, 'a, 'w> {
    pub(super) problem: &'r Problem<'p, 'a>,
    pub(super) whole: &'r Whole<'a>,
    pub(super) notebook: &'r mut Notebook<'w>,
    pub(super) watch: &'r dyn Watch,
    /// All choices that were measured.
    pub(super) tried: Vec<Candidate>,
}

impl Measuring<'_, '_, '_, '_> {
    /// The same removal with its loss, all types as they are.
    pub(super) fn removal(&mut self, removal: Removal) -> Result<Removal> {
        let losses = losses(self.whole, self.notebook, &removal, "", &|| Ok(ChangedTensors::new()))?;
        Ok(Removal { kl: losses.into_iter().sum::<Loss>().kl_divergence(), ..removal })
    }

    /// Measures a choice.
    pub(super) fn measure(&mut self, candidate: Candidate) -> Result<Candidate> {
        let (removal, types) = (&candidate.removal, &candidate.types);
        let tensors = || self.problem.maker.all(types);
        let losses = losses(self.whole, self.notebook, removal, &format!("{types:?}"), &tensors)?;
        let measured = Candidate { losses, ..candidate };
        self.tried.push(measured.clone());
        Ok(measured)
    }

    /// Tries `n_trials` changes of `best` at most.
    pub(super) fn correct(&mut self, best: Candidate, target: u64, n_trials: usize) -> Result<Candidate> {
        let mut best = best;
        let groups = self.groups(&best.types);
        let mut seen: BTreeSet<BTreeMap<usize, u32>> = BTreeSet::from([ids(&best.types)]);
        let bar = self.watch.begin("correcting".into(), Unit::Losses, n_trials as u64);
        let mut n_left = n_trials;
        loop {
            let before = best.kl();
            for group in &groups {
                for step in [STEP, 1.0 / STEP] {
                    if n_left == 0 {
                        return Ok(best);
                    }
                    let trial = self.trial(&best, target, group, step)?;
                    let Some(trial) = trial.filter(|trial| seen.insert(ids(&trial.types))) else {
                        continue;
                    };
                    n_left -= 1;
                    let trial = self.measure(trial)?;
                    bar.advance(1);
                    if trial.kl() < best.kl() {
                        best = trial;
                        break;
                    }
                }
            }
            if best.kl() >= before {
                return Ok(best);
            }
        }
    }

    /// The choice where `group` is taken to cost `step` times as much.
    fn trial(&self, best: &Candidate, target: u64, group: &Group, step: f64) -> Result<Option<Candidate>> {
        let mut factors = best.factors.clone();
        *factors.0.entry(group.clone()).or_insert(1.0) *= step;
        self.problem.within(target, &best.removal, &factors)
    }

    /// The groups with tensors in other types, those with most bytes first.
    fn groups(&self, types: &BTreeMap<usize, TensorType>) -> Vec<Group> {
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for ladder in self.problem.ladders.iter().filter(|ladder| types.contains_key(&ladder.source)) {
            *kinds.entry(&ladder.kind).or_default() += ladder.rungs[0].bytes;
        }
        let mut kinds: Vec<(&str, u64)> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let kinds = kinds.into_iter().map(|(kind, _)| Group::Kind(kind.to_owned()));
        (0..3).map(Group::Third).chain(kinds).collect()
    }
}

fn ids(types: &BTreeMap<usize, TensorType>) -> BTreeMap<usize, u32> {
    types.iter().map(|(source, to)| (*source, to.id())).collect()
}
