//! Comparison of weights alone: every tensor by name and bytes, and metadata that decides what is computed, by value.
//!
//! Other programs rewrite a file and keep its tensors. They put tensors in another order, or give integers another type. What a
//! file says of itself may be missing, or may speak of another parent: that of the last of several cuts. Then the blocks are
//! found by their bytes ([`blocks`]).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::claim::Claim;
use super::{
    Difference, Differences, Verification, blocks, check_healed, data, entries, pairs, push_different,
};
use crate::gguf::{self, Place, TensorInfo};
use crate::model::block::block_of;
use crate::model::{BlockId, Model};
use crate::output::outcome::ExpertsReport;
use crate::output::verify::MetadataCounts;
use crate::plan::Plan;

/// How weights were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Weights {
    /// Where the blocks' numbers come from.
    pub blocks_by: BlocksBy,
    /// Metadata entries of the computation, compared by value.
    pub metadata: usize,
    /// Those among them with another type.
    pub other_types: usize,
    /// Metadata entries of the file that decide nothing of the computation.
    pub metadata_ignored: usize,
}

/// The source of the blocks' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlocksBy {
    /// What the file says.
    File,
    /// The bytes of their tensors.
    Bytes,
}

/// The numbers in the parent of the blocks that `out` has, found by their bytes, and a claim in these numbers.
///
/// # Errors
/// A block without a tensor in common with a block of the parent.
pub(super) fn by_bytes(parent: &Model<'_>, claim: Option<&Claim>, out: &[gguf::File<'_>]) -> Result<Claim> {
    let kept = blocks::find(parent, out)?;
    Ok(match claim.filter(|claim| claim.kept.len() == kept.len()) {
        Some(claim) => renumbered(claim, kept, parent.block_prefix()),
        None => Claim::of_blocks(kept),
    })
}

/// The claim with the parent's numbers `kept` in place of those of a model between the two.
fn renumbered(claim: &Claim, kept: Vec<BlockId>, prefix: &str) -> Claim {
    let numbers: BTreeMap<BlockId, BlockId> = claim.kept.iter().copied().zip(kept.iter().copied()).collect();
    let name = |name: &String| {
        let renamed = || {
            let (block, rest) = block_of(name, prefix)?;
            let block = numbers.get(&block)?;
            Some(format!("{prefix}{}.{rest}", block.index()))
        };
        renamed().unwrap_or_else(|| name.clone())
    };
    let mut claim = claim.clone();
    if let Some(healed) = &mut claim.healed {
        healed.tensors = healed.tensors.iter().map(name).collect();
    }
    if let Some(types) = &mut claim.types {
        types.tensors = types.tensors.iter().map(name).collect();
    }
    if let Some(attention) = &mut claim.attention {
        attention.blocks = attention.blocks.iter().filter_map(|block| numbers.get(block).copied()).collect();
    }
    claim.kept = kept;
    claim
}

/// Whether a file's words on its blocks can be of `parent`.
pub(super) fn may_be_of(claim: &Claim, parent: &Model<'_>) -> bool {
    claim.n_parent_blocks.is_none_or(|n| n == parent.n_blocks() as u64)
        && claim.removed(parent.n_blocks()).is_ok()
}

/// Compares tensors wherever they stand, and entries that decide what is computed.
///
/// # Errors
/// A bug in the plan.
pub(super) fn compare(
    parent: &Model<'_>,
    plan: &Plan<'_>,
    claim: Claim,
    out: &[gguf::File<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    let mut differences = Differences::default();
    check_healed(parent, &claim, &mut differences);
    let first = out.first().context("bug: a model without a file")?;
    let planned = plan.layout.metadata().iter().map(gguf::PlannedEntry::entry);
    let compared = entries::compare(planned, first.metadata(), &mut differences);
    let found = Weights {
        blocks_by: BlocksBy::File,
        metadata: compared.n,
        other_types: compared.n_other_types,
        metadata_ignored: compared.n_ignored,
    };
    tensors(plan, out, &mut differences);
    let pairs = pairs(parent, &plan.data, &plan.layout, out)?;
    let outcome = data::compare(parent.parts(), &pairs, progress);
    push_different(&pairs, &outcome.first_different, &mut differences);
    let n_tensors: usize = out.iter().map(|file| file.tensors().len()).sum();
    ensure!(
        !differences.is_empty() || (pairs.len() == n_tensors && pairs.len() == plan.data.len()),
        "bug: {} of {n_tensors} tensors were compared",
        pairs.len()
    );
    Ok(Verification {
        metadata: MetadataCounts::of(parent, &plan.layout),
        n_tensors: pairs.len(),
        n_tensor_bytes: pairs.iter().map(|pair| pair.out.n_bytes()).sum(),
        parent_blake3: outcome.parent_blake3,
        claim,
        on_trust: None,
        rounded: None,
        weights: Some(found),
        removed: plan.removed.clone(),
        attention_removed: plan.attention_removed.clone(),
        experts: ExpertsReport::of(parent, plan),
        changes: plan.changes.clone(),
        differences,
    })
}

/// Compares names, shapes and types of all tensors.
fn tensors(plan: &Plan<'_>, out: &[gguf::File<'_>], differences: &mut Differences) {
    let mut found: BTreeMap<&str, &TensorInfo<'_>> = BTreeMap::new();
    for tensor in out.iter().flat_map(|file| file.tensors().iter()) {
        if found.insert(tensor.name(), tensor).is_some() {
            // Two parts have it.
            differences.push(Difference::Extra(Place::Tensor(tensor.name().to_owned())));
        }
    }
    let mut planned_names = BTreeSet::new();
    for planned in plan.layout.tensors().iter().map(gguf::PlannedTensor::tensor) {
        planned_names.insert(planned.name());
        let place = || Place::Tensor(planned.name().to_owned());
        let Some(found) = found.get(planned.name()) else {
            differences.push(Difference::Missing(place()));
            continue;
        };
        // Dimensions of 1 at the end are the same tensor.
        let facts = [
            ("shape", format!("{:?}", found.dims()), format!("{:?}", planned.dims())),
            ("type", found.tensor_type().name().to_owned(), planned.tensor_type().name().to_owned()),
        ];
        for (what, found, expected) in facts {
            if found != expected {
                differences.push(Difference::Info { tensor: place(), what, found, expected });
            }
        }
    }
    for name in found.keys().filter(|name| !planned_names.contains(*name)) {
        differences.push(Difference::Extra(Place::Tensor((*name).to_owned())));
    }
}
