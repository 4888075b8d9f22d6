//! Likeness of hidden states at any two positions of the stream. Formulas and accumulators only.
//!
//! Position 0 is what enters block 0, position `i + 1` what leaves block `i`. The cosine of positions `i` and `j` is
//! `E_{X,t}[cos(X_{i,t}, X_{j,t})]` over every token of every window. So neighbours have `1 - BI_i` with the Block Influence of
//! [`crate::measure::importance`]. The run of blocks `i..j` turns the stream by the angle of that cosine (the figures of Gromov
//! et al. 2024, arXiv:2403.17887, show the same for all runs). The mean of the angles themselves is kept beside it, so that one
//! pass gives the angular distance ([`crate::measure::angular`]) of runs of every length.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::engine::hidden_state::{HiddenStates, Position, Token, Visitor};
use crate::measure::importance::cosine_distance;

/// Sums over tokens of all finished windows, for every two positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// One for each pair. That of positions `i < j` is at `j * (j - 1) / 2 + i`.
    sums: Vec<Sums>,
    n_positions: usize,
    /// Whether models without one state between blocks are passed by. They have no sums.
    lenient: bool,
}

/// Sums over the tokens that have an angle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    /// Of `1 - cos`.
    distance: f64,
    /// Of `arccos(cos) / pi`.
    angle: f64,
    n_tokens: u64,
}

impl Pairs {
    /// Of a model that may have no such pairs.
    #[must_use]
    pub fn lenient() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    /// Whether they are those of `n_blocks` blocks.
    #[must_use]
    pub fn are_of(&self, n_blocks: usize) -> bool {
        self.n_positions == n_blocks + 1 && self.sums.len() == at(0, self.n_positions)
    }

    /// The angular distance of each run of `n` blocks, by first block. `None` where there is no such run, or one without an
    /// angle.
    #[must_use]
    pub fn angles(&self, n: usize) -> Option<Vec<f64>> {
        let n_runs = self.n_positions.checked_sub(n).filter(|_| n > 0)?;
        let angle = |start: usize| {
            let Sums { angle, n_tokens, .. } = self.sums[at(start, start + n)];
            (n_tokens > 0).then(|| angle / n_tokens as f64)
        };
        (0..n_runs).map(angle).collect()
    }

    /// The mean cosine of every two positions. A square of `n_blocks + 1` rows. `None` where one of the two is all zeros for
    /// every token, so that there is no angle.
    #[must_use]
    pub fn cosine(&self) -> Vec<Vec<Option<f64>>> {
        let of = |i: usize, j: usize| {
            let Sums { distance, n_tokens, .. } = self.sums[at(i.min(j), i.max(j))];
            (n_tokens > 0).then(|| 1.0 - distance / n_tokens as f64)
        };
        let row = |i: usize| {
            let cosine = |j: usize| if i == j { Some(1.0) } else { of(i, j) };
            (0..self.n_positions).map(cosine).collect()
        };
        (0..self.n_positions).map(row).collect()
    }

    /// The mean cosine of what enters each two blocks, `[n_blocks, n_blocks]`. 0 where there is no angle.
    #[must_use]
    pub fn entering(&self) -> Vec<Vec<f64>> {
        let n_blocks = self.n_positions.saturating_sub(1);
        let rows = self.cosine().into_iter().take(n_blocks);
        rows.map(|row| row.into_iter().take(n_blocks).map(|cosine| cosine.unwrap_or(0.0)).collect()).collect()
    }

    /// Adds one window: `states` at every position, each `[n_tokens, n_embd]`.
    fn add_window(&mut self, states: &[Vec<f32>], n_embd: usize) {
        let n = states.len();
        if self.n_positions < n {
            self.n_positions = n;
            self.sums.resize(at(0, n), Sums::default());
        }
        let pairs = self.sums.par_iter_mut().enumerate();
        pairs.for_each(|(at, sums)| {
            let (i, j) = pair(at);
            let rows = states[i].chunks_exact(n_embd).zip(states[j].chunks_exact(n_embd));
            // A window's own sum first, as importance has it. So neighbours come out the same to the last digit.
            let (mut window, mut angle) = (0.0, 0.0);
            for distance in rows.filter_map(|(x, y)| cosine_distance(x, y)) {
                window += distance;
                angle += (1.0 - distance).clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
                sums.n_tokens += 1;
            }
            sums.distance += window;
            sums.angle += angle;
        });
    }
}

/// Where the pair of positions `i < j` is.
fn at(i: usize, j: usize) -> usize {
    j * j.saturating_sub(1) / 2 + i
}

/// The inverse of [`at`].
fn pair(index: usize) -> (usize, usize) {
    // The largest j with j (j - 1) / 2 <= index.
    let j = (8 * index + 1).isqrt().div_ceil(2);
    (index - at(0, j), j)
}

/// Hidden states passed on, from which [`Pairs`] are measured.
///
/// Memory is the hidden states of one window at all positions: `(n_blocks + 1) * n_tokens * n_embd` floats.
pub struct Paired<'s> {
    source: &'s mut dyn HiddenStates,
    pairs: &'s mut Pairs,
    states: Vec<Vec<f32>>,
}

impl<'s> Paired<'s> {
    /// Passes on what `source` yields, and adds it to `pairs`.
    #[must_use]
    pub fn new(source: &'s mut dyn HiddenStates, pairs: &'s mut Pairs) -> Self {
        Self { source, pairs, states: Vec::new() }
    }
}

impl HiddenStates for Paired<'_> {
    fn n_blocks(&self) -> usize {
        self.source.n_blocks()
    }

    fn n_embd(&self) -> usize {
        self.source.n_embd()
    }

    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        let states = &mut self.states;
        let n_positions = self.source.n_blocks() + 1;
        let lenient = self.pairs.lenient;
        let (mut n_seen, mut is_one) = (0, true);
        self.source.visit(window, &mut |position, state| {
            visit(position, state)?;
            if matches!(position, Position::Middle(_)) {
                return Ok(());
            }
            is_one &= n_seen < n_positions && (position != Position::Input || n_seen == 0);
            if lenient && !is_one {
                return Ok(());
            }
            ensure!(
                is_one,
                "blocks of this model run several times, so the stream has no one state between two of them to compare"
            );
            // The memory of the window before is used again.
            match states.get_mut(n_seen) {
                Some(kept) => state.clone_into(kept),
                None => states.push(state.to_vec()),
            }
            n_seen += 1;
            Ok(())
        })?;
        if !is_one {
            return Ok(());
        }
        ensure!(n_seen == n_positions, "{n_seen} hidden states were shown, expected {n_positions}");
        self.pairs.add_window(states, self.source.n_embd());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::hidden_state::Recorded;
    use crate::measure::angular;
    use crate::measure::importance::{Importance, Metric};
    use crate::measure::noise::noise;
    use crate::model::BlockId;

    fn recorded(n_windows: usize, n_blocks: usize, n_tokens: usize, n_embd: usize) -> Recorded {
        let mut next = noise(3);
        let mut recorded = Recorded::default();
        recorded.n_blocks = n_blocks;
        recorded.n_embd = n_embd;
        for _ in 0..n_windows {
            let mut state = || (0..n_tokens * n_embd).map(|_| next()).collect();
            let mut window = vec![(Position::Input, state())];
            for block in (0..n_blocks).map(BlockId::new) {
                window.push((Position::Middle(block), state()));
                window.push((Position::Output(block), state()));
            }
            recorded.windows.push(window);
        }
        recorded
    }

    fn measure(recorded: &Recorded, n_tokens: usize) -> Result<(Importance, Pairs)> {
        let mut pairs = Pairs::default();
        let window = vec![0; n_tokens];
        let windows = recorded.windows.iter().map(|_| &window[..]);
        let mut source = recorded.clone();
        let mut states = Paired::new(&mut source, &mut pairs);
        let importance = Importance::measure(&mut states, windows, &mut |_| {})?;
        Ok((importance, pairs))
    }

    #[test]
    fn pairs_are_numbered_without_gaps() {
        let mut index = 0;
        for j in 1..60 {
            for i in 0..j {
                assert_eq!((at(i, j), pair(index)), (index, (i, j)));
                index += 1;
            }
        }
    }

    #[test]
    fn cosines_equal_the_naive_twin() {
        let (n_blocks, n_tokens, n_embd) = (5, 7, 19);
        let recorded = recorded(3, n_blocks, n_tokens, n_embd);
        let cosine = measure(&recorded, n_tokens).unwrap().1.cosine();
        assert_eq!(cosine.len(), n_blocks + 1);
        let state = |window: usize, position: usize| match position {
            0 => &recorded.windows[window][0].1,
            _ => &recorded.windows[window][2 * position].1,
        };
        for (i, row) in cosine.iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let (mut sum, mut n) = (0.0, 0.0);
                for window in 0..3 {
                    let (x, y) = (state(window, i), state(window, j));
                    for t in 0..n_tokens {
                        let dot = |a: &[f32], b: &[f32]| -> f64 {
                            (0..n_embd)
                                .map(|k| f64::from(a[t * n_embd + k]) * f64::from(b[t * n_embd + k]))
                                .sum()
                        };
                        sum += dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
                        n += 1.0;
                    }
                }
                let found = found.unwrap();
                assert!((found - sum / n).abs() < 1e-12, "{i} {j}: {found}");
            }
        }
    }

    #[test]
    fn neighbours_have_one_minus_their_block_influence() {
        let mut recorded = recorded(4, 6, 9, 16);
        // A token that takes no part, in one of them.
        recorded.windows[1][4].1[..16].fill(0.0);
        let (importance, pairs) = measure(&recorded, 9).unwrap();
        let cosine = pairs.cosine();
        for (i, block) in importance.blocks.iter().enumerate() {
            assert_eq!(cosine[i][i + 1], Some(1.0 - block.scores[Metric::BlockInfluence].mean));
            assert_eq!(cosine[i + 1][i], Some(1.0 - block.scores[Metric::BlockInfluence].mean));
            assert_eq!(cosine[i][i], Some(1.0));
        }
    }

    #[test]
    fn angles_of_runs_are_those_of_a_pass_for_their_length() {
        let mut recorded = recorded(3, 5, 7, 19);
        let is_between = |(position, _): &(Position, Vec<f32>)| !matches!(position, Position::Middle(_));
        recorded.windows.iter_mut().for_each(|window| window.retain(is_between));
        let pairs = measure(&recorded, 7).unwrap().1;
        assert!(pairs.are_of(5) && !pairs.are_of(4));
        for n in 1..5 {
            let windows = [&[0; 7][..]; 3];
            let mut source = recorded.clone();
            let expected = angular::measure(&mut source, windows.into_iter(), n, &mut |_| {}).unwrap();
            let found = pairs.angles(n).unwrap();
            assert_eq!(found.len(), expected.len());
            let is_near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
            assert!(found.iter().zip(&expected).all(is_near), "{n}: {found:?} {expected:?}");
        }
        assert_eq!((pairs.angles(0), pairs.angles(7)), (None, None));
    }

    #[test]
    fn a_pair_without_a_common_token_has_no_angle() {
        let mut recorded = recorded(1, 2, 2, 4);
        recorded.windows[0][0].1[..4].fill(0.0);
        recorded.windows[0][4].1[4..].fill(0.0);
        let cosine = measure(&recorded, 2).unwrap().1.cosine();
        assert_eq!((cosine[0][2], cosine[2][0]), (None, None));
        assert!(cosine[0][1].is_some() && cosine[1][2].is_some());
    }

    #[test]
    fn blocks_that_run_twice_are_refused() {
        let mut recorded = recorded(1, 2, 2, 4);
        let again = recorded.windows[0].clone();
        recorded.windows[0].extend(again);
        let error = measure(&recorded, 2).unwrap_err();
        assert!(format!("{error}").starts_with("blocks of this model run several times"));
        // Where that is allowed, pairs are missing, and the rest is measured.
        let mut pairs = Pairs::lenient();
        let mut source = recorded.clone();
        let mut states = Paired::new(&mut source, &mut pairs);
        Importance::measure(&mut states, std::iter::once(&[0; 2][..]), &mut |_| {}).unwrap();
        assert!(!pairs.are_of(2) && pairs.angles(1).is_none() && pairs.entering().is_empty());
    }
}
