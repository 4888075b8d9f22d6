//! The logits of a text, block by block: the head is a last step of its own.

use anyhow::{Context as _, Result, ensure};

use super::Pass;
use super::states::States;
use crate::engine::hidden_state::Token;
use crate::engine::scored::{ScoredLogits, scored};
use crate::engine::segment::HeadSegment;
use crate::model::BlockId;
use crate::plan::ChangedTensors;
use crate::watch::{Progress, Watch};

/// The last block with the head, and all windows' states before them.
pub struct BlockwiseLogits {
    name: String,
    head: HeadSegment,
    states: States,
    windows: Vec<Vec<Token>>,
    n_vocab: usize,
    /// The window whose turn it is.
    next: usize,
}

impl<'m> Pass<'m, 'm> {
    /// Evaluates all blocks but the last, then gives the logits by window. Windows are in the order of the text.
    ///
    /// # Errors
    /// As [`Pass::block`]; a model of one block.
    pub fn logits(
        mut self,
        n_vocab: usize,
        bar: &dyn Progress,
        watch: &dyn Watch,
    ) -> Result<BlockwiseLogits> {
        let name = self.input.path().display().to_string();
        let last = self.n_blocks() - 1;
        ensure!(last > 0, "{name}: a model of one block is not evaluated block by block");
        self.run(last, &mut (), &mut |(), _| Ok(()), bar, watch)?;
        let head = self.segments.head(&[BlockId::new(last)], &ChangedTensors::new());
        self.reading.finish();
        Ok(BlockwiseLogits {
            head: head.with_context(|| name.clone())?,
            name,
            states: self.states,
            windows: self.windows.iter().map(|window| window.to_vec()).collect(),
            n_vocab,
            next: 0,
        })
    }
}

impl ScoredLogits for BlockwiseLogits {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn logits(&mut self, window: &[Token]) -> Result<&[f32]> {
        let number = self.next % self.windows.len().max(1);
        self.next += 1;
        ensure!(self.windows.get(number).is_some_and(|next| next == window), "bug: windows in another order");
        let state = self.states.read(number)?;
        self.head.logits(&state, scored(window.len()))
    }
}
