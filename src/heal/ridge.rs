//! The fit: normal equations with a ridge, solved by Cholesky's factorisation.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{Mat, MatRef};

use super::normal::NormalEquations;

/// Ridges that are tried, relative to the mean of the diagonal of `sum w h h^T`.
pub const RIDGES: [f64; 6] = [1e-3, 1e-2, 1e-1, 0.5, 2.0, 8.0];

/// A fit.
#[derive(Clone, Debug)]
pub struct Fit {
    /// What is added to the matrix, transposed: `[n_in, n_out]`.
    pub change: Mat<f64>,
    /// The ridge, as in [`RIDGES`].
    pub ridge: f64,
    /// What is left of the residual on tokens that the change was not fitted to, as a share of it: over both folds.
    pub left: f64,
}

/// The `D` of least `sum w |r - D h|^2 + ridge * mean(diagonal) * |D|^2`, transposed: `[n_in, n_out]`. `None` if there is nothing
/// to fit, or no number comes of it.
#[must_use]
pub fn solve(equations: &NormalEquations, ridge: f64) -> Option<Mat<f64>> {
    let factor = factor(equations, ridge)?;
    let par = equations.par();
    let mut change = equations.products.clone();
    let scratch = llt::solve::solve_in_place_scratch::<f64>(factor.nrows(), change.ncols(), par);
    let mut memory = MemBuffer::new(scratch);
    llt::solve::solve_in_place(
        factor.as_ref(),
        change.as_mut(),
        par,
        MemStack::new(&mut memory),
    );
    is_finite(change.as_ref()).then_some(change)
}

/// Cholesky's factor of `sum w h h^T + ridge * mean(diagonal)`, `[n_in, n_in]`: only the lower triangle means something. `None`
/// if there is nothing to fit, or no number comes of it.
#[must_use]
pub fn factor(equations: &NormalEquations, ridge: f64) -> Option<Mat<f64>> {
    let n_in = equations.inputs.nrows();
    let mut factor = equations.inputs.clone();
    #[expect(clippy::cast_precision_loss, reason = "a width stays far below 2^53")]
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

/// Fits to both folds with the ridge that leaves least when a change that is fitted to one is used on the other. `None` if
/// every ridge leaves more than no change does.
#[must_use]
pub fn cross_fit(folds: &[NormalEquations; 2]) -> Option<Fit> {
    let energy = folds[0].energy() + folds[1].energy();
    let left = |ridge| -> Option<f64> {
        let of = |own: usize| {
            let change = solve(&folds[own], ridge)?;
            Some(folds[1 - own].left(change.as_ref()))
        };
        Some((of(0)? + of(1)?) / energy)
    };
    let (ridge, left) = RIDGES
        .into_iter()
        .filter_map(|ridge| Some((ridge, left(ridge)?)))
        .filter(|(_, left)| *left < 1.0)
        .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let mut all = folds[0].clone();
    all.add_all(&folds[1]);
    Some(Fit {
        change: solve(&all, ridge)?,
        ridge,
        left,
    })
}

fn is_finite(matrix: MatRef<'_, f64>) -> bool {
    matrix
        .col_iter()
        .all(|column| column.iter().all(|value| value.is_finite()))
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
            matrix
                .chunks_exact(n_in)
                .map(move |row| row.iter().zip(h).map(|(a, b)| a * b).sum())
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
            assert!(
                (found - f64::from(expected)).abs() < 1e-5,
                "{found} {expected}"
            );
        }
        let fit = cross_fit(&folds).unwrap();
        assert!(
            fit.left < 1e-4 && fit.ridge == RIDGES[0],
            "{} {}",
            fit.left,
            fit.ridge
        );
        // Its own tokens are left nothing, and what is left of them is what a loop over them finds.
        assert!(folds[0].left(change.as_ref()).abs() < 1e-6 * folds[0].energy());
    }

    #[test]
    fn sums_and_solution_are_those_of_naive_loops() {
        let (n_in, n_out, n_tokens, ridge) = (6, 3, 40, 0.1);
        let (inputs, residuals) = (numbers(5, n_tokens * n_in), numbers(6, n_tokens * n_out));
        let weights: Vec<f64> = numbers(7, n_tokens)
            .iter()
            .map(|&w| f64::from(w.abs()))
            .collect();
        let mut equations = NormalEquations::new(n_in, n_out, 2);
        let half = n_tokens / 2;
        equations
            .add(
                &inputs[..half * n_in],
                &residuals[..half * n_out],
                &weights[..half],
            )
            .unwrap();
        equations
            .add(
                &inputs[half * n_in..],
                &residuals[half * n_out..],
                &weights[half..],
            )
            .unwrap();
        let h = |t: usize, i: usize| f64::from(inputs[t * n_in + i]);
        let r = |t: usize, o: usize| f64::from(residuals[t * n_out + o]);
        let sum = |f: &dyn Fn(usize) -> f64| (0..n_tokens).map(|t| weights[t] * f(t)).sum::<f64>();
        let mean = (0..n_in).map(|i| sum(&|t| h(t, i).powi(2))).sum::<f64>() / n_in as f64;
        let change = solve(&equations, ridge).unwrap();
        // The gradient of the objective is zero at the solution.
        for o in 0..n_out {
            for i in 0..n_in {
                let error =
                    |t: usize| (0..n_in).map(|j| change[(j, o)] * h(t, j)).sum::<f64>() - r(t, o);
                let gradient = sum(&|t| h(t, i) * error(t)) + ridge * mean * change[(i, o)];
                assert!(gradient.abs() < 1e-9, "{gradient}");
            }
        }
        let naive: f64 = (0..n_out)
            .map(|o| {
                sum(&|t| {
                    ((0..n_in).map(|j| change[(j, o)] * h(t, j)).sum::<f64>() - r(t, o)).powi(2)
                })
            })
            .sum();
        assert!((equations.left(change.as_ref()) / naive - 1.0).abs() < 1e-10);
        assert_eq!(equations.n_tokens(), n_tokens);
    }

    #[test]
    fn noise_is_not_fitted() {
        let fold = |seed| {
            let mut equations = NormalEquations::new(50, 4, 1);
            equations
                .add(
                    &numbers(seed, 60 * 50),
                    &numbers(seed + 100, 60 * 4),
                    &[1.0; 60],
                )
                .unwrap();
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
            one.add(&[1.0, 2.0, 3.0, 4.0], &[1.0, -1.0], &[1.0])
                .unwrap();
        }
        assert!(solve(&one, 1e-3).is_some());
        let error = one.add(&[f32::NAN; 4], &[0.0; 2], &[1.0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model gives numbers that are not finite"
        );
    }
}
