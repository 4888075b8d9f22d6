//! Size against divergence.

use plotters::prelude::RGBColor;

use super::axis::{Axis, Scale, float};
use super::chart::{Chart, KEPT, MUTED, Mark, OTHER, REMOVED, Shape};
use super::table::text;
use super::{Point, Section};
use crate::report::pages::chart::{SIZE, short};
use crate::report::saved::Kind;

fn look(kind: Kind) -> (Shape, RGBColor, &'static str) {
    match kind {
        Kind::Parent | Kind::File => (Shape::Square, KEPT, "other file"),
        Kind::Shortened => (Shape::Disc, REMOVED, "fewer blocks"),
        Kind::FewerExperts => (Shape::Disc, MUTED, "fewer experts"),
        Kind::Requantized => (Shape::Triangle, OTHER, "smaller types"),
    }
}

/// Size against divergence, with the Pareto front as a line.
#[must_use]
pub(super) fn frontier(section: &Section, points: &[&Point]) -> Option<Chart> {
    let megabytes = |point: &Point| point.model.bytes.map(|bytes| bytes as f64 / 1e6);
    let mut found: Vec<(f64, f64, &Point)> = Vec::new();
    for &point in points.iter().filter(|point| point.kind != Kind::Parent) {
        if let (Some(size), Some(kl)) = (megabytes(point), point.quality.kl) {
            found.push((size, kl, point));
        }
    }
    if found.len() < 2 {
        return None;
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let parent = megabytes_of(section);
    let mut best: Vec<(f64, f64)> = Vec::new();
    for (i, &(size, kl, _)) in found.iter().enumerate() {
        let is_beaten = found.iter().enumerate().any(|(j, &(other_size, other_kl, _))| {
            other_size <= size && other_kl <= kl && (other_size < size || other_kl < kl || j < i)
        });
        if !is_beaten {
            best.push((size, kl));
        }
    }
    let mut chart = Chart {
        name: "frontier",
        title: format!("Size against KL divergence from {}", section.name()),
        description: format!(
            "{} models, of which {} are on the frontier: no other is smaller and nearer to the parent. Scored on {}.",
            found.len(),
            best.len(),
            text(found[0].2)
        ),
        size: (SIZE.0, 400),
        left: 72,
        x: Axis::fit("size in MB", Scale::Linear, found.iter().map(|point| point.0).chain(parent), false),
        y: Axis::fit(
            "KL divergence",
            Scale::of(found.iter().map(|point| point.1)),
            found.iter().map(|point| point.1),
            true,
        ),
        grid: (true, true),
        legend: Vec::new(),
        marks: Vec::new(),
    };
    for kind in [Kind::Shortened, Kind::FewerExperts, Kind::Requantized, Kind::File] {
        if found.iter().any(|point| point.2.kind == kind) {
            let (shape, colour, words) = look(kind);
            chart.legend.push((shape, colour, words.to_owned()));
        }
    }
    chart.marks.push(Mark::Line { points: best, colour: MUTED, width: 2 });
    if let Some(parent) = parent {
        let (low, high) = chart.y.range;
        chart.marks.push(Mark::Line { points: vec![(parent, low), (parent, high)], colour: KEPT, width: 1 });
        chart.marks.push(Mark::Label {
            at: (parent, high),
            offset: (-6, 10),
            ends: true,
            text: "parent's size".to_owned(),
        });
    }
    for (size, kl, point) in &found {
        let (shape, colour, _) = look(point.kind);
        chart.marks.push(Mark::Dot {
            at: (*size, *kl),
            shape,
            colour,
            title: format!("{}: {size:.2} MB, KL divergence {kl:.4}", point.name),
        });
    }
    let labels = labels(&chart, &found);
    chart.marks.extend(labels);
    Some(chart)
}

fn megabytes_of(section: &Section) -> Option<f64> {
    section.parent.bytes.map(|bytes| bytes as f64 / 1e6)
}

/// Names beside dots, where they overlap neither one another nor dots. The rest is under the pointer and in the table.
fn labels(chart: &Chart, found: &[(f64, f64, &Point)]) -> Vec<Mark> {
    const CHARACTER: f64 = 6.6;
    const LINE: f64 = 15.0;
    let (width, height) = chart.area();
    let pixel = |x: f64, y: f64| {
        let (width, height) = (f64::from(width), f64::from(height));
        (chart.x.share(x) * width, (1.0 - chart.y.share(y)) * height)
    };
    // Left, top, right, bottom.
    let mut taken: Vec<[f64; 4]> = found
        .iter()
        .map(|&(size, kl, _)| {
            let (x, y) = pixel(size, kl);
            [x - 6.0, y - 6.0, x + 6.0, y + 6.0]
        })
        .collect();
    let mut labels = Vec::new();
    for &(size, kl, point) in found {
        let text = short(&point.name, 28);
        let (x, y) = pixel(size, kl);
        let length = CHARACTER * float(text.chars().count());
        let places = [(10, 0), (10, -12), (10, 12), (-10, 0), (-10, -12), (-10, 12)];
        for offset in places {
            let ends = offset.0 < 0;
            let left = x + f64::from(offset.0) - if ends { length } else { 0.0 };
            let middle = y + f64::from(offset.1);
            let place = [left, middle - LINE / 2.0, left + length, middle + LINE / 2.0];
            let is_inside = left >= 0.0
                && place[2] <= f64::from(width)
                && place[1] >= 0.0
                && place[3] <= f64::from(height);
            let is_clear = taken.iter().all(|other| {
                place[2] <= other[0] || other[2] <= place[0] || place[3] <= other[1] || other[3] <= place[1]
            });
            if is_inside && is_clear {
                taken.push(place);
                labels.push(Mark::Label { at: (size, kl), offset, ends, text });
                break;
            }
        }
    }
    labels
}
