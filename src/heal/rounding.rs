//! Rounding of refitted weights, where later errors make up for earlier ones.
//!
//! A rounded matrix `Q` loses `|(W - Q) L|^2` on the tokens of a fit, where `L L^T` are the second moments of its inputs with the
//! fit's ridge. Columns are rounded from the last to the first, a quantisation block of each row at a time. Before its turn each
//! gets what makes up best for the errors of those after it, with those before it free. That is Babai's nearest plane, which
//! GPTQ (arXiv:2210.17323) comes to as well (arXiv:2507.18553). The rounding of a block is ggml's own.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use crate::gguf::TensorType;

/// Rows that are rounded by one thread at once.
const ROWS: usize = 32;

/// Rounds `weights`, rows of `n_in`, to `tensor_type`. `factor` is `L`, `[n_in, n_in]`: only the lower triangle is used. `None`
/// for types without quantisation blocks, rows that are not whole ones, and what is not finite.
#[must_use]
pub fn nearest_plane(
    tensor_type: TensorType,
    weights: &[f32],
    n_in: usize,
    factor: MatRef<'_, f64>,
    par: Par,
) -> Option<Vec<u8>> {
    let group = usize::try_from(tensor_type.block_size()).ok()?;
    if group < 2 || n_in == 0 || !n_in.is_multiple_of(group) || factor.nrows() != n_in {
        return None;
    }
    let n_out = weights.len() / n_in;
    let n_groups = n_in / group;
    let n_bytes = usize::try_from(tensor_type.block_bytes()).ok()?;
    let mut bytes = vec![0u8; n_out.checked_mul(n_groups)?.checked_mul(n_bytes)?];
    // W - Q of the columns that are rounded.
    let mut errors = Mat::<f64>::zeros(n_out, n_in);
    for number in (0..n_groups).rev() {
        let first = number * group;
        let own = factor.submatrix(first, first, group, group);
        let shift = shift(errors.as_ref(), factor, first, group, par);
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        let wanted: Vec<f32> = (0..n_out * group)
            .map(|i| {
                let (row, column) = (i / group, i % group);
                (f64::from(weights[row * n_in + first + column]) + shift[(row, column)]) as f32
            })
            .collect();
        let importance = importance(own);
        let packed: Option<Vec<Vec<u8>>> = wanted
            .par_chunks(group * ROWS)
            .map(|rows| ggml::quantize::quantize(tensor_type.id(), rows, group, Some(&importance)))
            .collect();
        let packed = packed?.concat();
        let back = ggml::quantize::dequantize(tensor_type.id(), &packed)?;
        for row in 0..n_out {
            let to = (row * n_groups + number) * n_bytes;
            bytes[to..to + n_bytes].copy_from_slice(&packed[row * n_bytes..(row + 1) * n_bytes]);
            for column in 0..group {
                let weight = f64::from(weights[row * n_in + first + column]);
                errors[(row, first + column)] = weight - f64::from(back[row * group + column]);
            }
        }
    }
    Some(bytes)
}

/// The change of `group` columns that makes up for later errors: `[n_out, group]`.
///
/// The columns are those from `first` on. It is `E L' L_own^-1`, where `L'` are the later rows of their columns of `L`.
fn shift(errors: MatRef<'_, f64>, factor: MatRef<'_, f64>, first: usize, group: usize, par: Par) -> Mat<f64> {
    let (n_in, n_out) = (factor.nrows(), errors.nrows());
    let later = first + group;
    let mut shift = Mat::zeros(n_out, group);
    if later == n_in {
        return shift;
    }
    matmul(
        shift.as_mut(),
        Accum::Replace,
        errors.subcols(later, n_in - later),
        factor.submatrix(later, first, n_in - later, group),
        1.0,
        par,
    );
    let own = factor.submatrix(first, first, group, group);
    solve_upper_triangular_in_place(own.transpose(), shift.as_mut().transpose_mut(), par);
    shift
}

/// The weights of a group's squared errors, with earlier columns free.
///
/// It is the diagonal of `L_own L_own^T`, relative to its largest number.
fn importance(own: MatRef<'_, f64>) -> Vec<f32> {
    let squares = (0..own.nrows()).map(|row| (0..=row).map(|c| own[(row, c)].powi(2)).sum::<f64>());
    let squares: Vec<f64> = squares.collect();
    shares(&squares)
}

/// `sums` relative to the largest, none too small for a float.
#[must_use]
pub fn shares(sums: &[f64]) -> Vec<f32> {
    let largest = sums.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
    let share = |sum: &f64| (sum / largest).max(1e-12) as f32;
    sums.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::Solve as _;

    use super::*;
    use crate::heal::ridge::tests::numbers;

    /// Second moments of inputs that go with one another, and their factor.
    fn moments(n: usize) -> (Mat<f64>, Mat<f64>) {
        let noise = numbers(3, n * 3 * n);
        let shared = numbers(4, 3 * n);
        let rows = Mat::from_fn(3 * n, n, |t, i| f64::from(noise[t * n + i] + 1.5 * shared[t]));
        let moments = rows.transpose() * &rows;
        let factor = moments.llt(faer::Side::Lower).unwrap().L().to_owned();
        (moments, factor)
    }

    fn loss(moments: &Mat<f64>, weights: &[f32], bytes: &[u8], of: TensorType) -> f64 {
        let n = moments.nrows();
        let back = ggml::quantize::dequantize(of.id(), bytes).unwrap();
        let errors = Mat::from_fn(weights.len() / n, n, |row, i| {
            f64::from(weights[row * n + i]) - f64::from(back[row * n + i])
        });
        let product = &errors * moments;
        let terms = (0..errors.nrows()).flat_map(|row| (0..n).map(move |i| (row, i)));
        terms.map(|at| errors[at] * product[at]).sum()
    }

    #[test]
    fn errors_make_up_for_one_another() {
        let (n_in, n_out) = (128, 40);
        let (moments, factor) = moments(n_in);
        let weights = numbers(7, n_in * n_out);
        for name in ["Q4_1", "Q5_1", "Q8_0", "IQ4_NL"] {
            let of = TensorType::all().find(|of| of.name() == name).unwrap();
            let found = nearest_plane(of, &weights, n_in, factor.as_ref(), Par::Seq).unwrap();
            let plain = ggml::quantize::quantize(of.id(), &weights, n_in, None).unwrap();
            let [found, plain] = [found, plain].map(|bytes| loss(&moments, &weights, &bytes, of));
            assert!(found < 0.8 * plain, "{name}: {found} {plain}");
        }
    }

    #[test]
    fn inputs_that_have_nothing_in_common_are_rounded_as_ever() {
        let (n_in, n_out) = (96, 5);
        let weights = numbers(8, n_in * n_out);
        let one = Mat::<f64>::identity(n_in, n_in);
        let of = TensorType::all().find(|of| of.name() == "Q8_0").unwrap();
        let found = nearest_plane(of, &weights, n_in, one.as_ref(), Par::Seq).unwrap();
        let plain = ggml::quantize::quantize(of.id(), &weights, n_in, None).unwrap();
        assert_eq!(found, plain);
        // Rows that are not whole blocks, and types without any.
        assert!(nearest_plane(of, &weights[..90], 90, one.as_ref(), Par::Seq).is_none());
        let none = nearest_plane(TensorType::F16, &weights, n_in, one.as_ref(), Par::Seq);
        assert!(none.is_none());
    }

    #[test]
    fn a_shift_is_the_best_of_all_that_leave_the_columns_after_it_as_they_are() {
        let (n_in, group) = (12, 4);
        let (moments, factor) = moments(n_in);
        let values = numbers(9, 3 * n_in);
        for first in [0, 4] {
            let later = first + group;
            let errors = Mat::from_fn(3, n_in, |row, i| match i < later {
                true => 0.0,
                false => f64::from(values[row * n_in + i]),
            });
            let found = shift(errors.as_ref(), factor.as_ref(), first, group, Par::Seq);
            // At the best change the gradient of all free columns is zero. The best change of the group is its shift.
            let free = moments.submatrix(0, 0, later, later);
            let right = -(&errors * &moments);
            let right = right.subcols(0, later).to_owned();
            let solved = free.partial_piv_lu().solve(right.transpose());
            for row in 0..3 {
                for column in 0..group {
                    // The solution is W - Q, the shift Q - W.
                    let expected = -solved[(first + column, row)];
                    let found = found[(row, column)];
                    assert!((found - expected).abs() < 1e-9, "{found} {expected}");
                }
            }
        }
    }
}
