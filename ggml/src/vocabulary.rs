//! A model's vocabulary, and the kind of model.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use crate::{Model, Token, enums};

/// One token of a vocabulary, as llama.cpp has read it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VocabularyEntry<'model> {
    /// Its text as stored, not decoded; up to its first NUL byte.
    pub text: &'model [u8],
    /// What a tokenizer of the SentencePiece kind goes by. 0 where the file has none.
    pub score: f32,
    /// Bits of `llama_token_attr`: whether it is a normal token, a control token, a byte and so on.
    pub attributes: u32,
}

impl Model {
    /// The entry of `token`. `None` for a number that is no token's, and of a model without a tokenizer.
    #[must_use]
    pub fn vocabulary_entry(&self, token: Token) -> Option<VocabularyEntry<'_>> {
        let number = usize::try_from(token).ok()?;
        if number >= self.n_vocab() || !self.has_tokenizer() {
            return None;
        }
        // SAFETY: the vocabulary belongs to this living model, has a tokenizer, and the token was checked to be in it.
        let text = unsafe { sys::llama_vocab_get_text(self.vocab(), token) };
        if text.is_null() {
            return None;
        }
        // SAFETY: NUL-terminated, and lives unchanged as long as the model.
        let text = unsafe { CStr::from_ptr(text) };
        // SAFETY: as for the text.
        let score = unsafe { sys::llama_vocab_get_score(self.vocab(), token) };
        // SAFETY: as for the text.
        let attributes = unsafe { sys::llama_vocab_get_attr(self.vocab(), token) };
        Some(VocabularyEntry { text: text.to_bytes(), score, attributes: enums::number(attributes) })
    }

    /// A token that can begin a text. A model may have one and yet not add it (compare [`Model::bos`]).
    #[must_use]
    pub fn first_token(&self) -> Option<Token> {
        if !self.has_tokenizer() {
            return None;
        }
        // SAFETY: the vocabulary belongs to this living model.
        let bos = unsafe { sys::llama_vocab_bos(self.vocab()) };
        let is_there = usize::try_from(bos).is_ok_and(|bos| bos < self.n_vocab());
        is_there.then_some(bos)
    }

    /// Whether `token` ends a text.
    #[must_use]
    pub fn ends_text(&self, token: Token) -> bool {
        // SAFETY: the vocabulary belongs to this living model; any number may be asked for.
        self.has_tokenizer() && unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Whether some block keeps a state instead of all earlier tokens. Then a token cannot belong to two sequences.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: the model is alive.
        let recurrent = unsafe { sys::llama_model_is_recurrent(self.as_ptr()) };
        // SAFETY: the model is alive.
        let hybrid = unsafe { sys::llama_model_is_hybrid(self.as_ptr()) };
        recurrent || hybrid
    }

    /// Whether the model is a diffusion model: it predicts masked tokens.
    #[must_use]
    pub fn is_diffusion(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_is_diffusion(self.as_ptr()) }
    }
}
