//! Ranks that a block may have among texts of one kind.

use std::ops::RangeInclusive;

use super::{Confidence, Sample};

/// The possible ranks of each block, from 1 for the lowest score. They are those among texts of this kind. All hold together
/// with the given confidence (Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic Studies 91). A rank lies after
/// all scores that are lower for certain, and before all that are higher for certain. Of two blocks at most one verdict can
/// be wrong, so the comparisons are as many as there are pairs.
#[must_use]
pub fn ranks(sample: &Sample, confidence: Confidence) -> Vec<RangeInclusive<usize>> {
    let n = sample.n_blocks();
    let n_pairs = n * n.saturating_sub(1) / 2;
    let alpha = confidence.alpha() / (n_pairs.max(1) as f64);
    let (mut low, mut high) = (vec![1; n], vec![n; n]);
    for a in 0..n {
        for b in a + 1..n {
            let (a, b) = match sample.score(a) < sample.score(b) {
                true => (a, b),
                false => (b, a),
            };
            if sample.p_value(a, b) < alpha {
                low[b] += 1;
                high[a] -= 1;
            }
        }
    }
    low.into_iter().zip(high).map(|(a, b)| a..=b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::stability::sample::tests::of_windows;

    #[test]
    fn ranks_are_as_wide_as_the_doubt() {
        // Two scores vary against each other; one is far above, one far below.
        let window = |i: usize| {
            let up = [0.3, -0.1, 0.2, -0.4][i % 4];
            vec![5.0 + up, 9.0, 5.01 - up, 1.0]
        };
        let windows: Vec<_> = (0..12).map(window).collect();
        let found = ranks(&of_windows(&windows), Confidence::default());
        assert_eq!(found, [2..=3, 4..=4, 2..=3, 1..=1]);
    }
}
