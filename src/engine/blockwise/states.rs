//! The hidden states of a text before one block: in memory, or in files.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::mem::size_of;

use anyhow::{Context, Result};

/// The states after a block, in a file.
pub(super) struct Written {
    /// The number of the file.
    pub(super) file: usize,
    /// Of all of them.
    pub(super) blake3: blake3::Hash,
}

/// One hidden state of each window, all of one size.
pub(super) enum States {
    /// Each in memory. The one after a block takes the place of the one before it.
    Memory(Vec<Vec<f32>>),
    /// Two files in turn. So the states before a block are there until those after it are.
    Files {
        /// The states before a block, and those after it.
        files: Box<[File; 2]>,
        /// Floats of a state.
        n_floats: usize,
        /// Which of the files has the states before the block.
        before: usize,
        /// Of what was written after the block.
        hasher: Box<blake3::Hasher>,
    },
}

impl States {
    /// Of `n_windows`, in memory.
    pub(super) fn in_memory(n_windows: usize) -> Self {
        Self::Memory(vec![Vec::new(); n_windows])
    }

    /// Of `n_floats` each, in these files. The one with number `before` has those that come next.
    pub(super) fn in_files(files: [File; 2], n_floats: usize, before: usize) -> Self {
        Self::Files { files: Box::new(files), n_floats, before, hasher: Box::default() }
    }

    /// The state of a window before the block.
    pub(super) fn read(&self, window: usize) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Memory(states) => Ok(Cow::Borrowed(&states[window])),
            Self::Files { files, n_floats, before, .. } => {
                let mut file = &files[*before];
                let mut bytes = vec![0; n_floats * size_of::<f32>()];
                file.seek(SeekFrom::Start(window as u64 * bytes.len() as u64))?;
                file.read_exact(&mut bytes).context("the hidden states in the scratch folder")?;
                let (floats, _) = bytes.as_chunks::<4>();
                Ok(floats.iter().copied().map(f32::from_le_bytes).collect())
            }
        }
    }

    /// As [`States::read`], for states that are read once.
    pub(super) fn take(&mut self, window: usize) -> Result<Vec<f32>> {
        match self {
            Self::Memory(states) => Ok(std::mem::take(&mut states[window])),
            Self::Files { .. } => Ok(self.read(window)?.into_owned()),
        }
    }

    /// Keeps the state of a window after the block. Windows come in order.
    pub(super) fn write(&mut self, window: usize, state: Vec<f32>) -> Result<()> {
        match self {
            Self::Memory(states) => states[window] = state,
            Self::Files { files, n_floats, before, hasher } => {
                anyhow::ensure!(state.len() == *n_floats, "bug: a state of {} floats", state.len());
                let bytes: Vec<u8> = state.iter().flat_map(|x| x.to_le_bytes()).collect();
                let mut file = &files[1 - *before];
                file.seek(SeekFrom::Start(window as u64 * bytes.len() as u64))?;
                file.write_all(&bytes).context("the hidden states in the scratch folder")?;
                hasher.update(&bytes);
            }
        }
        Ok(())
    }

    /// The next block begins: what was written is what comes before it. Returns the number of its file and its hash.
    pub(super) fn turn(&mut self) -> Option<Written> {
        match self {
            Self::Memory(_) => None,
            Self::Files { before, hasher, .. } => {
                *before = 1 - *before;
                let blake3 = hasher.finalize();
                **hasher = blake3::Hasher::new();
                Some(Written { file: *before, blake3 })
            }
        }
    }
}

/// Hash of the first `n_bytes` of a file.
///
/// # Errors
/// The system's; a file that is shorter.
pub(super) fn hash(file: &mut File, n_bytes: u64) -> Result<blake3::Hash> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    let n_read = std::io::copy(&mut file.take(n_bytes), &mut hasher)?;
    anyhow::ensure!(n_read == n_bytes, "ends at byte {n_read}, expected {n_bytes}");
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_keep_what_was_written_before_the_turn() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let state = |window: usize, block: usize| vec![window as f32 + 0.1, block as f32 - 0.3];
        for mut states in [States::in_memory(3), States::in_files(files, 2, 0)] {
            for block in 0..4 {
                for window in 0..3 {
                    if block > 0 {
                        assert_eq!(*states.read(window).unwrap(), state(window, block - 1));
                        assert_eq!(states.take(window).unwrap(), state(window, block - 1));
                    }
                    states.write(window, state(window, block)).unwrap();
                }
                let Some(Written { file: number, blake3: hash }) = states.turn() else {
                    continue;
                };
                let States::Files { files, .. } = &mut states else { panic!() };
                assert_eq!(hash, super::hash(&mut files[number], 24).unwrap());
                assert!(super::hash(&mut files[number], 25).is_err());
            }
        }
    }
}
