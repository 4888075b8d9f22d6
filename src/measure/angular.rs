//! How far runs of blocks turn the hidden state: formulas and accumulators only.
//!
//! The angular distance of the run of `n` blocks from block `l` is `E[arccos(cos(x_l, x_(l+n))) / pi]` (Gromov et al. 2024,
//! arXiv:2403.17887, equation 6). It is 0 for the same direction and 1 for the opposite one. There the mean is over the last
//! token of each sequence. Here, as in LLM-Streamline (Chen et al. 2024, arXiv:2403.19135), it is over every token, which says
//! the same with fewer sequences.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::measure::importance::cosine_distance;

/// The angular distance of each run of `n` blocks, by first block.
///
/// Memory is `n + 1` hidden states of one window.
///
/// # Errors
/// Those of `states`; blocks that run several times; a hidden state that is not finite or all zeros.
pub fn measure<'w>(
    states: &mut dyn HiddenStates,
    windows: impl Iterator<Item = &'w [Token]>,
    n: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>> {
    let (n_blocks, n_embd) = (states.n_blocks(), states.n_embd());
    ensure!(n > 0 && n < n_blocks, "a run of {n} blocks of {n_blocks}");
    let mut sums = vec![0.0; n_blocks - n + 1];
    let mut n_tokens = 0u32;
    for window in windows {
        let mut seen: VecDeque<Vec<f32>> = VecDeque::new();
        let mut n_seen = 0;
        states.visit(window, &mut |position, state| {
            if position == Position::Input && n_seen > 0 {
                bail!("the stream is changed between blocks, so a run of them has no angle");
            }
            seen.push_back(state.to_vec());
            n_seen += 1;
            if seen.len() <= n {
                return Ok(());
            }
            let Some(before) = seen.pop_front() else {
                return Ok(());
            };
            let start = n_seen - 1 - n;
            let rows = before.chunks_exact(n_embd).zip(state.chunks_exact(n_embd));
            for (x, y) in rows {
                let Some(distance) = cosine_distance(x, y).filter(|distance| distance.is_finite()) else {
                    bail!("a hidden state around blocks {start} to {} is zero or not finite", start + n - 1);
                };
                sums[start] += (1.0 - distance).clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
            }
            Ok(())
        })?;
        n_tokens += u32::try_from(window.len())?;
        progress(window.len());
    }
    ensure!(n_tokens > 0, "the calibration set has no window");
    Ok(sums.into_iter().map(|sum| sum / f64::from(n_tokens)).collect())
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "hidden states are 32-bit floats")]
mod tests {
    use super::*;
    use crate::engine::hidden_state::Recorded;
    use crate::model::BlockId;

    #[test]
    fn distances_are_angles_between_the_ends_of_runs() {
        // Each block turns every token of the plane by its own angle.
        let turns = [0.1f64, 0.4, 0.2, 0.3];
        let at = |angle: f64| {
            vec![angle.cos() as f32, angle.sin() as f32, -angle.sin() as f32, angle.cos() as f32]
        };
        let mut angle = 0.5;
        let mut states = vec![(Position::Input, at(angle))];
        for (block, turn) in turns.iter().enumerate() {
            angle += turn;
            states.push((Position::Output(BlockId::new(block)), at(angle)));
        }
        let mut recorded = Recorded::default();
        recorded.n_blocks = 4;
        recorded.n_embd = 2;
        recorded.windows = vec![states.clone(), states];
        for n in 1..4 {
            let windows = [&[0, 0][..], &[0, 0][..]];
            let found = measure(&mut recorded, windows.into_iter(), n, &mut |_| {}).unwrap();
            let expected: Vec<f64> =
                turns.windows(n).map(|run| run.iter().sum::<f64>() / std::f64::consts::PI).collect();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}
