//! The calibration that gives a method its scores.

use anyhow::{Context, Result};

use crate::choose::lorp;
use crate::engine::settings::Calibration;
use crate::measure::calibrate::{Calibrated, Extras, calibrate};
use crate::measure::pairs::Pairs;
use crate::plan::{Basis, Method, Parent};
use crate::watch::Watch;

/// Calibrates on `text`, with all that `method` needs beside `request`.
///
/// # Errors
/// As [`calibrate`].
pub(crate) fn scored(
    parent: Parent<'_>,
    method: Method,
    text: &Calibration,
    watch: &dyn Watch,
    request: Extras<'_, '_>,
) -> Result<Calibrated> {
    let by_pairs = method.basis() == Basis::Pairs;
    let mut own = Pairs::default();
    let mut pairs = match request.pairs {
        None if by_pairs => Some(&mut own),
        pairs => pairs,
    };
    let request = Extras { pairs: pairs.as_deref_mut(), ..request };
    let mut calibrated = calibrate(parent, text, watch, request)?;
    if let Some(pairs) = pairs.filter(|_| by_pairs) {
        let places = lorp::places(&pairs.entering());
        calibrated.importance.lorp = Some(places.with_context(|| parent.name())?);
    }
    Ok(calibrated)
}
