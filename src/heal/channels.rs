//! One factor for each channel of a block's additions, by least squares. The branches of the block add to the stream. Pure: no
//! I/O.
//!
//! Where the output of a branch passes a norm before it is added, the weights of that norm are such factors. No matrix under it
//! can make a larger addition. Of a block that adds `a` (attention) and `f` (feed-forward network) and leaves the residual `r`
//! of what the stream should be, the fit is, for each channel `c`,
//!
//! ```text
//! min over (p, q) of  sum_t w_t (r_tc - p a_tc - q f_tc)^2 + ridge * (p^2 sum_t w_t a_tc^2 + q^2 sum_t w_t f_tc^2)
//! ```
//!
//! and the weights of the norms become `1 + p` and `1 + q` times what they were.

use anyhow::{Result, ensure};

/// Ridges that are tried, relative to the energy of what is multiplied.
pub const RIDGES: [f64; 6] = [1e-4, 1e-2, 0.1, 0.5, 2.0, 10.0];

/// Sums over tokens for each channel.
#[derive(Clone, Debug)]
pub struct ChannelSums {
    /// Of each channel: `aa, af, ff, ar, fr, rr`.
    sums: Vec<[f64; 6]>,
}

/// What is added to one, for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelFit {
    /// `p`: of attention.
    pub attention: Vec<f64>,
    /// `q`: of the feed-forward network.
    pub ffn: Vec<f64>,
    /// The ridge, as in [`RIDGES`].
    pub ridge: f64,
    /// The share of the residual that is left. It is of tokens that the factors were not fitted to.
    pub left: f64,
}

impl ChannelSums {
    /// Of no token, for `n_embd` channels.
    #[must_use]
    pub fn new(n_embd: usize) -> Self {
        Self { sums: vec![[0.0; 6]; n_embd] }
    }

    /// Adds tokens, `[n_tokens, n_embd]` each, counted `weights` times.
    ///
    /// # Errors
    /// Numbers that are not finite.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn add(&mut self, attention: &[f32], ffn: &[f32], residuals: &[f32], weights: &[f64]) -> Result<()> {
        let n_embd = self.sums.len();
        let n = n_embd * weights.len();
        assert!(attention.len() == n && ffn.len() == n && residuals.len() == n, "states of different shapes");
        let rows = attention.chunks_exact(n_embd).zip(ffn.chunks_exact(n_embd));
        pulp::Arch::new().dispatch(|| {
            for (((a, f), r), &w) in rows.zip(residuals.chunks_exact(n_embd)).zip(weights) {
                for (((sums, &a), &f), &r) in self.sums.iter_mut().zip(a).zip(f).zip(r) {
                    let (a, f, r) = (f64::from(a), f64::from(f), f64::from(r));
                    let terms = [a * a, a * f, f * f, a * r, f * r, r * r];
                    for (sum, term) in sums.iter_mut().zip(terms) {
                        *sum += w * term;
                    }
                }
            }
        });
        let mut all = self.sums.iter().flatten();
        ensure!(all.all(|sum| sum.is_finite()), "the model gives numbers that are not finite");
        Ok(())
    }

    /// Adds the tokens of `other`.
    pub fn add_all(&mut self, other: &Self) {
        for (sums, more) in self.sums.iter_mut().zip(&other.sums) {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more;
            }
        }
    }

    /// The best factors, less one. Channels with nothing to multiply keep theirs; without `attention` its factors stay.
    fn solve(&self, ridge: f64, attention: bool) -> Vec<(f64, f64)> {
        let of_channel = |&[aa, af, ff, ar, fr, _]: &[f64; 6]| {
            let (aa, ff) = (aa * (1.0 + ridge), ff * (1.0 + ridge));
            let alone = |x: f64, xr: f64| if x > 0.0 { xr / x } else { 0.0 };
            if !attention {
                return (0.0, alone(ff, fr));
            }
            let determinant = aa * ff - af * af;
            if determinant > 1e-12 * aa * ff {
                let p = (ar * ff - fr * af) / determinant;
                let q = (fr * aa - ar * af) / determinant;
                return (p, q);
            }
            // Both say the same, or one says nothing.
            if aa >= ff { (alone(aa, ar), 0.0) } else { (0.0, alone(ff, fr)) }
        };
        self.sums.iter().map(of_channel).collect()
    }

    /// What is left of the residuals with these factors.
    fn left(&self, factors: &[(f64, f64)]) -> f64 {
        let of_channel = |(&[aa, af, ff, ar, fr, rr], &(p, q)): (&[f64; 6], &(f64, f64))| {
            rr - 2.0 * (p * ar + q * fr) + p * p * aa + 2.0 * p * q * af + q * q * ff
        };
        self.sums.iter().zip(factors).map(of_channel).sum()
    }

    fn energy(&self) -> f64 {
        self.sums.iter().map(|sums| sums[5]).sum()
    }
}

/// Fits to both folds, with the ridge that is best across them. That one leaves least when factors that are fitted to one are
/// used on the other. `None` if every ridge leaves more than no change does. Without `attention` only the factors of the
/// feed-forward network are fitted.
#[must_use]
pub fn fit(folds: &[ChannelSums; 2], attention: bool) -> Option<ChannelFit> {
    let energy = folds[0].energy() + folds[1].energy();
    if energy <= 0.0 {
        return None;
    }
    let left = |ridge: f64| {
        let of = |own: usize| folds[1 - own].left(&folds[own].solve(ridge, attention));
        (of(0) + of(1)) / energy
    };
    let (ridge, left) = RIDGES
        .into_iter()
        .map(|ridge| (ridge, left(ridge)))
        .filter(|(_, left)| *left < 1.0)
        .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let mut all = folds[0].clone();
    all.add_all(&folds[1]);
    let (attention, ffn) = all.solve(ridge, attention).into_iter().unzip();
    Some(ChannelFit { attention, ffn, ridge, left })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f32::from(u16::try_from(state >> 48).unwrap()) / 32768.0 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    fn sums(a: &[f32], f: &[f32], r: &[f32], w: &[f64]) -> ChannelSums {
        let mut sums = ChannelSums::new(a.len() / w.len());
        sums.add(a, f, r, w).unwrap();
        sums
    }

    #[test]
    fn factors_that_are_there_are_found() {
        let (n_tokens, n_embd) = (50, 3);
        let (p, q) = ([0.5f32, -0.2, 0.0], [-0.3f32, 0.7, 1.5]);
        let fold = |seed| {
            let (a, f) = (noise(n_tokens * n_embd, seed), noise(n_tokens * n_embd, seed + 9));
            let r: Vec<f32> = (0..n_tokens * n_embd).map(|i| p[i % 3] * a[i] + q[i % 3] * f[i]).collect();
            let w: Vec<f64> = noise(n_tokens, 5).iter().map(|&w| 1.1 + f64::from(w)).collect();
            sums(&a, &f, &r, &w)
        };
        let fit = fit(&[fold(1), fold(2)], true).unwrap();
        assert_eq!(fit.ridge, RIDGES[0]);
        assert!(fit.left < 1e-6);
        for (found, expected) in fit.attention.iter().zip(p).chain(fit.ffn.iter().zip(q)) {
            assert!((found - f64::from(expected)).abs() < 1e-3, "{found} {expected}");
        }
    }

    #[test]
    fn no_other_factors_leave_less() {
        let (n_tokens, n_embd) = (40, 4);
        let at = |seed| noise(n_tokens * n_embd, seed);
        let (a, f, r) = (at(1), at(2), at(3));
        let w = vec![0.7; n_tokens];
        let sums = sums(&a, &f, &r, &w);
        for ridge in [0.0, 0.3] {
            for attention in [true, false] {
                let best = sums.solve(ridge, attention);
                // Token by token.
                let cost = |factors: &[(f64, f64)]| -> f64 {
                    let mut cost = 0.0;
                    for i in 0..n_tokens * n_embd {
                        let (p, q) = factors[i % n_embd];
                        let [a, f, r] = [a[i], f[i], r[i]].map(f64::from);
                        let square = |x: f64| x * x;
                        cost += 0.7 * square(r - p * a - q * f);
                        cost += 0.7 * ridge * (square(p * a) + square(q * f));
                    }
                    cost
                };
                if ridge == 0.0 {
                    assert!((sums.left(&best) / cost(&best) - 1.0).abs() < 1e-9);
                }
                for channel in 0..n_embd {
                    for step in [-1e-3, 1e-3] {
                        let mut other = best.clone();
                        other[channel].1 += step;
                        assert!(cost(&other) > cost(&best));
                        if attention {
                            other = best.clone();
                            other[channel].0 += step;
                            assert!(cost(&other) > cost(&best));
                        } else {
                            assert_eq!(best[channel].0, 0.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_carry_over_is_not_fitted() {
        let at = |seed| noise(2 * 3, seed);
        let w = [1.0; 2];
        let (a, f) = (at(1), at(2));
        let r: Vec<f32> = a.iter().map(|x| x * 2.0).collect();
        let minus: Vec<f32> = r.iter().map(|x| -x).collect();
        let folds = [sums(&a, &f, &r, &w), sums(&a, &f, &minus, &w)];
        assert!(fit(&folds, true).is_none());
        let zeros = [0.0; 6];
        let nothing = sums(&zeros, &zeros, &r, &w);
        assert!(nothing.solve(0.1, true).iter().all(|&pq| pq == (0.0, 0.0)));
        let still = sums(&a, &f, &zeros, &w);
        assert!(fit(&[still.clone(), still], true).is_none());
        let bad = ChannelSums::new(3).add(&[f32::NAN; 6], &zeros, &zeros, &w);
        assert!(bad.is_err());
    }
}
