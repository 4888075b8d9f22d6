//! Sizes as a user writes them, such as 4G or 2GiB.

use std::fmt;
use std::str::FromStr;

/// A number of bytes such as `4G` or `3.5GiB`. Units with one letter, as for `llama-gguf-split`, or with a `B` are decimal,
/// those with `iB` binary. A part of a byte is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Digits of a fraction that are taken: with the largest unit they stay exact in 128 bits.
const MAX_FRACTION_DIGITS: usize = 18;

/// Rounded up, as it can be given back: whole bytes, or tenths of a megabyte or gigabyte.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |f: &mut fmt::Formatter<'_>, n: u64, unit| write!(f, "{}.{} {unit}", n / 10, n % 10);
        match self.0 {
            n @ ..1_000_000 => write!(f, "{n} B"),
            n @ ..100_000_000 => tenths(f, n.div_ceil(100_000), "MB"),
            n @ ..10_000_000_000 => write!(f, "{} MB", n.div_ceil(1_000_000)),
            n => tenths(f, n.div_ceil(100_000_000), "GB"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("'{text}' is not a size; expected one such as 500M, 3.5G or 2GiB");
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

    #[test]
    fn a_size_that_is_shown_is_enough() {
        for n in [
            1,
            999_999,
            1_000_000,
            1_000_001,
            99_999_999,
            100_000_001,
            9_999_999_999,
            10_000_000_001,
            u64::MAX / 2,
        ] {
            let back: ByteSize = ByteSize(n).to_string().parse().unwrap();
            assert!(back.0 >= n && back.0 - n < (n / 10).max(1), "{n} {}", back.0);
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
