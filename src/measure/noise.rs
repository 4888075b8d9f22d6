//! Numbers that look random, for tests.

/// A small generator of numbers in -1 to 1. It is the same on every machine.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The next number of [`noise`] as an integer below `n`.
#[allow(clippy::cast_possible_truncation, reason = "rounded down, below `n`")]
pub(crate) fn below(next: &mut impl FnMut() -> f32, n: usize) -> usize {
    (f64::from(next() + 1.0) / 2.0 * n as f64) as usize
}
