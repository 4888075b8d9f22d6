//! A fit: the bits of every block, and the divergence over the size.

use super::axis::{Axis, Scale, float};
use super::chart::{Chart, KEPT, MUTED, Mark, OTHER, REMOVED, SIZE, Shape};
use super::{Section, name};
use crate::report::saved::{Kind, SavedFit, Scored};

/// The bits per weight of every block as bars. Those of other types have another colour.
#[must_use]
pub(super) fn bits(scored: &Scored) -> Option<Chart> {
    let fit = scored.fit.as_ref().filter(|fit| !fit.blocks.is_empty())?;
    let n = fit.blocks.len();
    let mut marks = Vec::new();
    for (block, (rung, bits)) in fit.blocks.iter().enumerate() {
        let is_removed = rung == "removed";
        let colour = match rung.as_str() {
            "removed" => REMOVED,
            "kept" => KEPT,
            _ => OTHER,
        };
        marks.push(Mark::Bar {
            x: (float(block) - 0.38, float(block) + 0.38),
            // A block that is gone still shows.
            y: (0.0, if is_removed { 0.1 } else { *bits }),
            colour,
            title: format!("block {block}: {rung}, {bits:.2} bits per weight"),
        });
    }
    let n_removed = fit.blocks.iter().filter(|(rung, _)| rung == "removed").count();
    let wide = u32::try_from(90 + 3 * n).unwrap_or(u32::MAX);
    Some(Chart {
        name: "bits",
        title: format!("Bits per weight of the blocks of {}", name(&scored.model)),
        description: format!("A bar for each of {n} blocks, {n_removed} of them removed."),
        size: (SIZE.0.max(wide), SIZE.1),
        left: 64,
        x: Axis::numbers("block", n, 32),
        y: Axis::fit("bits per weight", Scale::Linear, fit.blocks.iter().map(|(_, bits)| *bits), true),
        grid: (false, true),
        legend: vec![
            (Shape::Square, KEPT, "as it is".to_owned()),
            (Shape::Square, OTHER, "smaller types".to_owned()),
            (Shape::Square, REMOVED, "removed".to_owned()),
        ],
        marks,
    })
}

/// The divergence over the size: as sums of single losses, as measured, and that of other files of the section.
#[must_use]
pub(super) fn curve(section: &Section, scored: &Scored) -> Option<Chart> {
    let fit: &SavedFit = scored.fit.as_ref().filter(|fit| fit.curve.len() > 1)?;
    let is_positive = |point: &&(f64, f64)| point.1 > 0.0;
    let line: Vec<(f64, f64)> = fit.curve.iter().filter(is_positive).copied().collect();
    let mut others = Vec::new();
    for point in section.points.iter().filter(|point| point.kind == Kind::Requantized) {
        if let (Some(bytes), Some(kl)) = (point.model.bytes, point.quality.kl.filter(|kl| *kl > 0.0)) {
            others.push((bytes as f64 / 1e6, kl, point.name.as_str()));
        }
    }
    let all = || line.iter().copied().chain(fit.chosen).chain(others.iter().map(|(x, y, _)| (*x, *y)));
    let mut marks = vec![Mark::Line { points: line.clone(), colour: MUTED, width: 2 }];
    let mut dot = |at: (f64, f64), shape, colour, of: &str| {
        let title = format!("{of}: {:.2} MB, KL divergence {:.4}", at.0, at.1);
        marks.push(Mark::Dot { at, shape, colour, title });
    };
    for (x, y, of) in &others {
        dot((*x, *y), Shape::Triangle, OTHER, of);
    }
    if let Some(chosen) = fit.chosen {
        dot(chosen, Shape::Disc, REMOVED, "this fit, as measured");
    }
    for (x, y, of) in &others {
        marks.push(Mark::Label { at: (*x, *y), offset: (10, 0), ends: false, text: (*of).to_owned() });
    }
    Some(Chart {
        name: "curve",
        title: format!("KL divergence over the size of {}", name(&scored.model)),
        description: format!(
            "The line is the least sum of single losses without removed blocks; {} presets of llama-quantize beside it, measured on \
             texts of their own.",
            others.len()
        ),
        size: (SIZE.0, 400),
        left: 72,
        x: Axis::fit("size in MB", Scale::Linear, all().map(|point| point.0), false),
        y: Axis::fit(
            "KL divergence",
            Scale::of(all().map(|point| point.1)),
            all().map(|point| point.1),
            true,
        ),
        grid: (true, true),
        legend: vec![
            (Shape::Disc, REMOVED, "this fit".to_owned()),
            (Shape::Triangle, OTHER, "llama-quantize".to_owned()),
        ],
        marks,
    })
}
