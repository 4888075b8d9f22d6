//! The order of blocks by each method that goes by scores.

use anyhow::{Context, Result, bail};

use crate::measure::importance::{Importance, Metric, Scores};
use crate::plan::Method;

impl Method {
    /// The importance of each of `n_blocks` blocks: the lowest go first. The orders by number are those that ShortGPT
    /// compares with: `sequential` takes the first blocks for the most important, `reverse` the last.
    ///
    /// # Errors
    /// A method that needs scores without any, or that has no score of each block.
    pub fn scores(self, importance: Option<&Importance>, n_blocks: usize) -> Result<Vec<f64>> {
        let numbers = || (0..n_blocks).map(|i| i as f64);
        match (self, importance) {
            (Self::Sequential, _) => Ok(numbers().map(|i| -i).collect()),
            (Self::Reverse, _) => Ok(numbers().collect()),
            (_, Some(importance)) => self
                .of_scores(importance.scores())
                .with_context(|| format!("bug: method '{self}' has no score of each block")),
            (_, None) => bail!("method '{self}' needs calibration"),
        }
    }

    /// The importance of each block by measured scores. `None` for a method that does not go by them.
    #[must_use]
    pub fn of_scores(self, scores: Scores) -> Option<Vec<f64>> {
        let means = |metric| scores.means[metric].clone();
        match self {
            Self::Lorp => scores.lorp,
            Self::Safe => {
                let both = [Metric::BlockInfluence, Metric::RelativeMagnitude];
                let [bi, magnitude] = both.map(|metric| z_scores(&scores.means[metric]));
                Some(bi.into_iter().zip(magnitude).map(|(a, b)| a.max(b)).collect())
            }
            _ => self.metric().map(means),
        }
    }

    /// The single metric whose means it goes by, if any.
    pub(super) fn metric(self) -> Option<Metric> {
        match self {
            Self::Bi => Some(Metric::BlockInfluence),
            Self::RelativeMagnitude => Some(Metric::RelativeMagnitude),
            _ => None,
        }
    }
}

/// By how many standard deviations each value lies above the mean. Zeros if all are the same.
fn z_scores(values: &[f64]) -> Vec<f64> {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let z = |value: &f64| match deviation > 0.0 {
        true => (value - mean) / deviation,
        false => 0.0,
    };
    values.iter().map(z).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z_scores_are_standard_deviations_from_the_mean() {
        assert_eq!(z_scores(&[5.0, 5.0]), [0.0, 0.0]);
        let z = z_scores(&[1.0, 2.0, 3.0]);
        assert!((z[2] - 1.5f64.sqrt()).abs() < 1e-12 && (z[0] + z[2]).abs() < 1e-12);
    }
}
