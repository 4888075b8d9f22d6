//! Faults of earlier releases: what may be wrong with a file that one of them wrote.
//!
//! That it is wrong shows in what differs from the plan of this release; this says why.

use crate::gguf::{self, DEFAULT_ALIGNMENT, Quoted};
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model};
use crate::plan::names;

/// A fault that is mended.
struct Fault {
    /// The last release that had it.
    last: [u64; 3],
    /// Its effect on a file of this parent. `None` if there cannot have been one.
    did: fn(&Model<'_>, &[gguf::File<'_>]) -> Option<String>,
}

/// The last release that took all counted blocks for prediction blocks.
const NO_PREDICTION: [u64; 3] = [0, 1, 0];

const FAULTS: &[Fault] = &[
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let key = names::first_entry(parent)?;
            Some(format!("left metadata that names tensors or blocks as it was, such as {}", Quoted(key)))
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
        last: NO_PREDICTION,
        did: |parent, _| {
            ordinary_counted(parent).next().map(|block| {
                format!(
                    "took block {block} for a prediction block, which the metadata count but the file does not hold"
                )
            })
        },
    },
    Fault {
        last: [0, 1, 0],
        did: |parent, _| {
            let has_needed = parent.rules().is_some_and(|rules| rules.needed().next().is_some());
            has_needed.then(|| "could leave no block of a kind without which llama.cpp ends".to_owned())
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
            let mut keys = ["adapters.token_ids_activate", "adapters.token_ids_substitute"].iter();
            let key = keys.find(|key| has_as_many(key))?;
            Some(format!("took the list {} of adapters for one of blocks, on the user's word", Quoted(key)))
        },
    },
];

/// Ordinary blocks that the metadata counts as prediction blocks.
fn ordinary_counted(parent: &Model<'_>) -> impl Iterator<Item = BlockId> {
    let n_blocks = parent.n_blocks();
    let first_real = n_blocks - parent.prediction_blocks().count();
    (n_blocks - parent.n_counted_prediction_blocks()..first_real).map(BlockId::new)
}

/// Those of `removed` that the release took for prediction blocks. It let no others of that place go.
pub(super) fn removed_for_prediction(version: &str, parent: &Model<'_>, removed: &BlockSet) -> Vec<BlockId> {
    match numbers(version) {
        Some(version) if version <= NO_PREDICTION => {
            ordinary_counted(parent).filter(|block| removed.contains(block)).collect()
        }
        _ => Vec::new(),
    }
}

/// Possible faults in `out`, which that release made from `parent`.
#[must_use]
pub fn faults(version: &str, parent: &Model<'_>, out: &[gguf::File<'_>]) -> Vec<String> {
    let Some(version) = numbers(version) else {
        return Vec::new();
    };
    let had = FAULTS.iter().filter(|fault| version <= fault.last);
    had.filter_map(|fault| (fault.did)(parent, out)).collect()
}

/// `0.1.0` as numbers; `None` of what is no version.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u64>);
    let mut number = || numbers.next().and_then(Result::ok);
    Some([number()?, number()?, number()?])
}
