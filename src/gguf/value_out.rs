//! New metadata values: the only place that encodes them.

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::value;
use super::value_type::ValueType;

/// A metadata value of a new file, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueOut {
    value_type: ValueType,
    raw: Vec<u8>,
}

impl ValueOut {
    /// A `u32`.
    pub fn u32(value: u32) -> ValueOut {
        ValueOut::scalar(ValueType::U32, &value.to_le_bytes())
    }

    /// An `i32`.
    pub fn i32(value: i32) -> ValueOut {
        ValueOut::scalar(ValueType::I32, &value.to_le_bytes())
    }

    /// A `u64`.
    pub fn u64(value: u64) -> ValueOut {
        ValueOut::scalar(ValueType::U64, &value.to_le_bytes())
    }

    /// An `f32`.
    pub fn f32(value: f32) -> ValueOut {
        ValueOut::scalar(ValueType::F32, &value.to_le_bytes())
    }

    /// A bool.
    pub fn bool(value: bool) -> ValueOut {
        ValueOut::scalar(ValueType::Bool, &[value.into()])
    }

    /// A string, which need not be text.
    pub fn string<S: AsRef<[u8]> + ?Sized>(value: &S) -> ValueOut {
        let mut raw = Vec::new();
        push_string(&mut raw, value.as_ref());
        ValueOut { value_type: ValueType::String, raw }
    }

    /// An integer of the given type, so that counts keep theirs. `None` if the type is not one of the eight integer types
    /// or does not hold `value`.
    pub fn integer(value_type: ValueType, value: u64) -> Option<ValueOut> {
        let signed = i64::try_from(value);
        let raw = match value_type {
            ValueType::U8 => u8::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::I8 => i8::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::U16 => u16::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::I16 => i16::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::U32 => u32::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::I32 => i32::try_from(value).ok()?.to_le_bytes().to_vec(),
            ValueType::U64 => value.to_le_bytes().to_vec(),
            ValueType::I64 => signed.ok()?.to_le_bytes().to_vec(),
            _ => return None,
        };
        Some(ValueOut { value_type, raw })
    }

    /// An array of `u32`.
    pub fn u32s(values: &[u32]) -> ValueOut {
        ValueOut::numbers(ValueType::U32, values.iter().map(|value| value.to_le_bytes()))
    }

    /// An array of `i32`.
    pub fn i32s(values: &[i32]) -> ValueOut {
        ValueOut::numbers(ValueType::I32, values.iter().map(|value| value.to_le_bytes()))
    }

    /// An array of `f32`.
    pub fn f32s(values: &[f32]) -> ValueOut {
        ValueOut::numbers(ValueType::F32, values.iter().map(|value| value.to_le_bytes()))
    }

    /// An array of bools.
    pub fn bools(values: &[bool]) -> ValueOut {
        ValueOut::numbers(ValueType::Bool, values.iter().map(|value| [u8::from(*value)]))
    }

    /// An array of strings.
    pub fn strings<S: AsRef<[u8]>>(values: &[S]) -> ValueOut {
        let mut raw = Vec::new();
        for value in values {
            push_string(&mut raw, value.as_ref());
        }
        ValueOut::array_of(ValueType::String, values.len() as u64, &raw)
    }

    /// An array of `len` elements that are encoded already.
    ///
    /// # Errors
    ///
    /// `BadArrayBytes`, naming `key`, if `elements` is not exactly `len` elements of this type.
    pub fn array(key: &str, element_type: ValueType, len: u64, elements: &[u8]) -> Result<ValueOut, Error> {
        if value::are_elements(element_type, len, elements) {
            return Ok(ValueOut::array_of(element_type, len, elements));
        }
        let n_bytes = elements.len() as u64;
        Err(Error::new(ErrorKind::BadArrayBytes { element_type, len, n_bytes }, Place::key(key)))
    }

    /// The type.
    pub fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// The bytes as they will be stored, after the value type.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// A value of the input, as it is stored.
    pub(super) fn copied(value_type: ValueType, raw: &[u8]) -> ValueOut {
        ValueOut::scalar(value_type, raw)
    }

    /// An array whose elements the caller has checked.
    pub(super) fn array_of(element_type: ValueType, len: u64, elements: &[u8]) -> ValueOut {
        let mut raw = Vec::new();
        raw.extend(element_type.id().to_le_bytes());
        raw.extend(len.to_le_bytes());
        raw.extend_from_slice(elements);
        ValueOut { value_type: ValueType::Array, raw }
    }

    fn numbers<const N: usize>(
        element_type: ValueType,
        values: impl ExactSizeIterator<Item = [u8; N]>,
    ) -> ValueOut {
        let len = values.len() as u64;
        let elements: Vec<u8> = values.flatten().collect();
        ValueOut::array_of(element_type, len, &elements)
    }

    fn scalar(value_type: ValueType, raw: &[u8]) -> ValueOut {
        ValueOut { value_type, raw: raw.to_vec() }
    }
}

/// Appends a string as files store it.
fn push_string(raw: &mut Vec<u8>, bytes: &[u8]) {
    raw.extend((bytes.len() as u64).to_le_bytes());
    raw.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{array, string};
    use super::*;

    #[test]
    fn values_are_encoded_as_the_format_says() {
        assert_eq!(ValueOut::u32(0x0102).raw(), [2, 1, 0, 0]);
        assert_eq!(ValueOut::i32(-1).raw(), [0xff; 4]);
        assert_eq!(ValueOut::u64(1).raw(), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ValueOut::f32(1.0).raw(), [0, 0, 0x80, 0x3f]);
        assert_eq!(ValueOut::bool(true).raw(), [1]);
        assert_eq!(ValueOut::string("ab").raw(), string(b"ab"));
        assert_eq!(ValueOut::u32s(&[1, 2]).raw(), array(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0]));
        assert_eq!(ValueOut::i32s(&[-1]).raw(), array(5, 1, &[0xff; 4]));
        assert_eq!(ValueOut::f32s(&[]).raw(), array(6, 0, &[]));
        assert_eq!(ValueOut::bools(&[true, false]).raw(), array(7, 2, &[1, 0]));
        assert_eq!(ValueOut::strings(&["a", ""]).raw(), array(8, 2, &[string(b"a"), string(b"")].concat()));
    }

    #[test]
    fn an_integer_keeps_its_type_or_is_refused() {
        let raw = |value_type, value| ValueOut::integer(value_type, value).map(|value| value.raw);
        assert_eq!(raw(ValueType::U8, 255), Some(vec![255]));
        assert_eq!(raw(ValueType::I8, 128), None);
        assert_eq!(raw(ValueType::I16, 300), Some(vec![44, 1]));
        assert_eq!(raw(ValueType::U32, 1 << 32), None);
        assert_eq!(raw(ValueType::I64, u64::MAX), None);
        assert_eq!(raw(ValueType::U64, u64::MAX), Some(vec![255; 8]));
        assert_eq!(raw(ValueType::F32, 1), None);
    }

    #[test]
    fn encoded_elements_must_be_as_many_as_said() {
        assert!(ValueOut::array("k", ValueType::U16, 2, &[0; 4]).is_ok());
        assert!(ValueOut::array("k", ValueType::String, 1, &string(b"ab")).is_ok());
        for (element_type, len, n_bytes) in [
            (ValueType::U16, 2, 5),
            (ValueType::U16, 2, 3),
            (ValueType::String, 2, 8),
            (ValueType::U64, u64::MAX, 8),
        ] {
            let error = ValueOut::array("k", element_type, len, &vec![0; n_bytes]).unwrap_err();
            let message =
                format!("metadata 'k' was given {n_bytes} bytes, not {len} elements of type {element_type}");
            assert_eq!(error.to_string(), message);
        }
    }
}
