//! The calibration that gives a method its scores.

use anyhow::{Context, Result};

use crate::choose::lorp;
use crate::engine::blockwise::need::Way;
use crate::engine::settings::Calibration;
use crate::measure::blockwise::{self, Kept};
use crate::measure::cache::cached::CachedScores;
use crate::measure::cache::{Entry, Scored};
use crate::measure::calibrate::{Calibrated, Extras, calibrate, unconverted};
use crate::measure::pairs::Pairs;
use crate::model::hashes;
use crate::output::Parent;
use crate::plan::{Basis, Method};
use crate::watch::Watch;

/// Calibrates on `text`, with all that `method` needs, and the `extras`. Pairs that a method needs come from the cache if they
/// are there.
///
/// # Errors
/// As [`calibrate`].
pub(crate) fn scored(
    parent: Parent<'_>,
    method: Method,
    text: &Calibration,
    watch: &dyn Watch,
    extras: Extras<'_, '_>,
) -> Result<Calibrated> {
    let text = &*unconverted(text, extras.gathers);
    let by_pairs = matches!(method.basis(), Basis::Pairs | Basis::Candidates);
    let known = match by_pairs && extras.until.is_none() {
        true => {
            let kept = Kept { states: true, gathers: extras.gathers };
            // Block by block the files are hashed while they are read.
            let hash = match text.cache && blockwise::way(parent, text, kept)? == Way::Whole {
                true => Some(hashes::remembered(parent.input, watch)),
                false => hashes::known(parent.input, watch),
            };
            CachedScores::look(hash, text, watch, Scored::Pairs)?
        }
        false => None,
    };
    let n_blocks = parent.model.n_trunk_blocks();
    let found = known.as_ref().and_then(|known| known.found()?.0.pairs(n_blocks));
    let mut own = Pairs::lenient();
    if method.basis() == Basis::Pairs {
        own = Pairs::default();
    }
    let mut pairs = match extras.pairs {
        None if by_pairs => Some(&mut own),
        pairs => pairs,
    };
    let is_known = found.is_some();
    if let (Some(found), Some(pairs)) = (found, &mut pairs) {
        **pairs = found;
    }
    let extras = Extras { pairs: pairs.as_deref_mut().filter(|_| !is_known), ..extras };
    let mut calibrated = calibrate(parent, text, watch, extras)?;
    let Some(pairs) = pairs.filter(|_| by_pairs) else {
        return Ok(calibrated);
    };
    if let (Some(known), Some(hash)) = (known, calibrated.report.scored)
        && !is_known
        && pairs.are_of(n_blocks)
    {
        let entry = |key, path, measured| Entry::of_pairs(key, path, measured, pairs);
        known.keep(parent.input, hash, &calibrated.report, entry);
    }
    let places = lorp::places(&pairs.entering());
    calibrated.importance.lorp = match method.basis() {
        Basis::Pairs => Some(places.with_context(|| parent.name())?),
        // A method without places has no part.
        _ => places.ok(),
    };
    Ok(calibrated)
}
