//! The order in which a calibration that may stop early evaluates windows.

/// The numbers from 0 to `n_windows` in a pseudorandom order.
///
/// It is the same for the same text, by its hash. At whatever window it ends, those before are a simple random sample of all.
/// An order by a rule, such as every second window, then those between, is no better than the text is free of rules. With two
/// texts that take turns it would begin with one of them alone.
#[must_use]
pub fn order(n_windows: usize, text: blake3::Hash) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n_windows).collect();
    order.sort_by_cached_key(|&window| {
        let number = (window as u64).to_le_bytes();
        let hash = blake3::keyed_hash(text.as_bytes(), &number);
        *hash.as_bytes()
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_is_as_likely_at_every_place() {
        const N: usize = 10;
        let mut seen = [[0u32; N]; N];
        for text in 0..4000u32 {
            let order = order(N, blake3::hash(&text.to_le_bytes()));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..N).collect::<Vec<_>>());
            for (place, window) in order.into_iter().enumerate() {
                seen[place][window] += 1;
            }
        }
        // 400 each, with a standard deviation of 19.
        assert!(seen.iter().flatten().all(|n| n.abs_diff(400) < 95), "{seen:?}");
        let text = blake3::hash(b"x");
        assert_eq!(order(N, text), order(N, text));
    }
}
