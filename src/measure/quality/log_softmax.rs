//! One row of logits as log-probabilities: `log p_i = logit_i - max - ln sum_j exp(logit_j - max)`, in f64.

use anyhow::{Result, bail};

use crate::engine::hidden_state::Token;

/// Numbers worked on side by side, for vector instructions.
const LANES: usize = 8;

/// A prediction: log-probabilities after one token.
#[derive(Clone, Copy, Debug)]
pub struct Row<'l> {
    logits: &'l [f32],
    /// The largest logit.
    max: f64,
    /// `ln sum_j exp(logit_j - max)`, 0 or more.
    log_sum: f64,
}

impl<'l> Row<'l> {
    /// Of `logits`, one for each entry of the vocabulary. Minus infinity is the logit of the probability 0, which some
    /// models give to tokens that they never predict.
    ///
    /// # Errors
    /// A logit that is not a number or plus infinity; a row with nothing that is possible.
    pub fn new(logits: &'l [f32]) -> Result<Self> {
        let arch = pulp::Arch::new();
        let Some(max) = arch.dispatch(|| max(logits)) else {
            let bad = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
            if let Some(at) = logits.iter().position(bad) {
                bail!("the logit of vocabulary entry {at} is {}", logits[at]);
            }
            bail!("all logits are minus infinity");
        };
        let max = f64::from(max);
        let sum = arch.dispatch(|| sum(logits, |logit| exp(f64::from(logit) - max)));
        Ok(Self { logits, max, log_sum: sum.ln() })
    }

    /// The log-probability of vocabulary entry `i`.
    fn log_probability(&self, i: usize) -> f64 {
        // In this order: the difference from the largest logit is exact or nearly so, the rest is small.
        (f64::from(self.logits[i]) - self.max) - self.log_sum
    }

    /// The negative log-likelihood of `token`, infinite for the probability 0.
    ///
    /// # Panics
    /// If `token` is not in the vocabulary.
    #[must_use]
    pub fn nll(&self, token: Token) -> f64 {
        // 0 - 0 is not -0, which would be shown.
        0.0 - self.log_probability(usize::try_from(token).unwrap_or(usize::MAX))
    }

    /// The likeliest entry; of several the first.
    #[must_use]
    pub fn top(&self) -> Option<usize> {
        self.logits.iter().position(|&logit| f64::from(logit) == self.max)
    }

    /// The KL divergence from the parent's prediction, in nats. `KL(parent || self) = sum_i p_i (log p_i - log q_i)`, `p`
    /// the parent's probabilities and `q` these. Infinite where something is possible for the parent alone. Rounding never
    /// makes it negative.
    #[must_use]
    pub fn kl_from(&self, parent: &Row<'_>) -> f64 {
        pulp::Arch::new().dispatch(|| self.divergence(parent))
    }

    #[inline(always)]
    fn divergence(&self, parent: &Row<'_>) -> f64 {
        let parent_offset = parent.max + parent.log_sum;
        let offset = parent_offset - (self.max + self.log_sum);
        let term = |p: f32, q: f32| {
            // What is impossible adds nothing, whatever is said of it here.
            let impossible = p == f32::NEG_INFINITY;
            let (p, q) = (f64::from(p), f64::from(q));
            let term = exp(p - parent_offset) * ((p - q) - offset);
            if impossible { 0.0 } else { term }
        };
        let (a_chunks, a_rest) = parent.logits.as_chunks::<LANES>();
        let (b_chunks, b_rest) = self.logits.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                sums[lane] += term(a[lane], b[lane]);
            }
        }
        for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
            sums[lane] += term(a, b);
        }
        sums.iter().sum::<f64>().max(0.0)
    }
}

/// The largest logit. `None` if one is not a number or plus infinity, or if all are minus infinity.
#[inline(always)]
fn max(logits: &[f32]) -> Option<f32> {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut good = [true; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            good[lane] &= chunk[lane] < f32::INFINITY;
            max[lane] = larger(max[lane], chunk[lane]);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        good[lane] &= logit < f32::INFINITY;
        max[lane] = larger(max[lane], logit);
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (good == [true; LANES] && max > f32::NEG_INFINITY).then_some(max)
}

#[inline(always)]
fn sum(logits: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += term(chunk[lane]);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        sums[lane] += term(logit);
    }
    sums.iter().sum()
}

/// `1 / n!` for the powers of `r` in [`exp`].
const TAYLOR: [f64; 14] = {
    let mut terms = [1.0; 14];
    let mut n = 1;
    while n < terms.len() {
        terms[n] = terms[n - 1] / n as f64;
        n += 1;
    }
    terms
};

/// `e^x` for `x <= 0`, within some units in the last place. Of anything below -708 that of -708, `3e-308`.
///
/// The standard library's is a call for each number, which would take most of the time of a vocabulary of 262,144 entries. This
/// one is plain arithmetic on which the compiler can use vectors. `x = k ln 2 + r` with `|r| <= ln 2 / 2`, `e^x = 2^k e^r`, and
/// `e^r` is its Taylor series up to `r^13`.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// 1.5 * 2^52: adding it rounds to an integer, which is then in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// The upper bits of ln 2, and the rest (fdlibm: `e_exp.c`). The product of the upper bits with a `k` of up to 11 bits is
    /// exact.
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = x.max(-708.0);
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let series = TAYLOR.iter().rev().fold(0.0, |sum, c| sum * r + c);
    // The exponent's bits of 2^k; those of `rounded` above them are shifted out.
    let power = f64::from_bits((rounded.to_bits().wrapping_add(1023)) << 52);
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::noise::noise;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        let mut worst: f64 = 0.0;
        for i in 0..=708_000 {
            let x = -f64::from(i) / 1000.0;
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 1e-15, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(-1e300) < 1e-307 && exp(f64::NEG_INFINITY) < 1e-307);
    }

    #[test]
    fn rows_of_any_length_equal_the_textbook() {
        let mut next = noise(5);
        for n in 1..40 {
            let logits: Vec<f32> = (0..n).map(|_| 20.0 * next()).collect();
            let row = Row::new(&logits).unwrap();
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            for (token, &logit) in logits.iter().enumerate() {
                let expected = sum.ln() - f64::from(logit);
                let found = row.nll(Token::try_from(token).unwrap());
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
            let top = (0..n).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            assert_eq!(row.top(), top);
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_small_ones_keep_their_digits() {
        let row = [3.0e38, 3.0e38, -3.0e38];
        let row = Row::new(&row).unwrap();
        assert!((row.nll(0) - std::f64::consts::LN_2).abs() < 1e-15);
        assert!(row.nll(2) > 1e38 && row.nll(2).is_finite());
        // A token that is nearly certain: ln(1 + e^-30) = e^-30 up to e^-60.
        let row = [30.0, 0.0];
        let row = Row::new(&row).unwrap();
        assert!((row.nll(0) / (-30.0f64).exp() - 1.0).abs() < 1e-2);
        assert_eq!(row.top(), Some(0));
        // Of equals the first.
        assert_eq!(Row::new(&[1.0, 2.0, 2.0]).unwrap().top(), Some(1));
    }

    #[test]
    fn closed_forms_of_the_divergence_hold() {
        let kl = |p: &[f32], q: &[f32]| Row::new(q).unwrap().kl_from(&Row::new(p).unwrap());
        assert_eq!(kl(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 0.0);
        // A constant on top changes no probability.
        assert!(kl(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).abs() < 1e-14);
        // Certainty against n equals: ln n.
        let n = 1000;
        let mut certain = vec![f32::NEG_INFINITY; n];
        certain[7] = 0.0;
        let even = vec![0.0; n];
        assert!((kl(&certain, &even) - 1000f64.ln()).abs() < 1e-12);
        assert_eq!(kl(&even, &certain), f64::INFINITY);
        // 3:1 against 1:1.
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kl(&[3f32.ln(), 0.0], &[0.0, 0.0]) - expected).abs() < 1e-7);
        // A tiny change: d^2 / 8 for two equals, one of them up by d.
        let d = 1e-4f32;
        let expected = f64::from(d).powi(2) / 8.0;
        assert!((kl(&[0.0, 0.0], &[d, 0.0]) / expected - 1.0).abs() < 1e-4);
    }

    #[test]
    fn rows_that_mean_nothing_are_refused() {
        let error = |row: &[f32]| Row::new(row).unwrap_err().to_string();
        assert_eq!(error(&[0.0, f32::NAN]), "the logit of vocabulary entry 1 is NaN");
        assert_eq!(error(&[0.0, 1.0, f32::INFINITY]), "the logit of vocabulary entry 2 is inf");
        assert_eq!(error(&[f32::NEG_INFINITY; 9]), "all logits are minus infinity");
        assert!(Row::new(&[f32::NEG_INFINITY, 0.0]).is_ok());
    }
}
