//! The decision on every metadata entry of the output: kept byte for byte, a count set, a per-block array shortened,
//! left out, or added. An entry that none of these is known to be right for stops the plan.

use anyhow::{Context, Result, bail, ensure};

use super::{Constraints, Renumbering};
use crate::arch::{OTHER_ARRAYS, PER_BLOCK_ARRAYS};
use crate::gguf::{Array, Entry, EntryOut, Quoted, ValueOut, ValueType};
use crate::model::Model;

/// What the output says about where it comes from, under `gguf_shorten.`.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Hash of the input's bytes, all parts of a split model one after another.
    pub parent_blake3: blake3::Hash,
    /// How the blocks were chosen.
    pub method: String,
    /// What made up for the removed blocks.
    pub heal: String,
}

/// The prefix of every key that this program adds.
const OWN_PREFIX: &str = "gguf_shorten.";

/// Checks that what to do with every entry is known, whatever is removed.
pub(super) fn check(model: &Model<'_>) -> Result<()> {
    let arch = Keys::of(model);
    for entry in model.metadata().iter() {
        arch.role(entry)?;
    }
    Ok(())
}

pub(super) fn decide<'a>(
    model: &Model<'a>,
    constraints: &Constraints,
    renumbering: &Renumbering,
    provenance: &Provenance,
) -> Result<Vec<EntryOut<'a>>> {
    let arch = Keys::of(model);
    let n_kept = renumbering.kept().len();
    // Written out even where the built-in period would give the same: what is explicit cannot shift.
    let mut windows = constraints
        .windows
        .as_deref()
        .map(|windows| kept_windows(windows, renumbering));
    let mut entries = Vec::new();
    for entry in model.metadata().iter() {
        let key = entry.key();
        let value = match arch.role(entry)? {
            Role::Keep => {
                entries.push(EntryOut::keep(entry));
                continue;
            }
            Role::LeaveOut => continue,
            Role::BlockCount => ValueOut::integer(entry.value().value_type(), n_kept as u64)
                .with_context(|| {
                    format!("metadata '{key}' has a type that cannot hold {n_kept}")
                })?,
            Role::Name => ValueOut::string(&format!(
                "{} ({n_kept} of {} blocks)",
                entry.value().as_str()?,
                model.n_blocks()
            )),
            Role::Windows => match windows.take() {
                Some(windows) => ValueOut::bools(&windows),
                // Without a window the pattern is not read.
                None => {
                    entries.push(EntryOut::keep(entry));
                    continue;
                }
            },
            Role::PerBlock(array) => array.select(
                renumbering
                    .kept()
                    .iter()
                    .map(|block| block.index())
                    .filter(|&i| i < array.len()),
            )?,
        };
        entries.push(EntryOut::new(key, value));
    }
    if let Some(windows) = windows {
        entries.push(EntryOut::new(arch.window_key(), ValueOut::bools(&windows)));
    }
    entries.extend(parent_entries(model)?);
    entries.extend(own_entries(model, renumbering, provenance)?);
    Ok(entries)
}

/// For each kept block whether it has a sliding window. Prediction blocks never have (`llama-hparams.cpp`).
fn kept_windows(windows: &[bool], renumbering: &Renumbering) -> Vec<bool> {
    renumbering
        .kept()
        .iter()
        .map(|block| windows.get(block.index()).copied().unwrap_or(false))
        .collect()
}

/// What an entry is to the plan.
enum Role<'a> {
    Keep,
    LeaveOut,
    BlockCount,
    Name,
    Windows,
    PerBlock(Array<'a>),
}

struct Keys {
    /// `<arch>.`.
    prefix: String,
    /// Whether the architecture knows a pattern of sliding windows.
    has_window_pattern: bool,
    n_blocks: usize,
    n_trunk_blocks: usize,
}

impl Keys {
    fn of(model: &Model<'_>) -> Self {
        Self {
            prefix: format!("{}.", model.architecture()),
            has_window_pattern: model.rules().is_some_and(|rules| rules.window.is_some()),
            n_blocks: model.n_blocks(),
            n_trunk_blocks: model.n_trunk_blocks(),
        }
    }

    fn window_key(&self) -> String {
        format!("{}attention.sliding_window_pattern", self.prefix)
    }

    fn role<'a>(&self, entry: &Entry<'a>) -> Result<Role<'a>> {
        let key = entry.key();
        // The parts become one file; older provenance is that of the parent; the parent takes the place of its own.
        if key.starts_with("split.")
            || key.starts_with(OWN_PREFIX)
            || key.starts_with("general.base_model.")
        {
            return Ok(Role::LeaveOut);
        }
        if key == "general.name" && entry.value().value_type() == ValueType::String {
            return Ok(Role::Name);
        }
        let Some(name) = key.strip_prefix(&self.prefix) else {
            return Ok(Role::Keep);
        };
        if name == "block_count" {
            return Ok(Role::BlockCount);
        }
        if self.has_window_pattern && key == self.window_key() {
            return Ok(Role::Windows);
        }
        if entry.value().value_type() != ValueType::Array || OTHER_ARRAYS.contains(&name) {
            return Ok(Role::Keep);
        }
        let array = entry.value().as_array()?;
        if PER_BLOCK_ARRAYS.contains(&name) {
            ensure!(
                array.len() == self.n_blocks,
                "metadata '{key}' has {} entries, expected one for each of the {} blocks",
                array.len(),
                self.n_blocks
            );
            return Ok(Role::PerBlock(array));
        }
        if array.len() == self.n_blocks || array.len() == self.n_trunk_blocks {
            bail!(
                "metadata {} has as many entries as the model has blocks, and how to shorten it is not known",
                Quoted(key)
            );
        }
        Ok(Role::Keep)
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
                entry.value().as_str()?,
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
    let kept: Vec<i32> = renumbering
        .kept()
        .iter()
        .map(|block| i32::try_from(block.index()))
        .collect::<Result<_, _>>()?;
    Ok(vec![
        EntryOut::string("gguf_shorten.version", env!("CARGO_PKG_VERSION")),
        EntryOut::string(
            "gguf_shorten.parent.blake3",
            provenance.parent_blake3.to_hex().as_str(),
        ),
        EntryOut::u32(
            "gguf_shorten.parent.block_count",
            u32::try_from(model.n_blocks())?,
        ),
        EntryOut::new("gguf_shorten.blocks", ValueOut::i32s(&kept)),
        EntryOut::string("gguf_shorten.method", &provenance.method),
        EntryOut::string("gguf_shorten.heal", &provenance.heal),
    ])
}
