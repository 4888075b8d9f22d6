//! What windows say of the scores of blocks, and of their differences.

use super::student;
use crate::measure::importance::Importance;
use crate::plan::Method;

/// Scores of blocks, and how much each window bears on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Over all windows, `[n_blocks]`.
    scores: Vec<f64>,
    /// How far each window moves each score, times the number of windows. `[n_windows][n_blocks]`. Of a mean it is what the
    /// window's own value is away from it.
    influence: Vec<Vec<f64>>,
}

impl Sample {
    /// The scores by which `method` chooses, of two windows or more. `None` with fewer, and for a method that goes by no
    /// scores.
    #[must_use]
    pub fn of(method: Method, importance: &Importance) -> Option<Self> {
        let scores = method.of_scores(importance.scores())?;
        let without = importance.scores_without_each();
        let without = without.map(|scores| method.of_scores(scores));
        Self::jackknife(scores, without.collect::<Option<Vec<_>>>()?)
    }

    /// Of scores over all windows, and those without each one.
    #[must_use]
    pub fn jackknife(scores: Vec<f64>, without: Vec<Vec<f64>>) -> Option<Self> {
        let n = without.len();
        if n < 2 {
            return None;
        }
        let influence = |without: Vec<f64>| {
            let moved = scores.iter().zip(without);
            moved.map(|(all, without)| (all - without) * (count(n) - 1.0)).collect()
        };
        let influence = without.into_iter().map(influence).collect();
        Some(Self { scores, influence })
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.scores.len()
    }

    /// Number of windows.
    #[must_use]
    pub fn n_windows(&self) -> usize {
        self.influence.len()
    }

    /// The score of a block.
    #[must_use]
    pub fn score(&self, block: usize) -> f64 {
        self.scores[block]
    }

    /// The probability that chance alone makes `score(high) - score(low)` so large. One-sided, paired over windows. 1 where
    /// the difference is not positive, or not a number.
    #[must_use]
    pub fn p_value(&self, low: usize, high: usize) -> f64 {
        let difference = self.scores[high] - self.scores[low];
        let error = self.standard_error(&|window: &[f64]| window[high] - window[low]);
        if !(difference > 0.0 && error >= 0.0) {
            return 1.0;
        }
        student::tail(difference / error, count(self.n_windows() - 1))
    }

    /// Half the width of the confidence interval of a block's score. The score is taken over the mean of those of `blocks`, and
    /// the interval leaves out `p` at either end. Infinite where it is not known.
    #[must_use]
    pub fn half_width(&self, block: usize, blocks: &[usize], p: f64) -> f64 {
        let error = self.standard_error(&|window: &[f64]| {
            let sum: f64 = blocks.iter().map(|&block| window[block]).sum();
            window[block] - sum / count(blocks.len())
        });
        let width = student::quantile(p, count(self.n_windows() - 1)) * error;
        if width.is_nan() { f64::INFINITY } else { width }
    }

    /// Of a combination of scores that is `of` each window.
    fn standard_error(&self, of: &dyn Fn(&[f64]) -> f64) -> f64 {
        let n = count(self.n_windows());
        let values = || self.influence.iter().map(|window| of(window));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n;
        variance.sqrt()
    }
}

fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of the mean of these windows, `[n_windows][n_blocks]`.
    pub fn of_windows(windows: &[Vec<f64>]) -> Sample {
        let n = count(windows.len());
        let total: Vec<f64> =
            (0..windows[0].len()).map(|block| windows.iter().map(|window| window[block]).sum()).collect();
        let without = |window: &Vec<f64>| {
            let rest = total.iter().zip(window).map(|(total, value)| (total - value) / (n - 1.0));
            rest.collect()
        };
        let scores = total.iter().map(|total| total / n).collect();
        Sample::jackknife(scores, windows.iter().map(without).collect()).unwrap()
    }

    #[test]
    fn a_mean_has_the_t_test_of_its_pairs() {
        // What one likes to call Student's own data: additional hours of sleep by two drugs, t = 4.0621 with 9 degrees of
        // freedom, one-sided p = 0.0014.
        let first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let windows: Vec<_> = (0..10).map(|i| vec![first[i], second[i]]).collect();
        let sample = of_windows(&windows);
        let p = sample.p_value(0, 1);
        assert!((p - 0.001_416_4).abs() < 1e-6, "{p}");
        assert_eq!(sample.p_value(1, 0), 1.0);
    }

    #[test]
    fn what_is_not_known_is_not_certain() {
        let same = of_windows(&[vec![1.0, 1.0], vec![2.0, 2.0]]);
        assert_eq!(same.p_value(0, 1), 1.0);
        // Always by as much.
        let apart = of_windows(&[vec![1.0, 2.0], vec![2.0, 3.0]]);
        assert_eq!(apart.p_value(0, 1), 0.0);
        let nan = Sample::jackknife(vec![1.0, 2.0], vec![vec![1.0, f64::NAN]; 2]).unwrap();
        assert_eq!(nan.p_value(0, 1), 1.0);
        assert_eq!(nan.half_width(1, &[0, 1], 0.01), f64::INFINITY);
        assert_eq!(Sample::jackknife(vec![1.0], vec![vec![1.0]]), None);
    }
}
