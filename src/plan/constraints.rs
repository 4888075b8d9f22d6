//! Which blocks of a model may be removed, and which sets.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

use crate::arch::{CountRule, WindowPattern};
use crate::gguf::ValueType;
use crate::model::{BlockId, Model};

/// What a removal must respect so that the output computes the input without the removed blocks.
#[derive(Clone, Debug)]
pub struct Constraints {
    /// All blocks, trailing prediction blocks included.
    pub n_blocks: usize,
    /// Blocks that an evaluation runs.
    pub n_trunk_blocks: usize,
    /// Blocks that must stay, each with the reason.
    pub must_stay: BTreeMap<BlockId, String>,
    /// Of each of these groups at least one block must stay.
    pub groups: Vec<Group>,
    /// Numbers of blocks that llama.cpp treats in a special way.
    pub counts: &'static [CountRule],
    /// Whether each block has a sliding window, where blocks differ in that.
    pub windows: Option<Vec<bool>>,
}

/// Blocks of which at least one must stay.
#[derive(Clone, Debug)]
pub struct Group {
    /// The blocks.
    pub blocks: BTreeSet<BlockId>,
    /// What they are, in the plural.
    pub what: &'static str,
}

impl Constraints {
    /// The constraints of `model`.
    ///
    /// # Errors
    /// A model that cannot be shortened at all: its architecture or a per-block metadata entry is not known, or it has no
    /// tensors.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        ensure!(
            !model.tensors().is_empty(),
            "has no tensors: a vocabulary, not a model"
        );
        let Some(rules) = model.rules() else {
            bail!(
                "what llama.cpp derives from a block's number is not known for architecture {}, so its blocks cannot \
                 be removed",
                crate::gguf::Quoted(model.architecture())
            );
        };
        super::metadata::check(model)?;
        let n_blocks = model.n_blocks();
        let n_trunk_blocks = model.n_trunk_blocks();
        let mut must_stay = BTreeMap::new();
        for block in (n_trunk_blocks..n_blocks).map(BlockId::new) {
            must_stay.insert(
                block,
                "is a next-token prediction block behind the model's own".to_owned(),
            );
        }
        for block in deepstack_blocks(model)? {
            must_stay.insert(block, "receives features of images".to_owned());
        }
        let mut groups = Vec::new();
        let windows = match rules.window {
            Some(pattern) => windows(model, pattern)?,
            None => None,
        };
        if let Some(windows) = &windows {
            let blocks: BTreeSet<_> = (0..n_trunk_blocks)
                .filter(|&i| windows[i])
                .map(BlockId::new)
                .collect();
            if !blocks.is_empty() {
                // Without one llama.cpp cannot make its cache (llama-model.cpp: create_memory).
                groups.push(Group {
                    blocks,
                    what: "blocks with a sliding window",
                });
            }
        }
        Ok(Self {
            n_blocks,
            n_trunk_blocks,
            must_stay,
            groups,
            counts: rules.counts,
            windows,
        })
    }

    /// Checks a set of blocks that are to go.
    ///
    /// # Errors
    /// The first rule that the set breaks.
    pub fn check(&self, removed: &BTreeSet<BlockId>) -> Result<()> {
        for &block in removed {
            ensure!(
                block.index() < self.n_blocks,
                "cannot remove block {block}: the model has {} blocks, 0 to {}",
                self.n_blocks,
                self.n_blocks - 1
            );
            if let Some(reason) = self.must_stay.get(&block) {
                bail!("cannot remove block {block}: it {reason}");
            }
        }
        ensure!(
            removed.len() < self.n_trunk_blocks,
            "cannot remove {} blocks: the model has {}, and at least one must stay",
            removed.len(),
            self.n_trunk_blocks
        );
        for group in &self.groups {
            ensure!(
                !group.blocks.is_subset(removed),
                "cannot remove all {} {}: llama.cpp needs at least one",
                group.blocks.len(),
                group.what
            );
        }
        self.check_count(removed.len())
    }

    /// Checks the number of blocks that are to go.
    ///
    /// # Errors
    /// A number of blocks at which llama.cpp computes something else.
    pub fn check_count(&self, n_removed: usize) -> Result<()> {
        let after = self.n_trunk_blocks - n_removed;
        for rule in self.counts {
            ensure!(
                n_removed == 0 || rule.allows(self.n_trunk_blocks, after),
                "cannot shorten {} blocks to {after}: {rule}",
                self.n_trunk_blocks
            );
        }
        Ok(())
    }
}

/// Whether each trunk block has a sliding window, as llama.cpp's loader decides; `None` if no block has.
fn windows(model: &Model<'_>, pattern: WindowPattern) -> Result<Option<Vec<bool>>> {
    if pattern.only_with_key && model.count("attention.sliding_window")?.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let n = model.n_trunk_blocks();
    let key = format!("{}.attention.sliding_window_pattern", model.architecture());
    let Some(entry) = model.metadata().get(&key) else {
        let has_window = |i| WindowPattern::has_window(pattern.default_period, i);
        return Ok(Some((0..n).map(has_window).collect()));
    };
    if entry.value().value_type() != ValueType::Array {
        let period = entry.value().as_u64()?;
        return Ok(Some(
            (0..n)
                .map(|i| WindowPattern::has_window(period, i))
                .collect(),
        ));
    }
    let array = entry.value().as_array()?;
    // llama.cpp does not check the length of this array: a shorter one leaves blocks without a window.
    ensure!(
        array.len() == n || array.len() == model.n_blocks(),
        "metadata '{key}' has {} entries, expected one for each of the {n} blocks",
        array.len()
    );
    let mut flags = Vec::new();
    for value in array.elements().take(n) {
        flags.push(match value.value_type() {
            ValueType::Bool => value.as_bool()?,
            _ => value.as_i64()? != 0,
        });
    }
    Ok(Some(flags))
}

/// Blocks to which llama.cpp adds features of images (`qwen3vl.cpp`, `granite.cpp`). Text does not need them, but a
/// projector beside the model does.
fn deepstack_blocks(model: &Model<'_>) -> Result<Vec<BlockId>> {
    let first = model.count("n_deepstack_layers")?.unwrap_or(0);
    let mut blocks: Vec<_> = (0..first.min(model.n_trunk_blocks()))
        .map(BlockId::new)
        .collect();
    let key = format!("{}.deepstack_mapping", model.architecture());
    if let Some(entry) = model.metadata().get(&key) {
        for (i, feature) in entry.value().as_array()?.i64s().enumerate() {
            // Block 0 receives its features with the embeddings.
            if feature? >= 0 && i > 0 {
                blocks.push(BlockId::new(i));
            }
        }
    }
    Ok(blocks)
}
