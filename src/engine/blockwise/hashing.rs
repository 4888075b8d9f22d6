//! The hash of a model's files, computed while its blocks are read: the disk is read once.

use crate::model::input::Input;

/// An incremental hash of all parts, one after another.
pub(super) struct Hashing<'i> {
    input: &'i Input,
    hasher: blake3::Hasher,
    part: usize,
    position: usize,
}

impl<'i> Hashing<'i> {
    /// Before the first byte.
    pub(super) fn new(input: &'i Input) -> Self {
        Self { input, hasher: blake3::Hasher::new(), part: 0, position: 0 }
    }

    /// Hashes up to the end of these bytes, unless already done. They were just read, and mostly what lies before them.
    pub(super) fn up_to(&mut self, bytes: &[u8]) {
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
    pub(super) fn finish(mut self) -> blake3::Hash {
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
