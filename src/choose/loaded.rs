//! Loaded: a model in llama.cpp, with the text to measure it on.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ggml::ThreadPool;

use crate::engine::blockwise::need::Way;
use crate::engine::blockwise::replay::Replay;
use crate::engine::conversion::Conversion;
use crate::engine::hidden_state::{HiddenStates, Token};
use crate::engine::imatrix::Gathers;
use crate::engine::llama::{LlamaHiddenStates, StreamGraph};
use crate::engine::load::{self, Weights, load_and_cut};
use crate::engine::scored::MIN_WINDOW;
use crate::engine::segment::{Chain, Subsets, Whole};
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::engine::{logits, order};
use crate::measure::blockwise::{self, Kept};
use crate::output::Parent;
use crate::watch::{Unit, Watch};

/// A model in llama.cpp, with the text to measure it on.
pub(crate) struct Loaded {
    pub(crate) engine: ggml::Model,
    pub(crate) set: CalibrationSet,
    /// What the weights of its blocks were converted to.
    pub(crate) conversion: Conversion,
    pub(crate) threads: Arc<ThreadPool>,
    /// The states of the text, of a model evaluated block by block. Then the engine is its vocabulary alone.
    replay: Option<RefCell<Replay>>,
}

impl Loaded {
    /// Loads `parent` for its hidden states, or evaluates it block by block.
    ///
    /// # Errors
    /// A text that cannot be read or is too short; llama.cpp's.
    pub(crate) fn for_states(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch) -> Result<Self> {
        let way = blockwise::way(parent, text, Kept { states: true, gathers: Gathers::default() })?;
        if way == Way::Whole {
            return Self::new(parent, text, watch, Weights::of_scores(text));
        }
        let loaded = Self::new(parent, text, watch, Weights::None)?;
        let (replay, conversion) = blockwise::replay(parent, text, &loaded.set, way, watch)?;
        Ok(Self { replay: Some(RefCell::new(replay)), conversion, ..loaded })
    }

    /// Loads `parent` for its predictions.
    ///
    /// # Errors
    /// As [`Loaded::for_states`]; a model or windows without predictions to score.
    pub(crate) fn for_losses(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch) -> Result<Self> {
        let at_path = || parent.name();
        logits::check_causal(parent.model).with_context(at_path)?;
        let why = "the loss of removals is measured beside the whole model";
        blockwise::check_whole(parent, text, blockwise::losses_bytes(parent, text), why)?;
        let loaded = Self::new(parent, text, watch, Weights::AsTheyAre)?;
        logits::check_predicts(&loaded.engine).with_context(at_path)?;
        let window = loaded.set.window;
        ensure!(
            window >= MIN_WINDOW,
            "{}: a window has {window} tokens, but {MIN_WINDOW} or more are needed to score predictions",
            at_path()
        );
        Ok(loaded)
    }

    fn new(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch, weights: Weights) -> Result<Self> {
        let load::Loaded { engine, set, conversion } =
            load_and_cut(parent.input, parent.model, text, watch, weights)?;
        let threads = Arc::new(ThreadPool::new(text.threads)?);
        Ok(Self { engine, set, conversion, threads, replay: None })
    }

    /// Uses the hidden states of the text.
    ///
    /// # Errors
    /// Those of `with`; llama.cpp's.
    pub(crate) fn states<T>(
        &self,
        parent: Parent<'_>,
        with: impl FnOnce(&mut dyn HiddenStates) -> Result<T>,
    ) -> Result<T> {
        if let Some(replay) = &self.replay {
            return with(&mut *replay.borrow_mut());
        }
        let graph = StreamGraph::of(parent.model, &self.engine, parent.constraints.rules.stream)?;
        with(&mut LlamaHiddenStates::with_threads(&self.engine, self.set.window, &self.threads, graph)?)
    }

    /// The windows in an order whose first few stand for all. Of several texts they stand for each.
    pub(crate) fn windows(&self) -> Vec<&[Token]> {
        let windows: Vec<&[Token]> = self.set.windows().collect();
        order::order(windows.len(), self.set.blake3).into_iter().map(|number| windows[number]).collect()
    }

    /// The evaluator of block sets on `windows`, and its name in results.
    pub(crate) fn evaluator<'m>(
        &'m self,
        parent: Parent<'m>,
        windows: &[&[Token]],
        watch: &dyn Watch,
    ) -> (Box<dyn Subsets + 'm>, &'static str) {
        let Parent { model, constraints, .. } = parent;
        let bar = watch.begin("evaluating the whole model".into(), Unit::Time, 0);
        let chain = Chain::new(model, constraints, &self.engine, windows, &self.threads);
        drop(bar);
        match chain {
            Ok(chain) => (Box::new(chain), "segments"),
            Err(why) => {
                watch.note(&format!(
                    "blocks of this model are not evaluated one by one ({why:#}); every candidate is \
                     evaluated whole, which takes longer"
                ));
                let whole = Whole::new(model, constraints, &self.engine, windows, &self.threads);
                (Box::new(whole), "whole")
            }
        }
    }
}
