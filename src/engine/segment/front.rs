//! The first blocks of a model, evaluated from tokens.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ggml::{Context, ThreadPool};

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

/// The first blocks of a model as a model of their own. It has the rows of the vocabulary that a text needs.
pub struct FrontSegment<'t> {
    states: LlamaHiddenStates<'static>,
    tokens: &'t Tokens,
}

impl<'t> FrontSegment<'t> {
    /// Loads block 0 for windows of `tokens`. With `halves` it shows the stream between the block's halves, too.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn load(segments: &Segments<'_, '_>, tokens: &'t Tokens, halves: Option<&Halves>) -> Result<Self> {
        let pools = [Arc::clone(&segments.threads)];
        Self::load_on_each(segments, 1, tokens, halves, &pools)?.pop().context("bug: no segment")
    }

    /// As [`FrontSegment::load`], the first `n_blocks`, once for each of `pools`. In memory their weights are once.
    ///
    /// # Errors
    /// As there.
    pub fn load_on_each(
        segments: &Segments<'_, '_>,
        n_blocks: usize,
        tokens: &'t Tokens,
        halves: Option<&Halves>,
        pools: &[Arc<ThreadPool>],
    ) -> Result<Vec<Self>> {
        let blocks: Vec<BlockId> = (0..n_blocks).map(BlockId::new).collect();
        let load = || -> Result<_> {
            let unchanged = ChangedTensors::new();
            let loaded =
                segments.load(&segments.plan(&blocks, Vocabulary::Tokens(&tokens.0), &unchanged)?)?;
            let on = |threads| {
                let window = segments.window;
                let context = Context::of_shared(&loaded.engine, window, window, threads)?;
                // Not those after them, which llama.cpp must find.
                let states = LlamaHiddenStates::of(context, segments.graph(&loaded)).up_to(n_blocks);
                Ok(Self { states: states.with_halves(halves.cloned()), tokens })
            };
            pools.iter().map(on).collect()
        };
        load().with_context(|| SegmentOf::First(n_blocks))
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

    /// Shows the stream before, between and after the blocks to `visit`.
    ///
    /// # Errors
    /// The visitor's; llama.cpp's.
    pub fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        self.states.visit(&self.tokens.numbers(window)?, visit)
    }
}
