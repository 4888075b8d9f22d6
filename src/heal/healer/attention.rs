//! Healing after a cut by the matrix that writes what attention adds.
//!
//! It is fitted toward the parent's stream between the halves of the same block. Attention there looks at a stream that is not
//! quite what it knows, and the matrix can make up for a part of that before the feed-forward network reads it.

use anyhow::{Context as _, Result};

use super::stepwise::{Step, WORTHWHILE, Walk};
use super::{Candidate, Healer, at, difference};
use crate::engine::llama::Halves;
use crate::heal::normal::NormalEquations;
use crate::heal::target_matrix::{ATTN_OUTPUT, TargetMatrix};
use crate::model::BlockId;
use crate::plan::ChangedTensors;

impl Healer<'_, '_> {
    /// Fits what attention writes in `block`, after a cut. Returns whether that helps.
    ///
    /// The targets of `walk` are the parent's streams before it. A block whose halves do not show, or do not answer to that
    /// matrix, is left as it is.
    pub(super) fn step_of_attention(&mut self, block: BlockId, walk: &mut Walk<'_>) -> Result<bool> {
        let rules = self.constraints.rules;
        let halves = Halves::of(self.model, rules, &self.constraints.kinds);
        let matrix = TargetMatrix::of(self.model, block)
            .and_then(|_| TargetMatrix::named(self.model, block, ATTN_OUTPUT));
        let (Ok(halves), Ok(Some(matrix))) = (halves, matrix) else {
            return Ok(false);
        };
        let weighting = walk.mode.weighting;
        let variant = format!("{weighting}, attention of block {block}");
        let Some(folds) = self.attention_sums(block, matrix, &halves, walk)? else {
            return Ok(false);
        };
        self.progress(&format!("{variant}, solving"), 0, 0);
        let heal_type = walk.order.heal_type;
        let candidate = self.solved(matrix, folds, &walk.candidate, heal_type)?;
        let candidate = match candidate {
            Some(candidate) => self.answers(block, matrix, &halves, &candidate, walk)?.then_some(candidate),
            None => None,
        };
        let Some(candidate) = candidate else {
            walk.steps.push(Step { variant, measured: None });
            return Ok(false);
        };
        let loss = self.loss_from(block.index(), &walk.streams, &candidate)?;
        Ok(walk.keep_better(variant, candidate, loss) >= WORTHWHILE)
    }

    /// The sums of both folds. `None` where llama.cpp's graph does not show the halves of the block, or what the matrix
    /// multiplies.
    fn attention_sums(
        &self,
        block: BlockId,
        matrix: TargetMatrix,
        halves: &Halves,
        walk: &Walk<'_>,
    ) -> Result<Option<[NormalEquations; 2]>> {
        let mut parent = self.segments.block(block, &ChangedTensors::new())?;
        let mut own = self.segments.block(block, &self.weights_of(block, &walk.candidate))?;
        let mut inputs = Vec::new();
        if let Some(stream) = self.split.folds.iter().flatten().next().map(|&first| &walk.streams[first])
            && (own.run_halves(stream, halves).is_err()
                || own.run_reading(stream, ATTN_OUTPUT, &mut inputs).is_err())
        {
            return Ok(None);
        }
        let empty = || NormalEquations::new(matrix.n_in, matrix.n_out, self.n_threads);
        let step = format!("fitting attention of block {block}");
        let sums = self.sums_of_folds(&step, &empty, &mut |sums, window| {
            let stream = &walk.streams[window];
            let (target, _) = parent.run_halves(&walk.targets[window], halves)?;
            let (middle, _) = own.run_halves(stream, halves)?;
            own.run_reading(stream, ATTN_OUTPUT, &mut inputs)?;
            // Else they would look for work while sums are made.
            self.threads.pause();
            let counts = walk.mode.weighting.of_tokens(&target, matrix.n_out);
            sums.add(&inputs, &difference(&target, &middle), &counts).with_context(|| at(block, window))
        })?;
        Ok(Some(sums))
    }

    /// Whether the stream between the halves of `block` answers to `candidate`. Its weights should change it as their product
    /// says.
    fn answers(
        &self,
        block: BlockId,
        matrix: TargetMatrix,
        halves: &Halves,
        candidate: &Candidate,
        walk: &Walk<'_>,
    ) -> Result<bool> {
        let Some(stream) = self.split.folds[0].first().map(|&w| &walk.streams[w]) else {
            return Ok(false);
        };
        let mut inputs = Vec::new();
        let mut segment = self.segments.block(block, &self.weights_of(block, &walk.candidate))?;
        segment.run_reading(stream, ATTN_OUTPUT, &mut inputs)?;
        let (before, _) = segment.run_halves(stream, halves)?;
        let mut segment = self.segments.block(block, &self.weights_of(block, candidate))?;
        let (after, _) = segment.run_halves(stream, halves)?;
        let changed = &candidate.tensors[&matrix.source];
        self.is_product(&matrix, changed, &inputs, &before, &after)
    }
}
