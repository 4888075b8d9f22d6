//! Healing step by step: only fits that make the validation loss smaller stay.
//!
//! Each is measured before the next one begins.
//!
//! The stream before the block at hand is kept for all windows, of the parent and of the shortened model as it is healed so
//! far. So a measurement evaluates the blocks from there on, and of the parent the last one.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context as _, Result};

use super::{Candidate, HealType, Healer, Streams, at, difference};
use crate::heal::Weighting;
use crate::heal::normal::NormalEquations;
use crate::heal::post_norms::has_post_norms;
use crate::heal::ridge::{Fit, cross_fit};
use crate::heal::target_matrix::{FFN_DOWN, TargetMatrix};
use crate::measure::loss::{Loss, Objective};
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::plan::{AttentionCut, ChangedTensors, ChosenBy};

/// Consecutive blocks after a cut without gain that end the walk.
pub const PATIENCE: usize = 1;

/// The least share of the loss that counts as a gain. A fit of a block after a cut must take so much.
pub(super) const WORTHWHILE: f64 = 0.01;

/// The fits to try.
#[derive(Clone, Debug)]
pub struct Order {
    /// How tokens count: at a cut all are tried, elsewhere the best of them.
    pub weightings: Vec<Weighting>,
    /// The block before a cut makes up for it.
    pub before: bool,
    /// Of every removed run one block stays as its feed-forward network.
    ///
    /// That makes up for what is then missing.
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
    /// The model with it and all kept before it, and its loss.
    ///
    /// `None` if the fit gains nothing.
    pub measured: Option<(Candidate, Loss)>,
}

/// How a block is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FitMode {
    /// How tokens count.
    pub(super) weighting: Weighting,
    /// Where norms are fitted, also `ffn_down` under them.
    pub(super) matrices: bool,
}

/// The blocks that a model loses, or whose attention it loses.
struct Cuts<'c> {
    removed: &'c BlockSet,
    attention: Option<&'c AttentionCut>,
    n_blocks: usize,
}

impl Cuts<'_> {
    fn lacks_attention(&self, block: usize) -> bool {
        self.attention.is_some_and(|cut| cut.blocks.contains(&BlockId::new(block)))
    }

    fn is_removed(&self, block: usize) -> bool {
        self.removed.contains(&BlockId::new(block))
    }

    /// The first of these blocks and the last.
    fn ends(&self) -> Option<(usize, usize)> {
        let is_cut = |block: &usize| self.is_removed(*block) || self.lacks_attention(*block);
        (0..self.n_blocks).find(is_cut).zip((0..self.n_blocks).rfind(is_cut))
    }

    /// Where the removed blocks from `start` on end.
    fn run_end(&self, start: usize) -> usize {
        (start..self.n_blocks).find(|&block| !self.is_removed(block)).unwrap_or(self.n_blocks)
    }
}

/// The walk through the blocks, and its results so far.
pub(super) struct Walk<'o> {
    pub(super) order: &'o Order,
    cuts: Cuts<'o>,
    /// The last block that is removed, or loses its attention.
    last: usize,
    /// The parent's streams before the block at hand, or after its run.
    pub(super) targets: Streams,
    /// The healed model's before it.
    pub(super) streams: Streams,
    pub(super) candidate: Candidate,
    /// Of `candidate`.
    loss: f64,
    /// The best so far.
    pub(super) mode: FitMode,
    pub(super) steps: Vec<Step>,
    /// Whether the healed model's streams are other than the parent's.
    differs: bool,
    /// Blocks, one after another, whose fit gained nothing.
    n_failed: usize,
}

impl Walk<'_> {
    /// Whether the walk goes on at `block`.
    fn is_on(&self, block: usize) -> bool {
        block < self.cuts.n_blocks && (block <= self.last || self.n_failed < self.order.patience)
    }

    /// Keeps a candidate that is better than the one so far. Returns the share of the loss that it takes.
    pub(super) fn keep_better(&mut self, variant: String, candidate: Candidate, loss: Loss) -> f64 {
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
    /// Fits the blocks before each cut, then those after the last. The latter are fitted for as long as that helps.
    ///
    /// The model is the one without `removed` and without the attention of `attention`. Returns everything that was tried.
    ///
    /// # Errors
    /// A block that cannot make up for others; llama.cpp's; numbers that are not finite.
    pub fn fit(
        &mut self,
        removed: &BlockSet,
        attention: Option<&AttentionCut>,
        order: &Order,
    ) -> Result<Vec<Step>> {
        let cuts = Cuts { removed, attention, n_blocks: self.model.n_trunk_blocks() };
        let Some((first, last)) = cuts.ends() else {
            return Ok(Vec::new());
        };
        let (candidate, loss) = self.unhealed(removed, attention)?;
        // The block before the first cut, if any, makes up for it.
        let at_cut = cuts.is_removed(first) && order.before;
        let mut block = first.saturating_sub(usize::from(at_cut));
        let targets = self.start(block)?.clone();
        let mut walk = Walk {
            order,
            cuts,
            last,
            streams: targets.clone(),
            targets,
            candidate,
            loss: loss.mean(order.objective),
            mode: FitMode { weighting: order.weightings[0], matrices: true },
            steps: Vec::new(),
            differs: false,
            n_failed: 0,
        };
        while walk.is_on(block) {
            block = match walk.cuts.is_removed(block) {
                true => self.step_of_removed(block, &mut walk)?,
                false => self.step_of_kept(block, &mut walk)?,
            };
        }
        Ok(walk.steps)
    }

    /// Passes the removed blocks from `block` on. Returns the one after them.
    fn step_of_removed(&mut self, block: usize, walk: &mut Walk<'_>) -> Result<usize> {
        let end = walk.cuts.run_end(block);
        self.advance(block..end, &mut walk.targets)?;
        walk.differs = true;
        if walk.order.with_block {
            self.step_of_run(block..end, walk)?;
        }
        Ok(end)
    }

    /// Fits a kept block at a cut or after one. Returns the one after its run.
    fn step_of_kept(&mut self, block: usize, walk: &mut Walk<'_>) -> Result<usize> {
        let id = BlockId::new(block);
        let end = match walk.order.before {
            true => walk.cuts.run_end(block + 1),
            false => block + 1,
        };
        let is_at_cut = end > block + 1
            || walk.cuts.lacks_attention(block)
            || (walk.differs && walk.candidate.fitted.is_empty());
        let is_after_cut = !is_at_cut && walk.differs && walk.n_failed < walk.order.patience;
        walk.differs |= is_at_cut;
        let has_norms = has_post_norms(self.model);
        let mut helps = false;
        if is_after_cut && !has_norms {
            helps = self.step_of_attention(id, walk)?;
        }
        self.advance(block..end, &mut walk.targets)?;
        if has_norms && (is_at_cut || is_after_cut) {
            helps = self.step_of_norms(id, is_at_cut, walk)?;
        } else if is_at_cut {
            self.step_at_cut(id, TargetMatrix::of(self.model, id)?, walk)?;
        } else if is_after_cut {
            helps |= self.step_after_cut(id, walk)?;
        }
        if is_at_cut || helps {
            walk.n_failed = 0;
        } else if is_after_cut {
            walk.n_failed += 1;
        }
        let run = block + 1..end;
        let with_block = walk.order.with_block && !run.is_empty();
        if with_block || walk.is_on(end) {
            let weights = self.weights_of(id, &walk.candidate);
            self.pass(id, &weights, &mut walk.streams)?;
        }
        if with_block {
            self.step_of_run(run, walk)?;
        }
        Ok(end)
    }

    /// The changed weights of `block` in `candidate`; zeros for removed attention.
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

    /// Fits a block's target matrix at a cut in every mode. The best is kept.
    fn step_at_cut(&mut self, block: BlockId, matrix: TargetMatrix, walk: &mut Walk<'_>) -> Result<()> {
        let zeros = self.weights_of(block, &walk.candidate);
        let weightings = &walk.order.weightings;
        let sums = self.sums(block, matrix, &zeros, walk, weightings)?;
        let base = walk.candidate.clone();
        for (&weighting, folds) in weightings.iter().zip(sums) {
            let variant = format!("{weighting}, block {block}");
            self.progress(&format!("{variant}, solving"), 0, 0);
            let Some(candidate) = self.solved(matrix, folds, &base, walk.order.heal_type)? else {
                walk.steps.push(Step { variant, measured: None });
                continue;
            };
            if candidate.fitted.len() == 1 {
                let changed = &candidate.tensors[&matrix.source];
                self.check_answer(block, &matrix, &zeros, changed, &walk.streams)?;
            }
            let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
            if walk.keep_better(variant, candidate, loss) > 0.0 {
                walk.mode.weighting = weighting;
            }
        }
        Ok(())
    }

    /// Fits the target matrix of a block after a cut. Returns whether that helps.
    fn step_after_cut(&mut self, block: BlockId, walk: &mut Walk<'_>) -> Result<bool> {
        let Ok(matrix) = TargetMatrix::of(self.model, block) else {
            return Ok(false);
        };
        let weights = self.weights_of(block, &walk.candidate);
        let sums = self.sums(block, matrix, &weights, walk, &[walk.mode.weighting])?;
        let variant = format!("{}, on to block {block}", walk.mode.weighting);
        self.progress(&format!("{variant}, solving"), 0, 0);
        for folds in sums {
            let heal_type = walk.order.heal_type;
            if let Some(candidate) = self.solved(matrix, folds, &walk.candidate, heal_type)? {
                let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
                return Ok(walk.keep_better(variant, candidate, loss) >= WORTHWHILE);
            }
        }
        walk.steps.push(Step { variant, measured: None });
        Ok(false)
    }

    /// Keeps and fits a run's feed-forward network of the least error.
    fn step_of_run(&mut self, run: Range<usize>, walk: &mut Walk<'_>) -> Result<()> {
        let mut best: Option<(BlockId, TargetMatrix, Fit, NormalEquations)> = None;
        let weighting = walk.mode.weighting;
        for id in run.map(BlockId::new) {
            let Ok(matrix) = TargetMatrix::of(self.model, id) else {
                continue;
            };
            let zeros = self.without_attention(id);
            for folds in self.sums(id, matrix, &zeros, walk, &[weighting])? {
                if let Some(fit) = cross_fit(&folds)
                    && best.as_ref().is_none_or(|best| fit.left < best.2.left)
                {
                    best = Some((id, matrix, fit, NormalEquations::of_both(folds)));
                }
            }
        }
        let Some((id, matrix, fit, all)) = best else {
            walk.steps.push(Step { variant: weighting.to_string(), measured: None });
            return Ok(());
        };
        let mut candidate = walk.candidate.clone();
        let changed = self.rounded(&matrix, None, &fit, &all, walk.order.heal_type)?;
        candidate.removed.remove(&id);
        let cut = candidate.attention.get_or_insert_with(|| AttentionCut {
            blocks: BTreeSet::new(),
            method: ChosenBy::List.to_string(),
        });
        cut.blocks.insert(id);
        candidate.put(&matrix, changed, &fit);
        let variant = format!("{weighting}, feed-forward network of block {id}");
        let loss = self.loss_from(id.index(), &walk.streams, &candidate)?;
        if walk.keep_better(variant, candidate, loss) > 0.0 {
            let weights = self.weights_of(id, &walk.candidate);
            self.pass(id, &weights, &mut walk.streams)?;
        }
        Ok(())
    }

    /// `base` with the target matrix fitted to both folds and rounded. `None` if the fit gains nothing.
    pub(super) fn solved(
        &self,
        matrix: TargetMatrix,
        folds: [NormalEquations; 2],
        base: &Candidate,
        heal_type: HealType,
    ) -> Result<Option<Candidate>> {
        let Some(fit) = cross_fit(&folds) else {
            return Ok(None);
        };
        let all = NormalEquations::of_both(folds);
        let mut candidate = base.clone();
        let changed = self.rounded(&matrix, None, &fit, &all, heal_type)?;
        candidate.put(&matrix, changed, &fit);
        Ok(Some(candidate))
    }

    /// The sums of both folds for each weighting, to fit `matrix`.
    ///
    /// The block has the weights of `changed` otherwise.
    fn sums(
        &self,
        block: BlockId,
        matrix: TargetMatrix,
        changed: &ChangedTensors,
        walk: &Walk<'_>,
        weightings: &[Weighting],
    ) -> Result<Vec<[NormalEquations; 2]>> {
        let new = |_: &Weighting| NormalEquations::new(matrix.n_in, matrix.n_out, self.n_threads);
        let empty = || weightings.iter().map(new).collect::<Vec<_>>();
        let mut segment = self.segments.block(block, changed)?;
        let mut inputs = Vec::new();
        let step = format!("fitting block {block}");
        let [first, second] = self.sums_of_folds(&step, &empty, &mut |sums, window| {
            let targets = &walk.targets[window];
            let output = segment.run_reading(&walk.streams[window], FFN_DOWN, &mut inputs)?;
            // Else they would look for work while sums are made.
            self.threads.pause();
            let residuals = difference(targets, &output);
            for (weighting, sums) in weightings.iter().zip(sums) {
                let counts = weighting.of_tokens(targets, matrix.n_out);
                sums.add(&inputs, &residuals, &counts).with_context(|| at(block, window))?;
            }
            Ok(())
        })?;
        Ok(first.into_iter().zip(second).map(|(first, second)| [first, second]).collect())
    }
}
