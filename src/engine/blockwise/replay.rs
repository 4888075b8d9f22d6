//! Hidden states of a whole text at every position of the stream. They are kept to be shown window by window.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::engine::hidden_state::{HiddenStates, Passage, Position, Token, Visitor};
use crate::model::BlockId;

/// The states of all windows. At position 0 before block 0, at position `i + 1` after block `i`.
///
/// They are shown window after window, in the order of the text, again and again.
pub struct Replay {
    store: Store,
    n_blocks: usize,
    n_windows: usize,
    /// Floats of a state.
    n_floats: usize,
    n_embd: usize,
    /// The window that is shown next.
    next: usize,
}

enum Store {
    /// One allocation. The system gets it back at once when dropped. Empty before the first state.
    Memory(Vec<f32>),
    /// Without a name, so that it goes with the process.
    File(File),
}

impl Replay {
    /// Of `n_windows` windows through `n_blocks` blocks. In a file in `folder`, if there is one.
    ///
    /// # Errors
    /// A folder in which no file can be made.
    pub fn new(n_blocks: usize, n_windows: usize, n_embd: usize, folder: Option<&Path>) -> Result<Self> {
        let store = match folder {
            Some(folder) => {
                let file = tempfile::tempfile_in(folder);
                Store::File(file.with_context(|| format!("a file in '{}'", folder.display()))?)
            }
            None => Store::Memory(Vec::new()),
        };
        Ok(Self { store, n_blocks, n_windows, n_floats: 0, n_embd, next: 0 })
    }

    /// Keeps what a block made of a window. Blocks come in order.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, passage: &Passage<'_>) -> Result<()> {
        self.n_floats = passage.after.len();
        if passage.block.index() == 0 {
            self.write(0, passage.window, passage.before)?;
        }
        self.write(passage.block.index() + 1, passage.window, passage.after)
    }

    fn write(&mut self, position: usize, window: usize, state: &[f32]) -> Result<()> {
        ensure!(state.len() == self.n_floats, "bug: windows of different lengths");
        let at = position * self.n_windows + window;
        match &mut self.store {
            Store::Memory(states) => {
                if states.is_empty() {
                    *states = vec![0.0; (self.n_blocks + 1) * self.n_windows * self.n_floats];
                }
                states[at * self.n_floats..][..self.n_floats].copy_from_slice(state);
            }
            Store::File(file) => {
                let bytes: Vec<u8> = state.iter().flat_map(|x| x.to_le_bytes()).collect();
                file.seek(SeekFrom::Start(at as u64 * bytes.len() as u64))?;
                file.write_all(&bytes).context("the hidden states in the scratch folder")?;
            }
        }
        Ok(())
    }

    fn show(
        &mut self,
        position: usize,
        window: usize,
        show: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let at = position * self.n_windows + window;
        match &mut self.store {
            Store::Memory(states) => show(&states[at * self.n_floats..][..self.n_floats]),
            Store::File(file) => {
                let mut bytes = vec![0; self.n_floats * size_of::<f32>()];
                file.seek(SeekFrom::Start(at as u64 * bytes.len() as u64))?;
                file.read_exact(&mut bytes).context("the hidden states in the scratch folder")?;
                let (floats, _) = bytes.as_chunks::<4>();
                let state: Vec<f32> = floats.iter().copied().map(f32::from_le_bytes).collect();
                show(&state)
            }
        }
    }
}

impl HiddenStates for Replay {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Shows the next window. `window` must be as long.
    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        ensure!(window.len() * self.n_embd == self.n_floats, "bug: a window of {} tokens", window.len());
        let number = self.next % self.n_windows;
        self.next += 1;
        for position in 0..=self.n_blocks {
            let of_stream = match position.checked_sub(1) {
                None => Position::Input,
                Some(block) => Position::Output(BlockId::new(block)),
            };
            self.show(position, number, &mut |state| visit(of_stream, state))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_back_in_the_order_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let state = |position: usize, window: usize| vec![position as f32, window as f32, 0.5, -1.0];
        for folder in [None, Some(folder.path())] {
            let mut replay = Replay::new(3, 2, 2, folder).unwrap();
            for block in 0..3 {
                for window in 0..2 {
                    let (before, after) = (state(block, window), state(block + 1, window));
                    let block = BlockId::new(block);
                    let passage = Passage { block, window, before: &before, middle: None, after: &after };
                    replay.add(&passage).unwrap();
                }
            }
            for window in [0, 1, 0] {
                let mut seen = Vec::new();
                let mut visit = |_: Position, state: &[f32]| {
                    seen.push(state.to_vec());
                    Ok(())
                };
                replay.visit(&[0, 0], &mut visit).unwrap();
                assert_eq!(seen, (0..4).map(|position| state(position, window)).collect::<Vec<_>>());
            }
        }
    }
}
