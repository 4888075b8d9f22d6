//! The head: header, metadata entries, tensor infos and the padding after them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::difference::first_different;
use super::{Difference, Differences};
use crate::gguf::{self, Entry, Layout, Place, PlannedEntry, PlannedTensor, TensorInfo};

/// Compares everything before the tensor data. Returns whether it is byte for byte as planned.
pub(super) fn compare(
    layout: &Layout<'_>,
    out: &gguf::File<'_>,
    differences: &mut Differences,
) -> Result<bool> {
    let mut planned = Vec::new();
    gguf::write_head(layout, &mut planned)?;
    let found = out.bytes();
    let found = found.get(..planned.len()).unwrap_or(found);
    let Some(byte) = first_different(&planned, found) else {
        return Ok(true);
    };
    // Something differs. What it is shows in the parts, wherever they stand.
    let before = differences.len();
    header(layout, out, differences);
    for planned_entry in layout.metadata() {
        let expected = bytes_of(&planned, planned_entry)?;
        entry(planned_entry, expected, out, differences);
    }
    for planned in layout.tensors() {
        info(planned, out, differences);
    }
    others(
        layout.metadata().iter().map(|planned| planned.entry().key()),
        out.metadata().iter().map(Entry::key),
        Place::Key,
        differences,
    );
    others(
        layout.tensors().iter().map(|planned| planned.tensor().name()),
        out.tensors().iter().map(TensorInfo::name),
        Place::Tensor,
        differences,
    );
    if differences.len() == before {
        let head_end = usize::try_from(layout.head_end().0)?;
        differences.push(match byte.checked_sub(head_end) {
            Some(padding) => Difference::Padding {
                follows: Place::HeadPadding,
                byte: padding,
                found: found.get(byte).copied().unwrap_or(0),
                n_bytes: planned.len() - head_end,
            },
            None => Difference::Head { byte, n_bytes: planned.len() },
        });
    }
    Ok(false)
}

/// The bytes of a planned entry, in the planned head.
fn bytes_of<'h>(head: &'h [u8], planned: &PlannedEntry<'_>) -> Result<&'h [u8]> {
    let start = usize::try_from(planned.position().0)?;
    let end = start + usize::try_from(planned.entry().n_bytes())?;
    head.get(start..end).context("bug: an entry outside of the head")
}

fn header(layout: &Layout<'_>, out: &gguf::File<'_>, differences: &mut Differences) {
    let numbers = [
        ("version", out.header().version.into(), layout.version().into()),
        ("tensor count", out.header().n_tensors, layout.tensors().len() as u64),
        ("metadata count", out.header().n_metadata, layout.metadata().len() as u64),
    ];
    for (what, found, expected) in numbers {
        if found != expected {
            differences.push(Difference::Header { what, found, expected });
        }
    }
}

fn entry(planned: &PlannedEntry<'_>, expected: &[u8], out: &gguf::File<'_>, differences: &mut Differences) {
    let key = planned.entry().key();
    let place = || Place::Key(key.to_owned());
    match out.metadata().get(key) {
        None => differences.push(Difference::Missing(place())),
        Some(found) => {
            if let Some(byte) = first_different(expected, found.raw()) {
                differences.push(Difference::Entry {
                    entry: place(),
                    is_kept: planned.entry().is_kept(),
                    byte,
                    n_bytes: expected.len(),
                });
            }
        }
    }
}

fn info(planned: &PlannedTensor<'_>, out: &gguf::File<'_>, differences: &mut Differences) {
    let tensor = planned.tensor();
    let place = || Place::Tensor(tensor.name().to_owned());
    let Some(found) = out.tensors().get(tensor.name()) else {
        differences.push(Difference::Missing(place()));
        return;
    };
    let shape = |dims: &[u64], n_dims: usize| format!("{:?}", &dims[..n_dims]);
    let facts = [
        ("shape", shape(&found.dims(), found.n_dims()), shape(&tensor.dims(), tensor.n_dims())),
        ("type", found.tensor_type().name().to_owned(), tensor.tensor_type().name().to_owned()),
        ("data offset", found.offset().to_string(), planned.offset().to_string()),
    ];
    for (what, found, expected) in facts {
        if found != expected {
            differences.push(Difference::Info { tensor: place(), what, found, expected });
        }
    }
}

/// Finds names that are not planned, and the first out of order.
fn others<'n>(
    planned: impl Iterator<Item = &'n str>,
    found: impl Iterator<Item = &'n str>,
    place: fn(String) -> Place,
    differences: &mut Differences,
) {
    let planned: Vec<&str> = planned.collect();
    let found: Vec<&str> = found.collect();
    let known: BTreeSet<&str> = planned.iter().copied().collect();
    for name in found.iter().filter(|name| !known.contains(*name)) {
        differences.push(Difference::Extra(place((*name).to_owned())));
    }
    // With some missing or too many, all later numbers differ.
    let numbers: BTreeMap<&str, usize> = found.iter().enumerate().map(|(i, name)| (*name, i)).collect();
    if found.len() != planned.len() || !planned.iter().all(|name| numbers.contains_key(name)) {
        return;
    }
    if let Some((expected, name)) = planned.iter().enumerate().find(|(i, name)| numbers[*name] != *i) {
        differences.push(Difference::Order {
            place: place((*name).to_owned()),
            found: numbers[name],
            expected,
        });
    }
}
