//! Values of flags: lists of blocks, budgets, sizes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::{Result, bail};

use crate::model::{BlockId, MAX_BLOCKS};
use crate::plan::Budget;

/// A list of block numbers such as `21-29,31`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList(Vec<RangeInclusive<usize>>);

impl BlockList {
    /// The blocks of the list, of a model with `n_blocks`.
    ///
    /// # Errors
    /// A number that is not a block's; `verb` says what cannot be done with it.
    pub fn blocks(&self, n_blocks: usize, verb: &str) -> Result<BTreeSet<BlockId>> {
        let mut blocks = BTreeSet::new();
        for range in &self.0 {
            if let Some(outside) = [*range.start(), *range.end()]
                .into_iter()
                .find(|&number| number >= n_blocks)
            {
                bail!(
                    "cannot {verb} block {outside}: the model has {n_blocks} blocks, 0 to {}",
                    n_blocks.saturating_sub(1)
                );
            }
            blocks.extend(range.clone().map(BlockId::new));
        }
        Ok(blocks)
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
            // Too large for the type is too large for any model.
            Ok(text.parse().unwrap_or(usize::MAX))
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

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a number of blocks such as 9, or a share such as 25%";
        if let Some(share) = text.strip_suffix('%') {
            return match share.trim().parse::<f64>() {
                Ok(share) if share > 0.0 && share < 100.0 => Ok(Self::Percent(share)),
                Ok(_) => Err("a share lies between 0% and 100%".to_owned()),
                Err(_) => Err(expected.to_owned()),
            };
        }
        match text.parse::<usize>() {
            Ok(0) => Err("at least one block has to go".to_owned()),
            Ok(n) if n < MAX_BLOCKS => Ok(Self::Blocks(n)),
            Ok(_) => Err(format!("no model has more than {MAX_BLOCKS} blocks")),
            Err(_) => Err(expected.to_owned()),
        }
    }
}

/// A number of bytes such as `4G` or `3.5GiB`: decimal units with one letter, as for `llama-gguf-split`, or with a `B`, binary
/// ones with `iB`. A part of a byte is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Digits of a fraction that are taken: with the largest unit they stay exact in 128 bits.
const MAX_FRACTION_DIGITS: usize = 18;

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("'{text}' is not a size; expected one such as 500M, 3.5G or 2GiB");
        let too_large = || format!("{text} is more than any file has");
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = trimmed.split_at(end.unwrap_or(trimmed.len()));
        let (whole, fraction) = match number.split_once('.') {
            Some((_, "")) => return Err(expected()),
            Some((whole, fraction)) => (whole, fraction),
            None if number.is_empty() => return Err(expected()),
            None => (number, ""),
        };
        if fraction.len() > MAX_FRACTION_DIGITS || fraction.contains('.') {
            return Err(expected());
        }
        let whole: u64 = match whole {
            "" => 0,
            whole => whole.parse().map_err(|_| too_large())?,
        };
        let unit = unit.trim_start().to_ascii_lowercase();
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let (letter, base) = match unit.strip_suffix('i') {
            Some(letter) if !letter.is_empty() => (letter, 1024u64),
            _ => (unit, 1000),
        };
        let power = match letter {
            // A part of a byte is no size.
            "" if fraction.is_empty() => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(expected()),
        };
        let of_unit = u128::from(base.pow(power));
        let parts = format!("0{fraction}").parse::<u128>().unwrap_or(0);
        let one = fraction.bytes().fold(1u128, |one, _| one * 10);
        let n_bytes = u128::from(whole) * of_unit + parts * of_unit / one;
        match u64::try_from(n_bytes) {
            Ok(0) => Err("a size is at least 1 byte".to_owned()),
            Ok(n_bytes) => Ok(Self(n_bytes)),
            Err(_) => Err(too_large()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<usize>, String> {
        let list: BlockList = text.parse()?;
        let blocks = list
            .blocks(40, "remove")
            .map_err(|error| error.to_string())?;
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
            format!(
                "cannot remove block {}: the model has 40 blocks, 0 to 39",
                usize::MAX
            )
        );
    }

    #[test]
    fn budgets_are_counts_and_shares() {
        assert_eq!("9".parse(), Ok(Budget::Blocks(9)));
        assert_eq!("25%".parse(), Ok(Budget::Percent(25.0)));
        assert_eq!("12.5%".parse(), Ok(Budget::Percent(12.5)));
        for wrong in ["0", "-1", "x", "", "%", "0%", "100%", "nan%", "1e3", "600"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units_of_1000_or_1024() {
        let of = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        for (text, n_bytes) in [
            ("1", 1),
            ("12B", 12),
            ("30M", 30_000_000),
            ("4G", 4_000_000_000),
            ("4GB", 4_000_000_000),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1Ki", 1024),
            ("7kB", 7000),
            ("1T", 1_000_000_000_000),
            ("3.5GiB", 3_758_096_384),
            (".5G", 500_000_000),
            ("0.5g", 500_000_000),
            ("4 GiB", 4 << 30),
            (" 1.25 MB ", 1_250_000),
            // Down to the byte: 102.4, and 1,099,511,627,775.99.
            ("0.1KiB", 102),
            ("1023.999999999999999999GiB", (1 << 40) - 1),
            ("18446744.073709551615T", u64::MAX),
        ] {
            assert_eq!(of(text), Ok(n_bytes), "{text}");
        }
        for wrong in [
            "",
            "G",
            "0",
            "0G",
            "-1G",
            "1.G",
            ".",
            ".G",
            "1.5",
            "1.5B",
            "1..5G",
            "1.5.5G",
            "1,5G",
            "0.0G",
            ".0001k",
            "1e3G",
            "+1G",
            "0x1G",
            "1.0000000000000000001G",
            "1iB",
            "1X",
            "1GG",
            "99999999999999999999",
            "99999999T",
            "18446744.073709551616T",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
