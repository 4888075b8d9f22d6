//! Stamps: size, times and identity of a file, which show a change without reading it.

use std::fs::Metadata;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::files::system::identity;

/// Size, times and identity of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length in bytes.
    pub bytes: u64,
    /// When its bytes were last written, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Last change of bytes, name or rights, in nanoseconds since 1970. Unlike the other time, no program can set it. Where the
    /// system has no such time, the other.
    pub changed_ns: i64,
    /// Its number in its file system; 0 where it has none.
    pub inode: u64,
}

/// Time within which two writes may leave a file the same times. File systems count in steps of up to two seconds (FAT), others
/// in those of the kernel's clock.
const STEP_NS: i64 = 2_000_000_000;

impl Stamp {
    /// Of the file with this metadata.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let modified_ns = metadata.modified().map_or(0, nanoseconds);
        let identity = identity(metadata);
        let (changed_ns, inode) = identity.map_or((modified_ns, 0), |of| (of.changed_ns, of.inode));
        Self { bytes: metadata.len(), modified_ns, changed_ns, inode }
    }

    /// Of the file at `path`; links are followed.
    ///
    /// # Errors
    /// The system's.
    pub fn at(path: &Path) -> std::io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }

    /// Whether the same stamp means the same bytes as at `read_ns`. Not if the file was written so shortly before that another
    /// write could have gone unseen.
    #[must_use]
    pub fn is_settled(&self, read_ns: i64) -> bool {
        let last = self.modified_ns.max(self.changed_ns);
        last.saturating_add(STEP_NS) < read_ns
    }

    /// Checks that the file at `path` still has this stamp. No byte was written since. Another name or other rights do no harm.
    ///
    /// # Errors
    /// That it is gone, or not the same.
    pub fn check(&self, path: &Path) -> Result<()> {
        let now = match Self::at(path) {
            Ok(now) => now,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("{}: vanished while it was read", path.display());
            }
            Err(error) => bail!("{}: {error}", path.display()),
        };
        if now.inode != self.inode {
            bail!("{}: was replaced by another file while it was read", path.display());
        }
        if (now.bytes, now.modified_ns) != (self.bytes, self.modified_ns) {
            bail!("{}: was changed while it was read", path.display());
        }
        Ok(())
    }
}

/// The time now, in nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    nanoseconds(SystemTime::now())
}

fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_stamp_shows_what_became_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        let check = |stamp: &Stamp| {
            let error = stamp.check(&path).map_err(|error| error.to_string());
            error.map_err(|text| text.split(": ").nth(1).unwrap().to_owned())
        };
        fs::write(&path, "old").unwrap();
        let stamp = Stamp::at(&path).unwrap();
        assert_eq!(check(&stamp), Ok(()));
        fs::hard_link(&path, folder.path().join("second")).unwrap();
        assert_eq!(check(&stamp), Ok(()));
        assert_ne!(Stamp::at(&path).unwrap(), stamp);
        fs::write(&path, "longer").unwrap();
        assert_eq!(check(&stamp), Err("was changed while it was read".to_owned()));
        fs::remove_file(&path).unwrap();
        assert_eq!(check(&stamp), Err("vanished while it was read".to_owned()));
        fs::write(&path, "old").unwrap();
        assert!(check(&stamp).is_err());
    }

    #[test]
    fn what_was_just_written_is_not_settled() {
        let stamp = Stamp { bytes: 1, modified_ns: 5, changed_ns: 7 * STEP_NS, inode: 1 };
        assert!(!stamp.is_settled(7 * STEP_NS + 1));
        assert!(!stamp.is_settled(8 * STEP_NS));
        assert!(stamp.is_settled(8 * STEP_NS + 1));
    }
}
