//! Healing step by step: what a fit gains is measured on the windows that judge before the next one begins, and only what
//! makes the loss smaller stays.
//!
//! The stream before the block at hand is kept for all windows, of the parent and of the shortened model as it is healed so
//! far. So a measurement evaluates the blocks from there on, and of the parent the last one.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::Result;

use super::{Candidate, HealType, Healer, Streams, run_end};
use crate::heal::Weighting;
use crate::heal::carrier::Carrier;
use crate::heal::healer::walk::{Way, has_post_norms};
use crate::heal::normal::NormalEquations;
use crate::heal::ridge::{Fit, cross_fit};
use crate::measure::loss::{Loss, Objective};
use crate::model::BlockId;
use crate::plan::{AttentionCut, ChangedTensors, ChosenBy};

/// Blocks behind a cut whose fit gains nothing, one after another, after which no further one is tried.
pub const PATIENCE: usize = 1;

/// A fit of a block behind a cut that takes less than this share of the loss counts as one that gains nothing.
pub(super) const WORTHWHILE: f64 = 0.01;

/// What is to be fitted.
#[derive(Clone, Debug)]
pub struct Order {
    /// How tokens count: at a cut each is tried, and elsewhere what was best there.
    pub weightings: Vec<Weighting>,
    /// The block before a cut makes up for it.
    pub before: bool,
    /// Of every run of removed blocks one stays as its feed-forward network alone, which makes up for what is then missing.
    pub with_block: bool,
    /// [`PATIENCE`], or 0 for cuts alone.
    pub patience: usize,
    /// What weights are rounded to.
    pub heal_type: HealType,
    /// What is made small.
    pub objective: Objective,
}

/// Something that was tried.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was fitted, and how.
    pub variant: String,
    /// The model with it and with all before it that stayed, and its loss; `None` if the fit gains nothing.
    pub measured: Option<(Candidate, Loss)>,
}

/// Where the walk through the blocks is.
pub(super) struct Walk<'o> {
    pub(super) order: &'o Order,
    /// The parent's streams before the block at hand, or behind it and the removed ones that follow it.
    pub(super) targets: Streams,
    /// The healed model's before it.
    pub(super) streams: Streams,
    pub(super) candidate: Candidate,
    /// Of `candidate`.
    loss: f64,
    /// The best so far.
    pub(super) way: Way,
    pub(super) steps: Vec<Step>,
}

impl Walk<'_> {
    /// Keeps what was measured if it is better than what there is. Returns the share of the loss that it takes.
    pub(super) fn judge(&mut self, variant: String, candidate: Candidate, loss: Loss) -> f64 {
        let mean = loss.mean(self.order.objective);
        let gain = 1.0 - mean / self.loss;
        if mean < self.loss {
            (self.candidate, self.loss) = (candidate.clone(), mean);
        }
        self.steps.push(Step { variant, measured: Some((candidate, loss)) });
        gain
    }
}

impl Healer<'_, '_> {
    /// Fits the blocks before each cut of a model without `removed` and without the attention of `attention`, then blocks
    /// behind the last cut for as long as that helps. Returns everything that was tried.
    ///
    /// # Errors
    /// A block that cannot make up for others; llama.cpp's; numbers that are not finite.
    pub fn fit(
        &mut self,
        removed: &BTreeSet<BlockId>,
        attention: Option<&AttentionCut>,
        order: &Order,
    ) -> Result<Vec<Step>> {
        let n_blocks = self.model.n_trunk_blocks();
        let without = |block: BlockId| attention.is_some_and(|cut| cut.blocks.contains(&block));
        let is_cut = |block: &BlockId| removed.contains(block) || without(*block);
        let blocks = || (0..n_blocks).map(BlockId::new);
        let (Some(first), Some(last)) = (blocks().find(is_cut), blocks().rfind(is_cut)) else {
            return Ok(Vec::new());
        };
        let (candidate, loss) = self.unhealed(removed, attention)?;
        // The block before the first cut makes up for it, where there is one.
        let at_cut = removed.contains(&first) && order.before;
        let mut block = first.index().saturating_sub(usize::from(at_cut));
        let targets = self.start(block)?.clone();
        let mut walk = Walk {
            order,
            streams: targets.clone(),
            targets,
            candidate,
            loss: loss.mean(order.objective),
            way: Way { weighting: order.weightings[0], matrices: true },
            steps: Vec::new(),
        };
        let norms = has_post_norms(self.model);
        let mut differs = false;
        let mut n_failed = 0;
        let is_on = |block: usize, n_failed: usize| {
            block < n_blocks && (block <= last.index() || n_failed < order.patience)
        };
        while is_on(block, n_failed) {
            let id = BlockId::new(block);
            if removed.contains(&id) {
                let end = run_end(removed, block, n_blocks);
                self.advance(block..end, &mut walk.targets)?;
                differs = true;
                if order.with_block {
                    self.step_of_run(block..end, &mut walk)?;
                }
                block = end;
                continue;
            }
            let end = match order.before {
                true => run_end(removed, block + 1, n_blocks),
                false => block + 1,
            };
            let is_at_cut = end > block + 1 || without(id) || (differs && walk.candidate.fitted.is_empty());
            let is_behind = !is_at_cut && differs && n_failed < order.patience;
            differs |= is_at_cut;
            let mut helps = false;
            if is_behind && !norms {
                helps = self.step_of_attention(id, &mut walk)?;
            }
            self.advance(block..end, &mut walk.targets)?;
            if norms && (is_at_cut || is_behind) {
                helps = self.step_of_norms(id, is_at_cut, &mut walk)?;
            } else if is_at_cut {
                self.step_at_cut(id, Carrier::of(self.model, id)?, &mut walk)?;
            } else if is_behind {
                helps |= self.step_behind(id, &mut walk)?;
            }
            if is_at_cut || helps {
                n_failed = 0;
            } else if is_behind {
                n_failed += 1;
            }
            let run = block + 1..end;
            block = end;
            let with_block = order.with_block && !run.is_empty();
            if with_block || is_on(block, n_failed) {
                let weights = self.weights_of(id, &walk.candidate);
                self.pass(id, &weights, &mut walk.streams)?;
            }
            if with_block {
                self.step_of_run(run, &mut walk)?;
            }
        }
        Ok(walk.steps)
    }

    /// The weights of `block` in `candidate` that are not the parent's; zeros for attention that is removed.
    pub(super) fn weights_of(&self, block: BlockId, candidate: &Candidate) -> ChangedTensors {
        let is_cut = |cut: &AttentionCut| cut.blocks.contains(&block);
        let mut weights = match candidate.attention.as_ref().is_some_and(is_cut) {
            true => self.without_attention(block),
            false => ChangedTensors::new(),
        };
        let own = candidate.tensors.iter().filter(|&(&source, _)| {
            let of = self.model.tensors()[source].block;
            of.is_some_and(|(of, _)| of == block)
        });
        weights.extend(own.map(|(source, changed)| (*source, changed.clone())));
        weights
    }

    /// Fits the carrier of a block at a cut in every way, and keeps the best.
    fn step_at_cut(&mut self, block: BlockId, carrier: Carrier, walk: &mut Walk<'_>) -> Result<()> {
        let zeros = self.weights_of(block, &walk.candidate);
        let weightings = &walk.order.weightings;
        let sums = self.sums(block, carrier, &zeros, walk, weightings)?;
        let base = walk.candidate.clone();
        for (&weighting, folds) in weightings.iter().zip(sums) {
            let variant = format!("{weighting}, block {block}");
            self.tell(&format!("{variant}, solving"), 0, 0);
            let Some(candidate) = self.solved(carrier, folds, &base, walk.order.heal_type)? else {
                walk.steps.push(Step { variant, measured: None });
                continue;
            };
            if candidate.fitted.len() == 1 {
                let changed = &candidate.tensors[&carrier.source];
                self.check_answer(block, &carrier, &zeros, changed, &walk.streams)?;
            }
            let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
            if walk.judge(variant, candidate, loss) > 0.0 {
                walk.way.weighting = weighting;
            }
        }
        Ok(())
    }

    /// Fits the carrier of a block behind a cut. Returns whether that helps.
    fn step_behind(&mut self, block: BlockId, walk: &mut Walk<'_>) -> Result<bool> {
        let Ok(carrier) = Carrier::of(self.model, block) else {
            return Ok(false);
        };
        let weights = self.weights_of(block, &walk.candidate);
        let sums = self.sums(block, carrier, &weights, walk, &[walk.way.weighting])?;
        let variant = format!("{}, on to block {block}", walk.way.weighting);
        self.tell(&format!("{variant}, solving"), 0, 0);
        for folds in sums {
            let heal_type = walk.order.heal_type;
            if let Some(candidate) = self.solved(carrier, folds, &walk.candidate, heal_type)? {
                let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
                return Ok(walk.judge(variant, candidate, loss) >= WORTHWHILE);
            }
        }
        walk.steps.push(Step { variant, measured: None });
        Ok(false)
    }

    /// Lets the block of a run stay whose feed-forward network leaves least of the stream's error, and fits it.
    fn step_of_run(&mut self, run: Range<usize>, walk: &mut Walk<'_>) -> Result<()> {
        let mut best: Option<(BlockId, Carrier, Fit, NormalEquations)> = None;
        let weighting = walk.way.weighting;
        for id in run.map(BlockId::new) {
            let Ok(carrier) = Carrier::of(self.model, id) else {
                continue;
            };
            let zeros = self.without_attention(id);
            for folds in self.sums(id, carrier, &zeros, walk, &[weighting])? {
                if let Some(fit) = cross_fit(&folds)
                    && best.as_ref().is_none_or(|best| fit.left < best.2.left)
                {
                    let [mut all, other] = folds;
                    all.add_all(&other);
                    best = Some((id, carrier, fit, all));
                }
            }
        }
        let Some((id, carrier, fit, all)) = best else {
            walk.steps.push(Step { variant: weighting.to_string(), measured: None });
            return Ok(());
        };
        let mut candidate = walk.candidate.clone();
        let changed = self.rounded(&carrier, None, &fit, &all, walk.order.heal_type)?;
        candidate.removed.remove(&id);
        let cut = candidate.attention.get_or_insert_with(|| AttentionCut {
            blocks: BTreeSet::new(),
            method: ChosenBy::List.to_string(),
        });
        cut.blocks.insert(id);
        candidate.put(&carrier, changed, &fit);
        let variant = format!("{weighting}, feed-forward network of block {id}");
        let loss = self.loss_from(id.index(), &walk.streams, &candidate)?;
        if walk.judge(variant, candidate, loss) > 0.0 {
            let weights = self.weights_of(id, &walk.candidate);
            self.pass(id, &weights, &mut walk.streams)?;
        }
        Ok(())
    }

    /// `base` with the carrier fitted to both folds, and its weights rounded. `None` if the fit gains nothing.
    pub(super) fn solved(
        &self,
        carrier: Carrier,
        folds: [NormalEquations; 2],
        base: &Candidate,
        heal_type: HealType,
    ) -> Result<Option<Candidate>> {
        let Some(fit) = cross_fit(&folds) else {
            return Ok(None);
        };
        let [mut all, other] = folds;
        all.add_all(&other);
        drop(other);
        let mut candidate = base.clone();
        let changed = self.rounded(&carrier, None, &fit, &all, heal_type)?;
        candidate.put(&carrier, changed, &fit);
        Ok(Some(candidate))
    }

    /// The sums of a fit of the carrier of `block`, which has the weights of `changed` otherwise, for each weighting; both
    /// folds of each.
    fn sums(
        &self,
        block: BlockId,
        carrier: Carrier,
        changed: &ChangedTensors,
        walk: &Walk<'_>,
        weightings: &[Weighting],
    ) -> Result<Vec<[NormalEquations; 2]>> {
        let new = || NormalEquations::new(carrier.n_in, carrier.n_out, self.n_threads);
        let mut sums: Vec<[NormalEquations; 2]> = weightings.iter().map(|_| [new(), new()]).collect();
        let streams = (&walk.targets, &walk.streams);
        self.show_windows(block, changed, streams, &mut |fold, shown| {
            for (&weighting, folds) in weightings.iter().zip(&mut sums) {
                let tokens = shown.targets.chunks_exact(carrier.n_out);
                let counts: Vec<f64> = tokens.map(|token| weighting.of(token)).collect();
                folds[fold].add(shown.inputs, shown.residuals, &counts)?;
            }
            Ok(())
        })?;
        Ok(sums)
    }
}
