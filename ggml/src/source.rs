//! Bytes that llama.cpp reads as a file: made while they are read, and nowhere as a whole.

use std::io;

#[cfg_attr(target_os = "linux", path = "source/cookie.rs")]
#[cfg_attr(not(target_os = "linux"), path = "source/other.rs")]
mod system;

pub use system::CAN_STREAM;
pub(crate) use system::Stream;

/// A file that is made while it is read.
pub trait Source {
    /// Its length, in bytes.
    fn n_bytes(&self) -> u64;

    /// The bytes from `position` on. The range lies inside of the file.
    ///
    /// # Errors
    /// Whatever keeps them from being made.
    fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()>;
}
