//! Arrays of metadata values.
//!
//! Owns passing over elements and taking a selection of them. Elements are decoded by `Value`.

use std::fmt;

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::reader::Reader;
use super::value::Value;
use super::value_out::ValueOut;
use super::value_type::ValueType;

/// An array of a metadata value.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    key: &'a str,
    element_type: ValueType,
    len: usize,
    raw: &'a [u8],
}

impl<'a> Array<'a> {
    /// Reads element type and count. The elements are all that is left.
    pub(super) fn read(key: &'a str, mut reader: Reader<'a>) -> Result<Array<'a>, Error> {
        let element_type = ValueType::read(&mut reader)?;
        // Every element has at least one byte, so their number fits memory.
        let len = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
        Ok(Array { key, element_type, len, raw: reader.take(reader.n_left())? })
    }

    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of all elements, without element type and number.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The elements as values, in order. Takes time in proportion to the elements that are passed.
    pub fn elements(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Array { key, element_type, len, raw } = *self;
        let mut reader = Reader::new(raw, Place::File);
        // The bytes were checked at parsing, so `ok` never ends the iteration.
        (0..len).map_while(move |_| Value::read_element(&mut reader, key, element_type).ok())
    }

    /// The elements as signed integers. Bools are 0 and 1, as llama.cpp reads them.
    pub fn i64s(&self) -> impl Iterator<Item = Result<i64, Error>> + use<'a> {
        self.elements().map(|value| match value.value_type() {
            ValueType::Bool => value.as_bool().map(i64::from),
            _ => value.as_i64(),
        })
    }

    /// The elements as floats, from `f32` or `f64`.
    pub fn f64s(&self) -> impl Iterator<Item = Result<f64, Error>> + use<'a> {
        self.elements().map(|value| value.as_f64())
    }

    /// The elements as bools.
    pub fn bools(&self) -> impl Iterator<Item = Result<bool, Error>> + use<'a> {
        self.elements().map(|value| value.as_bool())
    }

    /// The elements as text.
    pub fn strs(&self) -> impl Iterator<Item = Result<&'a str, Error>> + use<'a> {
        self.elements().map(|value| value.as_str())
    }

    /// The elements as the bytes of strings, which need not be text.
    pub fn byte_strings(&self) -> impl Iterator<Item = Result<&'a [u8], Error>> + use<'a> {
        self.elements().map(|value| value.as_bytes())
    }

    /// An array of the elements at the indices `keep`, in that order. Their bytes are as they are. Each index that is not above
    /// the one before it costs a walk from the start.
    ///
    /// # Errors
    ///
    /// `NoElement` at the first index that is past the end.
    pub fn select(&self, keep: impl IntoIterator<Item = usize>) -> Result<ValueOut, Error> {
        let mut elements = self.elements().enumerate();
        let mut raw = Vec::new();
        let mut len = 0u64;
        let mut next = 0;
        for index in keep {
            if index < next {
                elements = self.elements().enumerate();
            }
            next = index.saturating_add(1);
            let Some((_, element)) = elements.find(|(i, _)| *i == index) else {
                let kind = ErrorKind::NoElement { index, len: self.len };
                return Err(Error::new(kind, Place::key(self.key)));
            };
            raw.extend_from_slice(element.raw());
            len = len.saturating_add(1);
        }
        Ok(ValueOut::array_of(self.element_type, len, &raw))
    }
}

impl<'a> Value<'a> {
    /// The value as an array.
    ///
    /// # Errors
    ///
    /// `WrongType` if the value is not an array.
    pub fn as_array(&self) -> Result<Array<'a>, Error> {
        if self.value_type() != ValueType::Array {
            return Err(self.wrong_type(ValueType::Array.with_article()));
        }
        Array::read(self.key(), self.reader())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("key", &self.key)
            .field("element_type", &self.element_type)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, array};
    use super::super::{File, Value};
    use super::*;

    /// The array with key `a` of a file.
    fn read(bytes: &[u8]) -> Array<'_> {
        let file = File::parse(bytes).unwrap();
        file.metadata().require("a").unwrap().as_array().unwrap()
    }

    fn collect<T>(values: impl Iterator<Item = Result<T, Error>>) -> Result<Vec<T>, String> {
        values.collect::<Result<_, Error>>().map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_bools_are_decoded() {
        let bytes = Builder::new().array("a", 3, 2, &[0xff, 0xff, 2, 0]).build();
        assert_eq!(collect(read(&bytes).i64s()), Ok(vec![-1, 2]));
        let bytes = Builder::new().array("a", 6, 1, &1.5f32.to_le_bytes()).build();
        assert_eq!(collect(read(&bytes).f64s()), Ok(vec![1.5]));
        assert_eq!(
            collect(read(&bytes).i64s()),
            Err("metadata 'a' is an f32, expected an integer".to_owned())
        );
        let bytes = Builder::new().array("a", 7, 3, &[0, 1, 2]).build();
        assert_eq!(collect(read(&bytes).bools()), Ok(vec![false, true, true]));
        assert_eq!(collect(read(&bytes).i64s()), Ok(vec![0, 1, 1]));
        let bytes = Builder::new().array("a", 10, 1, &[0xff; 8]).build();
        assert!(
            collect(read(&bytes).i64s()).unwrap_err().starts_with("metadata 'a' is 18446744073709551615,")
        );
    }

    #[test]
    fn strings_need_not_be_text() {
        let bytes = Builder::new().strings("a", &[b"one", b"", b"\xff"]).build();
        let strings: Vec<&[u8]> = read(&bytes).byte_strings().map(Result::unwrap).collect();
        assert_eq!(strings, [&b"one"[..], b"", b"\xff"]);
        assert_eq!(collect(read(&bytes).strs()), Err("the value of metadata 'a' is not UTF-8".to_owned()));
    }

    #[test]
    fn arrays_of_arrays_are_read() {
        let inner = [array(0, 2, &[1, 2]), array(0, 0, &[])].concat();
        let bytes = Builder::new().array("a", 9, 2, &inner).build();
        let outer = read(&bytes);
        assert_eq!(outer.element_type(), ValueType::Array);
        let lens: Vec<usize> = outer.elements().map(|value| value.as_array().unwrap().len()).collect();
        assert_eq!(lens, [2, 0]);
        let first = outer.elements().next().unwrap().as_array().unwrap();
        assert_eq!(collect(first.i64s()), Ok(vec![1, 2]));
    }

    #[test]
    fn arrays_are_nested_at_most_8_deep() {
        let nested = |depth: usize| {
            let innermost = array(0, 1, &[5]);
            let value = (1..depth).fold(innermost, |inner, _| array(9, 1, &inner));
            Builder::new().entry("a", 9, &value).build()
        };
        let bytes = nested(8);
        let mut value: Value<'_> = File::parse(&bytes).unwrap().metadata().require("a").unwrap();
        for _ in 0..8 {
            value = value.as_array().unwrap().elements().next().unwrap();
        }
        assert_eq!(value.as_u32().unwrap(), 5);
        for depth in [9, 10, 10_000] {
            let error = File::parse(&nested(depth)).unwrap_err();
            let text = "metadata entry 1 of 1 nests arrays more than 8 deep, at byte";
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_true_ends_the_file() {
        for (type_id, len) in [(8, u64::MAX), (9, u64::MAX / 12), (0, 1 << 62), (12, u64::MAX / 8), (8, 3)] {
            let bytes = Builder::new().array("a", type_id, len, b"0123456789").build();
            let bytes = &bytes[..24 + 8 + 1 + 4 + 12 + 10];
            let message = format!("file ends at byte {}, inside metadata entry 1 of 1", bytes.len());
            assert_eq!(File::parse(bytes).unwrap_err().to_string(), message, "type {type_id}");
        }
    }

    #[test]
    fn a_selection_keeps_the_bytes_of_its_elements() {
        let bytes = Builder::new().array("a", 2, 4, &[0, 0, 1, 1, 2, 2, 3, 3]).build();
        let selected = read(&bytes).select([0, 3]).unwrap();
        assert_eq!(selected.raw(), array(2, 2, &[0, 0, 3, 3]));
        assert_eq!(read(&bytes).select(0..4).unwrap().raw(), array(2, 4, &[0, 0, 1, 1, 2, 2, 3, 3]));
        assert_eq!(read(&bytes).select([]).unwrap().raw(), array(2, 0, &[]));

        let bytes = Builder::new().strings("a", &[b"x", b"yy", b"\xff"]).build();
        let selected = read(&bytes).select([1, 2]).unwrap();
        assert_eq!(selected, ValueOut::strings(&[&b"yy"[..], b"\xff"]));
        let turned = read(&bytes).select([2, 0, 0, 1]).unwrap();
        let expected = ValueOut::strings(&[&b"\xff"[..], b"x", b"x", b"yy"]);
        assert_eq!(turned, expected);
    }

    #[test]
    fn a_selection_of_what_is_not_there_is_refused() {
        let bytes = Builder::new().array("a", 0, 3, &[1, 2, 3]).build();
        for keep in [vec![3], vec![0, usize::MAX], vec![2, 0, 3]] {
            let error = read(&bytes).select(keep).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoElement { len: 3, .. }));
        }
        let error = read(&bytes).select([7]).unwrap_err();
        assert_eq!(error.to_string(), "metadata 'a' has 3 elements, and there is none at index 7");
    }
}
