//! Faults of earlier releases: what may be wrong with a file that one of them wrote.
//!
//! That it is wrong shows in what differs from the plan of this release; this says why.

use crate::gguf::{self, DEFAULT_ALIGNMENT, Quoted};
use crate::model::{BlockId, Model};
use crate::plan::names;

/// A fault that is mended.
struct Fault {
    /// The last release that had it.
    last: [u64; 3],
    /// What it did to a file of this parent; `None` if it cannot have done anything.
    did: fn(&Model<'_>, &[gguf::File<'_>]) -> Option<String>,
}

const FAULTS: &[Fault] = &[
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let key = names::first_entry(parent)?;
            Some(format!(
                "left metadata that names tensors or blocks as it was, such as {}",
                Quoted(key)
            ))
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |_, out| {
            let alignment = out.first()?.alignment();
            (alignment < DEFAULT_ALIGNMENT).then(|| {
                format!(
                    "kept an alignment of {alignment}, with which llama.cpp ends unless data happens to start at a multiple of \
                     {DEFAULT_ALIGNMENT}"
                )
            })
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let mut keys = ["general.parameter_count", "general.size_label"].into_iter();
            let key = keys.find(|key| parent.metadata().get(key).is_some())?;
            Some(format!("left {} as it was", Quoted(key)))
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let n_counted = parent.count("nextn_predict_layers").ok()??;
            let last = BlockId::new(parent.n_blocks().checked_sub(1)?);
            let mut tensors = parent.tensors().iter().filter_map(|tensor| tensor.block);
            let is_there = tensors.any(|(block, rest)| block == last && rest.starts_with("nextn."));
            (n_counted > 0 && !is_there).then(|| {
                "took the last block for a prediction block, which the metadata count but the file does not hold".to_owned()
            })
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let kind = match parent.architecture() {
                "deepseek4" => "with keys compressed 4:1",
                "minimax-m3" => "with experts",
                _ => return None,
            };
            Some(format!(
                "could leave no block {kind}, without which llama.cpp ends"
            ))
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let has_as_many = |name: &&str| {
                let key = format!("{}.{name}", parent.architecture());
                let entry = parent.metadata().get(&key);
                let array = entry.and_then(|entry| entry.value().as_array().ok());
                array.is_some_and(|array| array.len() == parent.n_blocks())
            };
            let mut keys = [
                "adapters.token_ids_activate",
                "adapters.token_ids_substitute",
            ]
            .iter();
            let key = keys.find(|key| has_as_many(key))?;
            Some(format!(
                "took the list {} of adapters for one of blocks, on the user's word",
                Quoted(key)
            ))
        },
    },
];

/// What the release of that version may have done wrong in `out`, which it made of `parent`.
#[must_use]
pub fn faults(version: &str, parent: &Model<'_>, out: &[gguf::File<'_>]) -> Vec<String> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u64>);
    let mut number = || numbers.next().and_then(Result::ok);
    let (Some(major), Some(minor), Some(patch)) = (number(), number(), number()) else {
        return Vec::new();
    };
    let had = FAULTS
        .iter()
        .filter(|fault| [major, minor, patch] <= fault.last);
    had.filter_map(|fault| (fault.did)(parent, out)).collect()
}
