//! The calls that end a process on Unix, safe in signal handlers.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Text;

/// A name as the system takes it.
pub(super) type Name = CString;

/// `None` for a name with a NUL, which no file has.
pub(super) fn name(path: &Path) -> Option<Name> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// Removes a file, or an empty folder. What cannot be removed stays: there is nobody left to tell.
pub(super) fn remove(name: &Name) {
    // SAFETY: the name is NUL-terminated and outlives the call.
    if unsafe { libc::unlink(name.as_ptr()) } != 0 {
        // SAFETY: as above.
        unsafe { libc::rmdir(name.as_ptr()) };
    }
}

/// Makes the calling thread the one that ends the process. All later threads wait for the end. A second call by the same
/// thread, from a fault on the way, ends the process at once.
pub(super) fn claim() {
    static ENDING: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: no arguments.
    let this = usize::try_from(unsafe { libc::pthread_self() }).unwrap_or(usize::MAX);
    match ENDING.compare_exchange(0, this, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(owner) if owner == this => exit(1),
        Err(_) => loop {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        },
    }
}

/// Writes to stderr. Nothing can be done where even that fails.
pub(super) fn write(bytes: &[u8]) {
    // SAFETY: pointer and length describe `bytes`.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

/// Writes a text to stderr at once.
pub(super) fn write_text<const N: usize>(text: &Text<N>) {
    let len = text.len.load(Ordering::Acquire).min(N);
    // SAFETY: pointer and length describe bytes of the text, which only this thread changes.
    unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), len) };
}

/// Ends the process, without exit handlers: other threads may still use what those destroy.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}
