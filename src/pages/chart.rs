//! Charts: marks in the units of their axes, drawn as SVG text by plotters.
//!
//! Colours are written as they are in a light page. A style sheet gives each of them a variable ([`STYLE`]), so that a page
//! can be dark; a program that knows no style sheets draws the light one. Marks have titles, which a browser shows under the
//! pointer.

use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, EmptyElement, PathElement};
use plotters::element::{Rectangle, Text, TriangleMarker};
use plotters::prelude::{ChartBuilder, IntoDrawingArea, IntoFont, RGBColor, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, ShapeStyle};

use super::escape::markup;

/// Text and axes.
pub const INK: RGBColor = RGBColor(0x1F, 0x23, 0x28);
/// What matters less.
pub const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6E);
/// Lines behind the marks.
pub const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEB);
/// Blocks that stay, and the first series.
pub const KEPT: RGBColor = RGBColor(0x4F, 0x93, 0xC9);
/// Blocks that go, and shortened models: apart from [`KEPT`] also in grey, and for eyes that do not tell red from green.
pub const REMOVED: RGBColor = RGBColor(0xA8, 0x3C, 0x00);
/// Models in other types of tensors.
pub const OTHER: RGBColor = RGBColor(0x00, 0x7A, 0x5A);

/// A style sheet for charts: every colour above as a variable of a light and a dark page.
pub const STYLE: &str = r##"
:root{--ink:#1F2328;--muted:#59636E;--grid:#E3E7EB;--kept:#4F93C9;--removed:#A83C00;--other:#007A5A}
@media (prefers-color-scheme:dark){:root{--ink:#E6EDF3;--muted:#A3ADB8;--grid:#2B323B;--kept:#3F7FB5;--removed:#FF9D4D;--other:#4CC38A}}
@media print{:root{--ink:#1F2328;--muted:#59636E;--grid:#E3E7EB;--kept:#4F93C9;--removed:#A83C00;--other:#007A5A}}
svg.chart{font-family:system-ui,sans-serif}
svg.chart text{font-family:inherit}
svg.chart [fill="#1F2328"]{fill:var(--ink)}svg.chart [stroke="#1F2328"]{stroke:var(--ink)}
svg.chart [fill="#59636E"]{fill:var(--muted)}svg.chart [stroke="#59636E"]{stroke:var(--muted)}
svg.chart [fill="#E3E7EB"]{fill:var(--grid)}svg.chart [stroke="#E3E7EB"]{stroke:var(--grid)}
svg.chart [fill="#4F93C9"]{fill:var(--kept)}svg.chart [stroke="#4F93C9"]{stroke:var(--kept)}
svg.chart [fill="#A83C00"]{fill:var(--removed)}svg.chart [stroke="#A83C00"]{stroke:var(--removed)}
svg.chart [fill="#007A5A"]{fill:var(--other)}svg.chart [stroke="#007A5A"]{stroke:var(--other)}
"##;

/// How values become lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    Linear,
    /// By their logarithms.
    Log,
}

impl Scale {
    fn at(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.ln(),
        }
    }

    /// The better one for values that differ as much as these: logarithms where the largest is far above the smallest.
    #[must_use]
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        const FAR: f64 = 12.0;
        let (low, high) = extent(values);
        // Bounds that leave room for ticks below and above.
        if low > 1e-200 && high < 1e200 && high / low > FAR {
            Self::Log
        } else {
            Self::Linear
        }
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
    /// For `values`, with ticks at round numbers; `from_zero` has zero on a linear axis in any case.
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
                // Numbers that are next to each other, or all the same, get room.
                let least = (low.abs().max(high.abs()) * 1e-6).max(1e-12);
                if high - low < least {
                    (low, high) = (
                        low - if from_zero && low >= 0.0 { 0.0 } else { least },
                        high + least,
                    );
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

    /// From `-0.5` to `n - 0.5`, for `n` things with a number each, with at most `n_ticks` of them written.
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
    fn at(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.range.0 } else { value };
        let (low, high) = (
            self.range.0.min(self.range.1),
            self.range.0.max(self.range.1),
        );
        self.scale.at(value.clamp(low, high))
    }

    /// Where the value is, from 0 at the begin to 1 at the end.
    pub(super) fn share(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.at(self.range.0), self.scale.at(self.range.1));
        (self.at(value) - low) / (high - low)
    }
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
}

/// The whole numbers from `first` to `last`, not many.
fn steps(first: f64, last: f64) -> impl Iterator<Item = f64> {
    const MOST: usize = 20;
    (0..MOST)
        .map(move |i| first + float(i))
        .take_while(move |&i| i <= last)
}

/// The next of 1, 2, 5, 10, ... from `least` on.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|step| step * power >= least);
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
    let text = format!(
        "{value:.*}",
        usize::try_from(digits.unwrap_or(8)).unwrap_or(0)
    );
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

/// A count as a coordinate.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of blocks and rows are small"
)]
#[must_use]
pub fn float(n: usize) -> f64 {
    n as f64
}

/// The form of a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A disc.
    Disc,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
}

/// Something that is drawn, in the units of the axes.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A filled rectangle, with what it says under the pointer.
    Bar {
        /// From left to right.
        x: (f64, f64),
        /// From bottom to top.
        y: (f64, f64),
        /// Of the area.
        colour: RGBColor,
        /// The title.
        title: String,
    },
    /// A line through points.
    Line {
        /// From first to last.
        points: Vec<(f64, f64)>,
        /// Of the line.
        colour: RGBColor,
        /// In pixels.
        width: u32,
    },
    /// A dot, with what it says under the pointer.
    Dot {
        /// Where.
        at: (f64, f64),
        /// Its form.
        shape: Shape,
        /// Of the area.
        colour: RGBColor,
        /// The title.
        title: String,
    },
    /// A text beside a point.
    Label {
        /// The point.
        at: (f64, f64),
        /// How far from it, in pixels to the right and down.
        offset: (i32, i32),
        /// Whether it ends there, instead of beginning.
        ends: bool,
        /// What it says.
        text: String,
    },
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// A few words for the name of a file.
    pub name: &'static str,
    /// What it shows.
    pub title: String,
    /// What is to be seen, for those who do not see it.
    pub description: String,
    /// Its size in pixels.
    pub size: (u32, u32),
    /// Pixels for what is written left of it.
    pub left: u32,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// Lines from the ticks through the chart: of the x axis, of the y axis.
    pub grid: (bool, bool),
    /// What colours mean.
    pub legend: Vec<(Shape, RGBColor, String)>,
    /// In order, the first behind.
    pub marks: Vec<Mark>,
}

/// Pixels between the edge of a chart and all that is in it.
const MARGIN: u32 = 10;
/// Pixels for the legend.
const LEGEND: u32 = 24;
/// Pixels for what is written below.
const BELOW: u32 = 46;

impl Chart {
    /// The size of the area that the marks are in, in pixels.
    #[must_use]
    pub fn area(&self) -> (u32, u32) {
        let legend = if self.legend.is_empty() { 0 } else { LEGEND };
        let (width, height) = self.size;
        (
            width.saturating_sub(self.left + 2 * MARGIN).max(1),
            height.saturating_sub(BELOW + 2 * MARGIN + legend).max(1),
        )
    }

    /// The chart as an `svg` element; `id` is one that no other element of the page has.
    ///
    /// # Errors
    /// Those of plotters.
    pub fn svg(&self, id: &str) -> Result<String> {
        let mut text = String::new();
        let mut titles: Vec<((i32, i32), (i32, i32), &str)> = Vec::new();
        self.draw(&mut text, &mut titles)
            .map_err(|error| anyhow!("bug: a chart could not be drawn: {error}"))?;
        // All but the element itself, which gets a title, and the titles of marks on top.
        let start = text.find('>').map_or(0, |at| at + 1);
        let end = text.rfind("</svg>").unwrap_or(text.len());
        let body = text[start..end]
            .replace(" opacity=\"1\"", "")
            .replace(" stroke=\"none\"", "");
        let (width, height) = self.size;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" aria-labelledby=\"{id}t {id}d\" \
             viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n<title id=\"{id}t\">{}</title>\n\
             <desc id=\"{id}d\">{}</desc>",
            markup(&self.title),
            markup(&self.description)
        );
        svg.push_str(body.trim_end());
        svg.push('\n');
        if !titles.is_empty() {
            svg.push_str("<g fill-opacity=\"0\">\n");
            for ((left, top), (right, bottom), title) in titles {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
                    (right - left).max(1),
                    (bottom - top).max(1),
                    markup(title)
                );
            }
            svg.push_str("</g>\n");
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn draw<'c>(
        &'c self,
        text: &mut String,
        titles: &mut Vec<((i32, i32), (i32, i32), &'c str)>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let font = |size: i32, colour: RGBColor| ("sans-serif", size).into_font().color(&colour);
        let root = SVGBackend::with_string(text, self.size).into_drawing_area();
        let (legend, area) = match self.legend.is_empty() {
            true => root.split_vertically(0),
            false => root.split_vertically(LEGEND),
        };
        let mut left = i32::try_from(MARGIN + self.left)?;
        let middle = Pos::new(HPos::Left, VPos::Center);
        for (shape, colour, words) in &self.legend {
            dot(&root, (left + 6, 14), *shape, *colour)?;
            legend.draw(&Text::new(
                words.clone(),
                (left + 16, 14),
                font(15, INK).pos(middle),
            ))?;
            left += 34 + 7 * i32::try_from(words.chars().count())?;
        }
        let mut chart = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(self.left)
            .build_cartesian_2d(Ticked::new(&self.x), Ticked::new(&self.y))?;
        let written = |axis: &Axis, value: f64| {
            let tick = axis
                .ticks
                .iter()
                .find(|tick| axis.scale.at(tick.0) == value);
            tick.map_or(String::new(), |tick| printable(&tick.1))
        };
        let (x_written, y_written) = (
            |value: &f64| written(&self.x, *value),
            |value: &f64| written(&self.y, *value),
        );
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(printable(&self.x.label))
            .y_desc(printable(&self.y.label))
            .x_label_formatter(&x_written)
            .y_label_formatter(&y_written)
            .label_style(font(14, INK))
            .axis_desc_style(font(15, MUTED))
            .axis_style(MUTED)
            .bold_line_style(GRID)
            .light_line_style(GRID.mix(0.0))
            .x_labels(self.x.ticks.len())
            .y_labels(self.y.ticks.len());
        if !self.grid.0 {
            mesh.disable_x_mesh();
        }
        if !self.grid.1 {
            mesh.disable_y_mesh();
        }
        mesh.draw()?;
        for mark in &self.marks {
            let at = |(x, y): (f64, f64)| (self.x.at(x), self.y.at(y));
            match mark {
                Mark::Bar {
                    x,
                    y,
                    colour,
                    title,
                } => {
                    let corners = [at((x.0, y.1)), at((x.1, y.0))];
                    let [upper, lower] = corners.map(|corner| chart.backend_coord(&corner));
                    let style = ShapeStyle::from(colour).filled();
                    chart
                        .plotting_area()
                        .draw(&Rectangle::new(corners, style))?;
                    if !title.is_empty() {
                        titles.push((upper, lower, title));
                    }
                }
                Mark::Line {
                    points,
                    colour,
                    width,
                } => {
                    let points: Vec<_> = points.iter().map(|&point| at(point)).collect();
                    let style = ShapeStyle::from(colour).stroke_width(*width);
                    chart
                        .plotting_area()
                        .draw(&PathElement::new(points, style))?;
                }
                Mark::Dot {
                    at: place,
                    shape,
                    colour,
                    title,
                } => {
                    let (x, y) = chart.backend_coord(&at(*place));
                    dot(&root, (x, y), *shape, *colour)?;
                    titles.push(((x - 8, y - 8), (x + 8, y + 8), title));
                }
                Mark::Label {
                    at: place,
                    offset,
                    ends,
                    text,
                } => {
                    let side = if *ends { HPos::Right } else { HPos::Left };
                    let style = font(13, INK).pos(Pos::new(side, VPos::Center));
                    let element =
                        EmptyElement::at(at(*place)) + Text::new(printable(text), *offset, style);
                    chart.plotting_area().draw(&element)?;
                }
            }
        }
        drop(chart);
        root.present()?;
        Ok(())
    }
}

/// An axis as plotters has it: between the scaled ends of its range, with ticks where they are wanted.
struct Ticked {
    coordinate: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Ticked {
    fn new(axis: &Axis) -> Self {
        let ticks = axis.ticks.iter().map(|tick| axis.scale.at(tick.0));
        Self {
            coordinate: (axis.scale.at(axis.range.0)..axis.scale.at(axis.range.1)).into(),
            ticks: ticks.collect(),
        }
    }
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.coordinate.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.coordinate.range()
    }
}

/// Draws a dot around a pixel.
fn dot(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    at: (i32, i32),
    shape: Shape,
    colour: RGBColor,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ShapeStyle::from(colour).filled();
    let drawn = match shape {
        Shape::Disc => area.draw(&Circle::new(at, 5, style)),
        Shape::Square => {
            let corners = [(at.0 - 5, at.1 - 5), (at.0 + 5, at.1 + 5)];
            area.draw(&Rectangle::new(corners, style))
        }
        Shape::Triangle => area.draw(&TriangleMarker::new(at, 7, style)),
    };
    drawn.map_err(|error| error.to_string().into())
}

/// Text that XML can hold.
fn printable(text: &str) -> String {
    text.replace(super::escape::is_unprintable, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values_and_have_ticks_inside() {
        let extremes = [
            0.0,
            -0.0,
            1.0,
            -3.0,
            0.026,
            0.98,
            21.5,
            1e-310,
            1e-9,
            1e9,
            1e308,
            -1e308,
            f64::MAX,
        ];
        for a in extremes {
            for b in extremes {
                let values = [a, b];
                for from_zero in [false, true] {
                    let scale = Scale::of(values.into_iter());
                    let axis = Axis::fit("x", scale, values.into_iter(), from_zero);
                    let (low, high) = axis.range;
                    assert!(
                        low < high && low.is_finite() && high.is_finite(),
                        "{a} {b}: {axis:?}"
                    );
                    assert!((1..=20).contains(&axis.ticks.len()), "{a} {b}: {axis:?}");
                    for (value, _) in &axis.ticks {
                        let share = axis.share(*value);
                        assert!(
                            (-1e-9..=1.0 + 1e-9).contains(&share),
                            "{a} {b}: {value} in {axis:?}"
                        );
                    }
                    for value in values.iter().filter(|value| value.abs() < 1e300) {
                        assert!((low..=high).contains(value), "{value} in {axis:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        let ticks = |axis: Axis| {
            axis.ticks
                .into_iter()
                .map(|tick| tick.1)
                .collect::<Vec<_>>()
        };
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
