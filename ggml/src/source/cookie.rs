//! Streams of the C library that call back (`fopencookie`), as on Linux.

use std::ffi::c_void;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use super::Source;
use crate::Error;

/// Whether a source can be read as a stream on this system.
pub const CAN_STREAM: bool = true;

/// A source as C sees it, with the read position.
struct Cookie<'s> {
    source: &'s dyn Source,
    position: u64,
    error: Option<io::Error>,
}

/// An open stream of a source.
pub(crate) struct Stream<'s> {
    file: NonNull<libc::FILE>,
    /// A box whose place is fixed, which C points to.
    cookie: NonNull<Cookie<'s>>,
}

/// `cookie_io_functions_t` of the C library.
#[repr(C)]
struct Functions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut u8, usize) -> isize>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const u8, usize) -> isize>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, i32) -> i32>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
}

unsafe extern "C" {
    fn fopencookie(
        cookie: *mut c_void,
        mode: *const std::ffi::c_char,
        functions: Functions,
    ) -> *mut libc::FILE;
}

impl<'s> Stream<'s> {
    /// Opens `source` for reading.
    ///
    /// # Errors
    /// [`Error::Load`] where the system has no memory for a stream.
    pub(crate) fn open(source: &'s dyn Source) -> Result<Self, Error> {
        let cookie = NonNull::from(Box::leak(Box::new(Cookie { source, position: 0, error: None })));
        let functions = Functions { read: Some(read), write: None, seek: Some(seek), close: None };
        // SAFETY: the mode is NUL-terminated; the functions take what `cookie` points to, which is freed after the stream.
        let file = unsafe { fopencookie(cookie.as_ptr().cast(), c"rb".as_ptr(), functions) };
        match NonNull::new(file) {
            Some(file) => Ok(Self { file, cookie }),
            None => {
                // SAFETY: leaked above, and no stream was made that could still use it.
                drop(unsafe { Box::from_raw(cookie.as_ptr()) });
                Err(Error::Load { reason: "no stream could be opened".to_owned() })
            }
        }
    }

    /// As C takes it.
    pub(crate) fn as_ptr(&self) -> *mut libc::FILE {
        self.file.as_ptr()
    }

    /// Why reading failed, if it did.
    pub(crate) fn error(&mut self) -> Option<io::Error> {
        // SAFETY: it lives as long as the stream, and callbacks use it only inside of calls that read.
        unsafe { self.cookie.as_mut() }.error.take()
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by `fopencookie`, closed once.
        unsafe { libc::fclose(self.file.as_ptr()) };
        // SAFETY: leaked in `open`; the stream that used it is gone.
        drop(unsafe { Box::from_raw(self.cookie.as_ptr()) });
    }
}

/// Reads up to `n` bytes; -1 for an error, which is kept.
unsafe extern "C" fn read(cookie: *mut c_void, out: *mut u8, n: usize) -> isize {
    // SAFETY: `cookie` is what `Stream::open` passed, and nothing else uses it during the call.
    let cookie = unsafe { &mut *cookie.cast::<Cookie<'_>>() };
    let left = cookie.source.n_bytes().saturating_sub(cookie.position);
    let n = n.min(usize::try_from(left).unwrap_or(usize::MAX));
    if n == 0 {
        return 0;
    }
    // SAFETY: the C library passes room for as many bytes as it asks for. They may be uninitialised: they are written here
    // before they are read.
    unsafe { out.write_bytes(0, n) };
    // SAFETY: as above, and now initialised.
    let out = unsafe { std::slice::from_raw_parts_mut(out, n) };
    let (source, position) = (cookie.source, cookie.position);
    let result = catch_unwind(AssertUnwindSafe(|| source.read_at(position, out)));
    match result {
        Ok(Ok(())) => {
            cookie.position += n as u64;
            isize::try_from(n).unwrap_or(-1)
        }
        Ok(Err(error)) => {
            cookie.error = Some(error);
            -1
        }
        Err(_) => {
            cookie.error = Some(io::Error::other("bug: a panic while a file was made"));
            -1
        }
    }
}

/// Moves to another position; -1 for one outside of the file.
unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut i64, whence: i32) -> i32 {
    // SAFETY: `cookie` is what `Stream::open` passed, and nothing else uses it during the call.
    let cookie = unsafe { &mut *cookie.cast::<Cookie<'_>>() };
    // SAFETY: the C library passes a pointer to a number of its own.
    let offset = unsafe { &mut *offset };
    let from = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => cookie.position,
        libc::SEEK_END => cookie.source.n_bytes(),
        _ => return -1,
    };
    let to = from.checked_add_signed(*offset).filter(|to| *to <= cookie.source.n_bytes());
    let Some(Ok(signed)) = to.map(i64::try_from) else {
        return -1;
    };
    cookie.position = signed.unsigned_abs();
    *offset = signed;
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers;

    impl Source for Numbers {
        fn n_bytes(&self) -> u64 {
            200_000
        }

        fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
            for (byte, at) in out.iter_mut().zip(position..) {
                if at == 199_999 {
                    return Err(io::Error::other("the last one"));
                }
                *byte = at.to_le_bytes()[0] ^ at.to_le_bytes()[1];
            }
            Ok(())
        }
    }

    #[test]
    fn a_stream_reads_what_the_source_makes() {
        let mut stream = Stream::open(&Numbers).unwrap();
        let file = stream.file.as_ptr();
        let read = |position: i64, n: usize| {
            let mut out = vec![0u8; n];
            // SAFETY: the stream is open.
            assert_eq!(unsafe { libc::fseek(file, position, libc::SEEK_SET) }, 0);
            // SAFETY: `out` has room for `n` bytes.
            let found = unsafe { libc::fread(out.as_mut_ptr().cast(), 1, n, file) };
            (found == n).then_some(out)
        };
        for (position, n) in [(0, 10), (5, 50_000), (70_001, 29_000), (3, 1)] {
            let mut expected = vec![0; n];
            Numbers.read_at(position, &mut expected).unwrap();
            assert_eq!(read(i64::try_from(position).unwrap(), n).unwrap(), expected);
        }
        assert_eq!(read(199_990, 10), None);
        assert_eq!(stream.error().unwrap().to_string(), "the last one");
    }
}
