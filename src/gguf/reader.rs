//! A cursor over the bytes of a file.
//!
//! The only place that decodes numbers. Every read checks the bytes that are left, and no length
//! from the file is added to a position before it is known to fit. Knows nothing of headers,
//! metadata or tensors.

use byteorder::{ByteOrder, LittleEndian};

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::value_type::ValueType;
use crate::gguf::position::FileOffset;

/// Reads little-endian numbers and strings from the front of bytes.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// Never more than `bytes.len()`.
    position: usize,
    place: Place,
}

impl<'a> Reader<'a> {
    /// A cursor at byte 0 of `bytes`. Errors name `place`.
    pub(super) fn new(bytes: &'a [u8], place: Place) -> Reader<'a> {
        Reader { bytes, position: 0, place }
    }

    /// Makes the following errors name `place`.
    pub(super) fn enter(&mut self, place: Place) {
        self.place = place;
    }

    /// The place that errors name.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// All bytes of the file, read or not.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The position as an index into [`Reader::bytes`].
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The position for an error or a layout.
    pub(super) fn offset(&self) -> FileOffset {
        FileOffset(self.position as u64)
    }

    /// Bytes that are left.
    pub(super) fn n_left(&self) -> u64 {
        self.rest().len() as u64
    }

    /// The bytes from `start`, a former position, up to the position.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    /// The next `n_bytes` bytes.
    ///
    /// # Errors
    ///
    /// `Truncated` if fewer bytes are left. The position stays.
    pub(super) fn take(&mut self, n_bytes: u64) -> Result<&'a [u8], Error> {
        let taken = usize::try_from(n_bytes).ok().and_then(|n| Some((n, self.rest().get(..n)?)));
        let (n, bytes) = taken.ok_or_else(|| self.truncated())?;
        self.position = self.position.saturating_add(n);
        Ok(bytes)
    }

    /// The next string: a `u64` length in bytes, then the bytes, not necessarily UTF-8.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Error> {
        let n_bytes = self.u64()?;
        self.take(n_bytes)
    }

    /// The next string, which must be UTF-8. `what` names it in the error.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, Error> {
        let position = self.offset();
        let bytes = self.string()?;
        str::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::NotUtf8 { what }, self.place()).at(position))
    }

    /// The next byte.
    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// The next byte as a signed number.
    pub(super) fn i8(&mut self) -> Result<i8, Error> {
        Ok(self.u8()?.cast_signed())
    }

    /// The next 2 bytes.
    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        Ok(LittleEndian::read_u16(self.take(2)?))
    }

    /// The next 2 bytes as a signed number.
    pub(super) fn i16(&mut self) -> Result<i16, Error> {
        Ok(LittleEndian::read_i16(self.take(2)?))
    }

    /// The next 4 bytes.
    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        Ok(LittleEndian::read_u32(self.take(4)?))
    }

    /// The next 4 bytes as a signed number.
    pub(super) fn i32(&mut self) -> Result<i32, Error> {
        Ok(LittleEndian::read_i32(self.take(4)?))
    }

    /// The next 8 bytes.
    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        Ok(LittleEndian::read_u64(self.take(8)?))
    }

    /// The next 8 bytes as a signed number.
    pub(super) fn i64(&mut self) -> Result<i64, Error> {
        Ok(LittleEndian::read_i64(self.take(8)?))
    }

    /// The next 4 bytes as a float.
    pub(super) fn f32(&mut self) -> Result<f32, Error> {
        Ok(LittleEndian::read_f32(self.take(4)?))
    }

    /// The next 8 bytes as a float.
    pub(super) fn f64(&mut self) -> Result<f64, Error> {
        Ok(LittleEndian::read_f64(self.take(8)?))
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    fn truncated(&self) -> Error {
        let file_len = self.bytes.len() as u64;
        Error::new(ErrorKind::Truncated { file_len }, self.place())
    }
}

impl ValueType {
    /// Reads a type id.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<ValueType, Error> {
        let position = reader.offset();
        let id = reader.u32()?;
        ValueType::from_id(id)
            .ok_or_else(|| Error::new(ErrorKind::UnknownValueType { id }, reader.place()).at(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian() {
        let bytes = [1, 0xff, 2, 1, 0xfe, 0xff, 4, 3, 2, 1, 0, 0, 0x80, 0x3f];
        let mut reader = Reader::new(&bytes, Place::Header);
        assert_eq!(reader.u8().unwrap(), 1);
        assert_eq!(reader.i8().unwrap(), -1);
        assert_eq!(reader.u16().unwrap(), 0x0102);
        assert_eq!(reader.i16().unwrap(), -2);
        assert_eq!(reader.u32().unwrap(), 0x0102_0304);
        assert_eq!(reader.f32().unwrap().to_bits(), 1f32.to_bits());
        assert_eq!(reader.n_left(), 0);
        assert_eq!(reader.since(10), [0, 0, 0x80, 0x3f]);
    }

    #[test]
    fn a_read_past_the_end_fails_and_stays() {
        let mut reader = Reader::new(&[1, 2, 3], Place::Entry { index: 16, n: 29 });
        let error = reader.u32().unwrap_err();
        assert_eq!(error.to_string(), "file ends at byte 3, inside metadata entry 17 of 29");
        assert_eq!(error.hint(), Some("the download may be incomplete"));
        assert_eq!(reader.position(), 0);
        assert_eq!(reader.take(3).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn a_huge_length_is_not_added_to_the_position() {
        for n_bytes in [u64::MAX, u64::MAX - 7, u64::from(u32::MAX)] {
            let mut bytes = n_bytes.to_le_bytes().to_vec();
            bytes.extend(b"short");
            let error = Reader::new(&bytes, Place::Header).string().unwrap_err();
            assert_eq!(error.to_string(), "file ends at byte 13, inside the header");
        }
    }
}
