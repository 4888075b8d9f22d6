//! Healing by the length of the stream: the projections after each cut divided by a factor.
//!
//! A trial needs no other weights where blocks can be evaluated from a hidden state on. There the stream after the cut, times
//! the factor, passes the blocks as they are. Elsewhere a model with divided projections is made for each trial.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};

use super::validation::{Kept, Predictions, StreamLogits, multiply};
use super::{Candidate, Healer, Streams};
use crate::engine::hidden_state::Token;
use crate::engine::llama::LlamaHiddenStates;
use crate::engine::segment::{HeadSegment, takes_streams};
use crate::heal::magnitude::{Cut, line_search, ratios};
use crate::heal::projections::Projections;
use crate::measure::loss::Objective;
use crate::model::BlockId;
use crate::plan::ChangedTensors;

/// Windows on which factors are compared, at most.
const SEARCH_WINDOWS: usize = 4;

/// Factors tried for each cut, beside 1 and the first guess.
const TRIALS: usize = 6;

/// A candidate whose projections were scaled.
#[derive(Clone, Debug)]
pub struct Scaling {
    /// The candidate.
    pub candidate: Candidate,
    /// The factor of the stream after each cut. 1 where nothing is better.
    pub factors: Vec<(Cut, f64)>,
    /// The names of tensors that were quantized again, for want of scales.
    pub requantized: Vec<String>,
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (cut, factor)) in self.factors.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}stream times {factor:.4} after block {}", cut.last)?;
        }
        Ok(())
    }
}

impl Healer<'_, '_> {
    /// Scales the projections after `base`'s cuts, one factor per cut.
    ///
    /// The first cut's comes first. Factors are compared by `objective` on windows that weights are fitted to. `base` may have
    /// other weights already. `None` if nothing is better than it.
    ///
    /// # Errors
    /// A product that a tensor cannot hold; llama.cpp's.
    pub fn scale(
        &mut self,
        projections: &Projections,
        base: &Candidate,
        objective: Objective,
    ) -> Result<Option<Scaling>> {
        let cuts = Cut::all(self.model.n_trunk_blocks(), &base.removed);
        if cuts.is_empty() {
            return Ok(None);
        }
        let windows = self.search_windows();
        // The room is for the logits of other windows now.
        self.predictions = Predictions::with_room(self.logits_bytes);
        let mut predictions = Predictions::with_room(self.logits_bytes);
        let mut parent = self.parent_logits()?;
        let mut parent = Kept { source: &mut parent, predictions: &mut predictions };
        let (guesses, streams) = self.before_cuts(base, &cuts, &windows)?;
        // Elsewhere blocks are not evaluated from a hidden state on.
        let mut streams = takes_streams(self.constraints).then_some(streams);
        let changed = self.with_zeros(base);
        let mut factors: Vec<(Cut, f64)> = Vec::new();
        let mut from = self.first_change(base);
        let mut unchanged = None;
        for (cut, guess) in cuts.into_iter().zip(guesses) {
            let mut head = match &mut streams {
                Some(streams) => self.head_after(base, &changed, from, cut, streams),
                None => None,
            };
            if head.is_none() {
                streams = None;
            }
            from = cut.last.index() + 1;
            let mut loss_of = |factor: f64| -> Result<f64> {
                let loss = match (&mut head, &streams) {
                    (Some(head), Some(streams)) => {
                        let mut found = StreamLogits { head, streams, factor: Some(factor) };
                        self.loss_over(&windows, &mut found, &mut parent)?
                    }
                    _ => {
                        let mut factors = factors.clone();
                        factors.push((cut, factor));
                        let (candidate, _) = self.divided(projections, base, &factors)?;
                        self.loss_of_whole(&windows, &candidate, &mut parent)?
                    }
                };
                Ok(loss.mean(objective))
            };
            let before = match unchanged {
                Some(loss) => loss,
                None => loss_of(1.0)?,
            };
            let best = line_search(guess, before, TRIALS, &mut loss_of)?;
            unchanged = Some(best.loss);
            factors.push((cut, best.at));
            for stream in streams.iter_mut().flatten() {
                multiply(best.at, stream);
            }
        }
        if factors.iter().all(|(_, factor)| *factor == 1.0) {
            return Ok(None);
        }
        let (candidate, requantized) = self.divided(projections, base, &factors)?;
        Ok(Some(Scaling { candidate, factors, requantized }))
    }

    /// The blocks after `cut`, up to the logits.
    ///
    /// `streams`, which are those before block `from`, pass the blocks up to the cut. `None` where blocks are not evaluated so.
    fn head_after(
        &self,
        base: &Candidate,
        changed: &ChangedTensors,
        from: usize,
        cut: Cut,
        streams: &mut Streams,
    ) -> Option<HeadSegment> {
        let kept = (from..cut.first.index()).map(BlockId::new);
        for block in kept.filter(|block| !base.removed.contains(block)) {
            self.pass(block, changed, streams).ok()?;
        }
        let blocks: Vec<BlockId> = self.kept_after(base, cut).collect();
        self.segments.head(&blocks, changed).ok()
    }

    /// Kept blocks after a cut.
    fn kept_after<'b>(&self, base: &'b Candidate, cut: Cut) -> impl Iterator<Item = BlockId> + 'b {
        let blocks = (cut.last.index() + 1..self.model.n_trunk_blocks()).map(BlockId::new);
        blocks.filter(|block| !base.removed.contains(block))
    }

    /// `base` with projections divided by the factors, and those rounded again.
    fn divided(
        &self,
        projections: &Projections,
        base: &Candidate,
        factors: &[(Cut, f64)],
    ) -> Result<(Candidate, Vec<String>)> {
        let mut of_blocks: BTreeMap<BlockId, f64> = BTreeMap::new();
        for (cut, factor) in factors.iter().filter(|(_, factor)| *factor != 1.0) {
            for block in self.kept_after(base, *cut) {
                *of_blocks.entry(block).or_insert(1.0) /= factor;
            }
        }
        let is_missing = |source: usize| self.is_cut_attention(base, source);
        let scaled = projections.scaled(self.model, &base.tensors, &of_blocks, &is_missing)?;
        let mut candidate = base.clone();
        candidate.tensors.extend(scaled.tensors);
        Ok((candidate, scaled.requantized))
    }

    /// Whether a tensor is left out with the attention of its block.
    fn is_cut_attention(&self, base: &Candidate, source: usize) -> bool {
        let block = self.model.tensors().get(source).and_then(|t| t.block);
        let cut = base.attention.as_ref().zip(block);
        cut.is_some_and(|(cut, (block, rest))| {
            cut.blocks.contains(&block) && rest.starts_with("attn_output.")
        })
    }

    /// The stream's growth in each cut, and the parent's streams of `windows`.
    ///
    /// Those are before the first block that is not as in the parent.
    fn before_cuts(&self, base: &Candidate, cuts: &[Cut], windows: &[usize]) -> Result<(Vec<f64>, Streams)> {
        let last = cuts.last().context("bug: no cut")?;
        let states = LlamaHiddenStates::with_threads(self.engine, self.window, &self.threads, self.graph()?)?;
        let mut states = states.up_to(last.last.index() + 1);
        let texts: Vec<&[Token]> = windows.iter().map(|&w| self.windows[w]).collect();
        let first = self.first_change(base);
        let (guesses, found) = ratios(&mut states, &texts, cuts, first)?;
        let mut streams = vec![Vec::new(); self.windows.len()];
        for (&window, stream) in windows.iter().zip(found) {
            streams[window] = stream;
        }
        Ok((guesses, streams))
    }

    /// Some windows that weights are fitted to, evenly spread.
    fn search_windows(&self) -> Vec<usize> {
        let mut all = self.split.folds.concat();
        all.sort_unstable();
        let n = SEARCH_WINDOWS.min(all.len());
        (0..n).map(|i| all[i * all.len() / n]).collect()
    }
}
