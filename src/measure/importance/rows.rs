//! Arithmetic on two rows of a hidden state.

/// `|x|^2`, `|y|^2` and `|y - x|^2` of two rows.
pub(super) struct Products {
    pub(super) xx: f64,
    pub(super) yy: f64,
    pub(super) dd: f64,
}

impl Products {
    /// `1 - cos(x, y)`.
    ///
    /// With `|y - x|^2 = |x|^2 + |y|^2 - 2 x.y`, this is `(|y - x|^2 - (|x| - |y|)^2) / (2 |x| |y|)`. So a block that changes
    /// next to nothing keeps its digits, which `1 - x.y / (|x| |y|)` would lose to cancellation.
    pub(super) fn cosine_distance(&self) -> f64 {
        let (x, y) = (self.xx.sqrt(), self.yy.sqrt());
        let distance = (self.dd - (x - y) * (x - y)) / (2.0 * x * y);
        distance.clamp(0.0, 2.0)
    }
}

/// `1 - cos(x, y)` of two rows; `None` if one is all zeros.
#[must_use]
pub fn cosine_distance(x: &[f32], y: &[f32]) -> Option<f64> {
    let products = products(x, y);
    (products.xx != 0.0 && products.yy != 0.0).then(|| products.cosine_distance())
}

/// Adds up in f64 over eight lanes, for vector instructions.
pub(super) fn products(x: &[f32], y: &[f32]) -> Products {
    pulp::Arch::new().dispatch(|| in_lanes(x, y))
}

#[inline(always)]
fn in_lanes(x: &[f32], y: &[f32]) -> Products {
    const LANES: usize = 8;
    let mut xx = [0.0f64; LANES];
    let mut yy = [0.0f64; LANES];
    let mut dd = [0.0f64; LANES];
    let mut add = |lane: usize, x: f32, y: f32| {
        let (x, y) = (f64::from(x), f64::from(y));
        let d = y - x;
        xx[lane] += x * x;
        yy[lane] += y * y;
        dd[lane] += d * d;
    };
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for lane in 0..LANES {
            add(lane, x[lane], y[lane]);
        }
    }
    for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        add(lane, *x, *y);
    }
    Products { xx: xx.iter().sum(), yy: yy.iter().sum(), dd: dd.iter().sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms_hold() {
        let of = |x: &[f32], y: &[f32]| {
            let p = products(x, y);
            (p.cosine_distance(), (p.dd / p.yy).sqrt())
        };
        assert_eq!(of(&[1.0, 2.0], &[1.0, 2.0]), (0.0, 0.0));
        // Twice as long, same direction.
        assert_eq!(of(&[1.0, 2.0], &[2.0, 4.0]), (0.0, 0.5));
        // Opposite, and at a right angle.
        assert_eq!(of(&[1.0, 0.0], &[-1.0, 0.0]), (2.0, 2.0));
        assert!((of(&[1.0, 0.0], &[0.0, 1.0]).0 - 1.0).abs() < 1e-15);
        // A tiny turn: 1 - cos(a) = a^2 / 2 up to a^4, where the textbook form has lost all digits.
        let turn = 1e-6_f32;
        let expected = f64::from(turn).powi(2) / 2.0;
        assert!((of(&[1.0, 0.0], &[1.0, turn]).0 / expected - 1.0).abs() < 1e-3);
    }
}
