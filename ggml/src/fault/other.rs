//! What the end of a process calls where there are no signals. It comes from a check that fails alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Text;

/// A name as the system takes it.
pub(super) type Name = PathBuf;

/// The name of a file.
pub(super) fn name(path: &Path) -> Option<Name> {
    Some(path.to_owned())
}

/// Removes a file, or an empty folder. What cannot be removed stays: there is nobody left to tell.
pub(super) fn remove(name: &Name) {
    if std::fs::remove_file(name).is_err() {
        let _ = std::fs::remove_dir(name);
    }
}

/// Returns on the first thread that calls it. The others wait for the end.
pub(super) fn claim() {
    static IS_CLAIMED: AtomicBool = AtomicBool::new(false);
    if IS_CLAIMED.swap(true, Ordering::SeqCst) {
        loop {
            std::thread::park();
        }
    }
}

/// Writes to stderr. Nothing can be done where even that fails.
pub(super) fn write(bytes: &[u8]) {
    let _ = std::io::stderr().write_all(bytes);
}

/// Writes a text to stderr at once.
pub(super) fn write_text<const N: usize>(text: &Text<N>) {
    write(&text.iter().collect::<Vec<u8>>());
}

/// Ends the process, without exit handlers: other threads may still use what those destroy.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}
