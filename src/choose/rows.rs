//! The blocks to remove for each row of fewer blocks of `compare`.

use anyhow::{Context, Result, anyhow, bail};

use super::measured;
use crate::choose::outcome::ChoiceReport;
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::resume::close_journal;
use crate::choose::scored::scored;
use crate::choose::settings::Drops;
use crate::engine::load::LoadedModel;
use crate::engine::outcome::CalibrationReport;
use crate::engine::text::{CalibrationSet, Texts};
use crate::error;
use crate::measure::calibrate;
use crate::measure::comparison::overlap;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::Splitting;
use crate::watch::Watch;

/// Blocks to remove for each of `numbers`, chosen as in the main job, or why none can be; and the text of the choice.
///
/// # Errors
/// Whatever keeps the text from being read, or all of them from being chosen.
pub(crate) fn choose(
    parent: Parent<'_>,
    drops: &Drops,
    numbers: &[usize],
    watch: &dyn Watch,
) -> Result<(Vec<Result<BlockSet>>, Option<CalibrationReport>)> {
    let Parent { model, constraints, .. } = parent;
    let at_path = || parent.name();
    let keep = match &drops.keep {
        Some(list) => list.blocks(model.n_blocks(), "keep").with_context(at_path)?,
        None => BlockSet::new(),
    };
    if let Some(block) = keep.intersection(&constraints.dropped).next() {
        bail!("{}: cannot keep block {block}: it goes with any cut", at_path());
    }
    // What can be refused is refused before anything is measured for it.
    let possible = |n: usize| removal::check(constraints, &keep, n).with_context(at_path);
    let checked: Vec<Result<usize>> = numbers.iter().map(|&n| possible(n).map(|()| n)).collect();
    let mut calibration = None;
    let mut importance = None;
    if drops.method.needs_scores() && checked.iter().any(Result::is_ok) {
        let found = scored(parent, drops.method, &drops.calibration, watch, calibrate::Extras::default())?;
        importance = Some(found.importance);
        calibration = Some(found.report);
    }
    let mut choose = |n: usize| {
        let chosen = measured::choose(&Request {
            parent,
            method: drops.method,
            objective: drops.objective,
            target: Target::Exactly(n),
            keep: &keep,
            importance: importance.as_ref(),
            tasks: None,
            splitting: Splitting::Whole,
            scratch: None,
            heals: false,
            text: &drops.calibration,
            watch,
        })?;
        close_journal(chosen.journal, watch);
        if let Some(mut text) = chosen.calibration {
            let earlier: Option<CalibrationReport> = calibration.take();
            text.seconds += earlier.as_ref().map_or(0.0, |earlier| earlier.seconds);
            text.cached &= earlier.is_none_or(|earlier| earlier.cached);
            calibration = Some(text);
        }
        Ok(chosen.removed)
    };
    let sets = checked.into_iter().map(|n| n.and_then(&mut choose)).collect();
    Ok((sets, calibration))
}

/// How blocks were chosen, and how much of the scored text `set` that has seen.
///
/// # Errors
/// A text that cannot be read or cut.
pub(crate) fn report(
    drops: &Drops,
    calibration: Option<CalibrationReport>,
    loaded: &LoadedModel<'_>,
    set: &CalibrationSet,
    watch: &dyn Watch,
) -> Result<ChoiceReport> {
    let seen_share = match &calibration {
        None => 0.0,
        Some(_) => {
            let texts = Texts::read(drops.calibration.source.clone())?;
            let choosing = loaded.cut(&texts, &drops.calibration, watch)?;
            let scored: Vec<_> = set.windows().collect();
            let choosing: Vec<_> = choosing.windows().collect();
            overlap::share(&scored, &choosing)
        }
    };
    Ok(ChoiceReport {
        method: drops.method.to_string(),
        objective: drops.method.needs_losses().then(|| drops.objective.to_string()),
        calibration,
        seen_share,
    })
}

/// The same failure for every row.
pub(crate) fn failed(numbers: &[usize], why: &anyhow::Error) -> Vec<Result<BlockSet>> {
    let why = error::message(why);
    numbers.iter().map(|_| Err(anyhow!("{why}"))).collect()
}
