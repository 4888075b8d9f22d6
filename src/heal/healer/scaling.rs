//! Healing by the length of the stream: the writers behind each cut divided by what the stream is to be multiplied by.
//!
//! A trial needs no other weights where blocks can be evaluated from a hidden state on: the stream behind the cut times a
//! number passes the blocks there as they are. Elsewhere a model with divided writers is made for each trial.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use ggml::{Context, ThreadPool, WindowInput};

use super::judged::{LOGITS_BYTES, Predictions};
use super::{Candidate, Healer, Streams};
use crate::engine::hidden_state::Token;
use crate::engine::llama::{Course, LlamaHiddenStates};
use crate::engine::segment::{Tail, takes_streams};
use crate::heal::magnitude::{Cut, line_search, ratios};
use crate::heal::split::Split;
use crate::heal::writers::Writers;
use crate::measure::loss::{Loss, Objective};
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// Windows on which factors are compared, at most.
const SEARCH_WINDOWS: usize = 4;

/// Factors that are tried for each cut, beside 1 and the first guess.
const TRIALS: usize = 6;

/// A candidate whose writers were scaled.
#[derive(Clone, Debug)]
pub struct Scaling {
    /// The candidate.
    pub candidate: Candidate,
    /// By what the stream behind each cut is multiplied, first to last; 1 where nothing is better.
    pub factors: Vec<(Cut, f64)>,
    /// The names of tensors that were quantized again, since their type has no scale that can carry a factor.
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

impl<'m, 'a> Healer<'m, 'a> {
    /// As [`Healer::new`], for a model whose blocks need not be evaluated one by one: only whole models are.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn of_whole_models(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &'m ggml::Model,
        windows: Vec<&'m [Token]>,
        split: &'m Split,
        n_threads: usize,
    ) -> Result<Self> {
        Ok(Self {
            window: windows.iter().map(|window| window.len()).max().unwrap_or(0),
            model,
            constraints,
            engine,
            windows,
            split,
            threads: Rc::new(ThreadPool::new(n_threads)?),
            n_threads,
            start: None,
            before_last: Vec::new(),
            before_cut: None,
            unhealed: None,
            logits_bytes: LOGITS_BYTES,
            predictions: Predictions::with_room(LOGITS_BYTES),
            tell: Box::new(|_, _, _| {}),
        })
    }

    /// Scales the writers behind the cuts of `base`, which may have other weights already: one factor for each cut, the
    /// first cut's first, by what `objective` says of windows that weights are fitted to. `None` if nothing is better than
    /// `base`.
    ///
    /// # Errors
    /// A product that a tensor cannot hold; llama.cpp's.
    pub fn scale(
        &mut self,
        writers: &Writers,
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
        let mut parent = self.context_of(self.engine)?;
        let (guesses, streams) = self.before_cuts(base, &cuts, &windows)?;
        // Elsewhere blocks are not evaluated from a hidden state on.
        let mut streams = takes_streams(self.constraints).then_some(streams);
        let changed = self.with_zeros(base);
        let mut factors: Vec<(Cut, f64)> = Vec::new();
        let mut from = self.first_change(base);
        let mut unchanged = None;
        for (cut, guess) in cuts.into_iter().zip(guesses) {
            let mut tail = match &mut streams {
                Some(streams) => self.tail(base, &changed, from, cut, streams),
                None => None,
            };
            if tail.is_none() {
                streams = None;
            }
            from = cut.last.index() + 1;
            let mut loss_of = |factor: f64| -> Result<f64> {
                let loss = match (&mut tail, &streams) {
                    (Some(tail), Some(streams)) => {
                        let expected = (&mut parent, &mut predictions);
                        self.loss_of_tail(&windows, streams, tail, factor, expected)?
                    }
                    _ => {
                        let mut factors = factors.clone();
                        factors.push((cut, factor));
                        let (candidate, _) = self.divided(writers, base, &factors)?;
                        self.loss_of_whole(&windows, &candidate, &mut parent, &mut predictions)?
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
                times(best.at, stream);
            }
        }
        if factors.iter().all(|(_, factor)| *factor == 1.0) {
            return Ok(None);
        }
        let (candidate, requantized) = self.divided(writers, base, &factors)?;
        Ok(Some(Scaling { candidate, factors, requantized }))
    }

    /// The blocks behind `cut`, to be evaluated from the streams there on, which `streams` become: those before block `from`
    /// pass the blocks up to the cut. `None` where blocks are not evaluated so.
    fn tail(
        &self,
        base: &Candidate,
        changed: &ChangedTensors,
        from: usize,
        cut: Cut,
        streams: &mut Streams,
    ) -> Option<Tail> {
        let kept = (from..cut.first.index()).map(BlockId::new);
        for block in kept.filter(|block| !base.removed.contains(block)) {
            self.pass(block, changed, streams).ok()?;
        }
        let behind: Vec<BlockId> = self.behind(base, cut).collect();
        self.tail_of(&behind, changed).ok()
    }

    /// Kept blocks behind a cut.
    fn behind<'b>(&self, base: &'b Candidate, cut: Cut) -> impl Iterator<Item = BlockId> + 'b {
        let blocks = (cut.last.index() + 1..self.model.n_trunk_blocks()).map(BlockId::new);
        blocks.filter(|block| !base.removed.contains(block))
    }

    /// `base` with the writers behind each cut divided by its factor, and the names of those that were rounded again.
    fn divided(
        &self,
        writers: &Writers,
        base: &Candidate,
        factors: &[(Cut, f64)],
    ) -> Result<(Candidate, Vec<String>)> {
        let mut of_blocks: BTreeMap<BlockId, f64> = BTreeMap::new();
        for (cut, factor) in factors.iter().filter(|(_, factor)| *factor != 1.0) {
            for block in self.behind(base, *cut) {
                *of_blocks.entry(block).or_insert(1.0) /= factor;
            }
        }
        let is_missing = |source: usize| self.is_cut_attention(base, source);
        let scaled = writers.scaled(self.model, &base.tensors, &of_blocks, &is_missing)?;
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

    /// By how much the stream grows in each cut, and the parent's streams of `windows` before the first block that is not as
    /// in the parent.
    fn before_cuts(&self, base: &Candidate, cuts: &[Cut], windows: &[usize]) -> Result<(Vec<f64>, Streams)> {
        let last = cuts.last().context("bug: no cut")?;
        let stream = self.constraints.rules.stream;
        let course = Course::of(self.model, stream)?;
        let (window, threads) = (self.window, &self.threads);
        let mut states = LlamaHiddenStates::with_threads(self.engine, window, threads, stream, course)?
            .up_to(last.last.index() + 1);
        let texts: Vec<&[Token]> = windows.iter().map(|&w| self.windows[w]).collect();
        let first = self.first_change(base);
        let (guesses, found) = ratios(&mut states, &texts, cuts, first)?;
        let mut streams = vec![Vec::new(); self.windows.len()];
        for (&window, stream) in windows.iter().zip(found) {
            streams[window] = stream;
        }
        Ok((guesses, streams))
    }

    /// What is lost where the stream before the blocks of `tail` is multiplied by `factor`.
    fn loss_of_tail(
        &self,
        windows: &[usize],
        streams: &Streams,
        tail: &mut Tail,
        factor: f64,
        (parent, predictions): (&mut Context<'_>, &mut Predictions),
    ) -> Result<Loss> {
        let mut losses = Vec::new();
        for &window in windows {
            let mut stream = streams[window].clone();
            times(factor, &mut stream);
            let (tokens, rows) = (self.windows[window], self.rows(window));
            let found = tail.logits(&stream, rows.clone())?;
            let expected = predictions
                .of(window, || Ok(parent.logits_of(WindowInput::Tokens(tokens), rows.clone())?))?;
            losses.push(Loss::of_rows(tokens, rows, expected, found)?);
        }
        Ok(losses.into_iter().sum())
    }

    /// Some windows that weights are fitted to, evenly spread.
    fn search_windows(&self) -> Vec<usize> {
        let mut all = self.split.folds.concat();
        all.sort_unstable();
        let n = SEARCH_WINDOWS.min(all.len());
        (0..n).map(|i| all[i * all.len() / n]).collect()
    }
}

/// Multiplies a stream by a number.
fn times(factor: f64, stream: &mut [f32]) {
    #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
    let factor = factor as f32;
    for x in stream {
        *x *= factor;
    }
}
