//! How alike two orders are.

use std::cmp::Ordering;

/// Spearman's rho: the correlation of ranks, equal values sharing the mean of theirs. `None` where all values are equal, or
/// there are fewer than two.
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (mean_ranks(a), mean_ranks(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    // The mean rank is the same whatever is equal.
    let middle = (a.len() as f64 - 1.0) / 2.0;
    for (a, b) in a.iter().zip(&b) {
        ab += (a - middle) * (b - middle);
        aa += (a - middle).powi(2);
        bb += (b - middle).powi(2);
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// Kendall's tau-b (Kendall 1945, Biometrika 33). It is pairs in the same order minus pairs in the opposite one, over the
/// geometric mean of the pairs that are not equal in either. `None` as [`spearman`].
#[must_use]
pub fn kendall(a: &[f64], b: &[f64]) -> Option<f64> {
    let sign = |x: f64, y: f64| match x.total_cmp(&y) {
        Ordering::Less => -1i32,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    };
    let (mut ab, mut aa, mut bb) = (0, 0, 0);
    let n = a.len().min(b.len());
    for i in 0..n {
        for j in 0..i {
            let (of_a, of_b) = (sign(a[i], a[j]), sign(b[i], b[j]));
            ab += of_a * of_b;
            aa += of_a * of_a;
            bb += of_b * of_b;
        }
    }
    (aa > 0 && bb > 0).then(|| f64::from(ab) / (f64::from(aa) * f64::from(bb)).sqrt())
}

/// The place of each value in ascending order, from 0.
fn mean_ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let n_of = |order| values.iter().filter(|v| v.total_cmp(value) == order).count() as f64;
        n_of(Ordering::Less) + (n_of(Ordering::Equal) - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn correlations_are_those_of_the_closed_forms() {
        let up = [1.0, 2.0, 5.0, 9.0];
        let down = [0.4, 0.3, 0.2, 0.1];
        close(spearman(&up, &up), 1.0);
        close(kendall(&up, &up), 1.0);
        close(spearman(&up, &down), -1.0);
        close(kendall(&up, &down), -1.0);
        // Two neighbours in the other order. Without equal values rho = 1 - 6 sum d^2 / (n (n^2 - 1)).
        let swapped = [2.0, 1.0, 5.0, 9.0];
        close(spearman(&up, &swapped), 1.0 - 6.0 * 2.0 / 60.0);
        close(kendall(&up, &swapped), (5.0 - 1.0) / 6.0);
        // One pair is equal in b: 5 concordant of 6 and 5 pairs.
        let equal = [1.0, 1.0, 5.0, 9.0];
        close(kendall(&up, &equal), 5.0 / 30f64.sqrt());
        close(spearman(&up, &equal), 4.5 / (5.0 * 4.5f64).sqrt());
        for one in [&[1.0][..], &[], &[2.0, 2.0]] {
            assert_eq!((spearman(one, one), kendall(one, one)), (None, None));
        }
    }
}
