//! The first 24 bytes: magic, version and counts.
//!
//! Decides which versions of GGUF are read. Knows nothing of what is counted.

use super::error::{Error, ErrorKind};
use super::place::Place;
use super::reader::Reader;

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Magic, version and counts of a file.
///
/// Versions 2 and 3 have the same bytes; 3 was counted up for big-endian files, which are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Number of tensors, checked when the tensor table is read.
    pub n_tensors: u64,
    /// Number of metadata entries, checked when the metadata is read.
    pub n_metadata: u64,
}

impl Header {
    /// Bytes of a header in the file.
    pub const N_BYTES: u64 = 24;

    /// Reads the header at the start of a file.
    ///
    /// # Errors
    ///
    /// If the file is empty or too short, is not GGUF, or is of a version or byte order that is not
    /// read.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Header, Error> {
        reader.enter(Place::Header);
        check_magic(reader.bytes())?;
        reader.take(MAGIC.len() as u64)?;
        let version = reader.u32()?;
        check_version(version)?;
        Ok(Header { version, n_tensors: reader.u64()?, n_metadata: reader.u64()? })
    }
}

/// Checks the magic. The file may be shorter than it.
fn check_magic(bytes: &[u8]) -> Result<(), Error> {
    let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if start.is_empty() {
        Err(Error::new(ErrorKind::Empty, Place::Header))
    } else if MAGIC.starts_with(start) {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::NotGguf { start: start.to_vec() }, Place::Header))
    }
}

/// Checks that a version is one that we read and write.
pub(super) fn check_version(version: u32) -> Result<(), Error> {
    let kind = match version {
        2 | 3 => return Ok(()),
        // Small in the other byte order (same test as in ggml/src/gguf.cpp).
        swapped if swapped != 0 && swapped.trailing_zeros() >= 16 => {
            ErrorKind::BigEndian { version: swapped.swap_bytes() }
        }
        version => ErrorKind::Version { version },
    };
    Err(Error::new(kind, Place::Header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Header, String> {
        Header::read(&mut Reader::new(bytes, Place::File)).map_err(|error| error.to_string())
    }

    fn header(version: u32) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(5u64.to_le_bytes());
        bytes
    }

    #[test]
    fn versions_2_and_3_are_read() {
        for version in [2, 3] {
            let bytes = header(version);
            assert_eq!(bytes.len() as u64, Header::N_BYTES);
            assert_eq!(read(&bytes), Ok(Header { version, n_tensors: 7, n_metadata: 5 }));
        }
    }

    #[test]
    fn other_versions_are_refused_by_number() {
        for version in [0, 1, 4, 70_000, u32::MAX] {
            let message = format!("GGUF version {version} is not supported, expected version 2 or 3");
            assert_eq!(read(&header(version)), Err(message));
        }
        assert!(check_version(1).unwrap_err().hint().is_some());
    }

    #[test]
    fn big_endian_is_refused_by_name() {
        for version in [1u32, 2, 3] {
            let message = format!("big-endian GGUF (version {version}) is not supported");
            assert_eq!(read(&header(version.swap_bytes())), Err(message));
        }
    }

    #[test]
    fn a_file_that_is_not_gguf_is_refused_by_its_start() {
        let message = |start: &str| Err(format!("not a GGUF file: starts with {start}, expected 'GGUF'"));
        assert_eq!(read(b"Dear John,"), message("'Dear'"));
        assert_eq!(read(b"GGML"), message("'GGML'"));
        assert_eq!(read(b"Hi"), message("'Hi'"));
        assert_eq!(read(b"GG\n\0"), message("bytes 47 47 0a 00"));
    }

    #[test]
    fn a_short_file_ends_inside_the_header() {
        assert_eq!(read(b""), Err("file is empty, expected 'GGUF'".to_owned()));
        let bytes = header(3);
        for len in 1..bytes.len() {
            assert_eq!(read(&bytes[..len]), Err(format!("file ends at byte {len}, inside the header")));
        }
    }
}
