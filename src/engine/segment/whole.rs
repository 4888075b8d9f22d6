//! Shortened models, each whole: slow, and right for every architecture.

use std::sync::Arc;

use anyhow::Result;
use ggml::{Context, ModelOptions, ThreadPool, WindowInput};

use super::{Outcome, Subsets, Visitor};
use crate::engine::hidden_state::Token;
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::scored;
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model};
use crate::plan::{Constraints, Cut, Plan};

/// Evaluates sets of blocks, each as the shortened model that it is.
///
/// In memory are the weights of one such model at a time, and two windows of logits.
pub struct Whole<'m, 'a> {
    model: &'m Model<'a>,
    constraints: &'m Constraints,
    engine: &'m ggml::Model,
    windows: Vec<Vec<Token>>,
    threads: Arc<ThreadPool>,
    n_block_evaluations: u64,
}

impl<'m, 'a> Whole<'m, 'a> {
    /// Prepares evaluation beside `engine`, which is the whole model.
    #[must_use]
    pub fn new(
        model: &'m Model<'a>,
        constraints: &'m Constraints,
        engine: &'m ggml::Model,
        windows: &[&[Token]],
        threads: &Arc<ThreadPool>,
    ) -> Self {
        Self {
            model,
            constraints,
            engine,
            windows: windows.iter().map(|window| window.to_vec()).collect(),
            threads: Arc::clone(threads),
            n_block_evaluations: 0,
        }
    }

    /// Evaluates what each of `cuts` makes of the model on some windows. The whole model is evaluated beside it, as
    /// [`Subsets::visit`] does it for sets of blocks.
    ///
    /// # Errors
    /// The visitor's; a cut that cannot be planned; llama.cpp's.
    pub fn visit_cuts(&mut self, windows: &[usize], cuts: &[Cut], visit: &mut Visitor<'_>) -> Result<()> {
        let longest = self.windows.iter().map(Vec::len).max().unwrap_or(0);
        let n_outputs = scored(longest).len();
        let mut parent = Context::with_outputs(self.engine, longest, n_outputs, &self.threads)?;
        for (set, cut) in cuts.iter().enumerate() {
            let model = load(self.model, self.constraints, cut, self.engine.options())?;
            let mut context = Context::with_outputs(&model, longest, n_outputs, &self.threads)?;
            let n_trunk = self.model.n_trunk_blocks();
            let n_removed = cut.blocks.iter().filter(|block| block.index() < n_trunk).count();
            for &window in windows {
                let tokens = &self.windows[window];
                let input = WindowInput::Tokens(tokens);
                let outcome = Outcome {
                    set,
                    window,
                    tokens,
                    parent: parent.logits_of(input, scored(tokens.len()))?,
                    logits: context.logits_of(input, scored(tokens.len()))?,
                };
                visit(outcome)?;
                self.n_block_evaluations += (2 * n_trunk - n_removed) as u64;
            }
        }
        Ok(())
    }
}

/// Loads from memory `model` without `removed`, as `options` say.
///
/// # Errors
/// A set that is not allowed; llama.cpp's reason for not loading it.
pub(crate) fn load_without(
    model: &Model<'_>,
    constraints: &Constraints,
    removed: BlockSet,
    options: ModelOptions,
) -> Result<ggml::Model> {
    load(model, constraints, &without(removed), options)
}

/// The cut of a search.
fn without(removed: BlockSet) -> Cut {
    Cut::new(removed, "search")
}

/// Loads from memory the file that `cut` makes of `model`.
fn load(
    model: &Model<'_>,
    constraints: &Constraints,
    cut: &Cut,
    options: ModelOptions,
) -> Result<ggml::Model> {
    let plan = Plan::draft(model, constraints, cut)?;
    MemoryFile::write_plan(model, &plan)?.load(options)
}

impl Subsets for Whole<'_, '_> {
    fn n_windows(&self) -> usize {
        self.windows.len()
    }

    fn visit(&mut self, windows: &[usize], kept: &[Vec<BlockId>], visit: &mut Visitor<'_>) -> Result<()> {
        let all = || (0..self.model.n_trunk_blocks()).map(BlockId::new);
        let cut = |kept: &Vec<BlockId>| without(all().filter(|block| !kept.contains(block)).collect());
        let cuts: Vec<Cut> = kept.iter().map(cut).collect();
        self.visit_cuts(windows, &cuts, visit)
    }

    fn n_block_evaluations(&self) -> u64 {
        self.n_block_evaluations
    }
}
