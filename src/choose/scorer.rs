//! The calibration that gives a method its scores.

use anyhow::{Context, Result};

use crate::choose::lorp;
use crate::engine::settings::Calibration;
use crate::measure::calibrate::{Calibrated, Extras, calibrate};
use crate::measure::pairs::Pairs;
use crate::model::Model;
use crate::model::input::Input;
use crate::plan::{Basis, Constraints, Method};
use crate::watch::Watch;

/// What scores are measured of, for a method.
pub(crate) struct Scorer<'s, 'm> {
    pub(crate) model: &'s Model<'m>,
    pub(crate) constraints: &'s Constraints,
    pub(crate) input: &'s Input,
    pub(crate) method: Method,
    pub(crate) watch: &'s dyn Watch,
}

impl Scorer<'_, '_> {
    /// Calibrates on `text`, with what the method needs beside what is `asked`.
    ///
    /// # Errors
    /// As [`calibrate`].
    pub(crate) fn calibrate(&self, text: &Calibration, asked: Extras<'_, '_>) -> Result<Calibrated> {
        let by_pairs = self.method.basis() == Basis::Pairs;
        let mut own = Pairs::default();
        let mut pairs = match asked.pairs {
            None if by_pairs => Some(&mut own),
            pairs => pairs,
        };
        let asked = Extras { pairs: pairs.as_deref_mut(), ..asked };
        let mut calibrated = calibrate(self.model, self.constraints, self.input, text, self.watch, asked)?;
        if let Some(pairs) = pairs.filter(|_| by_pairs) {
            let places = lorp::places(&pairs.entering());
            calibrated.importance.lorp =
                Some(places.with_context(|| self.input.path().display().to_string())?);
        }
        Ok(calibrated)
    }
}
