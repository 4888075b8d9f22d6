//! What becomes of a name, and what an entry names.

use std::collections::BTreeMap;

use crate::model::leading_block;
use crate::model::renumbering::Renumbering;

/// Endings without which a name stands for the same tensor.
pub(super) const SUFFIXES: [&str; 2] = [".weight", ".bias"];

/// What becomes of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays.
    Same,
    /// It becomes another.
    Renamed(String),
    /// What it names is not in the output.
    Gone,
    /// Statements about it may be wrong now, for this reason.
    Unclear(&'static str),
}

/// What an entry names, and what becomes of that.
pub(super) struct Mention {
    pub(super) key: Fate,
    pub(super) value: Mentioned,
}

impl Mention {
    /// Whether it is of anything that does not just stay.
    pub(super) fn names_any(&self) -> bool {
        let changes = |fate: &Fate| *fate != Fate::Same;
        let by_value = match &self.value {
            Mentioned::Nothing => false,
            Mentioned::Whole(fate) => changes(fate),
            Mentioned::Elements(fates) => fates.values().any(changes),
        };
        by_value || changes(&self.key)
    }
}

/// What a value names.
pub(super) enum Mentioned {
    Nothing,
    Whole(Fate),
    /// Some elements, by their numbers.
    Elements(BTreeMap<usize, Fate>),
}

/// The name without its suffix, and the suffix.
pub(super) fn stem(name: &str) -> (&str, &str) {
    let suffix = SUFFIXES.iter().find(|suffix| name.ends_with(*suffix));
    name.split_at(name.len() - suffix.map_or(0, |suffix| suffix.len()))
}

/// What becomes of a name that begins with a block's.
pub(crate) fn fate_in_block(name: &str, prefix: &str, renumbering: &Renumbering) -> Option<Fate> {
    let (block, rest) = leading_block(name, prefix)?;
    (block.index() < renumbering.n_blocks()).then(|| match renumbering.number(block) {
        None => Fate::Gone,
        Some(number) if number == block.index() => Fate::Same,
        Some(number) => Fate::Renamed(format!("{prefix}{number}{rest}")),
    })
}
