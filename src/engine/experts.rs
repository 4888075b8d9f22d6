//! The collector of what experts do: which are chosen, with which weights, and how long their outputs are.
//!
//! In llama.cpp's graph the product with `blk.<i>.ffn_down_exps.weight` names the chosen experts of each token, and
//! `ffn_moe_weighted-<i>` is what each gives times its weight, `[n_embd, n_used, n_tokens]`, its second operand the weights
//! (`llama-graph.cpp: build_moe_ffn`). llama4 weighs what enters experts, so that there the product itself is what they give.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use ggml::{Node, Operation};
use serde::{Deserialize, Serialize};

use crate::model::BlockId;

/// Sums over the tokens routed to an expert, and over windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertSums {
    /// Of tokens: 1 each.
    pub tokens: OverWindows,
    /// Of gate weights.
    pub gate: OverWindows,
    /// Of gate weights times the length of the expert's output.
    pub output: OverWindows,
}

/// A sum over tokens, with the sums for its spread between windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverWindows {
    /// Over all tokens.
    pub sum: f64,
    /// Of the squares of each window's sum.
    pub squares: f64,
    /// Of each window's sum times its tokens.
    pub by_tokens: f64,
}

impl OverWindows {
    fn add_window(&mut self, sum: f64, n_tokens: f64) {
        self.add(&Self { sum, squares: sum * sum, by_tokens: sum * n_tokens });
    }

    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.squares += other.squares;
        self.by_tokens += other.by_tokens;
    }
}

/// The experts of a block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockExperts {
    /// Windows that were evaluated.
    pub n_windows: u64,
    /// Tokens of all of them.
    pub n_tokens: u64,
    /// Of the squares of each window's number of tokens.
    pub squared_tokens: f64,
    /// Of each expert.
    pub experts: Vec<ExpertSums>,
}

/// The experts of all blocks that have some.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutedSums(pub BTreeMap<BlockId, BlockExperts>);

impl RoutedSums {
    /// Adds the sums of other windows, or of other blocks.
    pub fn merge(&mut self, other: Self) {
        for (block, other) in other.0 {
            let own = self.0.entry(block).or_default();
            own.n_windows += other.n_windows;
            own.n_tokens += other.n_tokens;
            own.squared_tokens += other.squared_tokens;
            own.experts.resize(own.experts.len().max(other.experts.len()), ExpertSums::default());
            for (own, other) in own.experts.iter_mut().zip(&other.experts) {
                own.tokens.add(&other.tokens);
                own.gate.add(&other.gate);
                own.output.add(&other.output);
            }
        }
    }
}

/// The node of weighted expert outputs, before the number of the block.
const WEIGHTED: &str = "ffn_moe_weighted-";

/// The matrix of what experts give, after `blk.<i>.`.
const DOWN: &str = "ffn_down_exps.weight";

/// The nodes of an evaluation that say what experts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The product with the experts' last matrix, in a block.
    Product,
    /// What they give times their weights.
    Weighted,
    /// What enters them times their weights.
    Entering,
}

/// The experts that a product chose, until their outputs are seen.
#[derive(Debug)]
struct Chosen {
    block: BlockId,
    n_experts: usize,
    /// `[n_used, n_tokens]`.
    experts: Vec<i32>,
}

/// Adds up what experts do.
#[derive(Debug, Default)]
pub(super) struct Collector {
    sums: RoutedSums,
    /// Gate weights of what enters experts, `[n_used, n_tokens]`, where that is weighed.
    entering: Option<Vec<f32>>,
    chosen: Option<Chosen>,
    values: Vec<f32>,
    weights: Vec<f32>,
}

impl Collector {
    pub(super) fn into_sums(self) -> RoutedSums {
        self.sums
    }

    /// What `node` says; of a product the rest of the weight's name is `rest`.
    pub(super) fn sight(node: Node<'_>, rest: Option<&str>) -> Option<Sight> {
        if node.operation() == Operation::ProductOfExperts {
            return (rest == Some(DOWN)).then_some(Sight::Product);
        }
        node.name().strip_prefix(WEIGHTED)?;
        // What enters is one row for each token, repeated.
        let of = node.operand(0)?;
        Some(match of.name().starts_with("ffn_moe_") || of.operation() == Operation::ProductOfExperts {
            true => Sight::Weighted,
            false => Sight::Entering,
        })
    }

    /// Reads `node`, which is of `block`.
    pub(super) fn collect(&mut self, node: Node<'_>, sight: Sight, block: Option<BlockId>) -> Result<()> {
        match sight {
            Sight::Entering => {
                let weights = node.operand(1).context("weights of experts without a second operand")?;
                weights.read(&mut self.weights)?;
                self.entering = Some(self.weights.clone());
                Ok(())
            }
            Sight::Product => {
                let weight = node.operand(0).context("a product of experts without operands")?;
                let ids = node.operand(2).context("a product of experts that names none")?;
                let mut experts = Vec::new();
                ids.read_integers(&mut experts)?;
                let block = block.context("a product of experts of no block")?;
                self.chosen = Some(Chosen { block, n_experts: weight.ne()[2], experts });
                match self.entering.take() {
                    None => Ok(()),
                    Some(weights) => {
                        node.read(&mut self.values)?;
                        self.add(node.ne(), &weights, None)
                    }
                }
            }
            // No watched product chooses the experts of grovemoe's groups.
            Sight::Weighted if self.chosen.is_none() => Ok(()),
            Sight::Weighted => {
                let weights = node.operand(1).context("weights of experts without a second operand")?;
                let mut read = std::mem::take(&mut self.weights);
                weights.read(&mut read)?;
                node.read(&mut self.values)?;
                let added = self.add(node.ne(), &read, block);
                self.weights = read;
                added
            }
        }
    }

    /// Adds a window: outputs of the shape `ne`, and the weights of the chosen experts.
    fn add(&mut self, ne: [usize; 4], weights: &[f32], block: Option<BlockId>) -> Result<()> {
        let chosen = self.chosen.take().context("outputs of experts before any was chosen")?;
        let [n_embd, n_used, n_tokens, n3] = ne;
        let n_chosen = chosen.experts.len();
        ensure!(
            n3 == 1 && n_used * n_tokens == n_chosen && weights.len() == n_chosen && n_embd > 0,
            "llama.cpp's graph of block {} has {n_used} outputs of experts for each of {n_tokens} tokens, {n_chosen} chosen \
             experts and {} weights",
            chosen.block,
            weights.len()
        );
        ensure!(
            block.is_none_or(|block| block == chosen.block),
            "outputs of experts of another block than {}",
            chosen.block
        );
        let mut window = vec![[0f64; 3]; chosen.n_experts];
        let rows = self.values.chunks_exact(n_embd).zip(weights);
        for ((row, &weight), &expert) in rows.zip(&chosen.experts) {
            let sums = usize::try_from(expert).ok().and_then(|expert| window.get_mut(expert));
            let sums = sums.with_context(|| {
                format!("block {} has {} experts, and {expert} is chosen", chosen.block, chosen.n_experts)
            })?;
            let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            ensure!(length.is_finite(), "outputs of experts of block {} are not finite", chosen.block);
            sums[0] += 1.0;
            sums[1] += f64::from(weight);
            sums[2] += length;
        }
        let of_block = self.sums.0.entry(chosen.block).or_default();
        of_block.n_windows += 1;
        of_block.n_tokens += n_tokens as u64;
        of_block.squared_tokens += (n_tokens * n_tokens) as f64;
        of_block.experts.resize(chosen.n_experts, ExpertSums::default());
        for (sums, [n, gate, output]) in of_block.experts.iter_mut().zip(window) {
            sums.tokens.add_window(n, n_tokens as f64);
            sums.gate.add_window(gate, n);
            sums.output.add_window(output, n);
        }
        Ok(())
    }
}
