//! The older form of importance matrices, `.dat`. All numbers are little-endian:
//!
//! ```text
//! +---------------------------------------------------------------------------+
//! | number of entries i32                                                     |
//! +---------------------------------------------------------------------------+
//! | length i32 in bytes, then the weight's name                               |  for each entry
//! | number of calls i32 | number of values i32 | the values, f32 each          |
//! +---------------------------------------------------------------------------+
//! | number of chunks i32                                                      |  may be missing
//! | length i32 in bytes, then the name of the text                            |  may be missing
//! +---------------------------------------------------------------------------+
//! ```

use std::borrow::Cow;

use anyhow::{Context, Result, anyhow, ensure};
use byteorder::{ByteOrder, LittleEndian};

use super::{Content, Entry, Left, Name, Planned};
use crate::gguf::Quoted;

/// A checked view of such a file.
#[derive(Debug)]
pub(super) struct Legacy<'a> {
    /// Each with its bytes after the name.
    entries: Vec<(Entry<'a>, &'a [u8])>,
    /// All that follows the entries.
    trailer: &'a [u8],
}

impl<'a> Legacy<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, position: 0 };
        let n = cursor.i32("the number of entries")?;
        ensure!(n > 0, "is no importance matrix: begins with {n}, expected a number of entries or 'GGUF'");
        // Grows with the entries that were read, not with their number.
        let mut entries = Vec::new();
        for index in 1..=n {
            let at = || format!("entry {index} of {n}");
            entries.push(cursor.entry().with_context(at)?);
        }
        let trailer = cursor.rest();
        if !trailer.is_empty() {
            cursor.i32("the number of chunks")?;
        }
        if !cursor.rest().is_empty() {
            let n_bytes = cursor.len("the name of the text")?;
            cursor.take(n_bytes, "the name of the text")?;
        }
        let n_left = cursor.rest().len();
        ensure!(n_left == 0, "{n_left} bytes at its end belong to nothing");
        Ok(Self { entries, trailer })
    }

    /// The first entry of a file that begins like this form. Looks at no more.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Entry<'a>> {
        let mut cursor = Cursor { bytes, position: 0 };
        let n = cursor.i32("the number of entries").ok()?;
        let (entry, _) = cursor.entry().ok()?;
        (n > 0).then_some(entry)
    }

    /// In file order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        self.entries.iter().map(|(entry, _)| *entry)
    }

    /// The mean over its calls of the values of an entry.
    pub(super) fn importance(&self, name: &str) -> Option<Vec<f32>> {
        let (_, body) = self.entries.iter().rev().find(|(entry, _)| entry.name == name)?;
        let (head, values) = body.split_at_checked(8)?;
        let n_calls = LittleEndian::read_i32(head);
        let mean = |bytes: &[u8; 4]| {
            let sum = f32::from_le_bytes(*bytes);
            if n_calls > 0 { sum / n_calls as f32 } else { sum }
        };
        let values: Vec<f32> = values.as_chunks().0.iter().map(mean).collect();
        values.iter().all(|value| value.is_finite() && *value >= 0.0).then_some(values)
    }

    pub(super) fn plan(&self, left: Left<'_>) -> Result<Planned<'a>> {
        let mut pieces: Vec<Cow<'a, [u8]>> = vec![Cow::Borrowed(&[])];
        let mut n_entries = 0;
        for (entry, body) in &self.entries {
            let name: Cow<'a, str> = match Name::of(entry.name, left.blocks)? {
                Name::Removed => continue,
                Name::New(name) => name.into(),
                Name::Same => entry.name.into(),
            };
            pieces.push(i32_bytes(name.len())?.to_vec().into());
            pieces.push(match name {
                Cow::Borrowed(name) => name.as_bytes().into(),
                Cow::Owned(name) => name.into_bytes().into(),
            });
            pieces.push(match left.experts_of(entry.name) {
                Some((kept, n_experts)) => of_experts(body, kept, n_experts)?.into(),
                None => (*body).into(),
            });
            n_entries += 1;
        }
        if let Some(first) = pieces.first_mut() {
            *first = i32_bytes(n_entries)?.to_vec().into();
        }
        pieces.push(self.trailer.into());
        Ok(Planned { n_entries, n_removed: self.entries.len() - n_entries, content: Content::Legacy(pieces) })
    }
}

/// An entry's bytes after its name, for the `kept` of `n_experts` matrices.
fn of_experts(body: &[u8], kept: &[usize], n_experts: usize) -> Result<Vec<u8>> {
    /// Bytes of the two numbers before the values.
    const HEAD: usize = 8;
    /// Bytes of a value.
    const VALUE: usize = 4;
    let (head, values) = body.split_at_checked(HEAD).context("bug: an entry without its counts")?;
    let n_columns = values.len() / VALUE / n_experts;
    ensure!(
        n_columns > 0 && n_columns * n_experts * VALUE == values.len(),
        "{} values are not as many for each of {n_experts} experts",
        values.len() / VALUE
    );
    let matrices: Vec<&[u8]> = values.chunks_exact(n_columns * VALUE).collect();
    let mut bytes = head[..4].to_vec();
    bytes.extend(i32_bytes(n_columns * kept.len())?);
    kept.iter().filter_map(|&expert| matrices.get(expert)).for_each(|matrix| bytes.extend(*matrix));
    Ok(bytes)
}

fn i32_bytes(number: usize) -> Result<[u8; 4]> {
    Ok(i32::try_from(number)?.to_le_bytes())
}

/// Reads the older form from front to back.
struct Cursor<'a> {
    bytes: &'a [u8],
    /// Never more than `bytes.len()`.
    position: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    fn take(&mut self, n_bytes: usize, what: &str) -> Result<&'a [u8]> {
        let taken = self.rest().get(..n_bytes);
        let taken =
            taken.with_context(|| format!("file ends at byte {}, inside {what}", self.bytes.len()))?;
        self.position += n_bytes;
        Ok(taken)
    }

    fn i32(&mut self, what: &str) -> Result<i32> {
        Ok(LittleEndian::read_i32(self.take(4, what)?))
    }

    /// A length in bytes.
    fn len(&mut self, what: &str) -> Result<usize> {
        let len = self.i32(what)?;
        // Only a negative number fails, and the error does not say so.
        usize::try_from(len).map_err(|_| anyhow!("{what} has {len} bytes"))
    }

    fn entry(&mut self) -> Result<(Entry<'a>, &'a [u8])> {
        let n_bytes = self.len("the name")?;
        let name = std::str::from_utf8(self.take(n_bytes, "the name")?);
        let name = name.context("the name is not UTF-8")?;
        let start = self.position;
        self.i32("the number of calls")?;
        let n_values = self.i32("the number of values")?;
        ensure!(n_values > 0, "{} has {n_values} values, expected at least 1", Quoted(name));
        // A positive i32 fits. Four times as much may not on 32 bits.
        let n_bytes = usize::try_from(n_values)?.checked_mul(4);
        let n_bytes = n_bytes.with_context(|| format!("{n_values} values are too many"))?;
        self.take(n_bytes, "the values")?;
        let body = self.bytes.get(start..self.position).unwrap_or_default();
        let n_values = u64::try_from(n_values)?;
        Ok((Entry { name, n_values }, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_true_is_refused() {
        let refused = |bytes: &[u8]| format!("{:#}", Legacy::parse(bytes).unwrap_err());
        assert_eq!(refused(b""), "file ends at byte 0, inside the number of entries");
        assert_eq!(
            refused(&[0; 4]),
            "is no importance matrix: begins with 0, expected a number of entries or 'GGUF'"
        );
        assert_eq!(refused(b"Dear reader,"), "entry 1 of 1918985540: file ends at byte 12, inside the name");
        let int = |n: i32| n.to_le_bytes();
        assert_eq!(refused(&[int(1), int(-5)].concat()), "entry 1 of 1: the name has -5 bytes");
        assert_eq!(
            refused(&[int(1), int(0), int(0), int(-1)].concat()),
            "entry 1 of 1: '' has -1 values, expected at least 1"
        );
        assert_eq!(
            refused(&[int(1), int(0), int(0), int(i32::MAX)].concat()),
            "entry 1 of 1: file ends at byte 16, inside the values"
        );
    }
}
