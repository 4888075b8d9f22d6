//! The loss of the model without each block alone, beside the scores.

use std::time::Instant;

use anyhow::{Context, Result};

use super::loaded::Loaded;
use crate::choose::rating::{AblateReport, RefusedReport};
use crate::choose::search::{Measure, Memo, Record};
use crate::engine::settings::Calibration;
use crate::error;
use crate::measure::loss::Loss;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::watch::{Unit, Watch};

/// The loss of each block's removal alone.
pub(crate) struct Ablated {
    /// Of each block that an evaluation runs. `None` of those that may not go alone.
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

/// Measures the loss without each block that may go alone.
pub(crate) fn measure(parent: Parent<'_>, text: &Calibration, watch: &dyn Watch) -> Result<Ablated> {
    let n_blocks = parent.model.n_trunk_blocks();
    let mut singles = Vec::new();
    let mut ablated = Ablated {
        losses: vec![None; n_blocks],
        refused: Vec::new(),
        evaluated: None,
        n_block_evaluations: 0,
        seconds: 0.0,
    };
    for block in 0..n_blocks {
        let single = BlockSet::from([BlockId::new(block)]);
        match parent.constraints.check(&single) {
            Ok(()) => singles.push(single),
            Err(why) => ablated.refused.push(RefusedReport { block, reason: error::message(&why) }),
        }
    }
    if singles.is_empty() {
        return Ok(ablated);
    }
    let loaded = Loaded::for_losses(parent, text, watch)?;
    let windows = loaded.windows();
    let start = Instant::now();
    let (mut subsets, evaluated) = loaded.evaluator(parent, &windows, watch);
    let n_losses = (singles.len() * windows.len()) as u64;
    let bar = watch.begin("removing each block".into(), Unit::Losses, n_losses);
    let mut record = |_: &Record| {
        bar.advance(1);
        Ok(())
    };
    let mut memo = Memo::new(&mut *subsets, n_blocks, Vec::new(), &mut record);
    let losses = memo.losses(windows.len(), &singles);
    drop(bar);
    for (single, loss) in singles.iter().zip(losses.with_context(|| parent.name())?) {
        for block in single {
            ablated.losses[block.index()] = Some(loss);
        }
    }
    ablated.evaluated = Some(evaluated);
    ablated.n_block_evaluations = subsets.n_block_evaluations();
    ablated.seconds = start.elapsed().as_secs_f64();
    Ok(ablated)
}
