//! The hash of a model's files, computed while its blocks are read: the disk is read once.

use crate::model::input::Input;
use crate::model::{BlockId, Model};

/// The bytes of a model that were read.
pub(super) struct Reading<'i> {
    input: &'i Input,
    model: &'i Model<'i>,
    /// `None` where another run read what lies before.
    hashing: Option<Hashing<'i>>,
    /// How many of its blocks' there are.
    pub(super) n_bytes: u64,
}

impl<'i> Reading<'i> {
    /// Before the first byte.
    pub(super) fn new(input: &'i Input, model: &'i Model<'i>) -> Self {
        Self { input, model, hashing: Some(Hashing::new(input)), n_bytes: 0 }
    }

    /// Without the hash.
    pub(super) fn without_hash(self) -> Self {
        Self { hashing: None, ..self }
    }

    /// Hashes a block's bytes, which were just read, and gives their memory back.
    pub(super) fn give_back(&mut self, block: BlockId) {
        let tensors = self.model.tensors().iter();
        for tensor in tensors.filter(|tensor| tensor.block.is_some_and(|(of, _)| of == block)) {
            let bytes = tensor.info.bytes();
            self.n_bytes += bytes.len() as u64;
            if let Some(hashing) = &mut self.hashing {
                hashing.up_to(bytes);
            }
            self.input.release(bytes);
        }
    }

    /// The hash of all files, which the input keeps.
    pub(super) fn finish(&mut self) -> Option<blake3::Hash> {
        let hash = self.hashing.take().map(Hashing::finish)?;
        self.input.keep_blake3(hash);
        Some(hash)
    }
}

/// An incremental hash of all parts, one after another.
struct Hashing<'i> {
    input: &'i Input,
    hasher: blake3::Hasher,
    part: usize,
    position: usize,
}

impl<'i> Hashing<'i> {
    /// Before the first byte.
    fn new(input: &'i Input) -> Self {
        Self { input, hasher: blake3::Hasher::new(), part: 0, position: 0 }
    }

    /// Hashes up to the end of these bytes, unless already done. They were just read, and mostly what lies before them.
    fn up_to(&mut self, bytes: &[u8]) {
        let Some((part, range)) = self.input.position(bytes) else {
            return;
        };
        while self.part < part {
            self.advance(usize::MAX);
            self.part += 1;
            self.position = 0;
        }
        if self.part == part {
            self.advance(range.end);
        }
    }

    /// The hash of all bytes.
    fn finish(mut self) -> blake3::Hash {
        while self.part < self.input.parts().len() {
            self.advance(usize::MAX);
            self.part += 1;
            self.position = 0;
        }
        self.hasher.finalize()
    }

    /// Hashes the part up to `end`, in pieces. Their memory is given back.
    fn advance(&mut self, end: usize) {
        const PIECE: usize = 16 << 20;
        let mapping = &self.input.parts()[self.part].mapping;
        let end = end.min(mapping.len());
        while self.position < end {
            let piece = self.position..end.min(self.position + PIECE);
            self.hasher.update_rayon(&mapping[piece.clone()]);
            mapping.release(piece.clone());
            self.position = piece.end;
        }
    }
}
