//! What was computed once and may be needed again: files in the platform's cache folder, each with a hash of its own, so
//! that a damaged one counts for none. Losing the folder loses time only.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use etcetera::BaseStrategy;

/// The folder of this program among the caches of this user.
///
/// # Errors
/// A user without a home.
pub fn folder() -> Result<PathBuf> {
    Ok(etcetera::choose_base_strategy()?
        .cache_dir()
        .join("gguf-shorten"))
}

/// Files of one kind.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Those of `kind`, in the cache folder of this user; `None` where the system names none.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        Some(Self::in_folder(&folder().ok()?.join(kind)))
    }

    /// Those in `folder`.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// What was kept under `key`; `None` if nothing was, or if it is damaged.
    #[must_use]
    pub fn get(&self, key: &blake3::Hash) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.path(key)).ok()?;
        let at = bytes.len().checked_sub(blake3::OUT_LEN)?;
        let hash = bytes.split_off(at);
        (blake3::hash(&bytes).as_bytes()[..] == hash).then_some(bytes)
    }

    /// Keeps `bytes` under `key`, in place of what was kept there.
    ///
    /// # Errors
    /// The system's, such as a folder that may not be written.
    pub fn put(&self, key: &blake3::Hash, bytes: &[u8]) -> Result<()> {
        let at_folder = || self.folder.display().to_string();
        std::fs::create_dir_all(&self.folder).with_context(at_folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).with_context(at_folder)?;
        let path = self.path(key);
        file.write_all(bytes)
            .and_then(|()| file.write_all(blake3::hash(bytes).as_bytes()))
            .with_context(|| path.display().to_string())?;
        file.persist(&path)
            .map_err(|error| error.error)
            .with_context(|| path.display().to_string())?;
        Ok(())
    }

    fn path(&self, key: &blake3::Hash) -> PathBuf {
        self.folder.join(key.to_hex().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got_unless_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(&dir.path().join("a").join("b"));
        let (key, other) = (blake3::hash(b"key"), blake3::hash(b"other"));
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"first").unwrap();
        cache.put(&key, b"value").unwrap();
        cache.put(&other, b"").unwrap();
        assert_eq!(cache.get(&key).as_deref(), Some(&b"value"[..]));
        assert_eq!(cache.get(&other).as_deref(), Some(&b""[..]));
        let path = cache.path(&key);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..3], &whole[..whole.len() - 1], &[0; 64][..]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&key), None);
        }
        // Nothing unfinished is left.
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            2
        );
    }
}
