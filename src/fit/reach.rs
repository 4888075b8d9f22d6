//! Sizes that cannot be reached, whatever is chosen. They are refused before anything is measured.

use anyhow::{Result, bail};

use super::removed::{may_lose_attention, may_lose_experts};
use super::rungs::least_bytes;
use super::settings::{Aim, Fit};
use crate::error::Hint;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::attention::is_attention;

/// What to do where types are not enough.
pub(super) const MORE_MAY_GO: &str = "without --max-drop 0 blocks may be removed too";

/// Checks that the size is not below what all that may go leaves of the tensors, each in the smallest type.
///
/// # Errors
/// It is.
pub(super) fn check_size(parent: Parent<'_>, settings: &Fit, keep: &BlockSet) -> Result<()> {
    let (Aim::Size(target), model) = (settings.aim, parent.model) else {
        return Ok(());
    };
    let types = settings.types();
    let may_remove = settings.may_remove();
    // Of experts half go at most, of attention none is left in some blocks.
    let share = if may_remove && may_lose_experts(parent) { 2 } else { 1 };
    let without_attention = may_remove && may_lose_attention(parent);
    let (mut outside, mut blocks) = (0u64, vec![0u64; model.n_blocks()]);
    for tensor in model.tensors() {
        let bytes = least_bytes(model, tensor, &types, keep);
        match tensor.block.and_then(|(block, rest)| Some((blocks.get_mut(block.index())?, rest))) {
            Some((_, rest)) if without_attention && is_attention(rest) => {}
            Some((of_block, _)) => *of_block = of_block.saturating_add(bytes / share),
            None => outside = outside.saturating_add(bytes),
        }
    }
    blocks.sort_unstable();
    let n_kept = model.n_blocks().saturating_sub(settings.most_removed.unwrap_or(usize::MAX)).max(1);
    let least = blocks.iter().take(n_kept).fold(outside, |sum, bytes| sum.saturating_add(*bytes));
    if least <= target {
        return Ok(());
    }
    let name = parent.name();
    if may_remove {
        bail!(
            "{name}: a file of {target} bytes cannot be reached: without all that may go, and the rest in the smallest of these \
             types, its tensors alone have {least} bytes"
        );
    }
    let error = anyhow::anyhow!(
        "{name}: {target} bytes cannot be reached by types alone; the smallest tensors have {least} bytes"
    );
    Err(error.context(Hint(MORE_MAY_GO.to_owned())))
}
