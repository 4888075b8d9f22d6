//! The charts of a section.

use super::axis::{Axis, Scale, float};
use super::chart::{Chart, INK, KEPT, MUTED, Mark, OTHER, REMOVED, Shape};
use super::fitted;
use super::frontier::frontier;
use super::heat_map::{experts, heat_map};
use super::table::text;
use super::{Point, Section, name};
use crate::model::block::block_list;
use crate::report::pages::chart::SIZE;
use crate::report::pages::chart::short;
use crate::report::saved::{Kind, Quality, Scored};
use plotters::prelude::RGBColor;

/// All charts of a section.
#[must_use]
pub fn of_section(section: &Section) -> Vec<Chart> {
    let mut charts = Vec::new();
    for scored in &section.scored {
        charts.extend(influence(scored));
        charts.extend(heat_map(scored));
        charts.extend(experts(scored));
        charts.extend(fitted::bits(scored));
        charts.extend(fitted::curve(section, scored));
    }
    for (_, _, points) in section.by_text() {
        charts.extend(over_removed(section, &points, &PERPLEXITY));
        charts.extend(over_removed(section, &points, &DIVERGENCE));
        charts.extend(frontier(section, &points));
        charts.extend(speed(section, &points));
    }
    charts
}

/// The influence of every block as bars, with standard errors. Those that go have another colour.
#[must_use]
pub fn influence(scored: &Scored) -> Option<Chart> {
    let known = || scored.scores.iter().enumerate().filter_map(|(i, score)| Some((i, (*score)?)));
    let n = scored.scores.len();
    known().next()?;
    let values = known().flat_map(|(_, score)| {
        let error = score.stderr.unwrap_or(0.0);
        [score.bi, score.bi + error]
    });
    let scale = Scale::of(known().map(|(_, score)| score.bi));
    let y = Axis::fit("Block Influence", scale, values, true);
    let floor = match scale {
        Scale::Log => y.range.0,
        Scale::Linear => 0.0,
    };
    let mut marks = Vec::new();
    for (block, score) in known() {
        let fate = fate(scored, block);
        let error = score.stderr.map_or(String::new(), |error| format!(" \u{b1} {error:.4}"));
        marks.push(Mark::Bar {
            x: (float(block) - 0.38, float(block) + 0.38),
            y: (floor.min(score.bi), floor.max(score.bi)),
            colour: if fate == Fate::Stays { KEPT } else { REMOVED },
            title: format!("block {block}: {:.4}{error}{}", score.bi, fate.words()),
        });
    }
    for (block, score) in known() {
        let Some(error) = score.stderr else {
            continue;
        };
        marks.extend(error_bar(float(block), (score.bi - error, score.bi + error), 0.18));
    }
    let mut legend = Vec::new();
    let removed = match scored.output {
        Some(_) => {
            legend.push((Shape::Square, KEPT, "stays".to_owned()));
            legend.push((Shape::Square, REMOVED, "removed".to_owned()));
            format!(", {} removed", block_list(&scored.removed))
        }
        None if scored.removed.is_empty() => String::new(),
        None => {
            legend.push((Shape::Square, KEPT, "would stay".to_owned()));
            legend.push((Shape::Square, REMOVED, "would go".to_owned()));
            format!(", {} would go", block_list(&scored.removed))
        }
    };
    let lowest = known().min_by(|a, b| a.1.bi.total_cmp(&b.1.bi))?;
    let highest = known().max_by(|a, b| a.1.bi.total_cmp(&b.1.bi))?;
    let wide = u32::try_from(90 + 3 * n).unwrap_or(u32::MAX);
    Some(Chart {
        name: "influence",
        title: format!("Influence of the blocks of {}{removed}", name(&scored.model)),
        description: format!(
            "A bar for each of {n} blocks. The lowest is block {} with {:.4}, the highest block {} with {:.4}.",
            lowest.0, lowest.1.bi, highest.0, highest.1.bi
        ),
        size: (SIZE.0.max(wide), SIZE.1),
        left: 64,
        x: Axis::numbers("block", n, 32),
        y,
        grid: (false, true),
        legend,
        marks,
    })
}

/// What becomes of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Removed,
    /// By a result that removed nothing.
    WouldGo,
    AttentionRemoved,
}

impl Fate {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Stays => "",
            Self::Removed => ", removed",
            Self::WouldGo => ", would go",
            Self::AttentionRemoved => ", attention removed",
        }
    }
}

pub(super) fn fate(scored: &Scored, block: usize) -> Fate {
    if scored.removed.binary_search(&block).is_ok() {
        match scored.output {
            Some(_) => Fate::Removed,
            None => Fate::WouldGo,
        }
    } else if scored.attention_removed.binary_search(&block).is_ok() {
        Fate::AttentionRemoved
    } else {
        Fate::Stays
    }
}

fn error_bar(x: f64, (low, high): (f64, f64), half_width: f64) -> [Mark; 3] {
    let line = |points: [(f64, f64); 2]| Mark::Line { points: points.to_vec(), colour: INK, width: 1 };
    [
        line([(x, low), (x, high)]),
        line([(x - half_width, low), (x + half_width, low)]),
        line([(x - half_width, high), (x + half_width, high)]),
    ]
}

/// A figure that is shown over the number of removed blocks.
struct Figure {
    name: &'static str,
    title: &'static str,
    label: &'static str,
    of: fn(&Quality) -> (Option<f64>, Option<f64>),
}

const PERPLEXITY: Figure = Figure {
    name: "perplexity",
    title: "Perplexity",
    label: "perplexity",
    of: |quality| (quality.perplexity, quality.perplexity_stderr),
};

const DIVERGENCE: Figure = Figure {
    name: "divergence",
    title: "KL divergence",
    label: "KL divergence",
    of: |quality| (quality.kl, quality.kl_stderr),
};

/// A figure over the number of removed blocks.
fn over_removed(section: &Section, points: &[&Point], figure: &Figure) -> Option<Chart> {
    let mut found: Vec<(usize, f64, Option<f64>, &Point)> = Vec::new();
    for &point in points {
        let n = match point.kind {
            Kind::Parent => Some(0),
            Kind::Shortened => section.n_removed(point),
            Kind::FewerExperts | Kind::Requantized | Kind::File => None,
        };
        let (value, error) = (figure.of)(&point.quality);
        // The parent does not diverge from itself.
        let value = value.or((point.kind == Kind::Parent && figure.name == DIVERGENCE.name).then_some(0.0));
        if let (Some(n), Some(value)) = (n, value) {
            found.push((n, value, error, point));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    if found.iter().all(|point| point.0 == 0) {
        return None;
    }
    let most = found.last()?.0;
    let scale = match figure.name {
        // Zero has no logarithm.
        "divergence" => Scale::Linear,
        _ => Scale::of(found.iter().map(|point| point.1)),
    };
    let values = found.iter().flat_map(|(_, value, error, _)| [*value, value + error.unwrap_or(0.0)]);
    let mut lowest: Vec<(f64, f64)> = Vec::new();
    for &(n, value, _, _) in &found {
        if lowest.last().is_none_or(|last| last.0 != float(n)) {
            lowest.push((float(n), value));
        }
    }
    let mut marks = vec![Mark::Line { points: lowest, colour: MUTED, width: 1 }];
    for (n, value, error, _) in &found {
        if let Some(error) = error {
            marks.extend(error_bar(float(*n), (value - error, value + error), 0.06));
        }
    }
    for (n, value, error, point) in &found {
        let is_parent = point.kind == Kind::Parent;
        let error = error.map_or(String::new(), |error| format!(" \u{b1} {error:.4}"));
        marks.push(Mark::Dot {
            at: (float(*n), *value),
            shape: if is_parent { Shape::Square } else { Shape::Disc },
            colour: if is_parent { KEPT } else { REMOVED },
            title: format!("{}, {n} removed: {} {value:.4}{error}", point.name, figure.label),
        });
    }
    Some(Chart {
        name: figure.name,
        title: format!("{} of {} over removed blocks", figure.title, section.name()),
        description: format!(
            "{} models, from 0 to {most} blocks removed. Scored on {}.",
            found.len(),
            text(found[0].3)
        ),
        size: SIZE,
        left: 64,
        x: Axis::numbers("blocks removed", most + 1, 24),
        y: Axis::fit(figure.label, scale, values, true),
        grid: (false, true),
        legend: vec![
            (Shape::Square, KEPT, "parent".to_owned()),
            (Shape::Disc, REMOVED, "shortened".to_owned()),
        ],
        marks,
    })
}

/// One of the two speeds of a model.
type Speed = fn(&Quality) -> Option<f64>;

/// Tokens per second of prompt and decoding, over those of the fastest.
fn speed(section: &Section, points: &[&Point]) -> Option<Chart> {
    const MOST: usize = 24;
    let known: Vec<&&Point> = points
        .iter()
        .filter(|point| point.quality.prompt.is_some() || point.quality.decode.is_some())
        .take(MOST)
        .collect();
    if known.len() < 2 {
        return None;
    }
    let n = known.len();
    let fastest = |of: Speed| {
        let speeds = known.iter().filter_map(|point| of(&point.quality));
        speeds.fold(0.0, f64::max)
    };
    let series: [(&str, RGBColor, f64, Speed); 2] = [
        ("prompt", KEPT, 0.0, |quality| quality.prompt),
        ("decoding", OTHER, -0.36, |quality| quality.decode),
    ];
    let mut marks = Vec::new();
    for (i, point) in known.iter().enumerate() {
        let row = float(n - 1 - i);
        for (what, colour, offset, of) in series {
            let most = fastest(of);
            let Some(value) = of(&point.quality).filter(|_| most > 0.0) else {
                continue;
            };
            marks.push(Mark::Bar {
                x: (0.0, (100.0 * value / most).max(0.0)),
                y: (row + offset, row + offset + 0.34),
                colour,
                title: format!("{}: {what} {value:.1} tokens/s", point.name),
            });
            marks.push(Mark::Label {
                at: (100.0 * value / most, row + offset + 0.17),
                offset: (5, 0),
                ends: false,
                text: format!("{value:.0}"),
            });
        }
    }
    let names = known.iter().enumerate();
    let ticks = names.map(|(i, point)| (float(n - 1 - i), short(&point.name, 26)));
    let height = u32::try_from(110 + 44 * n).unwrap_or(SIZE.1);
    Some(Chart {
        name: "speed",
        title: format!("Speed of {} and of what was made from it", section.name()),
        description: format!("Tokens per second of {n} models, a prompt and decoding."),
        size: (SIZE.0, height),
        left: 190,
        x: Axis {
            label: "% of the fastest; numbers are tokens per second".to_owned(),
            scale: Scale::Linear,
            range: (0.0, 110.0),
            ticks: [0, 20, 40, 60, 80, 100].map(|i| (f64::from(i), i.to_string())).to_vec(),
        },
        y: Axis {
            label: String::new(),
            scale: Scale::Linear,
            range: (-0.5, float(n) - 0.5),
            ticks: ticks.collect(),
        },
        grid: (true, false),
        legend: vec![
            (Shape::Square, KEPT, "prompt".to_owned()),
            (Shape::Square, OTHER, "decoding".to_owned()),
        ],
        marks,
    })
}
