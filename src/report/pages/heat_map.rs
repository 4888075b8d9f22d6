//! Likeness of the stream's positions, and scores of experts, as colours.

use plotters::prelude::RGBColor;

use super::axis::{Axis, float};
use super::chart::{Chart, GRID, Mark, Shape};
use super::name;
use crate::report::saved::Scored;

/// Cells up to this number say their value under the pointer. More would make the page slow.
const CELLS_WITH_TITLES: usize = 66 * 66;

/// The cosine of every two positions of the stream as colours.
#[must_use]
pub fn heat_map(scored: &Scored) -> Option<Chart> {
    let n = scored.cosine.len();
    let values = || scored.cosine.iter().flatten().flatten().copied();
    let low = values().reduce(f64::min)?.clamp(-1.0, 1.0);
    let high = 1.0;
    let share = |value: f64| {
        if high > low { (value - low) / (high - low) } else { 1.0 }
    };
    let has_titles = n * n <= CELLS_WITH_TITLES;
    let mut marks = Vec::new();
    for (i, row) in scored.cosine.iter().enumerate() {
        let mut start = 0;
        while start < n {
            let colour = |j: usize| row[j].map_or(GRID, |value| cividis(share(value)));
            // Without titles, neighbours that look the same are one rectangle.
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
        title: format!("Cosine between the hidden states of {}", name(&scored.model)),
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

/// Experts' scores over their block's largest as colours, a row per block.
#[must_use]
pub fn experts(scored: &Scored) -> Option<Chart> {
    let rows = &scored.experts;
    let n = rows.iter().map(|(_, experts)| experts.len()).max().filter(|n| *n > 0)?;
    let has_titles = n * rows.len() <= CELLS_WITH_TITLES;
    let mut marks = Vec::new();
    for (row, (block, experts)) in rows.iter().enumerate() {
        let largest = experts.iter().flatten().copied().fold(0.0, f64::max);
        for (expert, score) in experts.iter().enumerate() {
            let share = score.filter(|_| largest > 0.0).map(|score| score / largest);
            let words = score.map_or("never chosen".to_owned(), |score| format!("{score:.4}"));
            marks.push(Mark::Bar {
                x: (float(expert) - 0.5, float(expert) + 0.5),
                y: (float(row) - 0.5, float(row) + 0.5),
                colour: share.map_or(GRID, cividis),
                title: match has_titles {
                    true => format!("block {block}, expert {expert}: {words}"),
                    false => String::new(),
                },
            });
        }
    }
    let side = |n: usize, least: u32| u32::try_from((8 * n).clamp(0, 1100)).unwrap_or(least).max(least);
    let legend = [0.0, 0.25, 0.5, 0.75, 1.0]
        .map(|share| (Shape::Square, cividis(share), format!("{:.0} %", 100.0 * share)));
    let mut y = Axis::numbers("block", rows.len(), 24);
    // Blocks without experts have no row.
    for (at, label) in &mut y.ticks {
        let row = rows.iter().enumerate().find(|(row, _)| float(*row) >= *at);
        *label = row.map_or_else(String::new, |(_, (block, _))| block.to_string());
    }
    Some(Chart {
        name: "experts",
        title: format!("Scores of the experts of {}", name(&scored.model)),
        description: format!(
            "The mean of gate weight times length of the output (REAP) of {n} experts of {} blocks, over the largest of each \
             block; grey where an expert was never chosen.",
            rows.len()
        ),
        size: (side(n, 440) + 84, side(rows.len(), 120) + 80),
        left: 64,
        x: Axis::numbers("expert", n, 24),
        y,
        grid: (false, false),
        legend: legend.to_vec(),
        marks,
    })
}

fn position(i: usize) -> String {
    match i.checked_sub(1) {
        None => "input".to_owned(),
        Some(block) => format!("after block {block}"),
    }
}

/// The colour map cividis, which grows evenly lighter for all eyes. Straight lines between nine of its colours, in 64 steps
/// (Nunez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239).
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
    let step = (1..STEPS).filter(|&i| share * float(STEPS) >= float(i)).count();
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
