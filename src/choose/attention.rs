//! The choice of blocks that stay without their attention, by scores.

use crate::measure::importance::{Importance, Metric};
use crate::model::block::{BlockSet, counted};
use crate::model::{BlockId, Model};
use crate::plan::Method;
use crate::plan::attention::first_kept;
use anyhow::{Context, Result, bail, ensure};

/// Chooses the `n` blocks whose attention has the lowest scores. They are neither in `removed` nor in `keep`, and may lose it.
/// Of equal scores the later block.
///
/// # Errors
/// Fewer such blocks than `n`; a method that needs scores without any.
pub fn choose(
    model: &Model<'_>,
    method: Method,
    importance: Option<&Importance>,
    removed: &BlockSet,
    keep: &BlockSet,
    n: usize,
) -> Result<BlockSet> {
    let n_blocks = model.n_trunk_blocks();
    let first = first_kept(model, removed);
    let mut may: Vec<BlockId> = (0..n_blocks)
        .map(BlockId::new)
        .filter(|block| Some(*block) != first && !removed.contains(block) && !keep.contains(block))
        .collect();
    check_number(n, may.len())?;
    let scores = scores(method, importance, n_blocks)?;
    let score = |block: &BlockId| scores.get(block.index()).copied().unwrap_or(f64::INFINITY);
    may.sort_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)));
    Ok(may.into_iter().take(n).collect())
}

/// Checks that `n` of `n_may` blocks can lose their attention.
///
/// # Errors
/// They cannot.
pub fn check_number(n: usize, n_may: usize) -> Result<()> {
    ensure!(
        n <= n_may,
        "cannot remove the attention of {}: {n_may} may lose it, the first of the output not",
        counted(n)
    );
    Ok(())
}

/// The importance of the attention of each block: the lowest goes first.
fn scores(method: Method, importance: Option<&Importance>, n_blocks: usize) -> Result<Vec<f64>> {
    let numbers = || (0..n_blocks).map(|i| i as f64);
    let measured = |metric: Metric| {
        importance
            .with_context(|| format!("method '{method}' needs calibration"))?
            .blocks
            .iter()
            .map(|block| {
                let halves = block.halves.as_ref();
                halves
                    .map(|halves| halves.attention[metric].mean)
                    .with_context(|| format!("bug: the attention of block {} has no score", block.block))
            })
            .collect()
    };
    match (method, method.metric()) {
        (_, Some(metric)) => measured(metric),
        (Method::Sequential, _) => Ok(numbers().map(|i| -i).collect()),
        (Method::Reverse, _) => Ok(numbers().collect()),
        _ => bail!("method '{method}' does not score attention apart"),
    }
}
