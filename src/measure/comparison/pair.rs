//! Two rows of a comparison, and what is said of them.

use indicatif::DecimalBytes;

use super::{Kind, Point};

/// Sizes that differ by a smaller share are about the same. It is one of the larger size.
const SAME_SIZE: f64 = 0.05;

/// Distances within so many standard errors are not told apart. The errors are taken for independent, though both are of the
/// same tokens: the real error of the difference is smaller.
const N_STDERRS: f64 = 2.0;

/// How two rows compare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'p> {
    /// The better one; of a tie in everything the first.
    pub(super) better: &'p Point,
    pub(super) worse: &'p Point,
    /// Their sizes are about the same.
    pub(super) same_size: bool,
    /// Their distances from the parent are not told apart.
    pub(super) same_kl: bool,
    /// The difference of sizes, as a share of the larger one.
    pub(super) gap: f64,
}

impl<'p> Pair<'p> {
    /// `None` where the larger one is the closer one.
    pub(super) fn new(a: &'p Point, b: &'p Point) -> Option<Self> {
        let gap = share(a.bytes.abs_diff(b.bytes), a.bytes.max(b.bytes));
        let same_size = gap < SAME_SIZE;
        let variance = |point: &Point| point.kl_stderr.unwrap_or(0.0).powi(2);
        let margin = N_STDERRS * (variance(a) + variance(b)).sqrt();
        let same_kl = (a.kl - b.kl).abs() <= margin;
        let (closer, other) = if b.kl < a.kl { (b, a) } else { (a, b) };
        let (smaller, larger) = if b.bytes < a.bytes { (b, a) } else { (a, b) };
        let (better, worse) = match (same_size, same_kl) {
            (true, _) => (closer, other),
            (false, true) => (smaller, larger),
            (false, false) if closer.bytes < other.bytes => (closer, other),
            (false, false) => return None,
        };
        Some(Self { better, worse, same_size, same_kl, gap })
    }

    pub(super) fn is_tie(&self) -> bool {
        self.same_size && self.same_kl
    }

    pub(super) fn sentence(&self) -> String {
        let (better, worse) = (called(self.better), called(self.worse));
        let (kl, worse_kl) = (digits(self.better.kl), digits(self.worse.kl));
        let (bytes, worse_bytes) = (DecimalBytes(self.better.bytes), DecimalBytes(self.worse.bytes));
        match (self.same_size, self.same_kl) {
            (true, true) => {
                format!("at {bytes} {better} and {worse} are not told apart (KL {kl} and {worse_kl})")
            }
            (true, false) => {
                format!("at {bytes} {better} is better (KL {kl}) than {worse} ({worse_kl})")
            }
            (false, true) => format!(
                "{better} is smaller ({bytes}) than {worse} ({worse_bytes}), and their KL is not told apart ({kl} and \
                 {worse_kl})"
            ),
            (false, false) => format!(
                "{better} is smaller ({bytes}) and better (KL {kl}) than {worse} ({worse_bytes}, {worse_kl})"
            ),
        }
    }
}

/// What a sentence calls a row.
pub(super) fn called(row: &Point) -> String {
    match row.kind {
        Kind::Requantize => format!("{} of the parent", row.name),
        _ => row.name.clone(),
    }
}

/// Three digits that count.
#[expect(clippy::cast_possible_truncation, reason = "1 to 9")]
pub(super) fn digits(kl: f64) -> String {
    if kl == 0.0 {
        return "0".to_owned();
    }
    let n = (2.0 - kl.abs().log10().floor()).clamp(1.0, 9.0);
    format!("{kl:.*}", n as usize)
}

fn share(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => part as f64 / whole as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_three_digits() {
        for (kl, text) in [
            (0.0, "0"),
            (0.2123, "0.212"),
            (1.0519, "1.05"),
            (12.345, "12.3"),
            (0.000_123_4, "0.000123"),
            (1e-12, "0.000000000"),
        ] {
            assert_eq!(digits(kl), text);
        }
    }
}
