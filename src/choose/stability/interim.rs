//! Interim analyses of a calibration that may stop early.
//!
//! Who looks at unfinished results again and again, and stops as soon as they are significant, finds significance too often
//! (Armitage, McPherson and Rowe 1969). So there are few interim analyses, and each gets a part of the probability of error.
//! The parts add up to all of it (an alpha-spending function: Lan and DeMets 1983, Biometrika 70). Here each part is the same,
//! by Bonferroni's inequality, which assumes nothing of how they depend on each other.

use super::Confidence;

/// With fewer windows nothing is certain. The variance of so few is not known, and their mean not yet normal.
pub const MIN_WINDOWS: usize = 8;

/// Each analysis sees so many times the windows of the one before.
const GROWTH: f64 = 1.25;

/// The interim analyses of a calibration.
#[derive(Clone, Debug, PartialEq)]
pub struct InterimAnalyses {
    at: Vec<usize>,
    alpha: f64,
}

impl InterimAnalyses {
    /// Of at most `n_windows`. Numbers of windows grow geometrically up to those, at which none is needed.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "between 0 and the number of windows, which is far below 2^53"
    )]
    pub fn new(n_windows: usize, confidence: Confidence) -> Self {
        let mut at = Vec::new();
        let mut next = n_windows as f64 / GROWTH;
        while next.round() as usize >= MIN_WINDOWS {
            at.push(next.round() as usize);
            next /= GROWTH;
        }
        at.reverse();
        at.dedup();
        at.retain(|&n| n < n_windows);
        let alpha = confidence.alpha() / (at.len().max(1) as f64);
        Self { at, alpha }
    }

    /// Whether there is an analysis after this many windows.
    #[must_use]
    pub fn is_at(&self, n_windows: usize) -> bool {
        self.at.contains(&n_windows)
    }

    /// The probability of error that each may spend.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn analyses_grow_geometrically_and_spend_all_there_is() {
        let analyses = |n| InterimAnalyses::new(n, Confidence::default());
        assert_eq!(analyses(16).at, [8, 10, 13]);
        assert_eq!(analyses(64).at, [9, 11, 13, 17, 21, 26, 33, 41, 51]);
        assert!((analyses(64).alpha() * 9.0 - 0.01).abs() < 1e-15);
        for n in [0, 1, 8, 9] {
            assert!(analyses(n).at.is_empty(), "{n}");
        }
        assert_eq!(analyses(10).at, [8]);
        assert!(analyses(1 << 30).at.len() < 100);
    }
}
