//! Student's t.

/// The upper tail of Student's t beyond `t >= 0`. It is of `df` degrees of freedom. It is half the regularised incomplete
/// beta function `I_x(df / 2, 1 / 2)` at `x = df / (df + t^2)` (Abramowitz and Stegun, 26.7.1 and 26.5.27).
pub(super) fn tail(t: f64, df: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    0.5 * puruspe::betai(df / 2.0, 0.5, df / (df + t * t))
}

/// The `t` with [`tail`] `p`, by bisection: 0 < `p` < 0.5.
pub(super) fn quantile(p: f64, df: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while tail(high, df) > p && high < f64::MAX / 4.0 {
        low = high;
        high *= 2.0;
    }
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return high;
        }
        if tail(middle, df) > p {
            low = middle;
        } else {
            high = middle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_the_closed_forms() {
        for t in [0.0, 0.1, 1.0, 3.0, 50.0, 1e4f64] {
            // One degree of freedom is the Cauchy distribution. Two have an algebraic form, and so have four.
            let of_1 = (1.0 / t).atan() / std::f64::consts::PI;
            let of_2 = 1.0 / (2.0 + t * t + t * (2.0 + t * t).sqrt());
            for (df, expected) in [(1.0, of_1), (2.0, of_2)] {
                let found = tail(t, df);
                assert!((found / expected - 1.0).abs() < 1e-9, "{t} {df}: {found} {expected}");
            }
            let u = t / (4.0 + t * t).sqrt();
            let of_4 = 0.5 - 0.75 * (u - u * u * u / 3.0);
            // This form takes differences of numbers near one half. It can do no better.
            assert!((tail(t, 4.0) - of_4).abs() < 1e-10);
        }
        assert_eq!(tail(f64::INFINITY, 3.0), 0.0);
    }

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, df, expected) in [
            (0.05, 5.0, 2.015_048),
            (0.025, 10.0, 2.228_139),
            (0.005, 30.0, 2.749_996),
            (0.0005, 7.0, 5.407_883),
            (0.000_05, 15.0, 5.239_088),
        ] {
            let found = quantile(p, df);
            assert!((found - expected).abs() < 2e-6, "{p} {df}: {found}");
        }
        // With many degrees of freedom the normal distribution's.
        assert!((quantile(0.025, 1e6) - 1.959_964).abs() < 1e-4);
        for p in [0.4, 1e-3, 1e-7, 1e-12] {
            for df in [1.0, 2.0, 7.0, 63.0] {
                assert!((tail(quantile(p, df), df) / p - 1.0).abs() < 1e-9, "{p} {df}");
            }
        }
    }
}
