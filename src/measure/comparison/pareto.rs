//! The rows that no other one beats. None is as small and as close to the parent, and better in one of the two.

/// Whether each row is on the Pareto front of both numbers. A row is `(bytes, KL divergence)`, both to be small. Of equal
/// rows all are.
#[must_use]
pub fn front(rows: &[(u64, f64)]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| rows[a].0.cmp(&rows[b].0).then(rows[a].1.total_cmp(&rows[b].1)));
    let mut on = vec![false; rows.len()];
    // From small to large: what is on the front is closer than all that is smaller.
    let mut last: Option<(u64, f64)> = None;
    for i in order {
        let (bytes, kl) = rows[i];
        on[i] = last.is_none_or(|(best_bytes, best)| kl < best || (kl == best && bytes == best_bytes));
        if on[i] {
            last = Some((bytes, kl));
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::noise::{below, noise};

    /// By the definition.
    fn naive(rows: &[(u64, f64)]) -> Vec<bool> {
        let beats = |a: (u64, f64), b: (u64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
        rows.iter().map(|&row| !rows.iter().any(|&other| beats(other, row))).collect()
    }

    #[test]
    fn the_front_is_that_of_the_definition() {
        let mut next = noise(7);
        let mut n_on = [0usize; 2];
        for case in 0..4000 {
            // Few different values half of the time, so that many are equal.
            let n_values = if case % 2 == 0 { 5 } else { 1000 };
            let mut number = || u32::try_from(below(&mut next, n_values)).unwrap();
            let mut rows: Vec<(u64, f64)> =
                (0..12).map(|_| (number().into(), f64::from(number()) / 7.0)).collect();
            rows.truncate(below(&mut next, 13));
            let found = front(&rows);
            assert_eq!(found, naive(&rows), "{rows:?}");
            for on in found {
                n_on[usize::from(on)] += 1;
            }
        }
        assert!(n_on.iter().all(|&n| n > 1000), "{n_on:?}");
    }

    #[test]
    fn a_known_front() {
        let rows = [(98, 0.0), (117, 0.01), (80, 0.3), (70, 0.2), (70, 0.2), (60, 0.9)];
        assert_eq!(front(&rows), [true, false, false, true, true, true]);
        assert!(front(&[]).is_empty());
    }
}
