//! What differs between systems about files: names, identity, rights, links, locks, and the room on a disk.
//!
//! Each has an answer on every system. Files without a name are in [`super::unnamed`], free memory in [`super::free_memory`].

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::path::Path;

/// A name of these bytes. `None` where the system has no such names.
#[must_use]
pub(crate) fn os_str(bytes: &[u8]) -> Option<&OsStr> {
    #[cfg(unix)]
    return Some(std::os::unix::ffi::OsStrExt::from_bytes(bytes));
    #[cfg(not(unix))]
    return str::from_utf8(bytes).ok().map(OsStr::new);
}

/// What tells a file from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The number of its file system.
    pub(crate) device: u64,
    /// Its number there.
    pub(crate) inode: u64,
    /// Last change of bytes, name or rights, in nanoseconds since 1970. No program can set it.
    pub(crate) changed_ns: i64,
}

/// The identity of the file with this metadata. `None` where the system does not say it.
pub(crate) fn identity(metadata: &Metadata) -> Option<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let changed_ns = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Some(Identity { device: metadata.dev(), inode: metadata.ino(), changed_ns })
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// Whether both paths lead to one file or folder. Links of either kind are followed. Where metadata tells, nothing is opened: a
/// pipe would wait for its other end.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let [Ok(of_a), Ok(of_b)] = [a, b].map(std::fs::metadata) else {
        return false;
    };
    match [of_a, of_b].map(|metadata| identity(&metadata)) {
        [Some(a), Some(b)] => (a.device, a.inode) == (b.device, b.inode),
        _ => same_file::is_same_file(a, b).unwrap_or(false),
    }
}

/// Has new files made with the rights of `mode`, but for those that the user's mask takes away.
pub(crate) fn set_mode(options: &mut OpenOptions, mode: u32) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, mode);
    #[cfg(not(unix))]
    let _ = (options, mode);
}

/// The rights of a new file that is made from one with these. Its owner can always write. 0 where there are none.
pub(crate) fn mode_from(permissions: &Permissions) -> u32 {
    #[cfg(unix)]
    return (std::os::unix::fs::PermissionsExt::mode(permissions) & 0o666) | 0o600;
    #[cfg(not(unix))]
    {
        let _ = permissions;
        0
    }
}

/// How many names a file has, as far as the system says.
pub(crate) fn n_links(metadata: &Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(metadata);
    #[cfg(not(unix))]
    {
        let _ = metadata;
        1
    }
}

/// Gives the file at `from` another name, for a while: a link, or where users may make none a second name.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(from, to);
    #[cfg(not(unix))]
    std::fs::hard_link(from, to)
}

/// Locks a file, which shows others that its process lives. Not every file system knows locks. On Windows nothing is locked:
/// a lock would keep llama.cpp from reading the file.
pub(crate) fn show_in_use(file: &File) {
    if !cfg!(windows) {
        let _ = file.try_lock();
    }
}

/// Bytes that this user may still write on the disk of `folder`. `None` where that is not known.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}

/// Makes an empty file `len` bytes long. Where the system can, they are reserved: a full disk then shows at once.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            // Some file systems cannot; the disk then shows that it is full while the file is written.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    file.set_len(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_one_file_are_the_same_and_two_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, none] = ["a", "b", "c", "none"].map(|name| folder.path().join(name));
        std::fs::write(&a, "x").unwrap();
        std::fs::write(&b, "x").unwrap();
        link(&a, &c).unwrap();
        assert!(is_same(&a, &c));
        assert!(is_same(folder.path(), &folder.path().join(".")));
        assert!(!is_same(&a, &b));
        assert!(!is_same(&none, &none));
    }

    #[test]
    fn a_reserved_file_has_its_length_and_takes_room_where_that_is_known() {
        let file = tempfile::tempfile().unwrap();
        reserve(&file, 4096).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4096);
        let free = free_bytes(&std::env::temp_dir());
        assert_eq!(free.is_some(), cfg!(target_os = "linux"));
        assert_ne!(free, Some(0));
    }
}
