//! Loaded: a model in llama.cpp, with the text to measure it on.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ggml::ThreadPool;

use crate::engine::hidden_state::Token;
use crate::engine::load::load_and_cut;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::segment::{Chain, Subsets, Whole};
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::engine::{logits, order};
use crate::output::Parent;
use crate::watch::{Unit, Watch};

/// A model in llama.cpp, with the text to measure it on.
pub(crate) struct Loaded {
    pub(crate) engine: ggml::Model,
    pub(crate) set: CalibrationSet,
    pub(crate) threads: Rc<ThreadPool>,
}

impl Loaded {
    /// Loads `parent` for its hidden states.
    ///
    /// # Errors
    /// A text that cannot be read or is too short; llama.cpp's.
    pub(crate) fn for_states(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch) -> Result<Self> {
        Self::new(parent, text, watch, true)
    }

    /// Loads `parent` for its predictions.
    ///
    /// # Errors
    /// As [`Loaded::for_states`]; a model or windows without predictions to score.
    pub(crate) fn for_losses(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch) -> Result<Self> {
        let at_path = || parent.name();
        logits::check_causal(parent.model).with_context(at_path)?;
        let loaded = Self::new(parent, text, watch, false)?;
        logits::check_predicts(&loaded.engine).with_context(at_path)?;
        let window = loaded.set.window;
        ensure!(
            window >= MIN_WINDOW,
            "{}: a window has {window} tokens, but {MIN_WINDOW} or more are needed to score predictions",
            at_path()
        );
        Ok(loaded)
    }

    fn new(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch, recode: bool) -> Result<Self> {
        let (engine, set) = load_and_cut(parent.input, parent.model, text, watch, recode)?;
        Ok(Self { engine, set, threads: Rc::new(ThreadPool::new(text.threads)?) })
    }

    /// The windows in an order in which the first few stand for all of the text, and for all texts where there are several.
    pub(crate) fn windows(&self) -> Vec<&[Token]> {
        let windows: Vec<&[Token]> = self.set.windows().collect();
        order::order(windows.len(), self.set.blake3).into_iter().map(|number| windows[number]).collect()
    }

    /// The evaluator of sets of blocks on `windows`, and its name in results.
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
