//! The blocks that go for each row of fewer blocks of `compare`.

use anyhow::{Context, Result, anyhow, bail};

use super::measured::{self};
use crate::choose::outcome::ChoiceReport;
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::resume::close_journal;
use crate::choose::scorer::Scorer;
use crate::choose::search::Removed;
use crate::choose::settings::Drops;
use crate::engine::load::LoadedModel;
use crate::engine::outcome::CalibrationReport;
use crate::engine::text::{CalibrationSet, Texts};
use crate::error;
use crate::measure::calibrate::Extras;
use crate::measure::comparison::overlap;
use crate::model::Model;
use crate::model::input::Input;
use crate::plan::{Constraints, Method};
use crate::watch::Watch;

/// What may be removed, as the flags say.
///
/// # Errors
/// An architecture or metadata that is not known.
pub(crate) fn constraints(model: &Model<'_>, drops: &Drops) -> Result<Constraints> {
    let mut constraints = Constraints::new(model, drops.trust_any_cut)?;
    if drops.drop_mtp {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    if drops.portable {
        constraints = constraints.portable();
    }
    Ok(constraints)
}

/// The blocks that go for each number of `numbers`, as the main job would choose them, or why none can be chosen; and how
/// they were.
///
/// # Errors
/// Whatever keeps the text from being read, or all of them from being chosen.
pub(crate) fn choose(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    drops: &Drops,
    numbers: &[usize],
    watch: &dyn Watch,
) -> Result<(Vec<Result<Removed>>, Option<CalibrationReport>)> {
    let path = input.path();
    let at_path = || path.display().to_string();
    let method = drops.method;
    let keep = match &drops.keep {
        Some(list) => list.blocks(model.n_blocks(), "keep").with_context(at_path)?,
        None => Removed::new(),
    };
    if let Some(block) = keep.intersection(&constraints.dropped).next() {
        bail!("{}: cannot keep block {block}: it goes with any cut", path.display());
    }
    // What can be refused is refused before anything is measured for it.
    let possible = |n: usize| removal::check(constraints, &keep, n).with_context(at_path);
    let checked: Vec<Result<usize>> = numbers.iter().map(|&n| possible(n).map(|()| n)).collect();
    let measures = method.needs_losses() || method == Method::Run;
    let mut calibration = None;
    let mut importance = None;
    if method.needs_scores() && checked.iter().any(Result::is_ok) {
        let scorer = Scorer { model, constraints, input, method, watch };
        let found = scorer.calibrate(&drops.calibration, Extras::default())?;
        importance = Some(found.importance);
        calibration = Some(found.report);
    }
    let mut sets = Vec::new();
    for n in checked {
        sets.push(n.and_then(|n| {
            if !measures {
                return removal::choose(constraints, method, importance.as_ref(), &keep, n)
                    .with_context(at_path);
            }
            let request = Request {
                method,
                objective: drops.objective,
                target: Target::Exactly(n),
                keep: &keep,
                importance: None,
                tasks: None,
                // Neither objective of this command goes by it.
                n_bytes: &|_| bail!("bug: sizes play no part here"),
                scratch: None,
                heals: false,
            };
            let options = &drops.calibration;
            let chosen = measured::choose(model, constraints, input, &request, options, watch)?;
            close_journal(chosen.journal, watch);
            if let Some(mut text) = chosen.calibration {
                let earlier: Option<CalibrationReport> = calibration.take();
                text.seconds += earlier.as_ref().map_or(0.0, |earlier| earlier.seconds);
                text.cached &= earlier.is_none_or(|earlier| earlier.cached);
                calibration = Some(text);
            }
            Ok(chosen.removed)
        }));
    }
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
pub(crate) fn failed(numbers: &[usize], why: &anyhow::Error) -> Vec<Result<Removed>> {
    let why = error::message(why);
    numbers.iter().map(|_| Err(anyhow!("{why}"))).collect()
}
