//! Charts: marks in the units of their axes, drawn as SVG text by plotters.
//!
//! Colours are written as they are in a light page. A style sheet gives each of them a variable ([`STYLE`]), so that a page
//! can be dark; a program that knows no style sheets draws the light one. Marks have titles, which a browser shows under the
//! pointer.

use super::axis::Axis;
use super::escape::markup;
use anyhow::{Result, anyhow};
use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, EmptyElement, PathElement};
use plotters::element::{Rectangle, Text, TriangleMarker};
use plotters::prelude::{ChartBuilder, IntoDrawingArea, IntoFont, RGBColor, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, ShapeStyle, TextStyle};
use std::fmt::Write as _;
use std::ops::Range;

/// Text and axes.
pub const INK: RGBColor = RGBColor(0x1F, 0x23, 0x28);

/// What matters less.
pub const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6E);

/// Lines under the marks.
pub const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEB);

/// Blocks that stay, and the first series.
pub const KEPT: RGBColor = RGBColor(0x4F, 0x93, 0xC9);

/// The colour of blocks that go, and of shortened models. It is apart from [`KEPT`] also in grey, and for eyes that do not tell
/// red from green.
pub const REMOVED: RGBColor = RGBColor(0xA8, 0x3C, 0x00);

/// Models in other types of tensors.
pub const OTHER: RGBColor = RGBColor(0x00, 0x7A, 0x5A);

/// A style sheet for charts. Every colour above as a variable of a light and a dark page.
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
    /// In order, the first at the bottom.
    pub marks: Vec<Mark>,
}

/// A title and the corners of where it shows, in pixels. The upper left and the lower right.
type Titled<'t> = ((i32, i32), (i32, i32), &'t str);

/// What is drawn on, in pixels.
type Area<'t> = DrawingArea<SVGBackend<'t>, Shift>;

/// What is drawn on, in the units of the axes.
type Plot<'t> = ChartContext<'t, SVGBackend<'t>, Cartesian2d<Ticked, Ticked>>;

/// Those of plotters.
type Failure = Box<dyn std::error::Error>;

/// Pixels between the edge of a chart and its content.
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

    /// The chart as an `svg` element. `id` is one that no other element of the page has.
    ///
    /// # Errors
    /// Those of plotters.
    pub fn svg(&self, id: &str) -> Result<String> {
        let mut text = String::new();
        let mut titles: Vec<Titled<'_>> = Vec::new();
        self.draw(&mut text, &mut titles)
            .map_err(|error| anyhow!("bug: a chart could not be drawn: {error}"))?;
        // All but the element itself. It gets a title, and the titles of marks on top.
        let start = text.find('>').map_or(0, |at| at + 1);
        let end = text.rfind("</svg>").unwrap_or(text.len());
        let body = text[start..end].replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "");
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

    fn draw<'c>(&'c self, text: &mut String, titles: &mut Vec<Titled<'c>>) -> Result<(), Failure> {
        let root = SVGBackend::with_string(text, self.size).into_drawing_area();
        let legend = if self.legend.is_empty() { 0 } else { LEGEND };
        let area = root.split_vertically(legend).1;
        self.draw_legend(&root)?;
        let mut plot = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(self.left)
            .build_cartesian_2d(Ticked::new(&self.x), Ticked::new(&self.y))?;
        self.draw_axes(&mut plot)?;
        for mark in &self.marks {
            titles.extend(self.draw_mark(mark, &plot, &root)?);
        }
        drop(plot);
        root.present()?;
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> Result<(), Failure> {
        let mut left = i32::try_from(MARGIN + self.left)?;
        let middle = font(15, INK).pos(Pos::new(HPos::Left, VPos::Center));
        for (shape, colour, words) in &self.legend {
            dot(area, (left + 6, 14), *shape, *colour)?;
            area.draw(&Text::new(words.clone(), (left + 16, 14), middle.clone()))?;
            left += 34 + 7 * i32::try_from(words.chars().count())?;
        }
        Ok(())
    }

    fn draw_axes(&self, plot: &mut Plot<'_>) -> Result<(), Failure> {
        let written = |axis: &Axis, value: f64| {
            let tick = axis.ticks.iter().find(|tick| axis.scale.at(tick.0) == value);
            tick.map_or(String::new(), |tick| printable(&tick.1))
        };
        let (x_written, y_written) =
            (|value: &f64| written(&self.x, *value), |value: &f64| written(&self.y, *value));
        let mut mesh = plot.configure_mesh();
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
        Ok(mesh.draw()?)
    }

    /// Draws a mark. Its title is put on top of all marks later.
    fn draw_mark<'c>(
        &self,
        mark: &'c Mark,
        plot: &Plot<'_>,
        root: &Area<'_>,
    ) -> Result<Option<Titled<'c>>, Failure> {
        let area = plot.plotting_area();
        let at = |(x, y): (f64, f64)| (self.x.at(x), self.y.at(y));
        match mark {
            Mark::Bar { x, y, colour, title } => {
                let corners = [at((x.0, y.1)), at((x.1, y.0))];
                let [upper, lower] = corners.map(|corner| plot.backend_coord(&corner));
                area.draw(&Rectangle::new(corners, ShapeStyle::from(colour).filled()))?;
                Ok((!title.is_empty()).then_some((upper, lower, title)))
            }
            Mark::Line { points, colour, width } => {
                let points: Vec<_> = points.iter().map(|&point| at(point)).collect();
                area.draw(&PathElement::new(points, ShapeStyle::from(colour).stroke_width(*width)))?;
                Ok(None)
            }
            Mark::Dot { at: place, shape, colour, title } => {
                let (x, y) = plot.backend_coord(&at(*place));
                dot(root, (x, y), *shape, *colour)?;
                Ok(Some(((x - 8, y - 8), (x + 8, y + 8), title)))
            }
            Mark::Label { at: place, offset, ends, text } => {
                let side = if *ends { HPos::Right } else { HPos::Left };
                let style = font(13, INK).pos(Pos::new(side, VPos::Center));
                area.draw(&(EmptyElement::at(at(*place)) + Text::new(printable(text), *offset, style)))?;
                Ok(None)
            }
        }
    }
}

fn font(size: i32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

/// An axis as plotters has it. Between the scaled ends of its range, with ticks where they are wanted.
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
fn dot(area: &Area<'_>, at: (i32, i32), shape: Shape, colour: RGBColor) -> Result<(), Failure> {
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
    text.replace(crate::files::shell::is_unprintable, "\u{fffd}")
}

/// The usual size, in pixels.
pub(super) const SIZE: (u32, u32) = (760, 340);

/// A name of at most `n` characters.
pub(super) fn short(name: &str, n: usize) -> String {
    if name.chars().count() <= n {
        return name.to_owned();
    }
    let start: String = name.chars().take(n - 1).collect();
    format!("{start}\u{2026}")
}
