//! The normal equations of a fit, summed window by window.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

/// Sums over tokens of inputs `h` and residuals `r`, in double precision. They have `n_in` and `n_out` numbers each, and token
/// `t` counts `w_t` times. Of a window no more is kept.
#[derive(Clone, Debug)]
pub struct NormalEquations {
    /// `sum w h h^T`, `[n_in, n_in]`: only the lower triangle is used.
    pub(super) inputs: Mat<f64>,
    /// `sum w h r^T`, `[n_in, n_out]`.
    pub(super) products: Mat<f64>,
    /// `sum w |r|^2`.
    energy: f64,
    n_tokens: usize,
    par: Par,
}

impl NormalEquations {
    /// Of no token, for sums on `threads` threads.
    #[must_use]
    pub fn new(n_in: usize, n_out: usize, threads: usize) -> Self {
        Self {
            inputs: Mat::zeros(n_in, n_in),
            products: Mat::zeros(n_in, n_out),
            energy: 0.0,
            n_tokens: 0,
            par: match threads {
                0 | 1 => Par::Seq,
                threads => Par::rayon(threads),
            },
        }
    }

    /// Bytes of one for these sizes.
    #[must_use]
    pub fn n_bytes(n_in: usize, n_out: usize) -> u64 {
        let (n_in, n_out) = (n_in as u64, n_out as u64);
        n_in.saturating_mul(n_in.saturating_add(n_out)).saturating_mul(8)
    }

    /// Adds tokens: `inputs` `[n_tokens, n_in]`, `residuals` `[n_tokens, n_out]`, `weights` `[n_tokens]`.
    ///
    /// # Errors
    /// Numbers that are not finite.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn add(&mut self, inputs: &[f32], residuals: &[f32], weights: &[f64]) -> Result<()> {
        let n_tokens = weights.len();
        let roots: Vec<f64> = weights.iter().map(|weight| weight.sqrt()).collect();
        let inputs = scaled(inputs, &roots);
        let residuals = scaled(residuals, &roots);
        let is_finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        ensure!(is_finite(&inputs) && is_finite(&residuals), "the model gives numbers that are not finite");
        self.energy += residuals.iter().map(|r| r * r).sum::<f64>();
        self.n_tokens += n_tokens;
        let inputs = MatRef::from_row_major_slice(&inputs, n_tokens, self.inputs.nrows());
        let residuals = MatRef::from_row_major_slice(&residuals, n_tokens, self.products.ncols());
        triangular::matmul(
            self.inputs.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            inputs.transpose(),
            BlockStructure::Rectangular,
            inputs,
            BlockStructure::Rectangular,
            1.0,
            self.par,
        );
        matmul(self.products.as_mut(), Accum::Add, inputs.transpose(), residuals, 1.0, self.par);
        Ok(())
    }

    /// Adds the tokens of `other`, of the same sizes.
    pub fn add_all(&mut self, other: &Self) {
        self.inputs += &other.inputs;
        self.products += &other.products;
        self.energy += other.energy;
        self.n_tokens += other.n_tokens;
    }

    /// The tokens of both folds.
    #[must_use]
    pub fn of_both([mut first, second]: [Self; 2]) -> Self {
        first.add_all(&second);
        first
    }

    /// Tokens so far.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// `sum w |r|^2`: what is left without any fit.
    #[must_use]
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// `sum w h_i^2` of each input `i`.
    #[must_use]
    pub fn importance(&self) -> Vec<f64> {
        (0..self.inputs.nrows()).map(|i| self.inputs[(i, i)]).collect()
    }

    /// `sum w |r - D h|^2`: what is left with `D` (`change`, transposed: `[n_in, n_out]`).
    #[must_use]
    pub fn left(&self, change: MatRef<'_, f64>) -> f64 {
        self.energy + self.excess(change, self.products.as_ref())
    }

    /// `sum w |D h|^2 - 2 w r^T D h`: by how much more is left with `D`. `products` are `sum w h r^T`, `[n_in, n]` as `change`.
    pub(super) fn excess(&self, change: MatRef<'_, f64>, products: MatRef<'_, f64>) -> f64 {
        let mut product = Mat::zeros(change.nrows(), change.ncols());
        let mut multiply = |accum, matrix, structure| {
            triangular::matmul(
                product.as_mut(),
                BlockStructure::Rectangular,
                accum,
                matrix,
                structure,
                change,
                BlockStructure::Rectangular,
                1.0,
                self.par,
            );
        };
        let lower = self.inputs.as_ref();
        multiply(Accum::Replace, lower, BlockStructure::TriangularLower);
        multiply(Accum::Add, lower.transpose(), BlockStructure::StrictTriangularUpper);
        let mut excess = 0.0;
        for column in 0..change.ncols() {
            for row in 0..change.nrows() {
                let of = change[(row, column)];
                excess += of * (product[(row, column)] - 2.0 * products[(row, column)]);
            }
        }
        excess
    }

    /// On which threads sums are made.
    pub(crate) fn par(&self) -> Par {
        self.par
    }
}

/// Each row of `values` times its factor.
fn scaled(values: &[f32], factors: &[f64]) -> Vec<f64> {
    let n = values.len() / factors.len().max(1);
    assert_eq!(values.len(), n * factors.len(), "rows of different lengths");
    values
        .chunks_exact(n.max(1))
        .zip(factors)
        .flat_map(|(row, factor)| row.iter().map(move |&value| f64::from(value) * factor))
        .collect()
}
