//! A choice as it is shipped: planned, loaded as any file, and compared with the parent.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use ggml::{Backend, Context, ModelOptions, ThreadPool, WindowInput};

use crate::choose::loaded::Loaded;
use crate::engine::hidden_state::Token;
use crate::engine::load::model_options;
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::scored;
use crate::engine::settings::Calibration;
use crate::measure::loss::Loss;
use crate::output::Parent;
use crate::plan::{Cut, Plan};

/// Memory for the parent's logits, in bytes.
const LOGIT_BYTES: usize = 512 << 20;

/// Tokens of a window that are scored at least.
const MIN_SCORED: usize = 16;

/// The parent's predictions on some windows, with which models are compared.
pub(super) struct Whole<'m> {
    pub(super) parent: Parent<'m>,
    options: ModelOptions,
    windows: Vec<Vec<Token>>,
    /// Scored tokens of a window, its last ones.
    n_scored: usize,
    /// The parent's logits of each window.
    logits: Vec<Vec<f32>>,
    threads: Arc<ThreadPool>,
    n_block_evaluations: Cell<u64>,
}

impl<'m> Whole<'m> {
    /// Evaluates the parent, which `loaded` has, on `windows`.
    pub(super) fn new(
        parent: Parent<'m>,
        loaded: &Loaded,
        windows: &[&[Token]],
        text: &Calibration,
    ) -> Result<Self> {
        let n_bytes = windows.len().max(1) * loaded.engine.n_vocab().max(1) * size_of::<f32>();
        let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let n_scored = scored(longest).len().min((LOGIT_BYTES / n_bytes).max(MIN_SCORED)).max(1);
        let mut whole = Self {
            parent,
            options: ModelOptions { no_mmap: true, ..model_options(text)? },
            windows: windows.iter().map(|window| window.to_vec()).collect(),
            n_scored,
            logits: Vec::new(),
            threads: Arc::clone(&loaded.threads),
            n_block_evaluations: Cell::new(0),
        };
        let mut logits = Vec::new();
        whole.visit(&loaded.engine, &mut |_, found| {
            logits.push(found.to_vec());
            Ok(())
        })?;
        whole.logits = logits;
        whole.count(parent.model.n_trunk_blocks());
        Ok(whole)
    }

    /// How many windows there are.
    pub(super) fn n_windows(&self) -> usize {
        self.windows.len()
    }

    /// Evaluations of one block on one window so far.
    pub(super) fn n_block_evaluations(&self) -> u64 {
        self.n_block_evaluations.get()
    }

    fn count(&self, n_blocks: usize) {
        let n = (n_blocks * self.windows.len()) as u64;
        self.n_block_evaluations.set(self.n_block_evaluations.get() + n);
    }

    /// The loss of what `cut` makes of the parent, window by window.
    pub(super) fn losses(&self, cut: &Cut) -> Result<Vec<Loss>> {
        let plan = Plan::draft(self.parent.model, self.parent.constraints, cut)?;
        let file = MemoryFile::write_plan(self.parent.model, &plan)?;
        let engine = ggml::Model::load(Backend::init(), file.path(), self.options)?;
        drop(file);
        let mut losses = Vec::new();
        self.visit(&engine, &mut |window, logits| {
            let tokens = &self.windows[window];
            losses.push(Loss::of_rows(tokens, self.rows(tokens), &self.logits[window], logits)?);
            Ok(())
        })?;
        self.count(plan.renumbering.kept().len());
        Ok(losses)
    }

    /// The scored tokens of a window.
    fn rows(&self, window: &[Token]) -> Range<usize> {
        let scored = scored(window.len());
        scored.end.saturating_sub(self.n_scored).max(scored.start)..scored.end
    }

    fn visit(&self, engine: &ggml::Model, visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let longest = self.windows.iter().map(Vec::len).max().unwrap_or(0);
        let mut context = Context::with_outputs(engine, longest, self.n_scored, &self.threads)?;
        for (number, window) in self.windows.iter().enumerate() {
            visit(number, context.logits_of(WindowInput::Tokens(window), self.rows(window))?)?;
        }
        Ok(())
    }
}
