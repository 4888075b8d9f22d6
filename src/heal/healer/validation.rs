//! The loss of a candidate on the validation windows.
//!
//! The parent's predictions of a window are kept as far as there is room. Those of the healed model are computed from the
//! stream before the first block that is not the parent's.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result};
use ggml::{Context, WindowInput};

use super::{Candidate, Healer, Streams};
use crate::engine::hidden_state::Token;
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::scored;
use crate::engine::segment::{HeadSegment, Segments};
use crate::measure::loss::Loss;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::plan::{AttentionCut, ChangedTensors, Cut, Healing, Plan};

/// Default memory for the parent's logits, in bytes. Those that it does not hold are computed each time.
pub const LOGITS_BYTES: u64 = 512 << 20;

/// Logits of a window that are compared, about.
///
/// Of a vocabulary of 262,144 these are those after 64 tokens, of 49,152 or fewer those after all that are scored in a window of
/// 512.
const LOGITS: usize = 1 << 24;

/// The fewest tokens of all windows after which logits are compared.
const MIN_TOKENS: usize = 1024;

/// The parent's logits of windows, by their numbers.
pub(super) struct Predictions {
    kept: BTreeMap<usize, Vec<f32>>,
    room: u64,
}

impl Predictions {
    /// With room for so many bytes.
    pub(super) fn with_room(room: u64) -> Self {
        Self { kept: BTreeMap::new(), room }
    }

    /// Those of a window, which `evaluate` gives where they are not kept.
    pub(super) fn of<'p>(
        &'p mut self,
        window: usize,
        evaluate: impl FnOnce() -> Result<&'p [f32]>,
    ) -> Result<&'p [f32]> {
        if self.kept.contains_key(&window) {
            return Ok(&self.kept[&window]);
        }
        let logits = evaluate()?;
        let n_bytes = size_of_val(logits) as u64;
        if n_bytes > self.room {
            return Ok(logits);
        }
        self.room -= n_bytes;
        Ok(self.kept.entry(window).or_insert_with(|| logits.to_vec()))
    }
}

/// Yields a model's logits after some tokens of a window, `[rows.len(), n_vocab]`.
pub(super) trait WindowLogits {
    fn logits(&mut self, window: usize, rows: Range<usize>) -> Result<&[f32]>;
}

/// A whole model.
struct WholeLogits<'w> {
    context: Context<'w>,
    windows: &'w [&'w [Token]],
}

impl WindowLogits for WholeLogits<'_> {
    fn logits(&mut self, window: usize, rows: Range<usize>) -> Result<&[f32]> {
        Ok(self.context.logits_of(WindowInput::Tokens(self.windows[window]), rows)?)
    }
}

/// The last blocks of a model, fed with these streams times `factor`.
pub(super) struct StreamLogits<'s> {
    pub(super) head: &'s mut HeadSegment,
    pub(super) streams: &'s Streams,
    pub(super) factor: Option<f64>,
}

impl WindowLogits for StreamLogits<'_> {
    fn logits(&mut self, window: usize, rows: Range<usize>) -> Result<&[f32]> {
        let stream = &self.streams[window];
        match self.factor {
            None => self.head.logits(stream, rows),
            Some(factor) => {
                let mut stream = stream.clone();
                multiply(factor, &mut stream);
                self.head.logits(&stream, rows)
            }
        }
    }
}

/// The parent's last block, which is loaded once it is needed.
struct ParentLogits<'p, 'm, 'a> {
    segments: &'p Segments<'m, 'a>,
    last: BlockId,
    before_last: &'p Streams,
    head: Option<HeadSegment>,
}

impl WindowLogits for ParentLogits<'_, '_, '_> {
    fn logits(&mut self, window: usize, rows: Range<usize>) -> Result<&[f32]> {
        if self.head.is_none() {
            self.head = Some(self.segments.head(&[self.last], &ChangedTensors::new())?);
        }
        let head = self.head.as_mut().context("bug: a segment just made")?;
        head.logits(&self.before_last[window], rows)
    }
}

/// Logits that are kept as far as there is room.
pub(super) struct Kept<'k> {
    pub(super) source: &'k mut dyn WindowLogits,
    pub(super) predictions: &'k mut Predictions,
}

impl WindowLogits for Kept<'_> {
    fn logits(&mut self, window: usize, rows: Range<usize>) -> Result<&[f32]> {
        self.predictions.of(window, || self.source.logits(window, rows))
    }
}

/// Multiplies a stream by a number.
pub(super) fn multiply(factor: f64, stream: &mut [f32]) {
    #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
    let factor = factor as f32;
    for x in stream {
        *x *= factor;
    }
}

/// The last scored tokens of one of `n_windows` windows.
///
/// They are as many as have [`LOGITS`] logits, or more where [`MIN_TOKENS`] ask for it.
fn rows(n_tokens: usize, n_vocab: usize, n_windows: usize) -> Range<usize> {
    let all = scored(n_tokens);
    let most = (LOGITS / n_vocab.max(1)).max(MIN_TOKENS.div_ceil(n_windows.max(1)));
    all.start.max(all.end.saturating_sub(most))..all.end
}

impl Healer<'_, '_> {
    /// Tokens of the window with this number after which logits are compared.
    pub(super) fn rows(&self, window: usize) -> Range<usize> {
        rows(self.windows[window].len(), self.engine.n_vocab(), self.split.validation.len())
    }

    /// The model without `removed` and that attention, and its validation loss.
    ///
    /// # Errors
    /// llama.cpp's; logits that are not numbers.
    pub fn unhealed(
        &mut self,
        removed: &BlockSet,
        attention: Option<&AttentionCut>,
    ) -> Result<(Candidate, Loss)> {
        let known = self
            .unhealed
            .as_ref()
            .filter(|(known, _)| known.removed == *removed && known.attention.as_ref() == attention);
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let candidate = Candidate::unhealed(removed, attention);
        // The block before the first cut may be fitted.
        let block = self.first_change(&candidate).saturating_sub(1);
        let validation = &self.split.validation;
        let all = self.start(block)?.iter().enumerate();
        let streams: Streams = all
            .map(|(window, stream)| match validation.contains(&window) {
                true => stream.clone(),
                false => Vec::new(),
            })
            .collect();
        let loss = self.loss_from(block, &streams, &candidate)?;
        self.before_cut = Some((block, streams));
        self.unhealed = Some((candidate.clone(), loss));
        Ok((candidate, loss))
    }

    /// What `candidate` loses on the validation windows.
    ///
    /// # Errors
    /// llama.cpp's; logits that are not numbers.
    pub fn validation_loss(&mut self, candidate: &Candidate) -> Result<Loss> {
        let first = self.first_change(candidate);
        match self.before_cut.take_if(|(block, _)| *block <= first) {
            Some((block, streams)) => {
                let loss = self.loss_from(block, &streams, candidate);
                self.before_cut = Some((block, streams));
                loss
            }
            None => self.loss(candidate, &self.split.validation),
        }
    }

    /// As [`Healer::validation_loss`], where `streams` are those of `candidate` before `block`.
    pub(super) fn loss_from(
        &mut self,
        block: usize,
        streams: &Streams,
        candidate: &Candidate,
    ) -> Result<Loss> {
        let n_blocks = self.model.n_trunk_blocks();
        let kept: Vec<BlockId> =
            (block..n_blocks).map(BlockId::new).filter(|block| !candidate.removed.contains(block)).collect();
        let changed = self.with_zeros(candidate);
        let Ok(mut head) = self.segments.head(&kept, &changed) else {
            return self.loss(candidate, &self.split.validation);
        };
        let mut predictions = std::mem::replace(&mut self.predictions, Predictions::with_room(0));
        let mut parent = ParentLogits {
            segments: &self.segments,
            last: BlockId::new(n_blocks - 1),
            before_last: &self.before_last,
            head: None,
        };
        let loss = self.loss_over(
            &self.split.validation,
            &mut StreamLogits { head: &mut head, streams, factor: None },
            &mut Kept { source: &mut parent, predictions: &mut predictions },
        );
        self.predictions = predictions;
        loss
    }

    /// The loss on these windows of a model that gives `found`.
    pub(super) fn loss_over(
        &self,
        windows: &[usize],
        found: &mut dyn WindowLogits,
        parent: &mut dyn WindowLogits,
    ) -> Result<Loss> {
        let mut losses = Vec::new();
        for (n_seen, &window) in windows.iter().enumerate() {
            self.progress("measuring", n_seen, windows.len());
            let rows = self.rows(window);
            let expected = parent.logits(window, rows.clone())?;
            let found = found.logits(window, rows.clone())?;
            losses.push(
                Loss::of_rows(self.windows[window], rows, expected, found)
                    .with_context(|| format!("window {}", window + 1))?,
            );
        }
        Ok(losses.into_iter().sum())
    }

    /// The loss of `candidate` on these windows, as a whole model.
    ///
    /// # Errors
    /// llama.cpp's; logits that are not numbers.
    pub fn loss(&self, candidate: &Candidate, windows: &[usize]) -> Result<Loss> {
        self.loss_of_whole(windows, candidate, &mut self.parent_logits()?)
    }

    /// As [`Healer::loss`], where `parent` gives the parent's logits.
    pub(super) fn loss_of_whole(
        &self,
        windows: &[usize],
        candidate: &Candidate,
        parent: &mut dyn WindowLogits,
    ) -> Result<Loss> {
        let healing = Healing { tensors: candidate.tensors.clone(), loss: [0.0; 2] };
        let cut = Cut {
            attention: candidate.attention.clone(),
            healing: Some(healing),
            ..Cut::new(candidate.removed.clone(), "heal")
        };
        let plan = Plan::draft(self.model, self.constraints, &cut)?;
        let file = MemoryFile::write_plan(self.model, &plan)?;
        drop((plan, cut));
        let model = file.load(self.engine.options())?;
        self.loss_over(windows, &mut self.logits_of(&model)?, parent)
    }

    /// The parent's logits, by the whole model.
    pub(super) fn parent_logits(&self) -> Result<impl WindowLogits> {
        self.logits_of(self.engine)
    }

    fn logits_of<'w>(&'w self, model: &'w ggml::Model) -> Result<WholeLogits<'w>> {
        let n_outputs = scored(self.window).len();
        let context = Context::with_outputs(model, self.window, n_outputs, &self.threads)?;
        Ok(WholeLogits { context, windows: &self.windows })
    }

    /// The first block that is removed or changed. The number of blocks without one.
    pub(super) fn first_change(&self, candidate: &Candidate) -> usize {
        let of_tensor = |source: &usize| Some(self.model.tensors().get(*source)?.block?.0);
        let without = candidate.attention.iter().flat_map(|cut| &cut.blocks);
        let blocks = candidate.tensors.keys().filter_map(of_tensor);
        let blocks = blocks.chain(without.chain(&candidate.removed).copied());
        blocks.min().map_or(self.model.n_trunk_blocks(), BlockId::index)
    }

    /// The weights of `candidate`, and zeros where it has no attention.
    pub(super) fn with_zeros(&self, candidate: &Candidate) -> ChangedTensors {
        let mut changed = candidate.tensors.clone();
        for &block in candidate.attention.iter().flat_map(|cut| &cut.blocks) {
            changed.extend(self.without_attention(block));
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_large_vocabulary_fewer_tokens_are_compared() {
        assert_eq!(rows(512, 32_000, 12), 256..511);
        assert_eq!(rows(512, 49_152, 12), 256..511);
        assert_eq!(rows(512, 262_144, 16), 447..511);
        // Of few windows more.
        assert_eq!(rows(512, 262_144, 8), 383..511);
        assert_eq!(rows(512, 262_144, 1), 256..511);
        assert_eq!(rows(3, 262_144, 1), 1..2);
        assert_eq!(rows(512, usize::MAX, 2000), 510..511);
    }
}
