//! A choice of types and blocks within a number of bytes. It goes by the sum of what each rung costs alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::alone::cut;
use super::knapsack::{self, Option as Item};
use super::maker::Maker;
use super::recipe::Types;
use super::removal::Removal;
use super::rungs::{Ladder, Rung};
use crate::measure::loss::Loss;
use crate::output::Parent;
use crate::plan::{Cut, Plan};

/// Tries to fill the bytes that the metadata leaves.
const N_TRIES: usize = 3;

/// Bytes of metadata for a tensor in another type beside its name: a hash in hexadecimal, and two lengths.
const HASH_BYTES: u64 = 64 + 16;

/// Bytes of metadata for a fit, and for each block.
const ENTRY_BYTES: (u64, u64) = (512, 32);

/// Factors by which rungs cost more than alone, by group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Factors(pub(super) BTreeMap<Group, f64>);

/// Tensors that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Those of this name in all blocks.
    Kind(String),
    /// Those of the blocks of this third of the model.
    Third(usize),
}

/// Ladders with what their rungs cost alone.
pub(super) struct Problem<'p, 'a> {
    pub(super) parent: Parent<'a>,
    pub(super) ladders: &'p [Ladder],
    /// The mean KL divergence of each rung of each ladder, in nats.
    pub(super) losses: &'p [Vec<f64>],
    pub(super) maker: &'p Maker<'a, 'a>,
    pub(super) imatrix: Option<blake3::Hash>,
}

/// A choice, before or after it is measured as a whole.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) removal: Removal,
    pub(super) factors: Factors,
    /// The tensors in other types.
    pub(super) types: Types,
    /// The sum of losses, in nats, without factors.
    pub(super) expected: f64,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Whether no other choice has a lower sum.
    pub(super) exact: bool,
    /// As measured, window by window; empty before.
    pub(super) losses: Vec<Loss>,
}

impl Candidate {
    /// The mean KL divergence as measured, in nats; not finite before.
    pub(super) fn kl(&self) -> f64 {
        match self.losses.is_empty() {
            true => f64::INFINITY,
            false => self.losses.iter().copied().sum::<Loss>().kl_divergence(),
        }
    }
}

impl Problem<'_, '_> {
    /// The bytes of the smallest file without `removal`.
    pub(super) fn smallest(&self, removal: &Removal) -> Result<u64> {
        let ladders = self.kept(removal);
        let of = |ladder: &usize| {
            let last = self.ladders[*ladder].rungs.last();
            last.map_or(0, |rung| self.bytes(*ladder, rung, removal))
        };
        Ok(self.fixed(removal, &ladders)? + ladders.iter().map(of).sum::<u64>())
    }

    /// The choice of least summed losses within `target` bytes, without `removal`. `None` if there is none so small.
    pub(super) fn within(
        &self,
        target: u64,
        removal: &Removal,
        factors: &Factors,
    ) -> Result<Option<Candidate>> {
        let ladders = self.kept(removal);
        let fixed = self.fixed(removal, &ladders)?;
        let items: Vec<Vec<Item>> =
            ladders.iter().map(|ladder| self.items(*ladder, removal, factors)).collect();
        let (mut budget, mut best) = (target.saturating_sub(fixed), None);
        for _ in 0..N_TRIES {
            let Some(choice) = knapsack::choose(&items, budget) else {
                break;
            };
            let found = self.candidate(removal, factors, &ladders, &choice)?;
            // What the metadata leaves is filled; what it takes too much is given back.
            let next = match target.checked_sub(found.bytes) {
                Some(left) => choice.bytes.max(budget) + left,
                None => budget.saturating_sub(found.bytes - target),
            };
            let is_better = |best: &Candidate| found.expected < best.expected;
            if found.bytes <= target && best.as_ref().is_none_or(is_better) {
                best = Some(found);
            } else if best.is_some() {
                break;
            }
            if next == budget {
                break;
            }
            budget = next;
        }
        Ok(best)
    }

    /// Bytes and least sum of losses within about `target`, with all blocks.
    pub(super) fn sum_within(&self, target: u64) -> Result<Option<(u64, f64)>> {
        let none = Removal::default();
        let ladders = self.kept(&none);
        let fixed = self.fixed(&none, &ladders)?;
        let items: Vec<Vec<Item>> =
            ladders.iter().map(|i| self.items(*i, &none, &Factors::default())).collect();
        let choice = knapsack::choose(&items, target.saturating_sub(fixed));
        Ok(choice.map(|choice| (fixed + choice.bytes, choice.loss)))
    }

    /// The ladders of tensors that stay.
    fn kept(&self, removal: &Removal) -> Vec<usize> {
        let tensors = self.parent.model.tensors();
        (0..self.ladders.len()).filter(|&i| !removal.takes(&tensors[self.ladders[i].source])).collect()
    }

    /// Bytes of all but the tensors of `ladders`. Metadata for those are included.
    fn fixed(&self, removal: &Removal, ladders: &[usize]) -> Result<u64> {
        let plan = Plan::draft(self.parent.model, self.parent.constraints, &removal.cut())?;
        let own: u64 = ladders.iter().map(|i| self.bytes(*i, &self.ladders[*i].rungs[0], removal)).sum();
        let tensors = self.parent.model.tensors();
        let name = |i: &usize| tensors[self.ladders[*i].source].info.name().len() as u64 + HASH_BYTES;
        let entries = ENTRY_BYTES.0 + ENTRY_BYTES.1 * self.parent.model.n_blocks() as u64;
        let names: u64 = ladders.iter().map(name).sum();
        Ok(plan.layout.file_len().saturating_sub(own) + names + entries)
    }

    /// Bytes of a rung without `removal`, up to the next tensor.
    fn bytes(&self, ladder: usize, rung: &Rung, removal: &Removal) -> u64 {
        let tensor = &self.parent.model.tensors()[self.ladders[ladder].source];
        let (kept, all) = removal.share_of(tensor);
        (rung.bytes / all * kept).next_multiple_of(self.parent.model.first().alignment().max(1))
    }

    /// The rungs of a ladder.
    fn items(&self, ladder: usize, removal: &Removal, factors: &Factors) -> Vec<Item> {
        let Ladder { block, kind, rungs, .. } = &self.ladders[ladder];
        let mut factor = factors.0.get(&Group::Kind(kind.clone())).copied().unwrap_or(1.0);
        if let Some(block) = block {
            let third = 3 * block.index() / self.parent.model.n_trunk_blocks().max(1);
            factor *= factors.0.get(&Group::Third(third)).copied().unwrap_or(1.0);
        }
        let rungs = rungs.iter().zip(&self.losses[ladder]);
        let bytes = |rung| self.bytes(ladder, rung, removal);
        rungs.map(|(rung, loss)| Item { bytes: bytes(rung), loss: factor * loss }).collect()
    }

    fn candidate(
        &self,
        removal: &Removal,
        factors: &Factors,
        ladders: &[usize],
        choice: &knapsack::Choice,
    ) -> Result<Candidate> {
        let picked = || ladders.iter().zip(&choice.picks);
        let types: Types = picked()
            .filter_map(|(i, pick)| Some((self.ladders[*i].source, self.ladders[*i].rungs[*pick].to?)))
            .collect();
        let losses = picked().map(|(i, pick)| self.losses[*i][*pick]).sum::<f64>();
        let candidate = self.of_types(removal, types).context("bug: a choice that cannot be planned")?;
        let (expected, factors) = (removal.kl + losses, factors.clone());
        Ok(Candidate { expected, factors, exact: choice.exact, ..candidate })
    }

    /// The choice of these types.
    pub(super) fn of_types(&self, removal: &Removal, types: Types) -> Result<Candidate> {
        let candidate = Candidate {
            removal: removal.clone(),
            factors: Factors::default(),
            types,
            expected: removal.kl,
            bytes: 0,
            exact: false,
            losses: Vec::new(),
        };
        let cut = self.cut(&candidate)?;
        let plan = Plan::draft(self.parent.model, self.parent.constraints, &cut)?;
        Ok(Candidate { bytes: plan.layout.file_len(), ..candidate })
    }

    /// The cut that a candidate stands for.
    pub(super) fn cut(&self, candidate: &Candidate) -> Result<Cut> {
        let tensors = self.maker.all(&candidate.types)?;
        Ok(cut(self.parent.model, &candidate.removal, tensors, self.imatrix))
    }
}
