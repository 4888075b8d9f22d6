//! Numbers of blocks at which llama.cpp computes something else. A model may not be shortened to them, or something is written
//! into the output so that it may.

use anyhow::{Result, anyhow, ensure};

use crate::gguf::{Quoted, TensorType, ValueType};
use crate::model::arch::{Architecture, CountRule, QueryScale};
use crate::model::{BlockId, Model};

/// The numbers of blocks to which a model may not be shortened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Why not, by number of trunk blocks, 0 to the model's.
    refused: Vec<Option<String>>,
    /// What decides it, a line each.
    rules: Vec<String>,
}

impl Counts {
    /// Those of `model` under `rules`.
    ///
    /// # Errors
    /// Metadata that does not say what llama.cpp would read from it.
    pub(super) fn of(model: &Model<'_>, rules: &Architecture) -> Result<Self> {
        let n_trunk = model.n_trunk_blocks();
        let mut counts = Self {
            refused: vec![None; n_trunk + 1],
            rules: rules.counts().map(|rule| rule.to_string()).collect(),
        };
        for rule in rules.counts() {
            for after in 1..n_trunk {
                if let Some(why) = refusal(model, &rule, n_trunk, after)? {
                    counts.refused[after].get_or_insert(why);
                }
            }
        }
        Ok(counts)
    }

    /// Why the model may not be shortened to `after` trunk blocks.
    #[must_use]
    pub fn refusal(&self, after: usize) -> Option<&str> {
        self.refused.get(after)?.as_deref()
    }

    /// What decides it, a line each.
    #[must_use]
    pub fn rules(&self) -> &[String] {
        &self.rules
    }
}

fn refusal(model: &Model<'_>, rule: &CountRule, before: usize, after: usize) -> Result<Option<String>> {
    let may = match rule {
        CountRule::Exactly { n_blocks, .. } => (before == *n_blocks) == (after == *n_blocks),
        CountRule::AtLeast { n_blocks, .. } => (before >= *n_blocks) == (after >= *n_blocks),
        CountRule::QueryScale { n_blocks, scale } => {
            if before == *n_blocks
                && let Err(error) = Rescaling::of(model, *scale)
            {
                return Ok(Some(format!("{rule}, and {error}")));
            }
            // A model of more blocks would need the inverse.
            after != *n_blocks || Factor::of(model)?.is_one()
        }
        CountRule::QueryRank => query_rank(model)? == 0 || !has_no_query_rank(model, after)?,
    };
    Ok((!may).then(|| rule.to_string()))
}

/// The query factor at certain block counts, over that at others. It is the root of the head size over the width per head
/// (`gemma2.cpp`, `gemma3.cpp`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    head_size: usize,
    width_per_head: usize,
}

impl Factor {
    fn of(model: &Model<'_>) -> Result<Self> {
        let heads = first(model, "attention.head_count")?;
        let width = model.count("embedding_length")?;
        let width_per_head =
            width.zip(heads).and_then(|(width, heads)| width.checked_div(heads)).unwrap_or(0);
        let head_size = model.count("attention.key_length")?;
        Ok(Self { head_size: head_size.unwrap_or(width_per_head), width_per_head })
    }

    fn is_one(self) -> bool {
        self.head_size == self.width_per_head
    }

    pub(super) fn value(self) -> f64 {
        (self.head_size as f64 / self.width_per_head as f64).sqrt()
    }
}

/// How the scale of queries is kept by tensors of the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rescaling {
    pub(super) factor: Factor,
    pub(super) scale: QueryScale,
    /// The number of blocks that selects it.
    n_blocks: usize,
}

impl Rescaling {
    /// That of `model`, whose number of blocks selects another scale. `None` if both scales are the same.
    ///
    /// # Errors
    /// Tensors that cannot hold it.
    fn of(model: &Model<'_>, scale: QueryScale) -> Result<Option<Self>> {
        let factor = Factor::of(model)?;
        if factor.is_one() {
            return Ok(None);
        }
        ensure!(factor.head_size > 0 && factor.width_per_head > 0, "the sizes of heads are not known");
        for block in (0..model.n_trunk_blocks()).map(BlockId::new) {
            let find = |name: &str| {
                let mut tensors = model.tensors().iter();
                tensors.find(|tensor| tensor.block == Some((block, name)))
            };
            let is_f32 =
                |name: &str| find(name).is_some_and(|tensor| tensor.info.tensor_type() == TensorType::F32);
            match scale {
                QueryScale::Norm => ensure!(
                    is_f32(QueryScale::NORM),
                    "block {block} has no F32 tensor '{}' to hold the scale",
                    QueryScale::NORM
                ),
                QueryScale::Tensor => {
                    ensure!(
                        find(QueryScale::QUERIES).is_some(),
                        "block {block} has no queries of their own to scale"
                    );
                    for name in [QueryScale::SCALE, QueryScale::BIAS] {
                        ensure!(
                            find(name).is_none() || is_f32(name),
                            "tensor '{name}' of block {block} is not F32"
                        );
                    }
                }
            }
        }
        Ok(Some(Self { factor, scale, n_blocks: model.n_trunk_blocks() }))
    }

    /// What `model` shortened to `after` trunk blocks needs.
    ///
    /// # Errors
    /// Tensors that cannot hold it.
    pub(super) fn needed(model: &Model<'_>, rules: &Architecture, after: usize) -> Result<Option<Self>> {
        let before = model.n_trunk_blocks();
        for rule in rules.counts() {
            if let CountRule::QueryScale { n_blocks, scale } = rule
                && before == n_blocks
                && after != before
            {
                return Self::of(model, scale);
            }
        }
        Ok(None)
    }

    /// What is done to a tensor, and why.
    pub(super) fn why(&self) -> String {
        format!(
            "times {:.6}, which llama.cpp does to queries if there are exactly {} blocks; the same up to rounding",
            self.factor.value(),
            self.n_blocks
        )
    }
}

/// The rank of the queries' low-rank matrices, as llama.cpp takes it. 0 if queries are one matrix (`deepseek2.cpp`).
pub(super) fn query_rank(model: &Model<'_>) -> Result<usize> {
    if has_no_query_rank(model, model.n_trunk_blocks())? {
        return Ok(0);
    }
    Ok(model.count("attention.q_lora_rank")?.unwrap_or(0))
}

/// Whether llama.cpp reads no rank of queries if there are `n_blocks` (`deepseek2.cpp: is_lite`).
fn has_no_query_rank(model: &Model<'_>, n_blocks: usize) -> Result<bool> {
    Ok(matches!(n_blocks, 26 | 27) || (n_blocks == 48 && n_tokens(model)? == Some(128_256)))
}

/// The gating function of experts that llama.cpp assumes without a key. 1 is softmax, 2 sigmoid (`deepseek2.cpp`).
pub(super) fn assumed_gating(model: &Model<'_>) -> Result<u32> {
    let is_sigmoid = matches!(model.n_trunk_blocks(), 47 | 48) && n_tokens(model)? == Some(154_880);
    Ok(if is_sigmoid { 2 } else { 1 })
}

/// Tokens of the vocabulary, as `deepseek2.cpp` counts them.
fn n_tokens(model: &Model<'_>) -> Result<Option<usize>> {
    if let Some(n_tokens) = model.count("vocab_size")? {
        return Ok(Some(n_tokens));
    }
    let tokens = model.metadata().get("tokenizer.ggml.tokens");
    Ok(match tokens {
        Some(tokens) => Some(tokens.value().as_array()?.len()),
        None => None,
    })
}

/// The number of block 0 under `<arch>.<key>`, or that of all blocks.
fn first(model: &Model<'_>, key: &str) -> Result<Option<usize>> {
    let full = format!("{}.{key}", model.architecture());
    match model.metadata().get(&full) {
        Some(entry) if entry.value().value_type() == ValueType::Array => {
            let first = entry.value().as_array()?.i64s().next().transpose()?;
            let number = first.and_then(|first| usize::try_from(first).ok());
            number.map(Some).ok_or_else(|| anyhow!("metadata {} does not begin with a count", Quoted(&full)))
        }
        _ => model.count(key),
    }
}
