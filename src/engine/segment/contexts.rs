//! Segments that are kept ready, as far as there is room.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::model::BlockId;

/// Segments with their contexts, some number of them at most.
///
/// Blocks are evaluated in order, again and again. When there is no room for all of them the one to go is the one used last:
/// it is needed again after all the others.
pub(super) struct Contexts<S> {
    made: BTreeMap<BlockId, S>,
    used_last: Option<BlockId>,
    room: usize,
}

impl<S> Contexts<S> {
    /// Keeps up to `room` of them, and one at least.
    pub(super) fn new(room: usize) -> Self {
        Self { made: BTreeMap::new(), used_last: None, room: room.max(1) }
    }

    /// The segment of `block`, which `make` makes if it is not there.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn get_or_make(&mut self, block: BlockId, make: impl FnOnce() -> Result<S>) -> Result<&mut S> {
        if !self.made.contains_key(&block) && self.made.len() >= self.room {
            // It goes before its successor comes: the two need not fit together.
            let gone = self.used_last.or(self.made.keys().next_back().copied());
            gone.and_then(|gone| self.made.remove(&gone));
        }
        self.used_last = Some(block);
        Ok(match self.made.entry(block) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(make()?),
        })
    }
}
