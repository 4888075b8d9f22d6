//! The collector of an importance matrix. What each weight of a block multiplies, from a tap of any evaluation.
//!
//! By the rules of `llama-imatrix` (`tools/imatrix/imatrix.cpp: collect_imatrix`): products with weights of blocks and at
//! least [`MIN_ROWS`] rows of F32, and all products of experts.

use std::borrow::Cow;

use anyhow::{Context, Error, Result, ensure};
use ggml::{Flow, Node, Operation, Tap};
use serde::{Deserialize, Serialize};

use super::experts::{self, RoutedSums};
use crate::gguf::Quoted;
use crate::model::BlockId;
use crate::model::arch::BLOCK_PREFIX;
use crate::model::block::block_of;
use crate::plan::imatrix::measured::{Shape, Sums};

/// Fewer rows of a product are not looked at, as in `llama-imatrix`.
pub const MIN_ROWS: usize = 16;

/// Checks that windows of so many tokens give an importance matrix.
///
/// # Errors
/// A window that is too short.
pub fn check_window(window: usize) -> Result<()> {
    ensure!(
        window >= MIN_ROWS,
        "a window of {window} tokens gives no importance matrix, expected {MIN_ROWS} or more"
    );
    Ok(())
}

/// What is added up of each evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gathers {
    /// The squares of what weights multiply.
    pub imatrix: bool,
    /// What experts do.
    pub experts: bool,
}

impl Gathers {
    /// Whether anything is.
    #[must_use]
    pub fn any(self) -> bool {
        self.imatrix || self.experts
    }
}

/// What was added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gathered {
    /// The squares of what weights multiply; empty where they were not asked for.
    pub imatrix: Sums,
    /// What experts do.
    pub experts: RoutedSums,
}

impl Gathered {
    /// Adds what other windows, or other blocks, gave.
    ///
    /// # Errors
    /// As [`Sums::merge`].
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.experts.merge(other.experts);
        self.imatrix.merge(other.imatrix)
    }
}

/// Adds up the squares of what weights multiply, or what experts do. A [`Tap`] by itself, or beside another one.
///
/// All rows have to be asked for as outputs: the last block computes no others.
#[derive(Debug, Default)]
pub struct Collector {
    sums: Sums,
    experts: Option<experts::Collector>,
    /// The squares are not asked for.
    experts_alone: bool,
    blocks: Option<Vec<BlockId>>,
    inputs: Vec<f32>,
    chosen: Vec<i32>,
    error: Option<Error>,
}

impl Collector {
    /// Of a model of some blocks. Its block `i` is block `blocks[i]` of the one that the matrix is for. Others are not looked
    /// at.
    #[must_use]
    pub fn of_blocks(blocks: Vec<BlockId>) -> Self {
        Self { blocks: Some(blocks), ..Self::default() }
    }

    /// A collector for a whole model of what `gathers` says.
    #[must_use]
    pub fn of(gathers: Gathers) -> Self {
        Self {
            experts: gathers.experts.then(experts::Collector::default),
            experts_alone: !gathers.imatrix,
            ..Self::default()
        }
    }

    /// The same, in a model in which block 0 is `block`.
    #[must_use]
    pub fn in_segment(self, block: BlockId) -> Self {
        Self { blocks: Some(vec![block]), ..self }
    }

    /// All that was added up so far.
    #[must_use]
    pub fn into_gathered(self) -> Gathered {
        let experts = self.experts.map(experts::Collector::into_sums).unwrap_or_default();
        Gathered { imatrix: self.sums, experts }
    }

    /// The sums of all evaluations so far.
    #[must_use]
    pub fn into_sums(self) -> Sums {
        self.sums
    }

    /// Raises what was wrong in an evaluation, once.
    ///
    /// # Errors
    /// A product of unknown shape; inputs that are not finite.
    pub fn check(&mut self) -> Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    /// The name of the weight that `node` multiplies, if it is watched.
    fn weight<'n>(&self, node: Node<'n>) -> Option<Cow<'n, str>> {
        let operation = node.operation();
        if operation == Operation::Other {
            return None;
        }
        let name = without_device(node.operand(0)?.name());
        if operation == Operation::Product {
            let inputs = node.operand(1)?;
            let [_, n_rows, ..] = inputs.ne();
            if n_rows < MIN_ROWS || !inputs.is_f32() || !name.starts_with(BLOCK_PREFIX) {
                return None;
            }
        }
        match (&self.blocks, block_of(name, BLOCK_PREFIX)) {
            (Some(blocks), Some((block, rest))) => {
                Some(format!("{BLOCK_PREFIX}{}.{rest}", blocks.get(block.index())?).into())
            }
            _ => Some(name.into()),
        }
    }

    fn collect(&mut self, node: Node<'_>, name: &str) -> Result<()> {
        let operand = |i| {
            node.operand(i).with_context(|| format!("a product with {} has no operand {i}", Quoted(name)))
        };
        let (weight, inputs) = (operand(0)?, operand(1)?);
        inputs.read(&mut self.inputs)?;
        match node.operation() {
            Operation::ProductOfExperts => {
                let experts = operand(2)?;
                experts.read_integers(&mut self.chosen)?;
                self.collect_experts(name, weight.ne(), inputs.ne(), experts.ne())?;
            }
            _ => self.collect_dense(name, weight.ne(), inputs.ne())?,
        }
        self.sums.check(name)
    }

    /// Adds inputs of the shape `[n_columns, n_rows, n2, n3]`. They go to the matrices of the weight in turn.
    fn collect_dense(&mut self, name: &str, weight: [usize; 4], inputs: [usize; 4]) -> Result<()> {
        let [n_columns, n_rows, n2, n3] = inputs;
        let n_matrices = (weight[2] * weight[3]).max(1);
        let shape = Shape { n_columns, n_matrices, has_experts: false };
        let sums = self.sums.weight(name, shape)?;
        for (i, rows) in self.inputs.chunks_exact((n_columns * n_rows).max(1)).enumerate() {
            let (i2, i3) = (i % n2, i / n2);
            sums.add((i3 % weight[3]) * weight[2] + i2 % weight[2], rows);
        }
        sums.count((n_rows * n2 * n3 / n_matrices) as u64);
        Ok(())
    }

    /// Adds inputs to the experts of each token, `[n_used, n_tokens]`. Their shape is `[n_columns, n_used or 1, n_tokens]`.
    fn collect_experts(
        &mut self,
        name: &str,
        weight: [usize; 4],
        inputs: [usize; 4],
        experts: [usize; 4],
    ) -> Result<()> {
        let ([n_columns, n_inputs, n_tokens, n3], [n_used, ..]) = (inputs, experts);
        let n_experts = weight[2];
        ensure!(
            n3 == 1 && n_inputs > 0 && experts == [n_used, n_tokens, 1, 1],
            "{} multiplies inputs of the shape {inputs:?} by experts of the shape {experts:?}",
            Quoted(name)
        );
        let shape = Shape { n_columns, n_matrices: n_experts, has_experts: true };
        let sums = self.sums.weight(name, shape)?;
        let tokens = self.inputs.chunks_exact((n_columns * n_inputs).max(1));
        for (rows, used) in tokens.zip(self.chosen.chunks_exact(n_used.max(1))) {
            for (i, &expert) in used.iter().enumerate() {
                let expert = usize::try_from(expert).ok().filter(|expert| *expert < n_experts);
                let expert = expert.with_context(|| {
                    format!("{} has {n_experts} experts, and {} is asked for", Quoted(name), used[i])
                })?;
                let start = i % n_inputs * n_columns;
                sums.add(expert, &rows[start..start + n_columns]);
                sums.count_of(expert, 1);
            }
        }
        Ok(())
    }
}

impl Collector {
    /// What `node` shows of experts. `name` is the weight that it multiplies.
    fn sight(&self, node: Node<'_>, name: Option<&str>) -> Option<experts::Sight> {
        self.experts.as_ref()?;
        experts::Collector::sight(node, name.and_then(|name| Some(block_of(name, BLOCK_PREFIX)?.1)))
    }

    fn read_both(&mut self, node: Node<'_>) -> Result<()> {
        let name = self.weight(node);
        let sight = self.sight(node, name.as_deref());
        if let Some(name) = name.as_deref().filter(|_| !self.experts_alone) {
            self.collect(node, name)?;
        }
        let block = name.and_then(|name| Some(block_of(&name, BLOCK_PREFIX)?.0));
        match (sight, &mut self.experts) {
            (Some(sight), Some(experts)) => experts.collect(node, sight, block),
            _ => Ok(()),
        }
    }
}

impl Tap for Collector {
    fn wants(&mut self, node: Node<'_>) -> bool {
        if self.error.is_some() {
            return false;
        }
        let name = self.weight(node);
        self.sight(node, name.as_deref()).is_some() || (!self.experts_alone && name.is_some())
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        match self.read_both(node) {
            Ok(()) => Flow::Continue,
            Err(error) => {
                self.error = Some(error);
                Flow::Stop
            }
        }
    }
}

/// A tensor name without its device copy's additions: `CUDA0#blk.0.attn_k.weight#0`.
fn without_device(name: &str) -> &str {
    let mut parts = name.splitn(3, '#');
    match (parts.next(), parts.next()) {
        (_, Some(name)) => name,
        (name, None) => name.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::without_device;

    #[test]
    fn names_of_copies_are_those_of_the_tensors() {
        for name in ["blk.0.attn_k.weight", "CUDA0#blk.0.attn_k.weight#0", "CUDA0#blk.0.attn_k.weight"] {
            assert_eq!(without_device(name), "blk.0.attn_k.weight");
        }
    }
}
