//! No streams that call back. A source is then a file before it is loaded.

use std::io;
use std::marker::PhantomData;

use super::Source;
use crate::Error;

/// Whether a source can be read as a stream on this system.
pub const CAN_STREAM: bool = false;

/// A stream that is never made.
pub(crate) struct Stream<'s> {
    never: std::convert::Infallible,
    source: PhantomData<&'s dyn Source>,
}

impl<'s> Stream<'s> {
    /// Fails.
    ///
    /// # Errors
    /// [`Error::Load`].
    pub(crate) fn open(_: &'s dyn Source) -> Result<Self, Error> {
        Err(Error::Load { reason: "this system's C library has no streams that call back".to_owned() })
    }

    /// As C takes it.
    pub(crate) fn as_ptr(&self) -> *mut libc::FILE {
        match self.never {}
    }

    /// Why reading failed, if it did.
    pub(crate) fn error(&mut self) -> Option<io::Error> {
        match self.never {}
    }
}
