//! Draft: the worth of a shortened model in speculative decoding for its parent, by closed formulas. Pure.
//!
//! The draft proposes `g` tokens, the parent checks them in one pass and takes those up to the first that it would not have
//! taken. Let each be taken with probability `a`, independently, and a pass of the draft take `c` of the time of the parent's.
//! Then decoding becomes `(1 - a^(g+1)) / ((1 - a) (g c + 1))` times as fast (Leviathan et al. 2023, arXiv:2211.17192, theorem
//! 3.8).
//!
//! Here `a` is the share of tokens after which both hold the same token to be the likeliest: what is taken when the parent
//! decodes greedily. `c` is the ratio of the bytes of weights that a token reads, since decoding one token after another
//! waits for memory: the same for every run, on every machine. A measured time would make the choice another one each time.

use anyhow::Result;

use crate::model::block::BlockSet;
use crate::model::{BlockId, Model};

/// The most tokens that a draft proposes at once.
pub const MOST_TOKENS: u32 = 16;

/// A draft model's worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draft {
    /// The share of its tokens that the parent takes.
    pub acceptance: f64,
    /// Its time per token over the parent's.
    pub cost_ratio: f64,
    /// How many tokens it best proposes at once, 1 to [`MOST_TOKENS`].
    pub n_tokens: u32,
    /// How many times as fast both are as the parent alone.
    pub speed_up: f64,
}

impl Draft {
    /// The best use of a draft with this acceptance and cost. Of equals that with the fewest tokens.
    #[must_use]
    pub fn new(acceptance: f64, cost_ratio: f64) -> Self {
        let of = |n_tokens| Self {
            acceptance,
            cost_ratio,
            n_tokens,
            speed_up: speed_up(acceptance, cost_ratio, n_tokens),
        };
        (2..=MOST_TOKENS).map(of).fold(
            of(1),
            |best, other| {
                if other.speed_up > best.speed_up { other } else { best }
            },
        )
    }
}

/// `(1 - a^(g+1)) / ((1 - a) (g c + 1))`.
fn speed_up(a: f64, c: f64, g: u32) -> f64 {
    // The geometric sum itself: exact also for `a` near or at 1.
    let n_taken: f64 = (0..=g).map(|power| a.powi(power.cast_signed())).sum();
    n_taken / (f64::from(g) * c + 1.0)
}

/// Bytes of weights read per token, of each block and the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct BytesPerToken {
    blocks: Vec<f64>,
    rest: f64,
}

impl BytesPerToken {
    /// Those of `model`. Of experts as many count as a token uses; of the token embedding, unless it is the output head
    /// too, one row, which is left out.
    ///
    /// # Errors
    /// A number of experts that is not a number.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        let n_experts = model.count("expert_count")?.unwrap_or(0);
        let n_used = model.count("expert_used_count")?.unwrap_or(0);
        let share_used = match n_experts {
            0 => 1.0,
            n => (n_used as f64 / n as f64).min(1.0),
        };
        let has_head = model.tensors().iter().any(|tensor| tensor.info.name() == "output.weight");
        let mut bytes = Self { blocks: vec![0.0; model.n_trunk_blocks()], rest: 0.0 };
        for tensor in model.tensors() {
            let n_bytes = tensor.info.n_bytes() as f64;
            match tensor.block {
                Some((block, rest)) => {
                    if let Some(sum) = bytes.blocks.get_mut(block.index()) {
                        let share = if rest.contains("_exps.") { share_used } else { 1.0 };
                        *sum += share * n_bytes;
                    }
                }
                None if tensor.info.name() == "token_embd.weight" && has_head => {}
                None => bytes.rest += n_bytes,
            }
        }
        Ok(bytes)
    }

    /// Of blocks with so many bytes, and so many for the rest.
    #[must_use]
    pub fn new(blocks: Vec<f64>, rest: f64) -> Self {
        Self { blocks, rest }
    }

    /// Without the blocks of `removed`, over the whole model.
    #[must_use]
    pub fn ratio(&self, removed: &BlockSet) -> f64 {
        let all: f64 = self.blocks.iter().sum();
        let kept: f64 = self
            .blocks
            .iter()
            .enumerate()
            .filter(|(i, _)| !removed.contains(&BlockId::new(*i)))
            .map(|(_, n_bytes)| n_bytes)
            .sum();
        match all + self.rest {
            total if total > 0.0 => (kept + self.rest) / total,
            _ => 1.0,
        }
    }

    /// A ratio that no set without `n` blocks falls below.
    #[must_use]
    pub fn smallest_ratio(&self, n: usize) -> f64 {
        let mut by_size: Vec<usize> = (0..self.blocks.len()).collect();
        by_size.sort_by(|&a, &b| self.blocks[b].total_cmp(&self.blocks[a]));
        self.ratio(&by_size.into_iter().take(n).map(BlockId::new).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_up_is_the_formula_of_the_paper() {
        let formula = |a: f64, c: f64, g: i32| (1.0 - a.powi(g + 1)) / ((1.0 - a) * (f64::from(g) * c + 1.0));
        for a in [0.0, 0.3, 0.6, 0.9, 0.99] {
            for c in [0.01, 0.2, 0.8] {
                let best = Draft::new(a, c);
                let all = (1..=16).map(|g| formula(a, c, g));
                let largest = all.fold(f64::NEG_INFINITY, f64::max);
                assert!((best.speed_up / largest - 1.0).abs() < 1e-12, "{a} {c}");
                let g = i32::try_from(best.n_tokens).unwrap();
                assert!((formula(a, c, g) / largest - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn closed_forms_hold() {
        // All is taken: `(g + 1) / (g c + 1)`, the more the better.
        let all = Draft::new(1.0, 0.5);
        assert_eq!((all.n_tokens, all.speed_up), (16, 17.0 / 9.0));
        // Nothing is taken: each pass of the draft is lost, and one is lost least.
        let none = Draft::new(0.0, 0.5);
        assert_eq!((none.n_tokens, none.speed_up), (1, 1.0 / 1.5));
        // Theorem 3.8 and corollary 3.9: there is something to win exactly if a > c.
        assert!(Draft::new(0.51, 0.5).speed_up > 1.0);
        assert!(Draft::new(0.49, 0.5).speed_up < 1.0);
    }

    #[test]
    fn ratios_are_those_of_bytes() {
        let bytes = BytesPerToken::new(vec![10.0, 30.0, 20.0], 40.0);
        let removed = |numbers: &[usize]| numbers.iter().copied().map(BlockId::new).collect();
        assert_eq!(bytes.ratio(&removed(&[])), 1.0);
        assert_eq!(bytes.ratio(&removed(&[1])), 0.7);
        assert_eq!(bytes.smallest_ratio(1), 0.7);
        assert_eq!(bytes.smallest_ratio(2), 0.5);
        assert_eq!(bytes.smallest_ratio(9), 0.4);
    }
}
