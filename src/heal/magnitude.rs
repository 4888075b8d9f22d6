//! By how much the stream after each cut should be longer. Pure: no I/O.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::model::BlockId;
use crate::model::block::BlockSet;

/// Consecutive removed blocks with a kept one after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first removed block.
    pub first: BlockId,
    /// The last one.
    pub last: BlockId,
}

impl Cut {
    /// Of a model of `n_blocks` blocks without `removed`, first to last. After the last kept block there is no cut: only the
    /// norm of the output reads the stream there.
    #[must_use]
    pub fn all(n_blocks: usize, removed: &BlockSet) -> Vec<Self> {
        let mut cuts: Vec<Self> = Vec::new();
        for block in (0..n_blocks).map(BlockId::new).filter(|b| removed.contains(b)) {
            match cuts.last_mut() {
                Some(cut) if cut.last.index() + 1 == block.index() => cut.last = block,
                _ => cuts.push(Self { first: block, last: block }),
            }
        }
        cuts.retain(|cut| cut.last.index() + 1 < n_blocks);
        cuts
    }
}

/// By how much the whole model's stream grows in each of `cuts`.
///
/// It is the geometric mean over tokens, so that a few tokens with very long streams do not decide. The second result is the
/// stream of each window before block `first`, `[n_tokens, n_embd]`.
///
/// # Errors
/// Those of `states`; a stream without a token that has a length.
pub fn ratios(
    states: &mut dyn HiddenStates,
    windows: &[&[Token]],
    cuts: &[Cut],
    first: usize,
) -> Result<(Vec<f64>, Vec<Vec<f32>>)> {
    let n_embd = states.n_embd();
    let mut sums = vec![(0.0f64, 0u64); cuts.len()];
    let mut firsts = Vec::new();
    for window in windows {
        let mut lengths: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let mut before_first = Vec::new();
        states.visit(window, &mut |position, state| {
            let number = match position {
                Position::Input => 0,
                Position::Output(block) => block.index() + 1,
                Position::Middle(_) => return Ok(()),
            };
            if number == first {
                state.clone_into(&mut before_first);
            }
            let wanted = |cut: &Cut| number == cut.first.index() || number == cut.last.index() + 1;
            if cuts.iter().any(wanted) {
                let rows = state.chunks_exact(n_embd.max(1));
                lengths.insert(number, rows.map(length).collect());
            }
            Ok(())
        })?;
        firsts.push(before_first);
        for (cut, (sum, n)) in cuts.iter().zip(&mut sums) {
            let before = lengths.get(&cut.first.index());
            let after = lengths.get(&(cut.last.index() + 1));
            let (before, after) = before.zip(after).context("bug: a cut that was not seen")?;
            for (before, after) in before.iter().zip(after) {
                let ratio = (after / before).ln();
                if ratio.is_finite() {
                    *sum += ratio;
                    *n += 1;
                }
            }
        }
    }
    let mean = |(sum, n): (f64, u64)| {
        ensure!(n > 0, "the stream around a cut is all zeros");
        let mean = sum / n as f64;
        Ok(mean.exp())
    };
    let ratios: Result<Vec<f64>> = sums.into_iter().map(mean).collect();
    Ok((ratios?, firsts))
}

fn length(row: &[f32]) -> f64 {
    let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    square.sqrt()
}

/// A number that was tried, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// The number.
    pub at: f64,
    /// The loss.
    pub loss: f64,
}

/// The longest step while the loss still falls, in logarithms.
const LONGEST_STEP: f64 = 0.7;

/// The distance of logarithms below which numbers are the same.
const SAME: f64 = 0.01;

/// The positive number of least loss among those that are tried.
///
/// These are 1, whose loss is `unchanged`, `start`, and at most `n` more, by parabolas on the scale of their logarithms. A loss
/// that is no number loses.
///
/// # Errors
/// Those of `loss`.
pub fn line_search(
    start: f64,
    unchanged: f64,
    n: usize,
    loss: &mut dyn FnMut(f64) -> Result<f64>,
) -> Result<Tried> {
    let start =
        if start.is_finite() && start > 0.0 { start.ln().clamp(-LONGEST_STEP, LONGEST_STEP) } else { 0.0 };
    // By their logarithms, in ascending order.
    let mut tried = vec![(0.0, unchanged)];
    let mut at = if start.abs() < SAME { 0.2 } else { start };
    for _ in 0..=n {
        let found = loss(at.exp())?;
        let found = if found.is_nan() { f64::INFINITY } else { found };
        let place = tried.partition_point(|(t, _)| *t < at);
        tried.insert(place, (at, found));
        match next(&tried) {
            Some(next) => at = next,
            None => break,
        }
    }
    let first = Tried { at: 1.0, loss: unchanged };
    Ok(tried.into_iter().fold(
        first,
        |best, (t, loss)| {
            if loss < best.loss { Tried { at: t.exp(), loss } } else { best }
        },
    ))
}

/// The number to try after `points`, which are in ascending order.
///
/// Where the lowest is the last of them on its side the search goes on there. Else it is where the parabola through it and its
/// neighbours is lowest, or within the wider of the gaps beside it. `None` if that is next to nothing.
fn next(points: &[(f64, f64)]) -> Option<f64> {
    const ON: f64 = 1.6;
    const SECTION: f64 = 0.381_966_011_250_105;
    let lowest = (0..points.len()).min_by(|&a, &b| points[a].1.total_cmp(&points[b].1))?;
    let (x, y) = points[lowest];
    let before = lowest.checked_sub(1).map(|i| points[i]);
    let after = points.get(lowest + 1).copied();
    let (before, after) = match (before, after) {
        (Some(before), Some(after)) => (before, after),
        (None, Some(after)) => return Some(x - (ON * (after.0 - x)).min(LONGEST_STEP)),
        (Some(before), None) => return Some(x + (ON * (x - before.0)).min(LONGEST_STEP)),
        (None, None) => return None,
    };
    let (a, b) = (x - before.0, after.0 - x);
    if a.max(b) < 2.0 * SAME {
        return None;
    }
    let (rise_a, rise_b) = (before.1 - y, after.1 - y);
    let step = (rise_a * b * b - rise_b * a * a) / (2.0 * (rise_a * b + rise_b * a));
    if step.is_finite() && step > -a && step < b && step.abs() >= SAME {
        return Some(x + step);
    }
    // The parabola says that it is there: a look to the wider side.
    let step = if a > b { -SECTION * a } else { SECTION * b };
    (step.abs() >= 2.0 * SAME && !step.is_nan()).then_some(x + step.clamp(-0.1, 0.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::hidden_state::Visitor;
    use crate::model::block::blocks;

    /// Three blocks; the states of each window, the last first.
    struct Shown(Vec<Vec<(Position, Vec<f32>)>>);

    impl HiddenStates for Shown {
        fn n_blocks(&self) -> usize {
            3
        }

        fn n_embd(&self) -> usize {
            2
        }

        fn visit(&mut self, _window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
            for (position, state) in self.0.pop().unwrap() {
                visit(position, &state)?;
            }
            Ok(())
        }
    }

    #[test]
    fn cuts_are_runs_with_a_block_after_them() {
        let of = |numbers: &[usize]| -> Vec<(usize, usize)> {
            let cuts = Cut::all(8, &blocks(numbers));
            cuts.iter().map(|c| (c.first.index(), c.last.index())).collect()
        };
        assert_eq!(of(&[0, 2, 3, 4, 6]), [(0, 0), (2, 4), (6, 6)]);
        assert_eq!(of(&[3, 6, 7]), [(3, 3)]);
        assert_eq!(of(&[]), []);
    }

    #[test]
    fn ratios_are_geometric_means_over_tokens() {
        let state =
            |scales: &[f32]| -> Vec<f32> { scales.iter().flat_map(|&s| [3.0 * s, -4.0 * s]).collect() };
        let window = |a: f32| {
            vec![
                (Position::Input, state(&[1.0, 100.0, 0.0])),
                (Position::Output(BlockId::new(0)), state(&[2.0, 100.0, 1.0])),
                (Position::Output(BlockId::new(1)), state(&[2.0 * a, 50.0, 0.0])),
                (Position::Output(BlockId::new(2)), state(&[1.0, 1.0, 1.0])),
            ]
        };
        let mut recorded = Shown(vec![window(9.0), window(4.0)]);
        let tokens: [&[Token]; 2] = [&[0; 3], &[0; 3]];
        let cuts = Cut::all(3, &blocks(&[0, 1]));
        let (found, firsts) = ratios(&mut recorded, &tokens, &cuts, 1).unwrap();
        // Ratios of 8, 1/2, 18 and 1/2; the token of no length has none.
        let expected = (8.0f64 * 0.5 * 18.0 * 0.5).powf(0.25);
        assert!((found[0] / expected - 1.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found.len(), 1);
        assert_eq!(firsts, vec![state(&[2.0, 100.0, 1.0]); 2]);
    }

    #[test]
    fn a_search_ends_near_the_least_loss_and_never_above_that_of_1() {
        for (least, start) in [(1.3f64, 1.6), (0.8, 1.4), (2.5, 2.0), (1.0, 1.0), (1.2, f64::NAN)] {
            let loss = |at: f64| (at.ln() - least.ln()).powi(2) + 0.25;
            let mut n = 0;
            let found = line_search(start, loss(1.0), 6, &mut |at| {
                n += 1;
                Ok(loss(at))
            })
            .unwrap();
            assert!(n <= 7);
            assert!(found.loss <= loss(1.0));
            // A parabola is found exactly.
            assert!((found.at / least - 1.0).abs() < 2e-3, "{found:?} for {least}");
            let skewed = |at: f64| loss(at) + 0.3 * (at.ln() - least.ln()).abs().powi(3);
            let found = line_search(start, skewed(1.0), 6, &mut |at| Ok(skewed(at))).unwrap();
            assert!((found.at / least - 1.0).abs() < 0.05, "{found:?}, {least}");
        }
        let nothing = line_search(2.0, 1.0, 5, &mut |_| Ok(f64::NAN)).unwrap();
        assert_eq!(nothing, Tried { at: 1.0, loss: 1.0 });
    }
}
