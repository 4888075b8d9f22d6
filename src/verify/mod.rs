//! Verify: whether a shortened model is its parent without the removed blocks, byte for byte. Pure: no I/O.
//!
//! What the file says of itself (`claim`) is planned again from the parent. The file must be that plan and nothing else:
//! the head (`head`), every tensor's data, the same as the parent's tensor, zeros between (`data`), the length, and the
//! parent's hash. What is not so is a [`Difference`].

mod claim;

mod head;

mod data;

mod difference;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::gguf::{self, EntryOut, Layout, Place, TensorInfo};
use crate::model::{BlockId, Model, ModelTensor};
use crate::plan::parts::{Part, cut};
use crate::plan::{Constraints, Plan, Provenance};

pub use claim::Claim;
pub use difference::{Difference, Differences};

/// The key whose value may be that of another release.
const VERSION_KEY: &str = "gguf_shorten.version";

/// What was compared, and what differs.
#[derive(Clone, Debug)]
pub struct Verification {
    /// What the file says of itself.
    pub claim: Claim,
    /// The blocks that it leaves out.
    pub removed: BTreeSet<BlockId>,
    /// Hash of the parent's bytes.
    pub parent_blake3: blake3::Hash,
    /// Tensors whose data was compared.
    pub n_tensors: usize,
    /// Bytes of their data.
    pub n_tensor_bytes: u64,
    /// Metadata entries that the plan has.
    pub metadata: MetadataCounts,
    /// What is not as planned.
    pub differences: Differences,
}

/// How many metadata entries the plan treats in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MetadataCounts {
    /// The parent's, byte for byte.
    pub kept: usize,
    /// The parent's, with another value.
    pub changed: usize,
    /// Those that the parent does not have.
    pub added: usize,
    /// Those of the parent that the file does not have.
    pub left_out: usize,
}

/// Compares `out`, the one file or all parts of a split model in order, with what it should be: `parent` without some blocks.
/// Reads every byte of both once, in order, on the threads of rayon's current pool. `progress` is called with bytes of the
/// parent.
///
/// # Errors
/// A file that does not say which blocks it holds, or says what cannot be. What merely differs is no error.
pub fn verify(
    parent: &Model<'_>,
    constraints: &Constraints,
    out: &[gguf::File<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    let first = out.first().context("bug: a model without a file")?;
    let claim = Claim::of(first.metadata())?;
    let removed = claim.removed(parent.n_blocks())?;
    let provenance = Provenance {
        // Without a hash that can be read, the entry differs whatever stands here.
        parent_blake3: claim
            .parent_blake3
            .unwrap_or(blake3::Hash::from_bytes([0; 32])),
        method: claim.method.clone().unwrap_or_default(),
        heal: claim.heal.clone().unwrap_or_default(),
    };
    let mut constraints = constraints.clone();
    if parent
        .prediction_blocks()
        .any(|block| removed.contains(&block))
    {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    let plan = Plan::new(parent, &constraints, removed, &provenance)
        .context("names a cut that is refused")?;
    let layout = with_version(&plan.layout, &claim)?;
    let parts = parts(&layout, out)?;

    let mut differences = Differences::default();
    claim.check(&mut differences);
    let mut same_head = true;
    let mut pairs = Vec::new();
    for (number, (part, file)) in parts.iter().zip(out).enumerate() {
        let mut of_part = Differences::default();
        same_head &= head::compare(&part.layout, file, &mut of_part)?;
        differences.append(of_part, number, out.len());
        let sources = plan.sources.get(part.tensors.clone());
        let sources = sources.context("bug: a part of tensors that are not planned")?;
        pairs.extend(self::pairs(parent, sources, &part.layout, file)?);
    }
    let outcome = data::compare(parent.parts(), &pairs, progress);
    if let Some(recorded) = claim.parent_blake3
        && recorded != outcome.parent_blake3
    {
        differences.push_first(Difference::Parent {
            recorded,
            found: outcome.parent_blake3,
        });
    }
    for (pair, byte) in pairs.iter().zip(outcome.first_different) {
        if let Some(byte) = byte {
            differences.push(Difference::Data {
                tensor: Place::Tensor(pair.out.name().to_owned()),
                parent: pair.parent.info.name().to_owned(),
                byte,
                n_bytes: pair.out.n_bytes(),
            });
        }
    }
    for (number, (part, file)) in parts.iter().zip(out).enumerate() {
        let mut of_part = Differences::default();
        data::check_padding(file, &mut of_part);
        let n_bytes = file.bytes().len() as u64;
        if n_bytes != part.layout.file_len() {
            of_part.push(Difference::Length {
                found: n_bytes,
                expected: part.layout.file_len(),
            });
        }
        differences.append(of_part, number, out.len());
    }
    let n_tensor_bytes = pairs.iter().map(|pair| pair.out.n_bytes()).sum();
    // The proof that no byte was left out: with the planned head and length, all but the data is padding.
    let n_planned: u64 = layout.tensors().iter().map(|t| t.tensor().n_bytes()).sum();
    ensure!(
        !differences.is_empty() || (same_head && n_planned == n_tensor_bytes),
        "bug: {n_tensor_bytes} of {n_planned} bytes of tensors were compared"
    );
    Ok(Verification {
        metadata: MetadataCounts::of(parent, &layout),
        n_tensors: pairs.len(),
        n_tensor_bytes,
        parent_blake3: outcome.parent_blake3,
        claim,
        removed: plan.removed,
        differences,
    })
}

/// The planned files, with as many tensors in each as `out` has: where a model is cut is not recorded, and is the same to
/// llama.cpp. A single file that says nothing of splitting is planned without a word of it.
fn parts<'a>(layout: &Layout<'a>, out: &[gguf::File<'_>]) -> Result<Vec<Part<'a>>> {
    let n_tensors = layout.tensors().len();
    let is_split = |file: &gguf::File<'_>| file.metadata().get("split.count").is_some();
    if let [file] = out
        && !is_split(file)
    {
        return Ok(vec![Part {
            layout: layout.clone(),
            tensors: 0..n_tensors,
        }]);
    }
    let mut start = 0;
    let mut ranges = Vec::new();
    for (number, file) in out.iter().enumerate() {
        let end = match file.tensors().len() {
            _ if number + 1 == out.len() => n_tensors,
            n => n_tensors.min(start + n),
        };
        ranges.push(start..end);
        start = end;
    }
    cut(layout, &ranges)
}

/// The planned layout, with the version of the release that wrote the file. All else that it wrote is compared with what
/// this release writes.
fn with_version<'a>(layout: &Layout<'a>, claim: &Claim) -> Result<Layout<'a>> {
    let Some(version) = claim.other_release() else {
        return Ok(layout.clone());
    };
    let entries = layout
        .metadata()
        .iter()
        .map(|planned| match planned.entry() {
            entry if entry.key() == VERSION_KEY => EntryOut::string(VERSION_KEY, version),
            entry => entry.clone(),
        });
    let tensors = layout
        .tensors()
        .iter()
        .map(|planned| planned.tensor().clone());
    // The length of the data is the same, so that the end is padded if it was, or needs no padding.
    let pad_end = layout.file_len().is_multiple_of(layout.alignment());
    Ok(Layout::new(
        layout.version(),
        layout.alignment(),
        entries.collect(),
        tensors.collect(),
        pad_end,
    )?)
}

/// A tensor of the file, and the parent's that it should be.
pub(crate) struct Pair<'p> {
    parent: &'p ModelTensor<'p>,
    out: &'p TensorInfo<'p>,
}

/// The planned tensors of one file that it has, in the planned order. One of another length is left to [`head`].
fn pairs<'p>(
    parent: &'p Model<'p>,
    sources: &[usize],
    layout: &Layout<'p>,
    out: &'p gguf::File<'p>,
) -> Result<Vec<Pair<'p>>> {
    let mut pairs = Vec::new();
    for (planned, &source) in layout.tensors().iter().zip(sources) {
        let source = parent
            .tensors()
            .get(source)
            .context("bug: a planned tensor that the parent does not have")?;
        match out.tensors().get(planned.tensor().name()) {
            Some(out) if out.n_bytes() == source.info.n_bytes() => pairs.push(Pair {
                parent: source,
                out,
            }),
            _ => {}
        }
    }
    Ok(pairs)
}

impl MetadataCounts {
    fn of(parent: &Model<'_>, layout: &Layout<'_>) -> Self {
        let mut counts = Self::default();
        for planned in layout.metadata() {
            let entry = planned.entry();
            if entry.is_kept() {
                counts.kept += 1;
            } else if parent.metadata().get(entry.key()).is_some() {
                counts.changed += 1;
            } else {
                counts.added += 1;
            }
        }
        counts.left_out = parent.metadata().len() - counts.kept - counts.changed;
        counts
    }
}
