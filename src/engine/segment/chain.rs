//! A model as a chain of segments of one block each.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use ggml::ThreadPool;

use super::block::{BlockSegment, SegmentOf};
use super::check::{HEAD_DIFFERS, check_known, differs, logits, same_bits, states};
use super::contexts::Contexts;
use super::head::HeadSegment;
use super::plan::{VOCABULARY, Vocabulary, n_vocab};
use super::segments::{Loaded, Segments};
use super::{Outcome, Subsets, Visitor};
use crate::engine::hidden_state::{HiddenStates, Token};
use crate::engine::llama::{LlamaHiddenStates, StreamGraph};
use crate::engine::scored::scored;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// Memory for contexts of blocks, in bytes. Those that it does not hold are made each time.
const CONTEXT_BYTES: usize = 512 << 20;

/// Memory for blocks with a head, in bytes. One is kept at least.
const HEAD_BYTES: usize = 512 << 20;

/// A window, and hidden states that the whole model gave for it.
#[derive(Clone)]
struct Evaluated {
    tokens: Vec<Token>,
    /// The stream before block 0, `[n_tokens, n_embd]`.
    input: Vec<f32>,
    /// The stream before the last block.
    before_last: Vec<f32>,
}

/// Evaluates sets of blocks by segments of one block each.
///
/// In memory are the weights of the blocks once, and two hidden states of each window. While a window is evaluated there is one
/// for each block. llama.cpp computes in as many contexts as `CONTEXT_BYTES` holds. The vocabulary's weights and the room for
/// logits are there once for each block that lately ended a set.
pub struct Chain<'m, 'a> {
    segments: Segments<'m, 'a>,
    n_blocks: usize,
    n_embd: usize,
    windows: Vec<Evaluated>,
    loaded: BTreeMap<BlockId, Loaded>,
    contexts: Contexts<BlockSegment>,
    /// Of blocks that end a set.
    heads: Contexts<HeadSegment>,
    n_block_evaluations: u64,
}

impl<'m, 'a> Chain<'m, 'a> {
    /// Bytes beside the whole `model`, for so many tokens in such windows.
    #[must_use]
    pub fn n_bytes(model: &Model<'_>, window: usize, n_tokens: usize) -> u64 {
        let n_blocks = model.n_trunk_blocks();
        let n_embd = model.count("embedding_length").ok().flatten().unwrap_or(0);
        let n_vocab = n_vocab(model).map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let context = context_bytes(model, n_embd, window);
        let head = head_bytes(model, n_vocab, window);
        let kept = |each: usize, room: usize| each.saturating_mul(n_blocks).min(room.max(each)) as u64;
        // Two of each window, and one of each block.
        let n_states = n_tokens.saturating_mul(2).saturating_add(window.saturating_mul(n_blocks));
        model
            .n_bytes()
            .saturating_add(kept(context, CONTEXT_BYTES))
            .saturating_add(kept(head, HEAD_BYTES))
            .saturating_add(n_states.saturating_mul(n_embd).saturating_mul(size_of::<f32>()) as u64)
    }

    /// Loads every block of `model`, and evaluates all windows whole.
    ///
    /// On the first window the chain is compared with the whole model, `engine`.
    ///
    /// # Errors
    /// Why the chain cannot stand for the model: a block that llama.cpp does not take alone, or a result that differs in
    /// any bit.
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &ggml::Model,
        windows: &[&[Token]],
        threads: &Arc<ThreadPool>,
    ) -> Result<Self> {
        check_known(constraints, engine)?;
        let graph = StreamGraph::of(model, engine, constraints.rules.stream)?;
        let n_embd = engine.n_embd();
        let window = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let mut chain = Self {
            segments: Segments::new(model, constraints, window, threads).on(engine.options()),
            n_blocks: graph.n_blocks,
            n_embd,
            windows: Vec::new(),
            loaded: BTreeMap::new(),
            contexts: Contexts::new(CONTEXT_BYTES / context_bytes(model, n_embd, window).max(1)),
            heads: Contexts::new(HEAD_BYTES / head_bytes(model, engine.n_vocab(), window).max(1)),
            n_block_evaluations: 0,
        };
        for block in (0..graph.n_blocks).map(BlockId::new) {
            let loaded = load(&chain.segments, block, Vocabulary::None)?;
            chain.loaded.insert(block, loaded);
        }
        let mut whole = LlamaHiddenStates::with_threads(engine, window, threads, graph)?;
        for (number, window) in windows.iter().enumerate() {
            let evaluated = chain.evaluate_whole(&mut whole, window, number == 0)?;
            chain.windows.push(evaluated);
        }
        drop(whole);
        chain.check_logits(engine)?;
        Ok(chain)
    }

    /// Evaluates a window with the whole model.
    ///
    /// If `check`, every block is evaluated once more by its segment, which must give the same.
    fn evaluate_whole(
        &mut self,
        whole: &mut dyn HiddenStates,
        window: &[Token],
        check: bool,
    ) -> Result<Evaluated> {
        let last = self.n_blocks - 1;
        let mut states = states(whole, window, &|number| check || number == 0 || number == last)?;
        self.n_block_evaluations += self.n_blocks as u64;
        if check {
            for (block, states) in states.windows(2).enumerate() {
                let block = BlockId::new(block);
                ensure!(same_bits(&self.run(block, &states[0])?, &states[1]), differs(block));
            }
        }
        let before_last = std::mem::take(&mut states[last]);
        let input = match last {
            0 => before_last.clone(),
            _ => std::mem::take(&mut states[0]),
        };
        Ok(Evaluated { tokens: window.to_vec(), input, before_last })
    }

    /// Compares the logits of the first window.
    fn check_logits(&mut self, engine: &ggml::Model) -> Result<()> {
        let Some(first) = self.windows.first() else {
            return Ok(());
        };
        let expected = logits(&self.segments, engine, &first.tokens)?;
        let state = first.before_last.clone();
        let found = self.logits(BlockId::new(self.n_blocks - 1), &state)?;
        ensure!(same_bits(found, &expected), HEAD_DIFFERS);
        Ok(())
    }

    /// The hidden state after `block`, for the one before it.
    fn run(&mut self, block: BlockId, state: &[f32]) -> Result<Vec<f32>> {
        self.n_block_evaluations += 1;
        let (segments, loaded) = (&self.segments, &self.loaded[&block]);
        self.contexts.get_or_make(block, || segments.block_of(block, loaded, &segments.threads))?.run(state)
    }

    /// The logits of the scored tokens, for `state` before block `last`.
    fn logits(&mut self, last: BlockId, state: &[f32]) -> Result<&[f32]> {
        self.n_block_evaluations += 1;
        let rows = scored(state.len() / self.n_embd);
        let segments = &self.segments;
        let head =
            self.heads.get_or_make(last, || segments.head_of(&load(segments, last, Vocabulary::Whole)?))?;
        head.logits(state, rows)
    }

    /// Evaluates all blocks on a window, with other weights in one block.
    ///
    /// `variants` gives the weights for each block. Outcomes are shown to `visit` with the block, and the number of its variant
    /// as their set.
    ///
    /// # Errors
    /// Those of both, and whatever keeps the engine from evaluating a variant.
    pub fn visit_changed(
        &mut self,
        window: usize,
        variants: &mut dyn FnMut(BlockId) -> Result<Vec<ChangedTensors>>,
        visit: &mut dyn FnMut(BlockId, Outcome<'_>) -> Result<()>,
    ) -> Result<()> {
        let last = BlockId::new(self.n_blocks - 1);
        let Evaluated { tokens, input, before_last } = self.windows[window].clone();
        let parent = self.logits(last, &before_last)?.to_vec();
        let mut state = input;
        for block in (0..self.n_blocks).map(BlockId::new) {
            for (set, changed) in variants(block)?.iter().enumerate() {
                let mut show = |logits: &[f32]| {
                    visit(block, Outcome { set, window, tokens: &tokens, parent: &parent, logits })
                };
                self.n_block_evaluations += 1;
                if block == last {
                    let rows = scored(tokens.len());
                    show(self.segments.head(&[block], changed)?.logits(&state, rows)?)?;
                    continue;
                }
                let mut after = self.segments.block(block, changed)?.run(&state)?;
                for next in (block.index() + 1..last.index()).map(BlockId::new) {
                    after = self.run(next, &after)?;
                }
                show(self.logits(last, &after)?)?;
            }
            if block != last {
                state = self.run(block, &state)?;
            }
        }
        Ok(())
    }

    /// Evaluates the sets of `group`, whose first `depth` blocks are the same.
    ///
    /// `state` is the hidden state after those.
    fn descend(
        &mut self,
        kept: &[Vec<BlockId>],
        group: &[usize],
        depth: usize,
        state: &[f32],
        visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut next: BTreeMap<BlockId, Vec<usize>> = BTreeMap::new();
        for &set in group {
            next.entry(kept[set][depth]).or_default().push(set);
        }
        for (block, group) in next {
            let (ending, going_on): (Vec<usize>, Vec<usize>) =
                group.into_iter().partition(|&set| kept[set].len() == depth + 1);
            if let [first, more @ ..] = &ending[..] {
                ensure!(more.is_empty(), "bug: two sets are the same");
                visit(*first, self.logits(block, state)?)?;
            }
            if !going_on.is_empty() {
                let state = self.run(block, state)?;
                self.descend(kept, &going_on, depth + 1, &state, visit)?;
            }
        }
        Ok(())
    }
}

/// Loads a block with the weights that it has.
fn load(segments: &Segments<'_, '_>, block: BlockId, vocabulary: Vocabulary<'_>) -> Result<Loaded> {
    let unchanged = ChangedTensors::new();
    let plan = segments.plan(&[block], vocabulary, &unchanged)?;
    segments.load(&plan).with_context(|| SegmentOf::Block(block))
}

/// About how much memory a block's context takes, in bytes.
///
/// That is a few rows of the widest tensor for each token.
fn context_bytes(model: &Model<'_>, n_embd: usize, window: usize) -> usize {
    let widest = model
        .tensors()
        .iter()
        .filter(|tensor| tensor.block.is_some())
        .map(|tensor| usize::try_from(tensor.info.dims()[1]).unwrap_or(usize::MAX))
        .max();
    let n_rows = window.saturating_mul(4 * size_of::<f32>());
    n_rows.saturating_mul(widest.unwrap_or(0).max(n_embd))
}

/// About how much memory a head takes, in bytes.
///
/// That is the vocabulary's tensors, and logits twice: where they are computed and where they are kept.
fn head_bytes(model: &Model<'_>, n_vocab: usize, window: usize) -> usize {
    let tensors = model.tensors().iter();
    let vocabulary: u64 = tensors
        .filter(|tensor| VOCABULARY.contains(&tensor.info.name()))
        .map(|tensor| tensor.info.n_bytes())
        .sum();
    let logits = scored(window).len().saturating_mul(n_vocab);
    let logits = logits.saturating_mul(2 * size_of::<f32>());
    usize::try_from(vocabulary).unwrap_or(usize::MAX).saturating_add(logits)
}

impl Subsets for Chain<'_, '_> {
    fn n_windows(&self) -> usize {
        self.windows.len()
    }

    fn visit(&mut self, windows: &[usize], kept: &[Vec<BlockId>], visit: &mut Visitor<'_>) -> Result<()> {
        ensure!(kept.iter().all(|set| !set.is_empty()), "bug: a set of no blocks");
        let last = BlockId::new(self.n_blocks - 1);
        let all: Vec<usize> = (0..kept.len()).collect();
        for &window in windows {
            let Evaluated { tokens, input, before_last } = self.windows[window].clone();
            let parent = self.logits(last, &before_last)?.to_vec();
            self.descend(kept, &all, 0, &input, &mut |set, logits| {
                visit(Outcome { set, window, tokens: &tokens, parent: &parent, logits })
            })?;
        }
        Ok(())
    }

    fn n_block_evaluations(&self) -> u64 {
        self.n_block_evaluations
    }
}
