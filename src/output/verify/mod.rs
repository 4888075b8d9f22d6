//! Verify: whether a shortened model is its parent without the removed blocks, byte for byte. Pure: no I/O.
//!
//! What the file says of itself (`claim`) is planned again from the parent. The file must be that plan and nothing else: the
//! head (`head`), every tensor's data, zeros between (`data`), the length, and the parent's hash. Data is the parent's tensor,
//! a part of it, or what the plan makes of it. What is not so is a [`Difference`].

mod claim;

mod head;

mod data;

mod difference;

mod earlier;

mod rounded;

mod weights;

mod entries;

mod blocks;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use crate::error::Hint;
use crate::gguf::{self, ALIGNMENT_KEY, EntryOut, Layout, Place, TensorInfo, ValueType};
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model, ModelTensor};
use crate::output::outcome::ExpertsReport;
use crate::plan::experts;
use crate::plan::imatrix::Imatrix;
use crate::plan::kinds::Pattern;
use crate::plan::parts::{Part, cut};
use crate::plan::writers::may_be_healed;
use crate::plan::{
    ChangedTensor, ChangedTensors, Constraints, Cut, ExpertCut, Healing, Plan, Provenance, Requantized, Runs,
    TensorChange, TensorData,
};

pub use claim::{Claim, HealedClaim, TypesClaim};
pub use difference::{Difference, Differences, Whose};
pub use earlier::faults;
pub use rounded::Rounded;
pub use weights::{BlocksBy, Weights};

/// The key whose value may be that of another release.
const VERSION_KEY: &str = "gguf_shorten.version";

/// What may be done about a cut that the rules refuse.
const TRUST: &str = "--trust-any-cut compares the two all the same";

/// The result of a comparison.
#[derive(Clone, Debug)]
pub struct Verification {
    /// What the file says of itself.
    pub claim: Claim,
    /// Why the rules refuse the cut, where the user answers for it.
    pub on_trust: Option<String>,
    /// The blocks that it leaves out.
    pub removed: BlockSet,
    /// The blocks whose attention it leaves out.
    pub attention_removed: BlockSet,
    /// The experts that it keeps, where it leaves some out.
    pub experts: Option<ExpertsReport>,
    /// Hash of the parent's bytes.
    pub parent_blake3: blake3::Hash,
    /// Tensors whose data was compared.
    pub n_tensors: usize,
    /// Bytes of their data.
    pub n_tensor_bytes: u64,
    /// The planned tensors that are not the parent's with all their bytes. Those that are left out are among them.
    pub changes: Vec<TensorChange>,
    /// How the tensors in other types were proven; `None` where there are none.
    pub rounded: Option<Rounded>,
    /// How weights alone were compared; `None` where every byte was.
    pub weights: Option<Weights>,
    /// Metadata entries that the plan has.
    pub metadata: MetadataCounts,
    /// Differences from the plan.
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

/// Compares `out` with what it should be: `parent` without some blocks. It is one file, or all parts of a split model in order.
/// Reads every byte of both once, in order, on the threads of rayon's current pool. `progress` is called with bytes of the
/// parent.
///
/// Of `constraints` only whether the user answers for any cut matters: the rest follows from what the file says. Then the
/// rules are tried first all the same, and [`Verification::on_trust`] says what they found.
///
/// # Errors
/// A file that does not say which blocks it holds, or says what cannot be. What merely differs is no error.
pub fn verify(
    parent: &Model<'_>,
    constraints: &Constraints,
    out: &[gguf::File<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    verify_with(parent, constraints, out, None, progress)
}

/// As [`verify`]; weights in other types are rounded again with an importance matrix of this hash.
///
/// # Errors
/// As [`verify`]; another importance matrix than the one that was used.
pub fn verify_with(
    parent: &Model<'_>,
    constraints: &Constraints,
    out: &[gguf::File<'_>],
    imatrix: Option<(&Imatrix<'_>, blake3::Hash)>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    let first = out.first().context("bug: a model without a file")?;
    let claim = Claim::of(first.metadata())?;
    let job = Job { parent, constraints, out, imatrix, progress };
    let mut verification = job.compare(claim, compare)?;
    let version = verification.claim.version.as_deref().unwrap_or_default();
    for block in earlier::removed_for_prediction(version, parent, &verification.removed) {
        verification.differences.push_first(Difference::NoPrediction(block));
    }
    Ok(verification)
}

/// As [`verify_with`], for a rewritten file or one of a later cut.
///
/// All tensors are compared by name and bytes in any order, and by value those entries that decide what is computed. Where what
/// the file says of its blocks does not fit, they are found by their bytes.
///
/// # Errors
/// As [`verify_with`]; blocks that are none of the parent's.
pub fn verify_weights(
    parent: &Model<'_>,
    constraints: &Constraints,
    out: &[gguf::File<'_>],
    imatrix: Option<(&Imatrix<'_>, blake3::Hash)>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    let first = out.first().context("bug: a model without a file")?;
    let claim = Claim::of(first.metadata()).ok();
    let job = Job { parent, constraints, out, imatrix, progress };
    if let Some(claim) = claim.as_ref().filter(|claim| weights::may_be_of(claim, parent)) {
        let recorded = claim.parent_blake3;
        match job.compare(claim.clone(), weights::compare) {
            Ok(found) if found.differences.is_empty() || recorded == Some(found.parent_blake3) => {
                return Ok(found);
            }
            // Of another model with as many blocks, perhaps.
            _ => {}
        }
    }
    let mut found = job.compare(weights::by_bytes(parent, claim.as_ref(), out)?, weights::compare)?;
    if let Some(weights) = &mut found.weights {
        weights.blocks_by = BlocksBy::Bytes;
    }
    Ok(found)
}

/// A comparison by plan: of every byte, or of weights alone.
type Compare = for<'a> fn(
    &Model<'a>,
    &Plan<'a>,
    Claim,
    &[gguf::File<'_>],
    &(dyn Fn(u64) + Sync),
) -> Result<Verification>;

/// A file that is compared with its parent.
struct Job<'j, 'a> {
    parent: &'j Model<'a>,
    constraints: &'j Constraints,
    out: &'j [gguf::File<'j>],
    imatrix: Option<(&'j Imatrix<'j>, blake3::Hash)>,
    progress: &'j (dyn Fn(u64) + Sync),
}

impl Job<'_, '_> {
    /// Plans again what the file says of itself, and compares it with that.
    fn compare(&self, claim: Claim, by: Compare) -> Result<Verification> {
        let Self { parent, constraints, out, imatrix, progress } = *self;
        let first = out.first().context("bug: a model without a file")?;
        let removed = claim.removed(parent.n_blocks())?;
        let (constraints, on_trust) = planned_under(parent, constraints, &removed, first)?;
        let experts = match &claim.experts {
            Some(experts) => {
                let cut = ExpertCut::of_list(parent, &removed, &experts.kept, experts.method.clone());
                Some(cut.context("names a cut that is refused")?)
            }
            None => None,
        };
        let cut = Cut {
            blocks: removed,
            method: claim.method.clone().unwrap_or_default(),
            attention: claim.attention.clone(),
            experts,
            healing: healing(parent, &claim, out),
            heal: claim.heal.clone().unwrap_or_default(),
            types: types(parent, &claim, out),
        };
        // Without a hash that can be read, the entry differs from any.
        let parent_blake3 = claim.parent_blake3.unwrap_or(Provenance::DRAFT);
        let plan = Plan::new(parent, &constraints, &cut, parent_blake3)
            .map_err(|error| match error.downcast_ref::<Hint>() {
                // No word makes experts that are not there stay.
                None if cut.experts.is_none() => error.context(Hint(TRUST.to_owned())),
                _ => error,
            })
            .context("names a cut that is refused")?;
        let mut verification = Verification { on_trust, ..by(parent, &plan, claim, out, progress)? };
        if let Some(claim) = &verification.claim.types {
            let found = rounded::check(parent, &cut, claim, imatrix, &mut verification.differences);
            verification.rounded = Some(found?);
        }
        Ok(verification)
    }
}

/// The healed weights of the file, which are not the parent's. They cannot be compared with anything but the hash that the file
/// gives of them, which the plan makes again from these.
#[must_use]
pub fn healing(parent: &Model<'_>, claim: &Claim, out: &[gguf::File<'_>]) -> Option<Healing> {
    let healed = claim.healed.as_ref()?;
    Some(Healing { tensors: changed(parent, claim, &healed.tensors, out), loss: healed.loss })
}

/// The tensors that the file has in other types than the parent.
#[must_use]
pub fn types(parent: &Model<'_>, claim: &Claim, out: &[gguf::File<'_>]) -> Option<Requantized> {
    let TypesClaim { tensors, loss, ggml, imatrix } = claim.types.as_ref()?;
    let tensors = changed(parent, claim, tensors, out);
    Some(Requantized { tensors, loss: *loss, ggml: ggml.clone(), imatrix: *imatrix })
}

/// The file's data of the tensors with these names in the parent.
fn changed(parent: &Model<'_>, claim: &Claim, names: &[String], out: &[gguf::File<'_>]) -> ChangedTensors {
    let numbers: BTreeMap<BlockId, usize> = claim.kept.iter().copied().zip(0..).collect();
    let places: BTreeMap<&str, usize> =
        parent.tensors().iter().enumerate().map(|(i, tensor)| (tensor.info.name(), i)).collect();
    let changed = |name: &String| {
        let source = *places.get(name.as_str())?;
        let tensor = &parent.tensors()[source];
        let name = match tensor.block {
            Some((block, rest)) => {
                format!("{}{}.{rest}", parent.block_prefix(), numbers.get(&block)?)
            }
            None => name.clone(),
        };
        let found = out.iter().find_map(|file| file.tensors().get(&name))?;
        let changed = ChangedTensor { tensor_type: found.tensor_type(), bytes: found.bytes().to_vec() };
        let (mut dims, found) = (tensor.info.dims(), found.dims());
        // How many experts stay the plan says.
        if let Some(dim) = tensor.block.and_then(|(_, rest)| experts::dimension(rest))
            && claim.experts.is_some()
        {
            dims[dim] = found[dim];
        }
        (found == dims).then_some((source, changed))
    };
    names.iter().filter_map(changed).collect()
}

/// Checks that all tensors recorded as healed are of possible kinds.
fn check_healed(parent: &Model<'_>, claim: &Claim, differences: &mut Differences) {
    let Some(healed) = &claim.healed else {
        return;
    };
    let names: BTreeSet<&str> = healed.tensors.iter().map(String::as_str).collect();
    for tensor in parent.tensors() {
        let may_be = tensor.block.is_some_and(|(_, rest)| may_be_healed(rest));
        if !may_be && names.contains(tensor.info.name()) {
            differences.push(Difference::Healed(Place::Tensor(tensor.info.name().to_owned())));
        }
    }
}

/// Compares `out` with `plan`. That was made for `parent` from `claim`, which is what `out` says of itself. As [`verify`] else.
///
/// # Errors
/// A bug in the plan.
pub fn compare(
    parent: &Model<'_>,
    plan: &Plan<'_>,
    claim: Claim,
    out: &[gguf::File<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verification> {
    let layout = as_of_release(parent, &plan.layout, &claim, out)?;
    let parts = parts(&layout, out)?;

    let mut differences = Differences::default();
    claim.check(&mut differences);
    check_healed(parent, &claim, &mut differences);
    let mut same_head = true;
    let mut pairs = Vec::new();
    for (number, (part, file)) in parts.iter().zip(out).enumerate() {
        let mut of_part = Differences::default();
        same_head &= head::compare(&part.layout, file, &mut of_part)?;
        differences.append(of_part, number, out.len());
        let data = plan.data.get(part.tensors.clone());
        let data = data.context("bug: a part of tensors that are not planned")?;
        pairs.extend(self::pairs(parent, data, &part.layout, std::slice::from_ref(file))?);
    }
    let outcome = data::compare(parent.parts(), &pairs, progress);
    if let Some(recorded) = claim.parent_blake3
        && recorded != outcome.parent_blake3
    {
        differences.push_first(Difference::Parent { recorded, found: outcome.parent_blake3 });
    }
    push_different(&pairs, &outcome.first_different, &mut differences);
    for (number, (part, file)) in parts.iter().zip(out).enumerate() {
        let mut of_part = Differences::default();
        data::check_padding(file, &mut of_part);
        let n_bytes = file.bytes().len() as u64;
        if n_bytes != part.layout.file_len() {
            of_part.push(Difference::Length { found: n_bytes, expected: part.layout.file_len() });
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
        on_trust: None,
        rounded: None,
        weights: None,
        removed: plan.removed.clone(),
        attention_removed: plan.attention_removed.clone(),
        experts: ExpertsReport::of(parent, plan),
        changes: plan.changes.clone(),
        differences,
    })
}

/// Adds the tensors whose data differ, by the first different byte of each.
fn push_different(pairs: &[Pair<'_>], first_different: &[Option<u64>], differences: &mut Differences) {
    for (pair, byte) in pairs.iter().zip(first_different) {
        if let Some(byte) = *byte {
            differences.push(Difference::Data {
                tensor: Place::Tensor(pair.out.name().to_owned()),
                expected: pair.expected.whose(),
                byte,
                n_bytes: pair.out.n_bytes(),
            });
        }
    }
}

/// The constraints under which the file was planned, as it shows. The second is why the rules refuse the cut, where
/// `given` leaves it to the user.
fn planned_under(
    parent: &Model<'_>,
    given: &Constraints,
    removed: &BlockSet,
    out: &gguf::File<'_>,
) -> Result<(Constraints, Option<String>)> {
    if !given.trusted {
        return Ok((as_written(parent, given.clone(), removed, out)?, None));
    }
    let strict = || -> Result<Constraints> {
        let strict = as_written(parent, Constraints::of(parent)?, removed, out)?;
        strict.check(removed)?;
        Ok(strict)
    };
    Ok(match strict() {
        Ok(strict) => (strict, None),
        Err(error) => (given.clone(), Some(crate::error::message(&error))),
    })
}

/// The constraints with which the program was asked for such a file. They say whether prediction blocks go, and whether there
/// may be lists.
fn as_written(
    parent: &Model<'_>,
    mut constraints: Constraints,
    removed: &BlockSet,
    out: &gguf::File<'_>,
) -> Result<Constraints> {
    let prediction: BlockSet = parent.prediction_blocks().collect();
    // A part of them goes only on trust.
    if !prediction.is_empty() && prediction.is_subset(removed) {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    let has_list = |pattern: &Pattern| {
        let key = format!("{}.{}", parent.architecture(), pattern.key);
        let entry = out.metadata().get(&key);
        entry.is_some_and(|entry| entry.value().value_type() == ValueType::Array)
    };
    let patterns = &constraints.kinds.patterns;
    if !patterns.is_empty() && !patterns.iter().any(has_list) {
        let portable = constraints.clone().portable();
        // Else the list is missing, which the comparison will find.
        if portable.check(removed).is_ok() {
            return Ok(portable);
        }
    }
    Ok(constraints)
}

/// The planned files, with as many tensors in each as `out` has. Where a model is cut is not recorded, and is the same to
/// llama.cpp. A single file that says nothing of splitting is planned without a word of it.
fn parts<'a>(layout: &Layout<'a>, out: &[gguf::File<'_>]) -> Result<Vec<Part<'a>>> {
    let n_tensors = layout.tensors().len();
    let is_split = |file: &gguf::File<'_>| file.metadata().get("split.count").is_some();
    if let [file] = out
        && !is_split(file)
    {
        return Ok(vec![Part { layout: layout.clone(), tensors: 0..n_tensors }]);
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

/// The planned layout, with the version of the file's release. All else that it wrote is compared with what this release
/// writes, but for a lower alignment with which llama.cpp can map the file all the same.
fn as_of_release<'a>(
    parent: &Model<'a>,
    layout: &Layout<'a>,
    claim: &Claim,
    out: &[gguf::File<'_>],
) -> Result<Layout<'a>> {
    let Some(version) = claim.other_release() else {
        return Ok(layout.clone());
    };
    let kept = (parent.metadata().get(ALIGNMENT_KEY)).filter(|_| {
        let alignment = parent.first().alignment();
        let mut files = out.iter();
        files.all(|file| file.alignment() == alignment && file.is_mappable())
    });
    let alignment = kept.map_or(layout.alignment(), |_| parent.first().alignment());
    let entries = layout.metadata().iter().map(|planned| match planned.entry() {
        entry if entry.key() == VERSION_KEY => EntryOut::string(VERSION_KEY, version),
        entry if entry.key() == ALIGNMENT_KEY => kept.map_or_else(|| entry.clone(), EntryOut::keep),
        entry => entry.clone(),
    });
    let tensors = layout.tensors().iter().map(|planned| planned.tensor().clone());
    // The data's length is the same. So the end is padded as before, or needs no padding.
    let pad_end = layout.file_len().is_multiple_of(layout.alignment());
    Ok(Layout::new(layout.version(), alignment, entries.collect(), tensors.collect(), pad_end)?)
}

/// A tensor of the file, and what its data should be.
pub(crate) struct Pair<'p> {
    expected: Expected<'p>,
    out: &'p TensorInfo<'p>,
}

/// What the data of a tensor should be.
enum Expected<'p> {
    /// These bytes of the parent's tensor.
    Parent { tensor: &'p ModelTensor<'p>, runs: Cow<'p, Runs> },
    /// What the plan made.
    Made(&'p [u8]),
}

impl Expected<'_> {
    fn whose(&self) -> Whose {
        match self {
            Self::Parent { tensor, runs } => {
                let name = tensor.info.name().to_owned();
                match runs {
                    Cow::Owned(_) => Whose::Parent(name),
                    Cow::Borrowed(_) => Whose::PartOfParent(name),
                }
            }
            Self::Made(_) => Whose::Plan,
        }
    }
}

/// The planned tensors that these files have, in the planned order. One of another length is left to [`head`].
fn pairs<'p>(
    parent: &'p Model<'p>,
    data: &'p [TensorData<'_>],
    layout: &Layout<'_>,
    out: &'p [gguf::File<'p>],
) -> Result<Vec<Pair<'p>>> {
    let mut pairs = Vec::new();
    for (planned, data) in layout.tensors().iter().zip(data) {
        let expected = match (data, data.source_in(parent)?) {
            (TensorData::Made { bytes, .. }, _) => Expected::Made(bytes),
            (TensorData::Sliced { runs, .. }, Some(tensor)) => {
                Expected::Parent { tensor, runs: Cow::Borrowed(runs) }
            }
            (_, Some(tensor)) => {
                Expected::Parent { tensor, runs: Cow::Owned(Runs::all(tensor.info.bytes().len())) }
            }
            (_, None) => bail!("bug: a planned tensor without data"),
        };
        match out.iter().find_map(|file| file.tensors().get(planned.tensor().name())) {
            Some(out) if out.n_bytes() == planned.tensor().n_bytes() => {
                pairs.push(Pair { expected, out });
            }
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
