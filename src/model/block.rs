//! Blocks by number: ids, lists, and the block in a tensor's name.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Blocks of a model, in order.
pub type BlockSet = BTreeSet<BlockId>;

/// `1 block`, or `n blocks`.
#[must_use]
pub fn counted(n: usize) -> String {
    match n {
        1 => "1 block".to_owned(),
        n => format!("{n} blocks"),
    }
}

/// The numbers of `blocks`, as results have them.
#[must_use]
pub fn numbers(blocks: &BlockSet) -> Vec<usize> {
    blocks.iter().map(|block| block.index()).collect()
}

/// `12-15,17` for blocks 12, 13, 14, 15, 17; `none` for no block.
#[must_use]
pub fn block_list(blocks: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &block in blocks {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == block => *end = block,
            _ => ranges.push((block, block)),
        }
    }
    if ranges.is_empty() {
        return "none".to_owned();
    }
    let ranges: Vec<_> = ranges
        .into_iter()
        .map(|(start, end)| match end - start {
            0 => start.to_string(),
            _ => format!("{start}-{end}"),
        })
        .collect();
    ranges.join(",")
}

/// A block's number in the input, counted from 0. It never changes; numbers in the output exist only in
/// [`crate::model::renumbering::Renumbering`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId(usize);

impl BlockId {
    /// The block with this number.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self(number)
    }

    /// The number, for indexing.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The block of a tensor named `<prefix><i>.<rest>`. Anchored at the start: `v.blk.0.` belongs to a vision tower, and of
/// `blk.3.ffn_gate.7.weight` only the first number is the block's.
pub(crate) fn block_of<'n>(name: &'n str, prefix: &str) -> Option<(BlockId, &'n str)> {
    let (block, rest) = leading_block(name, prefix)?;
    Some((block, rest.strip_prefix('.')?))
}

/// The block in `<prefix><i>` or `<prefix><i>.<rest>`, and the rest with its dot.
pub(crate) fn leading_block<'n>(name: &'n str, prefix: &str) -> Option<(BlockId, &'n str)> {
    let name = name.strip_prefix(prefix)?;
    let (number, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
    let canonical = !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && (number == "0" || !number.starts_with('0'));
    if !canonical {
        return None;
    }
    // A number that overflows is larger than any number of blocks.
    Some((BlockId(number.parse().unwrap_or(usize::MAX)), rest))
}

/// A list of block numbers such as `21-29,31`, or of other numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList(Vec<RangeInclusive<usize>>);

impl BlockList {
    /// The numbers of the list, all below `end`.
    ///
    /// # Errors
    /// The first that is not.
    pub fn numbers(&self, end: usize) -> Result<BTreeSet<usize>, usize> {
        let mut numbers = BTreeSet::new();
        for range in &self.0 {
            if let Some(outside) = [*range.start(), *range.end()].into_iter().find(|&number| number >= end) {
                return Err(outside);
            }
            numbers.extend(range.clone());
        }
        Ok(numbers)
    }

    /// The blocks of the list, of a model with `n_blocks`.
    ///
    /// # Errors
    /// A number that is not a block's; `verb` says what cannot be done with it.
    pub fn blocks(&self, n_blocks: usize, verb: &str) -> Result<BlockSet> {
        match self.numbers(n_blocks) {
            Ok(numbers) => Ok(numbers.into_iter().map(BlockId::new).collect()),
            Err(outside) => bail!(
                "cannot {verb} block {outside}: the model has {n_blocks} blocks, 0 to {}",
                n_blocks.saturating_sub(1)
            ),
        }
    }
}

impl FromStr for BlockList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let text = text.trim();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!(
                    "'{text}' is not a block number; expected numbers and ranges such as 21-29,31"
                ));
            }
            text.parse().map_err(|_| format!("no model has a block {text}"))
        };
        let range = |item: &str| -> Result<RangeInclusive<usize>, String> {
            let (start, end) = match item.split_once('-') {
                Some((start, end)) => (number(start)?, number(end)?),
                None => (number(item)?, number(item)?),
            };
            if start > end {
                return Err(format!("the range {start}-{end} runs backwards"));
            }
            Ok(start..=end)
        };
        Ok(Self(text.split(',').map(range).collect::<Result<_, _>>()?))
    }
}

/// The set of the blocks with these numbers.
#[cfg(test)]
pub(crate) fn blocks(numbers: &[usize]) -> BlockSet {
    numbers.iter().copied().map(BlockId::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch::BLOCK_PREFIX;

    fn list(text: &str) -> Result<Vec<usize>, String> {
        let list: BlockList = text.parse()?;
        let blocks = list.blocks(40, "remove").map_err(|error| error.to_string())?;
        Ok(blocks.iter().map(|block| block.index()).collect())
    }

    #[test]
    fn block_lists_are_numbers_and_ranges() {
        assert_eq!(list("21-23,31").unwrap(), [21, 22, 23, 31]);
        assert_eq!(list("3, 1,3").unwrap(), [1, 3]);
        assert_eq!(list("7-7").unwrap(), [7]);
        for wrong in ["", "a", "1,", "-1", "1-", "5-3", "1.5", "0x3", "+1"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn huge_numbers_are_blocks_that_do_not_exist() {
        assert_eq!(
            list("0-99999999999999999999999").unwrap_err(),
            "no model has a block 99999999999999999999999"
        );
        assert_eq!(
            list("0-99999999999").unwrap_err(),
            "cannot remove block 99999999999: the model has 40 blocks, 0 to 39"
        );
    }

    #[test]
    fn block_lists_use_ranges() {
        assert_eq!(block_list(&[12, 13, 14, 15, 17, 25, 26]), "12-15,17,25-26");
        assert_eq!(block_list(&[0]), "0");
        assert_eq!(block_list(&[]), "none");
    }

    #[test]
    fn block_numbers_are_anchored_and_canonical() {
        let of = |name| block_of(name, BLOCK_PREFIX);
        assert_eq!(of("blk.3.ffn_gate.7.weight"), Some((BlockId(3), "ffn_gate.7.weight")));
        assert_eq!(of("blk.10.ssm_a"), Some((BlockId(10), "ssm_a")));
        for name in [
            "v.blk.0.attn_q.weight",
            "blk.x.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk..weight",
            "blk.3",
            "token_embd.weight",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
        let huge = of("blk.99999999999999999999999.x").unwrap();
        assert_eq!(huge.0.index(), usize::MAX);
    }
}
