//! The first block of a model, evaluated from tokens.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use ggml::Context;

use super::block::SegmentOf;
use super::plan::Vocabulary;
use super::segments::Segments;
use crate::engine::hidden_state::{HiddenStates, Token, Visitor};
use crate::engine::imatrix::Collector;
use crate::engine::llama::{Halves, LlamaHiddenStates};
use crate::model::BlockId;
use crate::plan::ChangedTensors;

/// The tokens of a text, each once.
pub struct Tokens(Vec<usize>);

impl Tokens {
    /// Of these windows.
    pub fn of<'w>(windows: impl Iterator<Item = &'w [Token]>) -> Self {
        let tokens: BTreeSet<Token> = windows.flatten().copied().collect();
        Self(tokens.into_iter().filter_map(|token| usize::try_from(token).ok()).collect())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of each token of a window in this list.
    fn numbers(&self, window: &[Token]) -> Result<Vec<Token>> {
        let number = |&token: &Token| {
            let found = usize::try_from(token).ok().and_then(|token| self.0.binary_search(&token).ok());
            let found = found.and_then(|number| Token::try_from(number).ok());
            found.with_context(|| format!("bug: token {token} is not in the text"))
        };
        window.iter().map(number).collect()
    }
}

/// Block 0 as a model of its own. It has the rows of the vocabulary that a text needs.
pub struct FrontSegment<'t> {
    states: LlamaHiddenStates<'static>,
    tokens: &'t Tokens,
}

impl<'t> FrontSegment<'t> {
    /// Loads it for windows of `tokens`. With `halves` it shows the stream between the block's halves, too.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn load(segments: &Segments<'_, '_>, tokens: &'t Tokens, halves: Option<&Halves>) -> Result<Self> {
        let first = BlockId::new(0);
        let load = || -> Result<_> {
            let unchanged = ChangedTensors::new();
            let loaded =
                segments.load(&segments.plan(&[first], Vocabulary::Tokens(&tokens.0), &unchanged)?)?;
            let window = segments.window;
            let context = Context::of_shared(&loaded.engine, window, window, &segments.threads)?;
            let graph = segments.graph(&loaded);
            Ok(LlamaHiddenStates::of(context, graph)
                .up_to(1)
                .with_halves(halves.map(|halves| halves.of_block(first))))
        };
        Ok(Self { states: load().with_context(|| SegmentOf(first))?, tokens })
    }

    /// Hands every evaluation to `collector`, too.
    #[must_use]
    pub fn with_collector(self, collector: Option<Collector>) -> Self {
        Self { states: self.states.with_collector(collector), ..self }
    }

    /// Gives that collector back.
    #[must_use]
    pub fn into_collector(self) -> Option<Collector> {
        self.states.into_collector()
    }

    /// Shows the stream before and after the block to `visit`.
    ///
    /// # Errors
    /// The visitor's; llama.cpp's.
    pub fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        self.states.visit(&self.tokens.numbers(window)?, visit)
    }
}
