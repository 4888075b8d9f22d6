//! The calibration that gives a method its scores.

use anyhow::{Context, Result};

use crate::choose::lorp;
use crate::engine::settings::Calibration;
use crate::measure::calibrate::{Calibrated, Extras, calibrate};
use crate::measure::pairs::Pairs;
use crate::output::Parent;
use crate::plan::{Basis, Method};
use crate::watch::Watch;

/// Calibrates on `text`, with all that `method` needs, and the `extras`.
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
    let by_pairs = method.basis() == Basis::Pairs;
    let mut own = Pairs::default();
    let mut pairs = match extras.pairs {
        None if by_pairs => Some(&mut own),
        pairs => pairs,
    };
    let extras = Extras { pairs: pairs.as_deref_mut(), ..extras };
    let mut calibrated = calibrate(parent, text, watch, extras)?;
    if let Some(pairs) = pairs.filter(|_| by_pairs) {
        let places = lorp::places(&pairs.entering());
        calibrated.importance.lorp = Some(places.with_context(|| parent.name())?);
    }
    Ok(calibrated)
}
