//! Metadata: the key-value entries of a file, in file order.
//!
//! Owns entries and finding them by key, and the one key that the format itself reads,
//! `general.alignment`. Knows nothing of what other keys mean.

use std::collections::BTreeMap;

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::reader::Reader;
use super::value::Value;
use super::value_type::ValueType;

/// The key that says how tensor data is aligned.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment of a file without [`ALIGNMENT_KEY`], in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The smallest entry: a key of one byte, a value of one.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// The entries of a file, in file order, with unique keys.
#[derive(Clone, Debug)]
pub struct Metadata<'a> {
    entries: Vec<Entry<'a>>,
    by_key: BTreeMap<&'a str, usize>,
}

/// One key-value entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    value: Value<'a>,
    raw: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// Reads `n` entries and checks that keys are unique.
    pub(super) fn read(reader: &mut Reader<'a>, n: u64) -> Result<Metadata<'a>, Error> {
        let n_bytes_left = reader.n_left();
        if n > n_bytes_left / MIN_ENTRY_BYTES {
            let what = "metadata entries";
            return Err(Error::new(ErrorKind::Count { what, count: n, n_bytes_left }, Place::Header));
        }

        // Grows with the entries that were read, not with the count.
        let mut entries = Vec::new();
        let mut by_key = BTreeMap::new();
        for index in 0..n {
            let entry = Entry::read(reader, Place::Entry { index, n })?;
            let second = entries.len();
            if let Some(first) = by_key.insert(entry.key(), second) {
                return Err(Error::new(ErrorKind::Duplicate { first, second }, Place::key(entry.key())));
            }
            entries.push(entry);
        }
        Ok(Metadata { entries, by_key })
    }

    /// Reads the first entries, up to `n` of them. The first that is not as it should be ends them. Keys may appear twice.
    pub(super) fn read_first(reader: &mut Reader<'a>, n: u64) -> Vec<Entry<'a>> {
        let entry = |index| Entry::read(reader, Place::Entry { index, n }).ok();
        (0..n).map_while(entry).collect()
    }

    /// The entry with this key.
    pub fn get(&self, key: &str) -> Option<&Entry<'a>> {
        self.by_key.get(key).and_then(|index| self.entries.get(*index))
    }

    /// The value with this key.
    ///
    /// # Errors
    ///
    /// `MissingKey` if there is none.
    pub fn require(&self, key: &str) -> Result<Value<'a>, Error> {
        let entry = self.get(key).ok_or_else(|| Error::new(ErrorKind::MissingKey, Place::key(key)))?;
        Ok(entry.value())
    }

    /// The entries, in file order.
    pub fn iter(&self) -> std::slice::Iter<'_, Entry<'a>> {
        self.entries.iter()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What tensor data is aligned to, in bytes.
    ///
    /// # Errors
    ///
    /// If the entry exists and is not a `u32` that is a power of two, the rules of
    /// `ggml/src/gguf.cpp`.
    pub(super) fn alignment(&self) -> Result<u64, Error> {
        let Some(entry) = self.get(ALIGNMENT_KEY) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        let found = entry.value().value_type();
        if found != ValueType::U32 {
            let kind = ErrorKind::WrongType { found, expected: ValueType::U32.with_article() };
            return Err(Error::new(kind, Place::key(ALIGNMENT_KEY)));
        }
        let alignment = entry.value().as_u64()?;
        if !alignment.is_power_of_two() {
            return Err(Error::new(ErrorKind::BadAlignment { alignment }, Place::key(ALIGNMENT_KEY)));
        }
        Ok(alignment)
    }
}

impl<'m, 'a> IntoIterator for &'m Metadata<'a> {
    type Item = &'m Entry<'a>;
    type IntoIter = std::slice::Iter<'m, Entry<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> Entry<'a> {
    /// Reads one entry at `place`.
    fn read(reader: &mut Reader<'a>, place: Place) -> Result<Entry<'a>, Error> {
        reader.enter(place.clone());
        let start = reader.position();
        let key = reader.text("key")?;
        if key.is_empty() {
            return Err(Error::new(ErrorKind::EmptyKey, place));
        }
        let value = Value::read(reader, key)?;
        Ok(Entry { value, raw: reader.since(start) })
    }

    /// The key, never empty.
    pub fn key(&self) -> &'a str {
        self.value.key()
    }

    /// The value, with its type.
    pub fn value(&self) -> Value<'a> {
        self.value
    }

    /// The bytes of the whole entry. They begin with the length of the key and end with the value.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

#[cfg(test)]
mod tests {
    use super::super::File;
    use super::super::testing::Builder;
    use super::*;

    fn parse_error(bytes: &[u8]) -> String {
        File::parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn entries_keep_order_and_bytes() {
        let bytes = Builder::new().u32("b", 7).string("a", "text").build();
        let file = File::parse(&bytes).unwrap();
        let keys: Vec<&str> = file.metadata().iter().map(Entry::key).collect();
        assert_eq!(keys, ["b", "a"]);
        let raw: Vec<u8> = file.metadata().iter().flat_map(Entry::raw).copied().collect();
        assert_eq!(raw, bytes[24..24 + raw.len()]);
        assert_eq!(file.metadata().get("a").unwrap().value().as_str().unwrap(), "text");
        assert!(file.metadata().get("c").is_none());
        assert_eq!(file.metadata().require("c").unwrap_err().to_string(), "metadata 'c' is missing");
    }

    #[test]
    fn keys_are_not_copied() {
        let bytes = Builder::new().string("key", "text").build();
        let file = File::parse(&bytes).unwrap();
        let key = file.metadata().get("key").unwrap().key();
        assert_eq!(key.as_ptr(), bytes[32..].as_ptr());
    }

    #[test]
    fn a_key_twice_is_refused() {
        let bytes = Builder::new().u32("a", 1).u32("b", 1).string("a", "x").build();
        assert_eq!(parse_error(&bytes), "metadata 'a' appears twice, as number 1 and number 3");
    }

    #[test]
    fn an_empty_key_is_refused() {
        let bytes = Builder::new().u32("a", 1).u32("", 1).build();
        assert_eq!(parse_error(&bytes), "metadata entry 2 of 2 has an empty key");
    }

    #[test]
    fn a_key_that_is_not_utf8_is_refused() {
        let mut bytes = Builder::new().u32("abc", 1).build();
        bytes[33] = 0xff;
        assert_eq!(parse_error(&bytes), "the key of metadata entry 1 of 1 is not UTF-8, at byte 24");
    }

    #[test]
    fn a_count_that_cannot_be_true_is_refused() {
        for count in [2, 1 << 40, u64::MAX] {
            let mut bytes = Builder::new().u32("abc", 1).build();
            bytes.truncate(24 + 19);
            bytes[16..24].copy_from_slice(&count.to_le_bytes());
            let message =
                format!("the header counts {count} metadata entries, but only 19 bytes of the file are left");
            assert_eq!(parse_error(&bytes), message);
        }
    }

    #[test]
    fn alignment_is_a_u32_and_a_power_of_two() {
        let alignment = |builder: Builder| {
            let bytes = builder.build();
            File::parse(&bytes).map(|file| file.alignment()).map_err(|error| error.to_string())
        };
        assert_eq!(alignment(Builder::new()), Ok(32));
        assert_eq!(alignment(Builder::new().u32(ALIGNMENT_KEY, 1)), Ok(1));
        assert_eq!(alignment(Builder::new().u32(ALIGNMENT_KEY, 1 << 31)), Ok(1 << 31));
        for bad in [0, 3, u32::MAX] {
            let message =
                format!("metadata 'general.alignment' is {bad}, expected a power of two below 2^32");
            assert_eq!(alignment(Builder::new().u32(ALIGNMENT_KEY, bad)), Err(message));
        }
        let message = "metadata 'general.alignment' is a u64, expected a u32";
        assert_eq!(alignment(Builder::new().u64(ALIGNMENT_KEY, 32)), Err(message.to_owned()));
    }
}
