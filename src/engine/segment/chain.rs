//! A model as a chain of segments of one block each.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use ggml::{Context, ThreadPool, WindowInput};

use super::alone::{check_known, same_bits};
use super::contexts::Contexts;
use super::memory::MemoryFile;
use super::plan::{Head, SegmentPlan};
use super::{Outcome, Subsets, Visitor};
use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::engine::llama::{Course, evaluate_segment};
use crate::engine::scored::scored;
use crate::model::arch::Stream;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// Memory for what blocks are computed in, in bytes: as many contexts are kept as it holds, the others are made each time.
const CONTEXT_BYTES: usize = 512 << 20;

/// Memory for the ends of models, in bytes: as many are kept as it holds, and one at least.
const HEAD_BYTES: usize = 512 << 20;

/// A block as a model of its own.
struct Segment {
    model: Rc<ggml::Model>,
    n_blocks: usize,
}

impl Segment {
    fn load(model: &Model<'_>, constraints: &Constraints, block: BlockId, head: Head) -> Result<Self> {
        let unchanged = ChangedTensors::new();
        let plan = SegmentPlan::new(model, constraints, &[block], head, &unchanged)?;
        let file = MemoryFile::write(model, &plan, &unchanged)?;
        let engine = file.load().with_context(|| format!("block {block} as a model of its own"))?;
        Ok(Self { model: Rc::new(engine), n_blocks: plan.n_blocks })
    }
}

/// What is known of a window once the whole model has evaluated it.
struct Known {
    tokens: Vec<Token>,
    /// The stream before block 0, `[n_tokens, n_embd]`.
    input: Vec<f32>,
    /// The stream before the last block.
    before_last: Vec<f32>,
}

/// Evaluates sets of blocks by segments of one block each.
///
/// In memory are the weights of the blocks once, those of the vocabulary and the room for logits once for each block that
/// lately ended a set, two hidden states of each window, one for each block while a window is evaluated, and what llama.cpp
/// computes in for as many blocks as `CONTEXT_BYTES` holds.
pub struct Chain<'m, 'a> {
    model: &'m Model<'a>,
    constraints: &'m Constraints,
    threads: Rc<ThreadPool>,
    stream: Stream,
    n_embd: usize,
    /// Tokens of the longest window.
    window: usize,
    windows: Vec<Known>,
    segments: BTreeMap<BlockId, Segment>,
    contexts: Contexts,
    /// Of blocks that end a set.
    heads: Contexts,
    n_block_evaluations: u64,
}

impl<'m, 'a> Chain<'m, 'a> {
    /// Loads every block of `model` as a segment, evaluates all windows with the whole model (`engine`), and compares the
    /// chain with it on the first one.
    ///
    /// # Errors
    /// Why the chain cannot stand for the model: a block that llama.cpp does not take alone, or a result that differs in
    /// any bit.
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &ggml::Model,
        windows: &[&[Token]],
        threads: &Rc<ThreadPool>,
    ) -> Result<Self> {
        check_known(constraints, engine)?;
        let n_embd = engine.n_embd();
        let window = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let mut chain = Self {
            model,
            constraints,
            threads: Rc::clone(threads),
            stream: constraints.rules.stream,
            n_embd,
            window,
            windows: Vec::new(),
            segments: BTreeMap::new(),
            contexts: Contexts::new(CONTEXT_BYTES / context_bytes(model, n_embd, window).max(1)),
            heads: Contexts::new(HEAD_BYTES / head_bytes(model, engine.n_vocab(), window).max(1)),
            n_block_evaluations: 0,
        };
        for block in (0..model.n_trunk_blocks()).map(BlockId::new) {
            let segment = Segment::load(model, constraints, block, Head::Without)?;
            chain.segments.insert(block, segment);
        }
        let mut whole = crate::engine::llama::LlamaHiddenStates::with_threads(
            engine,
            chain.window,
            threads,
            chain.stream,
            Course::of(model, chain.stream)?,
        )?;
        for (number, window) in windows.iter().enumerate() {
            let known = chain.evaluate_whole(&mut whole, window, number == 0)?;
            chain.windows.push(known);
        }
        drop(whole);
        chain.check_logits(engine)?;
        Ok(chain)
    }

    /// Evaluates a window with the whole model; if `check`, every block once more by its segment, which must give the same.
    fn evaluate_whole(
        &mut self,
        whole: &mut dyn HiddenStates,
        window: &[Token],
        check: bool,
    ) -> Result<Known> {
        let n_blocks = self.model.n_trunk_blocks();
        let mut states: Vec<Vec<f32>> = Vec::new();
        whole.visit(window, &mut |position, state| {
            let number = match position {
                Position::Input => 0,
                Position::Output(block) => block.index() + 1,
                Position::Middle(_) => return Ok(()),
            };
            let wanted = check || number == 0 || number + 1 == n_blocks;
            states.push(if wanted { state.to_vec() } else { Vec::new() });
            Ok(())
        })?;
        self.n_block_evaluations += n_blocks as u64;
        ensure!(states.len() == n_blocks + 1, "the stream is changed between blocks");
        if check {
            for block in 0..n_blocks {
                let found = self.run(BlockId::new(block), &states[block])?;
                ensure!(
                    same_bits(&found, &states[block + 1]),
                    "block {block} alone does not compute what it does inside of the model"
                );
            }
        }
        let before_last = std::mem::take(&mut states[n_blocks - 1]);
        let input = match n_blocks {
            1 => before_last.clone(),
            _ => std::mem::take(&mut states[0]),
        };
        Ok(Known { tokens: window.to_vec(), input, before_last })
    }

    /// Compares the logits of the first window.
    fn check_logits(&mut self, engine: &ggml::Model) -> Result<()> {
        let Some(known) = self.windows.first() else {
            return Ok(());
        };
        let rows = scored(known.tokens.len());
        let (tokens, state) = (known.tokens.clone(), known.before_last.clone());
        let expected = Context::with_outputs(engine, self.window, rows.len(), &self.threads)?
            .logits_of(WindowInput::Tokens(&tokens), rows)?
            .to_vec();
        ensure!(expected.iter().any(|&logit| logit != 0.0), "the model gives no logits");
        let last = BlockId::new(self.model.n_trunk_blocks() - 1);
        let found = self.logits(last, &state)?;
        ensure!(same_bits(found, &expected), "the last block alone does not give the model's logits");
        Ok(())
    }

    /// The hidden state behind `block`, for the one before it.
    fn run(&mut self, block: BlockId, state: &[f32]) -> Result<Vec<f32>> {
        self.n_block_evaluations += 1;
        let segment = &self.segments[&block];
        let context = self.contexts.get_or_make(block, || {
            Ok(Context::of_shared(&segment.model, self.window, self.window, &self.threads)?)
        })?;
        let n_blocks = segment.n_blocks;
        evaluate_segment(context, self.stream, n_blocks, 1, self.n_embd, state)
            .with_context(|| format!("block {block} as a model of its own"))
    }

    /// The logits of the scored tokens, for the hidden state before the last block.
    fn logits(&mut self, last: BlockId, state: &[f32]) -> Result<&[f32]> {
        let rows = scored(state.len() / self.n_embd);
        self.n_block_evaluations += 1;
        let (model, constraints) = (self.model, self.constraints);
        let context = self.heads.get_or_make(last, || {
            let segment = Segment::load(model, constraints, last, Head::With)?;
            Ok(Context::of_shared(&segment.model, self.window, scored(self.window).len(), &self.threads)?)
        })?;
        Ok(context.logits_of(WindowInput::HiddenStates(state), rows)?)
    }

    /// Evaluates the sets of `kept` that are in `group`, which have their first `depth` blocks in common; `state` is the
    /// hidden state behind those.
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

/// About how much memory llama.cpp computes in for a block, in bytes: a few rows of the widest tensor for each token.
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

/// About how much memory the end of a model takes, in bytes: its vocabulary's tensors, and logits twice, where they are
/// computed and where they are kept.
fn head_bytes(model: &Model<'_>, n_vocab: usize, window: usize) -> usize {
    let tensors = model.tensors().iter();
    let vocabulary: u64 = tensors
        .filter(|tensor| super::plan::VOCABULARY.contains(&tensor.info.name()))
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
        let last = BlockId::new(self.model.n_trunk_blocks() - 1);
        let all: Vec<usize> = (0..kept.len()).collect();
        for &window in windows {
            let known = &self.windows[window];
            let (input, before_last) = (known.input.clone(), known.before_last.clone());
            let tokens = known.tokens.clone();
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
