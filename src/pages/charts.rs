//! The charts of a section.

use plotters::prelude::RGBColor;

use super::chart::{
    Axis, Chart, GRID, INK, KEPT, MUTED, Mark, OTHER, REMOVED, Scale, Shape, float,
};
use super::table::text;
use super::{Point, Section, name};
use crate::report::block_list;
use crate::saved::{Kind, Quality, Scored};

/// The usual size, in pixels.
const SIZE: (u32, u32) = (760, 340);

/// All charts of a section.
#[must_use]
pub fn of_section(section: &Section) -> Vec<Chart> {
    let mut charts = Vec::new();
    for scored in &section.scored {
        charts.extend(influence(scored));
        charts.extend(heat_map(scored));
    }
    for (_, _, points) in section.by_text() {
        charts.extend(over_removed(section, &points, &PERPLEXITY));
        charts.extend(over_removed(section, &points, &DIVERGENCE));
        charts.extend(frontier(section, &points));
        charts.extend(speed(section, &points));
    }
    charts
}

/// The influence of every block as bars, those that go in another colour, with standard errors.
#[must_use]
pub fn influence(scored: &Scored) -> Option<Chart> {
    let known = || {
        scored
            .scores
            .iter()
            .enumerate()
            .filter_map(|(i, score)| Some((i, (*score)?)))
    };
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
        let error = score
            .stderr
            .map_or(String::new(), |error| format!(" \u{b1} {error:.4}"));
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
        marks.extend(error_bar(
            float(block),
            (score.bi - error, score.bi + error),
            0.18,
        ));
    }
    let mut legend = Vec::new();
    let removed = match scored.output {
        Some(_) => {
            legend.push((Shape::Square, KEPT, "stays".to_owned()));
            legend.push((Shape::Square, REMOVED, "removed".to_owned()));
            format!(", {} removed", block_list(&scored.removed))
        }
        None => String::new(),
    };
    let lowest = known().min_by(|a, b| a.1.bi.total_cmp(&b.1.bi))?;
    let highest = known().max_by(|a, b| a.1.bi.total_cmp(&b.1.bi))?;
    let wide = u32::try_from(90 + 3 * n).unwrap_or(u32::MAX);
    Some(Chart {
        name: "influence",
        title: format!(
            "Influence of the blocks of {}{removed}",
            name(&scored.model)
        ),
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
    AttentionRemoved,
}

impl Fate {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Stays => "",
            Self::Removed => ", removed",
            Self::AttentionRemoved => ", attention removed",
        }
    }
}

pub(super) fn fate(scored: &Scored, block: usize) -> Fate {
    if scored.removed.binary_search(&block).is_ok() {
        Fate::Removed
    } else if scored.attention_removed.binary_search(&block).is_ok() {
        Fate::AttentionRemoved
    } else {
        Fate::Stays
    }
}

fn error_bar(x: f64, (low, high): (f64, f64), half_width: f64) -> [Mark; 3] {
    let line = |points: [(f64, f64); 2]| Mark::Line {
        points: points.to_vec(),
        colour: INK,
        width: 1,
    };
    [
        line([(x, low), (x, high)]),
        line([(x - half_width, low), (x + half_width, low)]),
        line([(x - half_width, high), (x + half_width, high)]),
    ]
}

/// Cells up to this number say their value under the pointer; more would make the page slow.
const CELLS_WITH_TITLES: usize = 66 * 66;

/// The cosine of every two positions of the stream as colours.
#[must_use]
pub fn heat_map(scored: &Scored) -> Option<Chart> {
    let n = scored.cosine.len();
    let values = || scored.cosine.iter().flatten().flatten().copied();
    let low = values().reduce(f64::min)?.clamp(-1.0, 1.0);
    let high = 1.0;
    let share = |value: f64| {
        if high > low {
            (value - low) / (high - low)
        } else {
            1.0
        }
    };
    let has_titles = n * n <= CELLS_WITH_TITLES;
    let mut marks = Vec::new();
    for (i, row) in scored.cosine.iter().enumerate() {
        let mut start = 0;
        while start < n {
            let colour = |j: usize| row[j].map_or(GRID, |value| cividis(share(value)));
            // Neighbours that look the same are one rectangle where nothing is said of each.
            let mut end = start + 1;
            while !has_titles && end < n && colour(end) == colour(start) {
                end += 1;
            }
            let cosine = row[start].map_or("undefined".to_owned(), |value| format!("{value:.4}"));
            marks.push(Mark::Bar {
                x: (float(start) - 0.5, float(end) - 0.5),
                y: (float(i) - 0.5, float(i) + 0.5),
                colour: colour(start),
                title: match has_titles {
                    true => format!("{} and {}: {cosine}", position(i), position(start)),
                    false => String::new(),
                },
            });
            start = end;
        }
    }
    let side = u32::try_from((2 * n).clamp(440, 1100)).unwrap_or(440);
    let legend = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| {
        let value = low + share * (high - low);
        (Shape::Square, cividis(share), format!("{value:.2}"))
    });
    Some(Chart {
        name: "cosine",
        title: format!(
            "Cosine between the hidden states of {}",
            name(&scored.model)
        ),
        description: format!(
            "A square of {n} by {n} cells: position 0 is what enters block 0, position n what leaves block n - 1. Cosines \
             are from {low:.2} to 1."
        ),
        size: (side + 84, side + 80),
        left: 64,
        x: Axis::numbers("position", n, 24),
        y: Axis::numbers("position", n, 24),
        grid: (false, false),
        legend: legend.to_vec(),
        marks,
    })
}

fn position(i: usize) -> String {
    match i.checked_sub(1) {
        None => "input".to_owned(),
        Some(block) => format!("behind block {block}"),
    }
}

/// The colour map cividis (Nunez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239), which grows evenly lighter for
/// all eyes: straight lines between nine of its colours, in 64 steps.
fn cividis(share: f64) -> RGBColor {
    const COLOURS: [[u8; 3]; 9] = [
        [0, 34, 78],
        [18, 53, 112],
        [59, 73, 108],
        [87, 93, 109],
        [112, 113, 115],
        [138, 134, 120],
        [165, 156, 116],
        [195, 179, 105],
        [254, 232, 56],
    ];
    const STEPS: usize = 64;
    let step = (1..STEPS)
        .filter(|&i| share * float(STEPS) >= float(i))
        .count();
    let last = COLOURS.len() - 1;
    let scaled = step * last;
    let (at, part) = (scaled / (STEPS - 1), scaled % (STEPS - 1));
    let mix = |channel: usize| {
        let a = usize::from(COLOURS[at][channel]);
        let b = usize::from(COLOURS[(at + 1).min(last)][channel]);
        u8::try_from((a * (STEPS - 1 - part) + b * part) / (STEPS - 1)).unwrap_or(u8::MAX)
    };
    RGBColor(mix(0), mix(1), mix(2))
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
            Kind::Requantized | Kind::File => None,
        };
        let (value, error) = (figure.of)(&point.quality);
        // The parent does not diverge from itself.
        let value =
            value.or((point.kind == Kind::Parent && figure.name == DIVERGENCE.name).then_some(0.0));
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
    let values = found
        .iter()
        .flat_map(|(_, value, error, _)| [*value, value + error.unwrap_or(0.0)]);
    let mut lowest: Vec<(f64, f64)> = Vec::new();
    for &(n, value, _, _) in &found {
        if lowest.last().is_none_or(|last| last.0 != float(n)) {
            lowest.push((float(n), value));
        }
    }
    let mut marks = vec![Mark::Line {
        points: lowest,
        colour: MUTED,
        width: 1,
    }];
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
            shape: if is_parent {
                Shape::Square
            } else {
                Shape::Disc
            },
            colour: if is_parent { KEPT } else { REMOVED },
            title: format!(
                "{}, {n} removed: {} {value:.4}{error}",
                point.name, figure.label
            ),
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

fn look(kind: Kind) -> (Shape, RGBColor, &'static str) {
    match kind {
        Kind::Parent | Kind::File => (Shape::Square, KEPT, "other file"),
        Kind::Shortened => (Shape::Disc, REMOVED, "fewer blocks"),
        Kind::Requantized => (Shape::Triangle, OTHER, "smaller types"),
    }
}

/// Size against divergence, and the line of those that no other is both smaller and nearer than.
#[must_use]
fn frontier(section: &Section, points: &[&Point]) -> Option<Chart> {
    #[expect(clippy::cast_precision_loss, reason = "a position in a chart")]
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
        let is_beaten = found
            .iter()
            .enumerate()
            .any(|(j, &(other_size, other_kl, _))| {
                other_size <= size
                    && other_kl <= kl
                    && (other_size < size || other_kl < kl || j < i)
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
        x: Axis::fit(
            "size in MB",
            Scale::Linear,
            found.iter().map(|point| point.0).chain(parent),
            false,
        ),
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
    for kind in [Kind::Shortened, Kind::Requantized, Kind::File] {
        if found.iter().any(|point| point.2.kind == kind) {
            let (shape, colour, words) = look(kind);
            chart.legend.push((shape, colour, words.to_owned()));
        }
    }
    chart.marks.push(Mark::Line {
        points: best,
        colour: MUTED,
        width: 2,
    });
    if let Some(parent) = parent {
        let (low, high) = chart.y.range;
        chart.marks.push(Mark::Line {
            points: vec![(parent, low), (parent, high)],
            colour: KEPT,
            width: 1,
        });
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
    #[expect(clippy::cast_precision_loss, reason = "a position in a chart")]
    section.parent.bytes.map(|bytes| bytes as f64 / 1e6)
}

/// Names beside dots, where they are clear of one another and of the dots; the rest is under the pointer and in the table.
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
        let places = [
            (10, 0),
            (10, -12),
            (10, 12),
            (-10, 0),
            (-10, -12),
            (-10, 12),
        ];
        for offset in places {
            let ends = offset.0 < 0;
            let left = x + f64::from(offset.0) - if ends { length } else { 0.0 };
            let middle = y + f64::from(offset.1);
            let place = [
                left,
                middle - LINE / 2.0,
                left + length,
                middle + LINE / 2.0,
            ];
            let is_inside = left >= 0.0
                && place[2] <= f64::from(width)
                && place[1] >= 0.0
                && place[3] <= f64::from(height);
            let is_clear = taken.iter().all(|other| {
                place[2] <= other[0]
                    || other[2] <= place[0]
                    || place[3] <= other[1]
                    || other[3] <= place[1]
            });
            if is_inside && is_clear {
                taken.push(place);
                labels.push(Mark::Label {
                    at: (size, kl),
                    offset,
                    ends,
                    text,
                });
                break;
            }
        }
    }
    labels
}

/// A name of at most `n` characters.
pub(super) fn short(name: &str, n: usize) -> String {
    if name.chars().count() <= n {
        return name.to_owned();
    }
    let start: String = name.chars().take(n - 1).collect();
    format!("{start}\u{2026}")
}

/// Tokens per second as bars, of a prompt and of decoding, each as a share of the fastest, so that both have room.
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
    let fastest = |of: fn(&Quality) -> Option<f64>| {
        let speeds = known.iter().filter_map(|point| of(&point.quality));
        speeds.fold(0.0, f64::max)
    };
    let series: [(&str, RGBColor, f64, fn(&Quality) -> Option<f64>); 2] = [
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
            ticks: [0, 20, 40, 60, 80, 100]
                .map(|i| (f64::from(i), i.to_string()))
                .to_vec(),
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
