//! Metadata values: their types, their bytes and what they mean.
//!
//! A value is its key, its type and its bytes; it is decoded when asked for. Knows nothing of
//! entries in a file.

use std::fmt;

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::reader::Reader;
use super::value_type::ValueType;

/// The most levels of arrays in arrays that are read.
const MAX_DEPTH: u32 = 8;

/// A metadata value with the key it belongs to. An element of an array is a value with the key of
/// the array.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    key: &'a str,
    value_type: ValueType,
    raw: &'a [u8],
}

impl<'a> Value<'a> {
    /// Reads type and value of the entry `key`.
    pub(super) fn read(reader: &mut Reader<'a>, key: &'a str) -> Result<Value<'a>, Error> {
        let value_type = ValueType::read(reader)?;
        let start = reader.position();
        skip(reader, value_type, MAX_DEPTH)?;
        Ok(Value { key, value_type, raw: reader.since(start) })
    }

    /// A value of a new file, from bytes known to be valid.
    pub(super) fn encoded(key: &'a str, value_type: ValueType, raw: &'a [u8]) -> Value<'a> {
        Value { key, value_type, raw }
    }

    /// Reads the next element of an array.
    pub(super) fn read_element(
        reader: &mut Reader<'a>,
        key: &'a str,
        value_type: ValueType,
    ) -> Result<Value<'a>, Error> {
        let start = reader.position();
        skip(reader, value_type, MAX_DEPTH)?;
        Ok(Value { key, value_type, raw: reader.since(start) })
    }

    /// The key of the entry.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The type.
    pub fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// The bytes as stored, after the value type. For an array from the element type on.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// A signed integer, from any of the eight integer types.
    ///
    /// Wider than llama.cpp, which wants exactly the type its loader names, mostly `u32`.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not an integer, `OutOfRange` if it does not fit.
    pub fn as_i64(&self) -> Result<i64, Error> {
        self.integer("an integer", i64::MIN.into(), i64::MAX.into())
    }

    /// An unsigned integer, from any integer type that holds one.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not an integer, `OutOfRange` if it is negative.
    pub fn as_u64(&self) -> Result<u64, Error> {
        self.integer("an unsigned integer", 0, u64::MAX.into())
    }

    /// An unsigned integer of 32 bits, from any integer type.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not an integer, `OutOfRange` if it does not fit.
    pub fn as_u32(&self) -> Result<u32, Error> {
        self.integer("an unsigned integer", 0, u32::MAX.into())
    }

    /// The value as a float, from `f32` or `f64`.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not a float.
    pub fn as_f64(&self) -> Result<f64, Error> {
        match self.value_type {
            ValueType::F32 => Ok(f64::from(self.reader().f32()?)),
            ValueType::F64 => self.reader().f64(),
            _ => Err(self.wrong_type("a float")),
        }
    }

    /// The value as a float, from `f32` only.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not an `f32`.
    pub fn as_f32(&self) -> Result<f32, Error> {
        match self.value_type {
            ValueType::F32 => self.reader().f32(),
            _ => Err(self.wrong_type(ValueType::F32.with_article())),
        }
    }

    /// The value as a bool. Every byte but 0 is true, as in llama.cpp.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not a bool.
    pub fn as_bool(&self) -> Result<bool, Error> {
        match self.value_type {
            ValueType::Bool => Ok(self.reader().u8()? != 0),
            _ => Err(self.wrong_type(ValueType::Bool.with_article())),
        }
    }

    /// The value as text.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not a string, `NotUtf8` if it is not text.
    pub fn as_str(&self) -> Result<&'a str, Error> {
        str::from_utf8(self.as_bytes()?).map_err(|_| self.error(ErrorKind::NotUtf8 { what: "value" }))
    }

    /// The bytes of a string, which need not be text: tokens of a vocabulary are sometimes not.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not a string.
    pub fn as_bytes(&self) -> Result<&'a [u8], Error> {
        match self.value_type {
            ValueType::String => self.reader().string(),
            _ => Err(self.wrong_type(ValueType::String.with_article())),
        }
    }

    /// An integer from `min` to `max`, the range of `T`.
    fn integer<T: TryFrom<i128>>(&self, expected: &'static str, min: i128, max: i128) -> Result<T, Error> {
        let mut reader = self.reader();
        let found = match self.value_type {
            ValueType::U8 => reader.u8()?.into(),
            ValueType::I8 => reader.i8()?.into(),
            ValueType::U16 => reader.u16()?.into(),
            ValueType::I16 => reader.i16()?.into(),
            ValueType::U32 => reader.u32()?.into(),
            ValueType::I32 => reader.i32()?.into(),
            ValueType::U64 => reader.u64()?.into(),
            ValueType::I64 => reader.i64()?.into(),
            _ => return Err(self.wrong_type(expected)),
        };
        T::try_from(found).map_err(|_| self.error(ErrorKind::OutOfRange { found, min, max }))
    }

    pub(super) fn reader(&self) -> Reader<'a> {
        // The bytes were checked at parsing, so no error names this place.
        Reader::new(self.raw, Place::File)
    }

    pub(super) fn wrong_type(&self, expected: &'static str) -> Error {
        self.error(ErrorKind::WrongType { found: self.value_type, expected })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, Place::key(self.key))
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A vocabulary would fill the screen.
        f.debug_struct("Value")
            .field("key", &self.key)
            .field("value_type", &self.value_type)
            .field("n_bytes", &self.raw.len())
            .finish()
    }
}

/// Moves past a value, checking all lengths in it. `depth` is how many levels of arrays are still
/// allowed.
fn skip(reader: &mut Reader<'_>, value_type: ValueType, depth: u32) -> Result<(), Error> {
    match (value_type, value_type.n_bytes()) {
        (_, Some(n_bytes)) => reader.take(n_bytes).map(drop),
        (ValueType::Array, None) => {
            let Some(depth) = depth.checked_sub(1) else {
                let kind = ErrorKind::NestedTooDeep { limit: MAX_DEPTH };
                return Err(Error::new(kind, reader.place()).at(reader.offset()));
            };
            let element_type = ValueType::read(reader)?;
            let len = reader.u64()?;
            skip_elements(reader, element_type, len, depth)
        }
        (_, None) => reader.string().map(drop),
    }
}

/// Moves past `len` elements of an array.
fn skip_elements(
    reader: &mut Reader<'_>,
    element_type: ValueType,
    len: u64,
    depth: u32,
) -> Result<(), Error> {
    // Every element has at least one byte. So the loop below is bounded by the length of the file.
    let min_bytes = len.saturating_mul(element_type.min_bytes());
    if element_type.n_bytes().is_some() || min_bytes > reader.n_left() {
        return reader.take(min_bytes).map(drop);
    }
    (0..len).try_for_each(|_| skip(reader, element_type, depth))
}

/// True if `raw` is exactly `len` elements of this type.
pub(super) fn are_elements(element_type: ValueType, len: u64, raw: &[u8]) -> bool {
    let mut reader = Reader::new(raw, Place::File);
    skip_elements(&mut reader, element_type, len, MAX_DEPTH.saturating_sub(1)).is_ok() && reader.n_left() == 0
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, array, string};
    use super::super::{Entry, File};
    use super::*;

    /// Reads the value of the one entry `k` through `get`.
    fn get<T>(
        type_id: u32,
        raw: &[u8],
        get: impl Fn(&Value<'static>) -> Result<T, Error>,
    ) -> Result<T, String> {
        let bytes = Builder::new().entry("k", type_id, raw).build();
        let file = File::parse(bytes.leak()).unwrap();
        let value = file.metadata().get("k").map(Entry::value).unwrap();
        assert_eq!((value.value_type().id(), value.raw()), (type_id, raw));
        get(&value).map_err(|error| error.to_string())
    }

    #[test]
    fn integers_of_every_type_are_read_as_one() {
        for (type_id, n_bytes) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (10, 8), (11, 8)] {
            let mut raw = vec![0; n_bytes];
            raw[0] = 100;
            assert_eq!(get(type_id, &raw, Value::as_u32), Ok(100));
            assert_eq!(get(type_id, &raw, Value::as_u64), Ok(100));
            assert_eq!(get(type_id, &raw, Value::as_i64), Ok(100));
        }
    }

    #[test]
    fn integers_that_do_not_fit_are_refused_by_range() {
        let minus_one = [0xff; 8];
        assert_eq!(get(11, &minus_one, Value::as_i64), Ok(-1));
        assert_eq!(
            get(5, &minus_one[..4], Value::as_u32),
            Err("metadata 'k' is -1, expected 0 to 4294967295".to_owned())
        );
        assert_eq!(
            get(11, &minus_one, Value::as_u64),
            Err("metadata 'k' is -1, expected 0 to 18446744073709551615".to_owned())
        );
        assert_eq!(
            get(10, &minus_one, Value::as_i64),
            Err(format!("metadata 'k' is {}, expected {} to {}", u64::MAX, i64::MIN, i64::MAX))
        );
    }

    #[test]
    fn other_values_are_read_as_their_type() {
        assert_eq!(get(6, &0.5f32.to_le_bytes(), Value::as_f32), Ok(0.5));
        assert_eq!(get(6, &0.5f32.to_le_bytes(), Value::as_f64), Ok(0.5));
        assert_eq!(get(12, &0.5f64.to_le_bytes(), Value::as_f64), Ok(0.5));
        assert_eq!(get(7, &[1], Value::as_bool), Ok(true));
        assert_eq!(get(8, &string(b"text"), |v| v.as_str().map(str::to_owned)), Ok("text".to_owned()));
        assert_eq!(get(8, &string(b"\xff"), |v| v.as_bytes().map(<[u8]>::to_vec)), Ok(vec![0xff]));
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_both_types() {
        let no_elements = array(0, 0, &[]);
        let refuse = |found: &str, expected: &str| format!("metadata 'k' is {found}, expected {expected}");
        assert_eq!(get(9, &no_elements, Value::as_u32), Err(refuse("an array", "an unsigned integer")));
        assert_eq!(get(6, &[0; 4], Value::as_i64), Err(refuse("an f32", "an integer")));
        assert_eq!(get(7, &[1], Value::as_u64), Err(refuse("a bool", "an unsigned integer")));
        assert_eq!(get(12, &[0; 8], Value::as_f32), Err(refuse("an f64", "an f32")));
        assert_eq!(get(4, &[0; 4], Value::as_f64), Err(refuse("a u32", "a float")));
        assert_eq!(get(1, &[0], Value::as_bool), Err(refuse("an i8", "a bool")));
        assert_eq!(get(4, &[0; 4], |v| v.as_str().map(drop)), Err(refuse("a u32", "a string")));
        assert_eq!(get(8, &string(b""), |v| v.as_array().map(drop)), Err(refuse("a string", "an array")));
        assert_eq!(
            get(8, &string(b"\xff"), |v| v.as_str().map(drop)),
            Err("the value of metadata 'k' is not UTF-8".to_owned())
        );
    }

    #[test]
    fn an_unknown_value_type_is_refused_by_number() {
        for (type_id, element_type, found, position) in
            [(13, 0, 13, 33), (u32::MAX, 0, u32::MAX, 33), (9, 99, 99, 37)]
        {
            let bytes = Builder::new().entry("k", type_id, &array(element_type, 1, &[0])).build();
            let message = format!("metadata entry 1 of 1 has unknown value type {found}, at byte {position}");
            assert_eq!(File::parse(&bytes).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_long_array_is_not_printed() {
        let bytes = Builder::new().array("k", 0, 1000, &[7; 1000]).build();
        let file = File::parse(&bytes).unwrap();
        assert!(format!("{file:?}").len() < 3 * 1000 + 4000);
        let value = file.metadata().require("k").unwrap();
        assert_eq!(format!("{value:?}"), "Value { key: \"k\", value_type: Array, n_bytes: 1012 }");
    }
}
