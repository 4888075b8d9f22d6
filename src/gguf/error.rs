//! What is wrong with a file, and where.
//!
//! Owns the wording of every message of the `gguf` module. A message is one line, whatever the file
//! holds: names are shortened and control characters escaped. The path is not known here; the
//! caller puts it in front.

use std::fmt;
use std::io;

use super::foreign_type::ForeignType;
use super::place::{Place, Quoted};
use super::tensor_type::TensorType;
use super::value_type::ValueType;
use crate::gguf::place::MAX_NAME_BYTES;
use crate::gguf::position::FileOffset;

/// The reason why reading or writing a file failed, and its place.
///
/// `Display` is one line in lower case without a final stop. Match on [`Error::kind`], never on the
/// text.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    place: Place,
    position: Option<FileOffset>,
}

/// Why a tensor may have more room than its type takes.
pub const OTHER_TYPES: &str =
    "the file may be of a program that numbers tensor types in another way than llama.cpp";

/// What is wrong. Numbers are as found in the file; lengths are in bytes where not said otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file has no bytes.
    Empty,
    /// The first bytes, at most four, are not the magic `GGUF`.
    NotGguf {
        /// The bytes found.
        start: Vec<u8>,
    },
    /// The version is stored in big-endian order.
    BigEndian {
        /// The version, read in its own byte order.
        version: u32,
    },
    /// The version is neither 2 nor 3.
    Version {
        /// The version found.
        version: u32,
    },
    /// The file ends before the place is complete.
    Truncated {
        /// Bytes in the file.
        file_len: u64,
    },
    /// An impossible count in the header: even the smallest entries do not fit.
    Count {
        /// What is counted, in the plural.
        what: &'static str,
        /// The count found.
        count: u64,
        /// Bytes left in the file for the counted entries.
        n_bytes_left: u64,
    },
    /// A metadata key has no characters.
    EmptyKey,
    /// A text is not UTF-8.
    NotUtf8 {
        /// Which text of the place: its key, name or value.
        what: &'static str,
    },
    /// The id of a metadata value type is not known.
    UnknownValueType {
        /// The id found.
        id: u32,
    },
    /// Arrays of arrays are nested too deep.
    NestedTooDeep {
        /// The most levels that are read.
        limit: u32,
    },
    /// Two metadata entries have one key, or two tensors one name.
    Duplicate {
        /// Index of the first one.
        first: usize,
        /// Index of the second one.
        second: usize,
    },
    /// A metadata key that is needed does not exist.
    MissingKey,
    /// A metadata value, or an array element, of another type.
    WrongType {
        /// The type found.
        found: ValueType,
        /// The type expected, with its article.
        expected: &'static str,
    },
    /// An integer does not fit the type asked for.
    OutOfRange {
        /// The integer found.
        found: i128,
        /// The smallest that fits.
        min: i128,
        /// The largest that fits.
        max: i128,
    },
    /// An element was asked for that the array does not have.
    NoElement {
        /// The index asked for.
        index: usize,
        /// Elements in the array.
        len: usize,
    },
    /// Raw bytes that do not hold the given number of array elements.
    BadArrayBytes {
        /// The element type given.
        element_type: ValueType,
        /// The number of elements given.
        len: u64,
        /// Bytes given.
        n_bytes: u64,
    },
    /// The alignment is not a power of two.
    BadAlignment {
        /// The alignment found.
        alignment: u64,
    },
    /// A tensor name is longer than [`MAX_NAME_BYTES`].
    NameTooLong {
        /// Bytes in the name.
        n_bytes: u64,
    },
    /// A tensor has more than four dimensions.
    TooManyDims {
        /// The number of dimensions found.
        n_dims: u64,
    },
    /// The id of a tensor type is not known.
    UnknownTensorType {
        /// The id found.
        id: u32,
    },
    /// The id of a tensor type that ggml does not read. It has removed it, or it is of another program.
    ForeignTensorType {
        /// The id found.
        id: u32,
        /// What it is.
        foreign: ForeignType,
    },
    /// A row is not a whole number of quantisation blocks.
    PartialBlock {
        /// Elements in a row, `ne[0]`.
        n_elements: u64,
        /// The tensor's type.
        tensor_type: TensorType,
    },
    /// A tensor whose elements or bytes do not fit 63 bits.
    TooManyElements {
        /// The dimensions, `ne[0]` first; unused ones are 1.
        dims: [u64; 4],
    },
    /// Tensor data that starts at an unaligned offset.
    Misaligned {
        /// The offset found, from the start of tensor data.
        offset: u64,
        /// The alignment of the file.
        alignment: u64,
    },
    /// The data of a tensor ends after the end of the file.
    PastEnd {
        /// Where the tensor ends, from byte 0. Wider than a position, so the sum of hostile numbers
        /// is exact.
        end: u128,
        /// Bytes in the file.
        file_len: u64,
    },
    /// The data of a tensor starts inside another one.
    Overlap {
        /// Where the tensor starts.
        start: FileOffset,
        /// The name of the other tensor.
        other: String,
        /// Where the other tensor ends.
        other_end: FileOffset,
    },
    /// More room after a tensor than its type takes.
    Gap {
        /// The tensor's type.
        tensor_type: TensorType,
        /// The tensor's bytes, without padding.
        n_bytes: u64,
        /// Bytes from its start to the start of the next tensor.
        room: u64,
    },
    /// The first tensor does not start at the start of tensor data.
    LateStart {
        /// The offset found, from the start of tensor data.
        offset: u64,
    },
    /// A position of the output does not fit in 64 bits.
    TooLarge,
    /// The program is at fault, not the file or the disk.
    Bug(Bug),
    /// The output could not be written.
    Io(io::Error),
}

/// What the writer did otherwise than it should have.
#[derive(Debug)]
pub enum Bug {
    /// A tensor of another type or shape than in the other head.
    OtherData,
    /// A layout's alignment differs from the one in its metadata.
    OtherAlignment {
        /// The alignment of the layout.
        alignment: u64,
    },
    /// The writer is not where the layout says that the place starts.
    WrongStart {
        /// The position of the layout.
        planned: FileOffset,
        /// The position of the writer.
        actual: FileOffset,
    },
    /// The writer is not where the layout says that the place ends.
    WrongEnd {
        /// The position of the layout.
        planned: FileOffset,
        /// The position of the writer.
        actual: FileOffset,
    },
}

impl Error {
    /// An error of this kind about this place.
    pub(super) fn new(kind: ErrorKind, place: Place) -> Error {
        Error(Box::new(Inner { kind, place, position: None }))
    }

    /// The same error with the byte at which it was noticed.
    pub(super) fn at(mut self, position: FileOffset) -> Error {
        self.0.position = Some(position);
        self
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The part of the file that is wrong.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The byte of the error, where the message adds one.
    pub fn position(&self) -> Option<FileOffset> {
        self.0.position
    }

    /// Whether the program is at fault, not the file or the disk.
    pub fn is_bug(&self) -> bool {
        matches!(self.kind(), ErrorKind::Bug(_))
    }

    /// What the user can do, where we know it.
    pub fn hint(&self) -> Option<&str> {
        match self.kind() {
            ErrorKind::Empty
            | ErrorKind::Truncated { .. }
            | ErrorKind::Count { .. }
            | ErrorKind::PastEnd { .. } => Some("the download may be incomplete"),
            ErrorKind::NotGguf { start } => match start.as_slice() {
                b"vers" => Some("this may be a Git LFS pointer; 'git lfs pull' fetches the file itself"),
                b"PK\x03\x04" => Some("this may be a PyTorch checkpoint; convert it to GGUF first"),
                b"lmgg" => Some(
                    "this is a format older than GGUF; convert the model again, unless it is one of whisper.cpp, which \
                     are no language models",
                ),
                b"fmgg" | b"tjgg" => Some("this is a format older than GGUF; convert the model again"),
                _ => None,
            },
            ErrorKind::BigEndian { .. } => Some("gguf_convert_endian.py of llama.cpp changes the byte order"),
            ErrorKind::Gap { .. } => Some(OTHER_TYPES),
            ErrorKind::Version { version: 1 } => {
                Some("convert or quantize the model again with a current llama.cpp")
            }
            ErrorKind::NameTooLong { .. } | ErrorKind::TooManyDims { n_dims: 5 } => {
                Some("image and video models have such tensors; language models have not")
            }
            ErrorKind::ForeignTensorType { foreign, .. } => Some(foreign.hint()),
            ErrorKind::UnknownTensorType { .. } => {
                Some("a newer llama.cpp than the bundled one, or a fork of it, may have written it")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.write(&self.0.place, f)?;
        match self.0.position {
            Some(position) => write!(f, ", at byte {position}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.kind() {
            ErrorKind::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl ErrorKind {
    /// Writes the message for `place`, without the position.
    fn write(&self, place: &Place, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ErrorKind as K;
        match self {
            K::Empty => write!(f, "file is empty, expected 'GGUF'"),
            K::NotGguf { start } => {
                write!(f, "not a GGUF file: starts with {}, expected 'GGUF'", shown_start(start))
            }
            K::BigEndian { version } => write!(f, "big-endian GGUF (version {version}) is not supported"),
            K::Version { version } => {
                write!(f, "GGUF version {version} is not supported, expected version 2 or 3")
            }
            K::Truncated { file_len } => write!(f, "file ends at byte {file_len}, inside {place}"),
            K::Count { what, count, n_bytes_left } => {
                write!(f, "{place} counts {count} {what}, but only {n_bytes_left} bytes of the file are left")
            }
            K::EmptyKey => write!(f, "{place} has an empty key"),
            K::NotUtf8 { what } => write!(f, "the {what} of {place} is not UTF-8"),
            K::UnknownValueType { id } => write!(f, "{place} has unknown value type {id}"),
            K::NestedTooDeep { limit } => write!(f, "{place} nests arrays more than {limit} deep"),
            K::Duplicate { first, second } => {
                let (first, second) = (first.saturating_add(1), second.saturating_add(1));
                write!(f, "{place} appears twice, as number {first} and number {second}")
            }
            K::MissingKey => write!(f, "{place} is missing"),
            K::WrongType { found, expected } => {
                write!(f, "{place} is {}, expected {expected}", found.with_article())
            }
            K::OutOfRange { found, min, max } => write!(f, "{place} is {found}, expected {min} to {max}"),
            K::NoElement { index, len } => {
                write!(f, "{place} has {len} elements, and there is none at index {index}")
            }
            K::BadArrayBytes { element_type, len, n_bytes } => {
                write!(f, "{place} was given {n_bytes} bytes, not {len} elements of type {element_type}")
            }
            K::BadAlignment { alignment } => {
                write!(f, "{place} is {alignment}, expected a power of two below 2^32")
            }
            K::NameTooLong { n_bytes } => {
                write!(f, "{place} has a name of {n_bytes} bytes, expected at most {MAX_NAME_BYTES}")
            }
            K::TooManyDims { n_dims } => write!(f, "{place} has {n_dims} dimensions, expected at most 4"),
            K::UnknownTensorType { id } => write!(f, "{place} has unknown tensor type {id}"),
            K::ForeignTensorType { id, foreign } => write!(f, "{place} has tensor type {id}, {foreign}"),
            K::PartialBlock { n_elements, tensor_type } => {
                let expected =
                    format!("a multiple of {}, the block size of {tensor_type}", tensor_type.block_size());
                write!(f, "{place} has {n_elements} elements per row, expected {expected}")
            }
            K::TooManyElements { dims } => {
                let shape = dims.map(|dim| dim.to_string()).join(" x ");
                write!(f, "{place} has dimensions {shape}, more than fit in 63 bits")
            }
            K::Misaligned { offset, alignment } => write!(
                f,
                "{place} has data offset {offset}, expected a multiple of the alignment {alignment}"
            ),
            K::PastEnd { end, file_len } => {
                write!(f, "{place} ends at byte {end}, but the file has {file_len} bytes")
            }
            K::Overlap { start, other, other_end } => write!(
                f,
                "{place} starts at byte {start}, inside tensor {}, which ends at byte {other_end}",
                Quoted(other)
            ),
            K::Gap { tensor_type, n_bytes, room } => {
                write!(f, "{place} has type {} ({tensor_type}), {n_bytes} bytes, ", tensor_type.id())?;
                write!(f, "but the next tensor starts {room} bytes after its start")
            }
            K::LateStart { offset } => {
                write!(f, "{place} has data offset {offset}, but no tensor lies before it")
            }
            K::TooLarge => write!(f, "{place} would end after byte {}", u64::MAX),
            K::Bug(bug) => bug.write(place, f),
            K::Io(error) => write!(f, "write of {place} failed: {error}"),
        }
    }
}

impl Bug {
    fn write(&self, place: &Place, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bug::OtherData => write!(f, "bug: {place} is of another type or shape in the new head"),
            Bug::OtherAlignment { alignment } => {
                write!(f, "bug: layout aligned to {alignment} bytes, but {place} says otherwise")
            }
            Bug::WrongStart { planned, actual } => {
                write!(f, "bug: {place} planned at byte {planned}, writer is at {actual}")
            }
            Bug::WrongEnd { planned, actual } => {
                write!(f, "bug: {place} planned to end at byte {planned}, writer is at {actual}")
            }
        }
    }
}

/// The first bytes of a file: as text if all are printable ASCII, else in hexadecimal.
fn shown_start(start: &[u8]) -> String {
    match str::from_utf8(start) {
        Ok(text) if text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) => format!("'{text}'"),
        _ => format!("bytes{}", start.iter().map(|byte| format!(" {byte:02x}")).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_binary_file_is_shown_in_hexadecimal() {
        let kind = ErrorKind::NotGguf { start: b"\x7fELF".to_vec() };
        let text = Error::new(kind, Place::Header).to_string();
        assert_eq!(text, "not a GGUF file: starts with bytes 7f 45 4c 46, expected 'GGUF'");
    }

    #[test]
    fn a_misplaced_tensor_is_a_bug() {
        let (planned, actual) = (FileOffset(4096), FileOffset(4064));
        let bug = Bug::WrongStart { planned, actual };
        let error = Error::new(ErrorKind::Bug(bug), Place::tensor("blk.2.attn_q.weight"));
        assert_eq!(
            error.to_string(),
            "bug: tensor 'blk.2.attn_q.weight' planned at byte 4096, writer is at 4064"
        );
        assert!(error.is_bug());
    }

    #[test]
    fn a_write_error_keeps_its_source() {
        let io = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::new(ErrorKind::Io(io), Place::tensor("a")).at(FileOffset(64));
        assert!(error.to_string().starts_with("write of tensor 'a' failed: "));
        assert!(error.to_string().ends_with(", at byte 64"));
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn hints_name_the_remedy() {
        let hint = |start: &[u8]| {
            let error = Error::new(ErrorKind::NotGguf { start: start.to_vec() }, Place::Header);
            error.hint().map(str::to_owned)
        };
        assert!(hint(b"vers").is_some_and(|text| text.contains("Git LFS")));
        assert!(hint(b"Dear").is_none());
    }
}
