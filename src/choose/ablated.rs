//! The loss of the model without each block alone, beside the scores.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use ggml::ThreadPool;

use super::measured;
use crate::choose::rating::{AblateReport, RefusedReport};
use crate::choose::search::{Measure, Memo, Record, Removed};
use crate::engine::load::load_and_cut;
use crate::engine::logits as evaluator;
use crate::engine::settings::Calibration;
use crate::error;
use crate::measure::loss::Loss;
use crate::model::input::Input;
use crate::model::{BlockId, Model};
use crate::plan::Constraints;
use crate::watch::{Unit, Watch};

/// What each block alone costs.
pub(crate) struct Ablated {
    /// Of each block that an evaluation runs; `None` of those that may not go alone.
    pub(crate) losses: Vec<Option<Loss>>,
    refused: Vec<RefusedReport>,
    evaluated: Option<&'static str>,
    n_block_evaluations: u64,
    seconds: f64,
}

impl Ablated {
    pub(crate) fn report(self) -> AblateReport {
        let known = self.losses.iter().flatten().next();
        AblateReport {
            parent_perplexity: known.map(Loss::parent_perplexity),
            evaluated: self.evaluated,
            block_evaluations: self.n_block_evaluations,
            seconds: self.seconds,
            refused: self.refused,
        }
    }
}

/// Measures the loss of the model without each block alone, of those that may go alone.
pub(crate) fn measure(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Calibration,
    watch: &dyn Watch,
) -> Result<Ablated> {
    let path = input.path();
    let at_path = || path.display().to_string();
    let mut singles = Vec::new();
    let mut ablated = Ablated {
        losses: vec![None; model.n_trunk_blocks()],
        refused: Vec::new(),
        evaluated: None,
        n_block_evaluations: 0,
        seconds: 0.0,
    };
    for block in 0..model.n_trunk_blocks() {
        let single = Removed::from([BlockId::new(block)]);
        match constraints.check(&single) {
            Ok(()) => singles.push(single),
            Err(why) => ablated.refused.push(RefusedReport { block, reason: error::message(&why) }),
        }
    }
    if singles.is_empty() {
        return Ok(ablated);
    }
    evaluator::check_causal(model).with_context(at_path)?;
    let (engine, set) = load_and_cut(input, model, options, watch, false)?;
    evaluator::check_predicts(&engine).with_context(at_path)?;
    measured::check_window(&set, path)?;
    let threads = Rc::new(ThreadPool::new(options.threads)?);
    let windows = measured::at_random(&set);
    let start = Instant::now();
    let (mut subsets, way) = measured::evaluator(model, constraints, &engine, &windows, &threads, watch);
    let n_losses = (singles.len() * windows.len()) as u64;
    let bar = watch.begin("removing each block".into(), Unit::Losses, n_losses);
    let mut record = |_: &Record| {
        bar.advance(1);
        Ok(())
    };
    let mut memo = Memo::new(&mut *subsets, model.n_trunk_blocks(), Vec::new(), &mut record);
    let losses = memo.losses(windows.len(), &singles);
    drop(bar);
    for (single, loss) in singles.iter().zip(losses.with_context(at_path)?) {
        for block in single {
            ablated.losses[block.index()] = Some(loss);
        }
    }
    ablated.evaluated = Some(way);
    ablated.n_block_evaluations = subsets.n_block_evaluations();
    ablated.seconds = start.elapsed().as_secs_f64();
    Ok(ablated)
}
