//! The decision on every metadata entry of the output. It is kept byte for byte, a count set, a per-block array shortened, left
//! out, or added. An entry that none of these is known to be right for stops the plan.

use super::names;
use super::{Constraints, Tensors, counts};
use crate::error::Hint;
use crate::gguf::{Array, Entry, EntryOut, Quoted, ValueOut, ValueType};
use crate::model::Model;
use crate::model::arch::{Architecture, Derived, OTHER_ARRAYS, Recurrent};
use crate::model::names::OWN_PREFIX;
use crate::model::renumbering::Renumbering;
use crate::plan::provenance::Provenance;
use anyhow::{Context, Result, anyhow, ensure};

/// Checks that the handling of every entry is known, for any removal.
pub(super) fn check(model: &Model<'_>, rules: &Architecture, trusted: bool) -> Result<()> {
    let keys = Keys::new(model, rules, trusted);
    let mut entries = Vec::new();
    for entry in model.metadata().iter() {
        // The others are not the input's any more.
        if let Role::Keep = keys.role(entry)? {
            entries.push(EntryOut::keep(entry));
        }
    }
    let nothing = Renumbering::in_order(model.n_blocks(), Vec::new());
    names::of_blocks(model, &nothing).apply(entries, trusted)?;
    Ok(())
}

/// The entries of an output of these tensors, and user notes.
pub(super) fn decide<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
    tensors: &Tensors<'_>,
    provenance: &Provenance,
) -> Result<(Vec<EntryOut<'a>>, Vec<String>)> {
    let becoming = names::of_output(model, renumbering, tensors);
    let entries = by_role(model, constraints, renumbering)?;
    let (mut entries, notes) = becoming.apply(entries, constraints.trusted)?;
    entries.extend(parent_entries(model)?);
    entries.extend(own_entries(model, renumbering, provenance)?);
    Ok((entries, notes))
}

/// The entries of a file of some blocks, without provenance.
///
/// # Errors
/// An entry that is not known to be right in such a file.
pub fn segment_entries<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
) -> Result<Vec<EntryOut<'a>>> {
    let entries = by_role(model, constraints, renumbering)?;
    // What is not clear was refused, or taken on trust.
    let (entries, _) = names::of_blocks(model, renumbering).apply(entries, true)?;
    Ok(entries)
}

/// The entries by their keys, whatever they name.
fn by_role<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
) -> Result<Vec<EntryOut<'a>>> {
    let keys = Keys::new(model, constraints.rules, constraints.trusted);
    let mut written = written_out(model, constraints, renumbering)?;
    let mut entries = Vec::new();
    for entry in model.metadata().iter() {
        let key = entry.key();
        if let Some(at) = written.iter().position(|(other, _)| other == key) {
            let (key, value) = written.swap_remove(at);
            entries.push(EntryOut::new(key, value));
            continue;
        }
        if constraints.portable && is_pattern_list(entry, model, constraints) {
            continue;
        }
        let count = |count: usize| {
            ValueOut::integer(entry.value().value_type(), count as u64)
                .with_context(|| format!("metadata '{key}' has a type that cannot hold {count}"))
        };
        let kept = renumbering.kept();
        let value = match keys.role(entry)? {
            Role::Keep => {
                entries.push(EntryOut::keep(entry));
                continue;
            }
            Role::LeaveOut => continue,
            Role::BlockCount => count(kept.len())?,
            Role::PredictionCount => {
                let n_trunk_blocks = model.n_trunk_blocks();
                let n = kept.iter().filter(|block| block.index() >= n_trunk_blocks).count();
                if entry.value().as_u64()? == n as u64 {
                    entries.push(EntryOut::keep(entry));
                    continue;
                }
                count(n)?
            }
            Role::Leading => {
                let leading = usize::try_from(entry.value().as_u64()?).unwrap_or(usize::MAX);
                count(kept.iter().filter(|block| block.index() < leading).count())?
            }
            Role::Sharing => {
                let first = constraints.kinds.first_sharing.unwrap_or(usize::MAX);
                count(kept.iter().filter(|block| block.index() >= first).count())?
            }
            Role::Name => {
                let suffix = format!(" ({} of {} blocks)", kept.len(), model.n_blocks());
                ValueOut::string(&[entry.value().as_bytes()?, suffix.as_bytes()].concat())
            }
            Role::PerBlock(array) => {
                let places = kept.iter().map(|block| block.index());
                array.select(places.filter(|&i| i < array.len()))?
            }
        };
        entries.push(EntryOut::new(key, value));
    }
    written.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries.extend(written.into_iter().map(|(key, value)| EntryOut::new(key, value)));
    Ok(entries)
}

/// Whether an entry says block by block what a period says else.
fn is_pattern_list(entry: &Entry<'_>, model: &Model<'_>, constraints: &Constraints) -> bool {
    let name = entry.key().strip_prefix(model.architecture());
    let name = name.and_then(|name| name.strip_prefix('.'));
    let mut patterns = constraints.kinds.patterns.iter();
    entry.value().value_type() == ValueType::Array && patterns.any(|pattern| Some(pattern.key) == name)
}

/// Entries for what llama.cpp would else derive from a number of blocks. They are written even where the derived value would be
/// the same, for what is explicit cannot shift.
fn written_out(
    model: &Model<'_>,
    constraints: &Constraints,
    renumbering: &Renumbering,
) -> Result<Vec<(String, ValueOut)>> {
    let key = |name: &str| format!("{}.{name}", model.architecture());
    let array = |name: &str| model.metadata().get(&key(name)).and_then(|entry| entry.value().as_array().ok());
    let mut written = Vec::new();
    // An array of the input is shortened in its own type instead.
    if let Some(windows) = &constraints.kinds.windows
        && array(WINDOWS).is_none()
        && !constraints.portable
    {
        written.push((key(WINDOWS), kept_flags(windows, renumbering)));
    }
    if let (Some(recurrent), Some(Recurrent::Interval { .. })) =
        (&constraints.kinds.recurrent, constraints.rules.recurrent())
        && array(RECURRENT).is_none()
        && !constraints.portable
    {
        written.push((key(RECURRENT), kept_flags(recurrent, renumbering)));
    }
    for derived in constraints.rules.derived() {
        match derived {
            Derived::ResidualScale if model.metadata().get(&key("residual_scale")).is_none() => {
                let n_blocks = model.n_trunk_blocks() as f32;
                // As minicpm.cpp does it, in single precision.
                written.push((key("residual_scale"), ValueOut::f32(1.4 / n_blocks.sqrt())));
            }
            Derived::ResidualScale => {}
            Derived::QueryRank => {
                let rank = u32::try_from(counts::query_rank(model)?)?;
                written.push((key("attention.q_lora_rank"), ValueOut::u32(rank)));
            }
            // 0 stands for no function (llama-hparams.h).
            Derived::Gating if model.count("expert_gating_func")?.unwrap_or(0) == 0 => {
                let gating = counts::assumed_gating(model)?;
                written.push((key("expert_gating_func"), ValueOut::u32(gating)));
            }
            Derived::Gating => {}
        }
    }
    if let Some(heads) = array("attention.head_count") {
        written.extend(head_sizes(model, heads)?);
    }
    Ok(written)
}

/// The sizes that llama.cpp derives from the heads of block 0 (`llama-model.cpp: load_hparams`). Heads differ from block to
/// block.
fn head_sizes(model: &Model<'_>, heads: Array<'_>) -> Result<Vec<(String, ValueOut)>> {
    let Some(n_heads) = heads.i64s().next().transpose()?.filter(|&n| n > 0) else {
        return Ok(Vec::new());
    };
    let n_heads = usize::try_from(n_heads)?;
    let Some(n_embd) = model.count("embedding_length")? else {
        return Ok(Vec::new());
    };
    let key_length = model.count("attention.key_length")?;
    let mut sizes = Vec::new();
    let mut add = |name: &str, value: usize| -> Result<()> {
        if model.count(name)?.is_none() {
            let key = format!("{}.{name}", model.architecture());
            sizes.push((key, ValueOut::u32(u32::try_from(value)?)));
        }
        Ok(())
    };
    add("attention.key_length", n_embd / n_heads)?;
    add("attention.value_length", n_embd / n_heads)?;
    add("rope.dimension_count", key_length.unwrap_or(n_embd / n_heads))?;
    Ok(sizes)
}

/// The flags of the kept blocks. Prediction blocks never have one (`llama-hparams.cpp`).
fn kept_flags(flags: &[bool], renumbering: &Renumbering) -> ValueOut {
    let kept: Vec<bool> =
        renumbering.kept().iter().map(|block| flags.get(block.index()).copied().unwrap_or(false)).collect();
    ValueOut::bools(&kept)
}

/// Whether each block has a sliding window, or their period.
pub(super) const WINDOWS: &str = "attention.sliding_window_pattern";

/// Whether each block is recurrent.
pub(super) const RECURRENT: &str = "attention.recurrent_layers";

/// What an entry is to the plan.
enum Role<'a> {
    Keep,
    LeaveOut,
    BlockCount,
    /// How many of the last blocks predict tokens further on.
    PredictionCount,
    /// A count of leading blocks.
    Leading,
    /// The count of last blocks that read the KV of others.
    Sharing,
    Name,
    PerBlock(Array<'a>),
}

struct Keys<'r> {
    /// `<arch>.`.
    prefix: String,
    rules: &'r Architecture,
    trusted: bool,
    has_name: bool,
    n_blocks: usize,
    n_trunk_blocks: usize,
}

impl<'r> Keys<'r> {
    fn new(model: &Model<'_>, rules: &'r Architecture, trusted: bool) -> Self {
        Self {
            prefix: format!("{}.", model.architecture()),
            rules,
            trusted,
            has_name: model.name().is_some(),
            n_blocks: model.n_blocks(),
            n_trunk_blocks: model.n_trunk_blocks(),
        }
    }

    fn role<'a>(&self, entry: &Entry<'a>) -> Result<Role<'a>> {
        let key = entry.key();
        // The parts become one file; older provenance is that of the parent; the parent takes the place of its own.
        if key.starts_with("split.")
            || key.starts_with(OWN_PREFIX)
            || (self.has_name && key.starts_with("general.base_model."))
        {
            return Ok(Role::LeaveOut);
        }
        if key == "general.name" && entry.value().value_type() == ValueType::String {
            return Ok(Role::Name);
        }
        let name = key.strip_prefix(&self.prefix);
        if name == Some("block_count") {
            return Ok(Role::BlockCount);
        }
        if name == Some("nextn_predict_layers") {
            return Ok(Role::PredictionCount);
        }
        if entry.value().value_type() != ValueType::Array {
            if name.is_some() && name == self.rules.shared_kv() {
                return Ok(Role::Sharing);
            }
            let is_leading = name.is_some_and(|name| self.rules.leading().any(|leading| leading == name));
            return Ok(if is_leading { Role::Leading } else { Role::Keep });
        }
        let array = entry.value().as_array()?;
        if self.is_per_block(key, name) {
            let may_be_longer = name.is_some_and(|name| self.rules.long_arrays().any(|array| array == name));
            ensure!(
                self.has_length_of_blocks(&array) || (may_be_longer && array.len() > self.n_blocks),
                "metadata '{key}' has {} entries, expected one for each of the {} blocks",
                array.len(),
                self.n_blocks
            );
            return Ok(Role::PerBlock(array));
        }
        match name {
            Some(name) if !OTHER_ARRAYS.contains(&name) && self.has_length_of_blocks(&array) => {
                if self.trusted {
                    return Ok(Role::PerBlock(array));
                }
                Err(anyhow!(
                    "metadata {} has as many entries as the model has blocks, and how to shorten it is not known",
                    Quoted(key)
                )
                .context(Hint(
                    "--trust-any-cut takes it for one entry per block, on your word".to_owned(),
                )))
            }
            _ => Ok(Role::Keep),
        }
    }

    fn is_per_block(&self, key: &str, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.rules.is_per_block(name))
            || self.rules.arrays().any(|array| array.strip_prefix('.') == Some(key))
    }

    fn has_length_of_blocks(&self, array: &Array<'_>) -> bool {
        array.len() == self.n_blocks || array.len() == self.n_trunk_blocks
    }
}

/// `general.base_model.*`: the parent, where it has a name.
fn parent_entries<'a>(model: &Model<'a>) -> Result<Vec<EntryOut<'a>>> {
    let Some(name) = model.name() else {
        return Ok(Vec::new());
    };
    let mut entries = vec![
        EntryOut::u32("general.base_model.count", 1),
        EntryOut::string("general.base_model.0.name", name),
    ];
    for property in ["organization", "version", "repo_url"] {
        if let Some(entry) = model.metadata().get(&format!("general.{property}"))
            && entry.value().value_type() == ValueType::String
        {
            entries.push(EntryOut::string(
                format!("general.base_model.0.{property}"),
                entry.value().as_bytes()?,
            ));
        }
    }
    Ok(entries)
}

/// `gguf_shorten.*`.
fn own_entries<'a>(
    model: &Model<'a>,
    renumbering: &Renumbering,
    provenance: &Provenance,
) -> Result<Vec<EntryOut<'a>>> {
    let kept: Vec<i32> =
        renumbering.kept().iter().map(|block| i32::try_from(block.index())).collect::<Result<_, _>>()?;
    Ok(vec![
        EntryOut::string("gguf_shorten.version", env!("CARGO_PKG_VERSION")),
        EntryOut::string("gguf_shorten.parent.blake3", provenance.parent_blake3.to_hex().as_str()),
        EntryOut::u32("gguf_shorten.parent.block_count", u32::try_from(model.n_blocks())?),
        EntryOut::new("gguf_shorten.blocks", ValueOut::i32s(&kept)),
        EntryOut::string("gguf_shorten.method", &provenance.method),
        EntryOut::string("gguf_shorten.heal", &provenance.heal),
    ])
}
