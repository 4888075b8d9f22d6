//! A read-only memory-mapped file.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, mapped read-only.
///
/// The mapping is shared with the file: pages are read when they are first touched, and count as page cache, not as
/// memory of this process. If another process shortens the file meanwhile, touching the lost part ends this process
/// with a bus error; if it changes the file in place, the new bytes are seen. Programs that replace a file by
/// renaming another over it (as this project does) disturb no mapping.
pub struct Mapping {
    file: File,
    map: Option<memmap2::Mmap>,
}

impl Mapping {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// What the system says; a folder, a pipe, a socket or a device is `InvalidInput` and is not opened, because
    /// opening a pipe would wait for its other end.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kind = |metadata: &std::fs::Metadata| {
            if metadata.is_file() {
                Ok(metadata.len())
            } else if metadata.is_dir() {
                Err(invalid("is a folder, expected a file"))
            } else {
                Err(invalid("is not a regular file"))
            }
        };
        kind(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        // Asked again of the open file: the first answer was about a path.
        let len = kind(&file.metadata()?)?;
        // A mapping of length zero is an error on most systems.
        let map = if len == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and private to this struct. That the file may change under it is
            // stated in the type's documentation; every read goes through a slice of bytes, for which any value
            // is valid.
            Some(unsafe { memmap2::Mmap::map(&file)? })
        };
        Ok(Self { file, map })
    }

    /// Releases the memory of these bytes; the next access reads them again. Where the system has no such call, nothing
    /// happens.
    pub fn release(&self, bytes: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map
            && bytes.start < bytes.end
            && bytes.end <= map.len()
        {
            // SAFETY: of a shared, read-only mapping of a file nothing is lost: a page is read from the file again.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len())
            };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// The open file, for copying ranges of it without reading them.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_refused_by_name() {
        let error = Mapping::open(&std::env::temp_dir()).err().unwrap();
        assert_eq!(error.to_string(), "is a folder, expected a file");
    }

    #[test]
    fn own_source_is_mapped_whole() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mapping.rs");
        let mapping = Mapping::open(&path).unwrap();
        assert_eq!(&mapping[..], std::fs::read(&path).unwrap());
    }
}
