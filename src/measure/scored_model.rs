//! A model ready to be scored on text. It is loaded as a whole, or evaluated block by block where that does not fit.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ggml::{ModelOptions, ThreadPool};

use crate::engine::blockwise::Pass;
use crate::engine::blockwise::need::Need;
use crate::engine::load::{LoadedModel, Weights};
use crate::engine::logits::{LlamaLogits, Speed};
use crate::engine::scored::ScoredLogits;
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::measure::blockwise;
use crate::model::Model;
use crate::model::input::Input;
use crate::output::Parent;
use crate::plan::Constraints;
use crate::watch::{Unit, Watch};

/// A model whose predictions are scored.
pub struct ScoredModel<'i> {
    /// The whole model, or its vocabulary alone.
    pub loaded: LoadedModel<'i>,
    model: &'i Model<'i>,
    by_blocks: Option<ByBlocks>,
}

/// Its evaluation block by block.
struct ByBlocks {
    constraints: Constraints,
    need: Need,
    /// Memory beside what that takes, in bytes.
    spare: u64,
}

impl<'i> ScoredModel<'i> {
    /// Loads the model of `input`, which may take `room` bytes.
    ///
    /// # Errors
    /// llama.cpp's; a model that does not fit in any way.
    pub fn load(
        input: &'i Input,
        model: &'i Model<'i>,
        text: &Calibration,
        room: Option<u64>,
    ) -> Result<Self> {
        let by_blocks = match Constraints::of(model) {
            Ok(constraints) => {
                let parent = Parent { input, model, constraints: &constraints };
                let found = blockwise::logits_by_blocks(parent, text, room)?;
                found.map(|(need, spare)| ByBlocks { constraints, need, spare })
            }
            // An unknown architecture tells nothing before it is loaded.
            Err(_) => None,
        };
        let weights = if by_blocks.is_none() { Weights::AsTheyAre } else { Weights::None };
        Ok(Self { loaded: LoadedModel::load(input, text, weights)?, model, by_blocks })
    }

    /// Loads the model of `input`, beside `other`. What one of them leaves of its half is the other's.
    ///
    /// # Errors
    /// As [`ScoredModel::load`].
    pub fn load_beside(
        input: &'i Input,
        model: &'i Model<'i>,
        text: &Calibration,
        other: &Model<'_>,
    ) -> Result<Self> {
        let other = blockwise::whole_bytes(other, text);
        Self::load(input, model, text, blockwise::room(text).map(|room| room - other.min(room / 2)))
    }

    /// Whether it is loaded as a whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.by_blocks.is_none()
    }

    /// Gives the logits of the windows of `set`, in their order. With progress where all are evaluated before.
    ///
    /// # Errors
    /// Whatever keeps the engine from evaluating them.
    pub fn logits<'s>(
        &'s self,
        set: &'s CalibrationSet,
        text: &Calibration,
        watch: &dyn Watch,
    ) -> Result<ModelLogits<'s>> {
        let at_path = || self.loaded.name();
        let Some(ByBlocks { constraints, need, spare }) = &self.by_blocks else {
            let logits = self.loaded.logits(set.window, text.threads).with_context(at_path)?;
            return Ok(ModelLogits::Whole(logits));
        };
        let threads = Arc::new(ThreadPool::new(text.threads)?);
        let on = ModelOptions { gpu_layers: text.gpu_layers, ..ModelOptions::default() };
        let pass = Pass::new(self.loaded.input, self.model, constraints, set, &threads, on)?;
        let pass = match text.scratch.as_deref() {
            Some(folder) => pass.kept_for_logits(folder)?,
            None => pass,
        };
        let pass = blockwise::in_parallel(pass, text, *spare, need).with_context(at_path)?;
        let bar = watch.begin("evaluating blocks".into(), Unit::Tokens, set.n_tokens() as u64);
        let logits = pass.logits(self.loaded.engine.n_vocab(), &*bar, watch).with_context(at_path)?;
        Ok(ModelLogits::Blocks(Box::new(logits)))
    }

    /// Refuses what is done with the whole model alone.
    ///
    /// # Errors
    /// It is not loaded as a whole.
    pub fn check_whole(&self, what: &Path) -> Result<()> {
        ensure!(
            self.is_whole(),
            "{}: tasks are done with the whole model, which does not fit in memory",
            what.display()
        );
        Ok(())
    }
}

/// The logits of a model, in either way.
pub enum ModelLogits<'s> {
    /// Of the whole model.
    Whole(LlamaLogits<'s>),
    /// Block by block.
    Blocks(Box<dyn ScoredLogits>),
}

impl ModelLogits<'_> {
    /// They, window by window.
    pub fn scored(&mut self) -> &mut dyn ScoredLogits {
        match self {
            Self::Whole(logits) => logits,
            Self::Blocks(logits) => &mut **logits,
        }
    }

    /// How fast the whole model is. `None` block by block, which is no way to answer a prompt.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn speed(&mut self, set: &CalibrationSet) -> Result<Option<Speed>> {
        match self {
            Self::Whole(logits) => logits.speed(set.windows()).map(Some),
            Self::Blocks(_) => Ok(None),
        }
    }
}
