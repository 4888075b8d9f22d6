//! The GGUF file format. A checked view of a file, and the layout and writer of a new one.
//!
//! Knows nothing of transformers, of calibration or of ggml. All numbers are little-endian:
//!
//! ```text
//! byte 0
//! +---------------------------------------------------------------------------+
//! | magic 'GGUF' | version u32 | n_tensors u64 | n_metadata u64               |  Header, 24 bytes
//! +---------------------------------------------------------------------------+
//! | key string | value type u32 | value                                       |  n_metadata times
//! |   string: length u64 in bytes, then the bytes                             |
//! |   array:  element type u32 | number of elements u64 | the elements        |
//! |   others: 1, 2, 4 or 8 bytes                                              |
//! +---------------------------------------------------------------------------+
//! | name string | n_dims u32 | n_dims x u64 | type u32 | data offset u64      |  n_tensors times
//! +---------------------------------------------------------------------------+
//! | zeros up to a multiple of the alignment ('general.alignment', else 32)    |
//! +---------------------------------------------------------------------------+  data start
//! | bytes of a tensor | zeros up to a multiple of the alignment               |  n_tensors times
//! +---------------------------------------------------------------------------+  end of file
//! ```
//!
//! Data offsets count from the data start. `n_dims` dimensions are stored with the row length,
//! `ne[0]` in ggml, first. The zeros after the last tensor may be missing.
//!
//! Reading: [`File::parse`] checks everything once and borrows from the bytes. Writing:
//! [`EntryOut`] and [`TensorOut`] say what the file will hold, [`Layout::new`] computes every
//! position, and [`write_head`] or [`write()`] proves them.
//!
//! Source: `docs/gguf.md` of ggml-org/ggml and `ggml/src/gguf.cpp` of the bundled llama.cpp, whose
//! limits apply here. We read more than that reader in two ways: arrays of arrays, and tensors in
//! another order.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

// From bytes to numbers and strings.
mod position;

mod reader;

// The head, in file order, and the places of data.
mod foreign_type;

mod header;
mod ik_type;
mod metadata;
mod places;
mod tensor;
mod tensor_type;

// What metadata holds.
mod array;
mod value;
mod value_type;

// A new file: what it holds, where, and writing it.
mod layout;
mod output;
mod value_out;
mod writer;

// What can be wrong, and where.
mod error;
mod place;

#[cfg(test)]
mod testing;

pub use crate::gguf::place::MAX_NAME_BYTES;
pub use crate::gguf::position::{DataOffset, FileOffset, align_up};
pub use array::Array;
pub use error::{Bug, Error, ErrorKind, OTHER_TYPES};
pub use foreign_type::ForeignType;
pub use header::{Header, MAGIC};
pub use layout::{Layout, PlannedEntry, PlannedTensor};
pub use metadata::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Entry, Metadata};
pub use output::{EntryOut, TensorOut};
pub use place::{Place, Quoted};
pub use tensor::{MAX_DIMS, TensorInfo, TensorTable};
pub use tensor_type::TensorType;
pub use value::Value;
pub use value_out::ValueOut;
pub use value_type::ValueType;
pub use writer::{write, write_head};

use reader::Reader;

/// A checked view of a GGUF file. Everything is borrowed from its bytes; opening it copies no
/// strings.
#[derive(Clone, Debug)]
pub struct File<'a> {
    bytes: &'a [u8],
    header: Header,
    metadata: Metadata<'a>,
    tensors: TensorTable<'a>,
    alignment: u64,
    data_start: FileOffset,
    trailing: &'a [u8],
    ends_padded: bool,
}

impl<'a> File<'a> {
    /// Parses the head of a file. Checks that every tensor lies inside the file.
    ///
    /// Takes time in proportion to the head; the bytes of tensors are not touched.
    ///
    /// # Errors
    ///
    /// If the file is not GGUF, is damaged or cut off, or could be understood in two ways. Such are two entries with one key,
    /// two tensors with one name, and tensors that overlap or have more room than their types take.
    pub fn parse(bytes: &'a [u8]) -> Result<File<'a>, Error> {
        let mut reader = Reader::new(bytes, Place::Header);
        let header = Header::read(&mut reader)?;
        let metadata = Metadata::read(&mut reader, header.n_metadata)?;
        let alignment = metadata.alignment()?;
        let infos = tensor::read_infos(&mut reader, header.n_tensors)?;

        let data_start = skip_head_padding(&mut reader, alignment, infos.is_empty())?;
        let tensors = TensorTable::check(infos, bytes, alignment, data_start)?;
        places::check_places(tensors.as_slice(), alignment, data_start)?;

        let file_len = bytes.len() as u64;
        let end = tensors.iter().map(TensorInfo::end).max().unwrap_or(data_start);
        let padded_end = align_up(end.0, alignment).filter(|padded| *padded <= file_len);
        let trailing = bytes_from(bytes, padded_end.unwrap_or(end.0));
        let ends_padded = padded_end.is_some();
        Ok(File { bytes, header, metadata, tensors, alignment, data_start, trailing, ends_padded })
    }

    /// The same data under another head. `head` is what a file begins with, up to its tensor data, and tensor `i` of it is
    /// tensor `sources[i]` of this file. Positions and bytes stay those of this file.
    ///
    /// # Errors
    ///
    /// If `head` is not well-formed, or says another type or shape of a tensor.
    pub fn under_head(&self, head: &'a [u8], sources: &[usize]) -> Result<File<'a>, Error> {
        let mut reader = Reader::new(head, Place::Header);
        let header = Header::read(&mut reader)?;
        let metadata = Metadata::read(&mut reader, header.n_metadata)?;
        let infos = tensor::read_infos(&mut reader, header.n_tensors)?;
        Ok(File { header, metadata, tensors: self.tensors.under(infos, sources)?, ..self.clone() })
    }

    /// The first metadata entries of a file, `n` at most. They are checked one by one, and nothing after them is read. None of
    /// what is no GGUF file.
    pub fn first_entries(bytes: &'a [u8], n: u64) -> Vec<Entry<'a>> {
        let mut reader = Reader::new(bytes, Place::Header);
        match Header::read(&mut reader) {
            Ok(header) => Metadata::read_first(&mut reader, header.n_metadata.min(n)),
            Err(_) => Vec::new(),
        }
    }

    /// Magic, version and counts of a perhaps incomplete file. `None` if it is no GGUF file.
    pub fn first_header(bytes: &[u8]) -> Option<Header> {
        Header::read(&mut Reader::new(bytes, Place::Header)).ok()
    }

    /// Magic, version and counts.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The metadata entries, in file order.
    pub fn metadata(&self) -> &Metadata<'a> {
        &self.metadata
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &TensorTable<'a> {
        &self.tensors
    }

    /// What data offsets are a multiple of, in bytes: a power of two, `general.alignment` or 32.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where tensor data starts: the end of the tensor infos and their padding.
    pub fn data_start(&self) -> FileOffset {
        self.data_start
    }

    /// Whether llama.cpp can map the file: every tensor starts at a multiple of [`DEFAULT_ALIGNMENT`].
    pub fn is_mappable(&self) -> bool {
        let mut tensors = self.tensors.iter();
        tensors.all(|tensor| tensor.position().0.is_multiple_of(DEFAULT_ALIGNMENT))
    }

    /// The whole file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes of a tensor of this file, without padding. The same as [`TensorInfo::bytes`].
    pub fn tensor_bytes(&self, tensor: &TensorInfo<'a>) -> &'a [u8] {
        tensor.bytes()
    }

    /// Whether the last tensor is followed by its padding, or needs none. In a file without tensors, true if the tensor infos
    /// are.
    ///
    /// A [`Layout`] with the same `pad_end` ends as this file does.
    pub fn ends_padded(&self) -> bool {
        self.ends_padded
    }

    /// Bytes after the last tensor and its padding, outside the format. Mostly empty.
    pub fn trailing_bytes(&self) -> &'a [u8] {
        self.trailing
    }
}

/// Moves to the data start and returns it. Only a file without tensors may end before.
fn skip_head_padding(reader: &mut Reader<'_>, alignment: u64, no_tensors: bool) -> Result<FileOffset, Error> {
    reader.enter(Place::HeadPadding);
    let head_end = reader.offset();
    let n_bytes = align_up(head_end.0, alignment).and_then(|start| start.checked_sub(head_end.0));
    match reader.take(n_bytes.unwrap_or(u64::MAX)) {
        Err(_) if no_tensors => Ok(head_end),
        Err(error) => Err(error),
        Ok(_) => Ok(reader.offset()),
    }
}

/// The bytes of a file from `start` on.
fn bytes_from(bytes: &[u8], start: u64) -> &[u8] {
    usize::try_from(start).ok().and_then(|start| bytes.get(start..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::testing::{Builder, array};
    use super::*;

    /// A file with something of everything.
    fn sample() -> Vec<u8> {
        Builder::new()
            .u32("general.alignment", 32)
            .string("name", "sample")
            .strings("tokens", &[b"a", b"", b"\xff"])
            .array("lens", 5, 3, &[1; 12])
            .array("nested", 9, 2, &[array(7, 1, &[1]), array(9, 0, &[])].concat())
            .u64("count", 1 << 40)
            .tensor("a", &[32, 2], 3, &[7; 40])
            .tensor("b", &[3], 0, &[1; 12])
            .without_end_padding()
            .build()
    }

    /// Asks for everything that a file holds.
    fn walk(file: &File<'_>) {
        fn walk_value(value: Value<'_>) {
            let _ = (value.as_i64(), value.as_u32(), value.as_f64(), value.as_bool(), value.as_str());
            if let Ok(array) = value.as_array() {
                assert_eq!(array.elements().count(), array.len());
                assert_eq!(array.select(0..array.len()).unwrap().raw(), value.raw());
                array.elements().for_each(walk_value);
            }
        }
        file.metadata().iter().for_each(|entry| walk_value(entry.value()));
        for tensor in file.tensors() {
            assert_eq!(tensor.bytes().len() as u64, tensor.n_bytes());
        }
        let _ = format!("{file:?}");
    }

    #[test]
    fn the_first_entries_are_read_alone() {
        let bytes = sample();
        let keys = |bytes, n| -> Vec<&str> {
            let entries = File::first_entries(bytes, n);
            entries.iter().map(Entry::key).collect()
        };
        assert_eq!(keys(&bytes, 2), ["general.alignment", "name"]);
        assert_eq!(keys(&bytes, 100).len(), 6);
        assert_eq!(keys(b"Dear reader, this is a letter.", 100), [""; 0]);
        for len in 0..bytes.len() {
            assert!(keys(&bytes[..len], 100).len() <= 6);
        }
    }

    #[test]
    fn a_file_cut_off_at_any_byte_is_refused() {
        let bytes = sample();
        walk(&File::parse(&bytes).unwrap());
        for len in 0..bytes.len() {
            let error = File::parse(&bytes[..len]).unwrap_err();
            assert_eq!(error.hint(), Some("the download may be incomplete"), "{len}: {error}");
        }
    }

    #[test]
    fn no_flipped_byte_causes_a_panic() {
        let bytes = sample();
        for position in 0..bytes.len() {
            for byte in [0, 1, 9, 0x7f, 0x80, 0xff, bytes[position] ^ 1, bytes[position].wrapping_add(1)] {
                let mut flipped = bytes.clone();
                flipped[position] = byte;
                match File::parse(&flipped) {
                    Ok(file) => walk(&file),
                    Err(error) => assert_eq!(error.to_string().lines().count(), 1),
                }
            }
        }
    }

    #[test]
    fn no_run_of_flipped_bytes_causes_a_panic() {
        let bytes = sample();
        for start in 0..bytes.len() - 8 {
            for run in [[0xff; 8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0x80]] {
                let mut flipped = bytes.clone();
                flipped[start..start + 8].copy_from_slice(&run);
                if let Ok(file) = File::parse(&flipped) {
                    walk(&file);
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_file_is_padded_or_not() {
        let builder = Builder::new().tensor("a", &[33], 24, &[0; 33]);
        let padded = builder.build();
        let bare = builder.without_end_padding().build();
        let end = |bytes: &[u8]| {
            let file = File::parse(bytes).unwrap();
            (file.ends_padded(), file.trailing_bytes().len())
        };
        assert_eq!(end(&padded), (true, 0));
        assert_eq!(end(&bare), (false, 0));
        assert_eq!(end(&padded[..padded.len() - 1]), (false, 30));
        assert_eq!(end(&[&padded[..], b"tail"].concat()), (true, 4));
    }

    #[test]
    fn a_file_without_tensors_needs_no_padding() {
        let padded = Builder::new().u32("k", 1).build();
        let file = File::parse(&padded).unwrap();
        assert_eq!((file.data_start(), file.ends_padded()), (FileOffset(64), true));
        let file = File::parse(&padded[..41]).unwrap();
        assert_eq!((file.data_start(), file.ends_padded()), (FileOffset(41), false));
    }

    #[test]
    fn tensor_data_needs_its_padding() {
        let bytes = Builder::new().tensor("none", &[0], 24, b"").build();
        let cut = &bytes[..bytes.len() - 1];
        let message = format!("file ends at byte {}, inside the padding before the tensor data", cut.len());
        assert_eq!(File::parse(cut).unwrap_err().to_string(), message);
    }
}
