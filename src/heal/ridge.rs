//! The fit: normal equations with a ridge, solved by Cholesky's factorisation.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef};

use super::normal::NormalEquations;

/// Ridges, relative to the mean diagonal of `sum w h h^T`.
pub const RIDGES: [f64; 6] = [1e-3, 1e-2, 1e-1, 0.5, 2.0, 8.0];

/// Ways to add up outputs on which ridges are compared.
const PROBES: usize = 64;

/// `1 / sqrt(PROBES)`.
const SCALE: f64 = 0.125;

/// A fit.
#[derive(Clone, Debug)]
pub struct Fit {
    /// What is added to the matrix, transposed: `[n_in, n_out]`.
    pub change: Mat<f64>,
    /// The ridge, as in [`RIDGES`].
    pub ridge: f64,
    /// The share of the residual left on tokens not fitted to. Over both folds.
    pub left: f64,
}

/// The least-squares `D` with a ridge, transposed: `[n_in, n_out]`. Least is
/// `sum w |r - D h|^2 + ridge * mean(diagonal) * |D|^2`. `None` if there is nothing to fit, or no number comes of it.
#[must_use]
pub fn solve(equations: &NormalEquations, ridge: f64) -> Option<Mat<f64>> {
    solved(equations, ridge, equations.products.clone())
}

/// As [`solve`], for these sums of products, `[n_in, n]`.
fn solved(equations: &NormalEquations, ridge: f64, products: Mat<f64>) -> Option<Mat<f64>> {
    let factor = factor(equations, ridge)?;
    let par = equations.par();
    let mut change = products;
    let scratch = llt::solve::solve_in_place_scratch::<f64>(factor.nrows(), change.ncols(), par);
    let mut memory = MemBuffer::new(scratch);
    llt::solve::solve_in_place(factor.as_ref(), change.as_mut(), par, MemStack::new(&mut memory));
    is_finite(change.as_ref()).then_some(change)
}

/// The Cholesky factor with a ridge, `[n_in, n_in]`. It is that of `sum w h h^T + ridge * mean(diagonal)`. Only the lower
/// triangle means something. `None` if there is nothing to fit, or no number comes of it.
#[must_use]
pub fn factor(equations: &NormalEquations, ridge: f64) -> Option<Mat<f64>> {
    let n_in = equations.inputs.nrows();
    let mut factor = equations.inputs.clone();
    let mean = equations.importance().iter().sum::<f64>() / n_in.max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return None;
    }
    for i in 0..n_in {
        factor[(i, i)] += ridge * mean;
    }
    let par = equations.par();
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n_in, par, Default::default());
    let mut memory = MemBuffer::new(scratch);
    llt::factor::cholesky_in_place(
        factor.as_mut(),
        Default::default(),
        par,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .ok()?;
    Some(factor)
}

/// Fits to both folds with the ridge that is best across them.
///
/// That one leaves least where a change that is fitted to one fold is used on the other. `None` if it leaves more than no change
/// does.
///
/// Ridges are compared on `[n_out, 64]` signs in place of all outputs (Hutchinson's estimate of a trace). That goes from the
/// middle of [`RIDGES`] only for as long as the next one is better: but for noise, what is left has one minimum in the ridge.
#[must_use]
pub fn cross_fit(folds: &[NormalEquations; 2]) -> Option<Fit> {
    let energy = folds[0].energy() + folds[1].energy();
    let projected = folds.each_ref().map(projected);
    // Of a change, less the energy: so much more is left than without one.
    let excess = |ridge: f64| -> f64 {
        let of = |own: usize| {
            let change = solved(&folds[own], ridge, projected[own].clone())?;
            Some(folds[1 - own].excess(change.as_ref(), projected[1 - own].as_ref()))
        };
        // What gives no number is never the best.
        match (of(0), of(1)) {
            (Some(first), Some(second)) => first + second,
            _ => f64::INFINITY,
        }
    };
    let ridge = RIDGES[descend(RIDGES.len(), |at| excess(RIDGES[at]))];
    let left_of = |own: usize| -> Option<f64> {
        let change = solve(&folds[own], ridge)?;
        Some(folds[1 - own].left(change.as_ref()))
    };
    let left = (left_of(0)? + left_of(1)?) / energy;
    if left.is_nan() || left >= 1.0 {
        return None;
    }
    let mut all = folds[0].clone();
    all.add_all(&folds[1]);
    Some(Fit { change: solve(&all, ridge)?, ridge, left })
}

/// The place of the least of `n` numbers that fall, then rise.
///
/// It is looked for from the middle: upward, and downward if the next one upward is larger.
fn descend(n: usize, mut value: impl FnMut(usize) -> f64) -> usize {
    let middle = n / 2;
    let (mut at, mut least) = (middle, value(middle));
    let (mut upward, mut downward) = (middle + 1..n, (0..middle).rev());
    let ways: [&mut dyn Iterator<Item = usize>; 2] = [&mut upward, &mut downward];
    for way in ways {
        for next in way {
            let found = value(next);
            if found.is_nan() || found > least {
                break;
            }
            (at, least) = (next, found);
        }
        if at != middle {
            break;
        }
    }
    at
}

/// Signed sums of the columns of `equations`' products, `[n_in, PROBES]`. The products are `[n_in, n_out]`, and each column is
/// added or subtracted, in [`PROBES`] ways. All of them as they are if there are no more.
fn projected(equations: &NormalEquations) -> Mat<f64> {
    let products = &equations.products;
    let n_out = products.ncols();
    if n_out <= PROBES {
        return products.clone();
    }
    // Bits of Weyl's sequence, mixed as in SplitMix64.
    let sign = |column: usize, probe: usize| {
        let mut bits = (column * PROBES + probe) as u64;
        bits = bits.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if bits >> 63 == 0 { SCALE } else { -SCALE }
    };
    let signs = Mat::from_fn(n_out, PROBES, sign);
    let mut projected = Mat::zeros(products.nrows(), PROBES);
    matmul(projected.as_mut(), Accum::Replace, products, &signs, 1.0, equations.par());
    projected
}

fn is_finite(matrix: MatRef<'_, f64>) -> bool {
    matrix.col_iter().all(|column| column.iter().all(|value| value.is_finite()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers that look random, between -1 and 1.
    pub fn numbers(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0
        })
        .take(n)
        .collect()
    }

    fn product(matrix: &[f32], inputs: &[f32], n_in: usize) -> Vec<f32> {
        let rows = inputs.chunks_exact(n_in);
        rows.flat_map(|h| {
            matrix.chunks_exact(n_in).map(move |row| row.iter().zip(h).map(|(a, b)| a * b).sum())
        })
        .collect()
    }

    #[test]
    fn a_planted_map_is_recovered() {
        let (n_in, n_out, n_tokens) = (17, 5, 300);
        let planted = numbers(1, n_out * n_in);
        let mut folds = [0, 1].map(|_| NormalEquations::new(n_in, n_out, 1));
        for (fold, seed) in folds.iter_mut().zip([2, 3]) {
            let inputs = numbers(seed, n_tokens * n_in);
            let residuals = product(&planted, &inputs, n_in);
            let weights: Vec<f64> = (0..n_tokens).map(|t| 1.0 + (t % 7) as f64).collect();
            fold.add(&inputs, &residuals, &weights).unwrap();
        }
        let change = solve(&folds[0], 1e-12).unwrap();
        for (i, &expected) in planted.iter().enumerate() {
            let found = change[(i % n_in, i / n_in)];
            assert!((found - f64::from(expected)).abs() < 1e-5, "{found} {expected}");
        }
        let fit = cross_fit(&folds).unwrap();
        assert!(fit.left < 1e-4 && fit.ridge == RIDGES[0], "{} {}", fit.left, fit.ridge);
        // Its own tokens are left nothing.
        assert!(folds[0].left(change.as_ref()).abs() < 1e-6 * folds[0].energy());
    }

    #[test]
    fn sums_and_solution_are_those_of_naive_loops() {
        let (n_in, n_out, n_tokens, ridge) = (6, 3, 40, 0.1);
        let (inputs, residuals) = (numbers(5, n_tokens * n_in), numbers(6, n_tokens * n_out));
        let weights: Vec<f64> = numbers(7, n_tokens).iter().map(|&w| f64::from(w.abs())).collect();
        let mut equations = NormalEquations::new(n_in, n_out, 2);
        let half = n_tokens / 2;
        equations.add(&inputs[..half * n_in], &residuals[..half * n_out], &weights[..half]).unwrap();
        equations.add(&inputs[half * n_in..], &residuals[half * n_out..], &weights[half..]).unwrap();
        let h = |t: usize, i: usize| f64::from(inputs[t * n_in + i]);
        let r = |t: usize, o: usize| f64::from(residuals[t * n_out + o]);
        let sum = |f: &dyn Fn(usize) -> f64| (0..n_tokens).map(|t| weights[t] * f(t)).sum::<f64>();
        let mean = (0..n_in).map(|i| sum(&|t| h(t, i).powi(2))).sum::<f64>() / n_in as f64;
        let change = solve(&equations, ridge).unwrap();
        // The gradient of the objective is zero at the solution.
        for o in 0..n_out {
            for i in 0..n_in {
                let error = |t: usize| (0..n_in).map(|j| change[(j, o)] * h(t, j)).sum::<f64>() - r(t, o);
                let gradient = sum(&|t| h(t, i) * error(t)) + ridge * mean * change[(i, o)];
                assert!(gradient.abs() < 1e-9, "{gradient}");
            }
        }
        let naive: f64 = (0..n_out)
            .map(|o| sum(&|t| ((0..n_in).map(|j| change[(j, o)] * h(t, j)).sum::<f64>() - r(t, o)).powi(2)))
            .sum();
        assert!((equations.left(change.as_ref()) / naive - 1.0).abs() < 1e-10);
        assert_eq!(equations.n_tokens(), n_tokens);
    }

    #[test]
    fn a_ridge_is_about_as_good_as_the_best_of_all_on_all_outputs() {
        let (n_in, n_out, n_tokens) = (40, 150, 90);
        let planted = numbers(21, n_out * n_in);
        let mut chosen = Vec::new();
        for noise in [0.0_f32, 0.5, 3.0, 12.0, 40.0] {
            let folds = [22, 23].map(|seed| {
                let inputs = numbers(seed, n_tokens * n_in);
                let mut residuals = product(&planted, &inputs, n_in);
                for (residual, error) in residuals.iter_mut().zip(numbers(seed + 2, n_tokens * n_out)) {
                    *residual += noise * error;
                }
                let mut fold = NormalEquations::new(n_in, n_out, 1);
                fold.add(&inputs, &residuals, &vec![1.0; n_tokens]).unwrap();
                fold
            });
            let energy = folds[0].energy() + folds[1].energy();
            let left = |ridge: f64| {
                let changes = folds.each_ref().map(|fold| solve(fold, ridge).unwrap());
                (folds[1].left(changes[0].as_ref()) + folds[0].left(changes[1].as_ref())) / energy
            };
            let best = RIDGES.map(left).into_iter().fold(f64::INFINITY, f64::min);
            match cross_fit(&folds) {
                Some(fit) => {
                    assert!((fit.left / left(fit.ridge) - 1.0).abs() < 1e-10);
                    assert!(fit.left - best < 0.02 * (1.0 - best), "{noise}: {} {best}", fit.left);
                    chosen.push(fit.ridge);
                }
                None => assert!(best > 0.99, "{noise}: {best}"),
            }
        }
        assert!(chosen.len() > 2 && chosen.is_sorted(), "{chosen:?}");
        assert!(chosen.first() < chosen.last(), "{chosen:?}");
    }

    #[test]
    fn the_bottom_of_a_valley_is_found() {
        for bottom in 0..6_usize {
            let mut asked = 0;
            let found = descend(6, |at| {
                asked += 1;
                at.abs_diff(bottom) as f64
            });
            assert_eq!(found, bottom);
            assert!(asked <= 5, "{asked}");
        }
        assert_eq!(descend(1, |_| f64::NAN), 0);
    }

    #[test]
    fn noise_is_not_fitted() {
        let fold = |seed| {
            let mut equations = NormalEquations::new(50, 4, 1);
            equations.add(&numbers(seed, 60 * 50), &numbers(seed + 100, 60 * 4), &[1.0; 60]).unwrap();
            equations
        };
        let fit = cross_fit(&[fold(11), fold(12)]);
        // Whatever ridge is least bad leaves nearly all.
        assert!(fit.is_none_or(|fit| fit.left > 0.95));
    }

    #[test]
    fn what_has_no_solution_gives_none() {
        let mut zeros = NormalEquations::new(4, 2, 1);
        zeros.add(&[0.0; 12], &[1.0; 6], &[1.0; 3]).unwrap();
        assert!(solve(&zeros, 1e-3).is_none());
        assert!(cross_fit(&[zeros.clone(), zeros]).is_none());
        // One token, again and again: singular, which the ridge mends.
        let mut one = NormalEquations::new(4, 2, 1);
        for _ in 0..9 {
            one.add(&[1.0, 2.0, 3.0, 4.0], &[1.0, -1.0], &[1.0]).unwrap();
        }
        assert!(solve(&one, 1e-3).is_some());
        let error = one.add(&[f32::NAN; 4], &[0.0; 2], &[1.0]).unwrap_err();
        assert_eq!(error.to_string(), "the model gives numbers that are not finite");
    }
}
