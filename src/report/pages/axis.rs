//! Axes of charts: scales, ranges that hold their values, and ticks at round numbers.

/// How values become lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    Linear,
    /// By their logarithms.
    Log,
}

impl Scale {
    pub(super) fn at(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.ln(),
        }
    }

    /// The better one for values that differ as much as these. Logarithms where the largest is far above the smallest.
    #[must_use]
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        const FAR: f64 = 12.0;
        let (low, high) = extent(values);
        // Bounds that leave room for ticks below and above.
        if low > 1e-200 && high < 1e200 && high / low > FAR { Self::Log } else { Self::Linear }
    }
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// From where to where.
    pub range: (f64, f64),
    /// Values that are written beside it.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// For `values`, with ticks at round numbers. `from_zero` has zero on a linear axis in any case.
    #[must_use]
    pub fn fit(
        label: &str,
        scale: Scale,
        values: impl Iterator<Item = f64> + Clone,
        from_zero: bool,
    ) -> Self {
        let (mut low, mut high) = extent(values);
        if !(low.is_finite() && high.is_finite()) || low > high {
            (low, high) = (0.0, 1.0);
        }
        // So that no difference of two of them is beyond all numbers.
        (low, high) = (low.clamp(-1e300, 1e300), high.clamp(-1e300, 1e300));
        match scale {
            Scale::Log => {
                (low, high) = (low / 1.25, high * 1.25);
                Self {
                    label: format!("{label} (log scale)"),
                    scale,
                    range: (low, high),
                    ticks: log_ticks(low, high),
                }
            }
            Scale::Linear => {
                if from_zero {
                    (low, high) = (low.min(0.0), high.max(0.0));
                }
                // Numbers close together, or all the same, get room.
                let least = (low.abs().max(high.abs()) * 1e-6).max(1e-12);
                if high - low < least {
                    (low, high) = (low - if from_zero && low >= 0.0 { 0.0 } else { least }, high + least);
                }
                let step = round_step((high - low) / 5.0);
                let first = (low / step).floor();
                let last = (high / step).ceil();
                let ticks = steps(first, last).map(|i| (i * step, number(i * step, step)));
                Self {
                    label: label.to_owned(),
                    scale,
                    range: (first * step, last * step),
                    ticks: ticks.collect(),
                }
            }
        }
    }

    /// From `-0.5` to `n - 0.5`, for `n` numbered things. At most `n_ticks` of the numbers are written.
    #[must_use]
    pub fn numbers(label: &str, n: usize, n_ticks: usize) -> Self {
        let step = [1, 2, 5, 10, 20, 50, 100, 200]
            .into_iter()
            .find(|step| n.div_ceil(*step) <= n_ticks.max(2))
            .unwrap_or(500);
        let ticks = (0..n).step_by(step).map(|i| (float(i), i.to_string()));
        Self {
            label: label.to_owned(),
            scale: Scale::Linear,
            range: (-0.5, float(n.max(1)) - 0.5),
            ticks: ticks.collect(),
        }
    }

    /// The value as it is drawn, moved into the range.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.range.0 } else { value };
        let (low, high) = (self.range.0.min(self.range.1), self.range.0.max(self.range.1));
        self.scale.at(value.clamp(low, high))
    }

    /// The place of the value, from 0 to 1 along the axis.
    pub(super) fn share(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.at(self.range.0), self.scale.at(self.range.1));
        (self.at(value) - low) / (high - low)
    }
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// The whole numbers from `first` to `last`, not many.
fn steps(first: f64, last: f64) -> impl Iterator<Item = f64> {
    const MOST: usize = 20;
    (0..MOST).map(move |i| first + float(i)).take_while(move |&i| i <= last)
}

/// The next of 1, 2, 5, 10, ... from `least` on.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * power >= least);
    step.unwrap_or(10.0) * power
}

fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let decades = (high / low).log10();
    let factors: &[f64] = match decades {
        d if d <= 1.5 => &[1.0, 2.0, 5.0],
        d if d <= 3.0 => &[1.0, 3.0],
        _ => &[1.0],
    };
    // Of very many decades only some.
    let every = (decades / 12.0).ceil().max(1.0);
    let first = low.log10().floor();
    let mut ticks = Vec::new();
    for i in steps(0.0, 16.0) {
        let power = 10f64.powf(first + i * every);
        let tick = |factor: &f64| (factor * power, number(factor * power, factor * power));
        let inside = |tick: &(f64, String)| tick.0 >= low && tick.0 <= high;
        ticks.extend(factors.iter().map(tick).filter(inside));
    }
    ticks
}

/// A number with the digits that `step` makes a difference in.
fn number(value: f64, step: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1e7 || (magnitude > 0.0 && magnitude < 1e-5) {
        return format!("{value:.0e}");
    }
    let digits = (0..8).find(|&digits| step * 10f64.powi(digits) >= 0.999);
    let text = format!("{value:.*}", usize::try_from(digits.unwrap_or(8)).unwrap_or(0));
    if text.trim_start_matches(['-', '0', '.']).is_empty() { "0".to_owned() } else { text }
}

/// A count as a coordinate.
#[must_use]
pub fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values_and_have_ticks_inside() {
        let extremes = [0.0, -0.0, 1.0, -3.0, 0.026, 0.98, 21.5, 1e-310, 1e-9, 1e9, 1e308, -1e308, f64::MAX];
        for a in extremes {
            for b in extremes {
                let values = [a, b];
                for from_zero in [false, true] {
                    let scale = Scale::of(values.into_iter());
                    let axis = Axis::fit("x", scale, values.into_iter(), from_zero);
                    let (low, high) = axis.range;
                    assert!(low < high && low.is_finite() && high.is_finite(), "{a} {b}: {axis:?}");
                    assert!((1..=20).contains(&axis.ticks.len()), "{a} {b}: {axis:?}");
                    for (value, _) in &axis.ticks {
                        let share = axis.share(*value);
                        assert!((-1e-9..=1.0 + 1e-9).contains(&share), "{a} {b}: {value} in {axis:?}");
                    }
                    // Rounding may put a value beside the end of its axis.
                    let slack = 1e-9 * (high - low);
                    for value in values.iter().filter(|value| value.abs() < 1e300) {
                        assert!((low - slack..=high + slack).contains(value), "{value} in {axis:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        let ticks = |axis: Axis| axis.ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>();
        let fit = |values: &[f64]| {
            let values = values.iter().copied();
            ticks(Axis::fit("", Scale::of(values.clone()), values, true))
        };
        assert_eq!(fit(&[3.0, 9.7]), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(fit(&[0.2, 0.31]), ["0", "0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(fit(&[0.02, 0.9]), ["0.03", "0.1", "0.3", "1"]);
        assert_eq!(ticks(Axis::numbers("", 3, 10)), ["0", "1", "2"]);
        assert_eq!(ticks(Axis::numbers("", 100, 10)).len(), 10);
        assert_eq!(ticks(Axis::numbers("", 512, 10)).len(), 6);
    }
}
