//! Cache of what was computed once and may be needed again. Its files are in the platform's cache folder, each with a hash of
//! its own, so that a damaged one counts for none. Losing the folder loses time only.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use etcetera::BaseStrategy;

use crate::files::place;

/// The folder of texts that models wrote.
pub const OWN_TEXT: &str = "own-text";

/// Names another folder for the cache.
pub const VARIABLE: &str = "GGUF_SHORTEN_CACHE";

/// The folder in `GGUF_SHORTEN_CACHE`, else this program's in the user's cache folder.
///
/// # Errors
/// A user without a home.
pub fn folder() -> Result<PathBuf> {
    let named = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty());
    Ok(match named {
        Some(folder) => PathBuf::from(folder),
        None => etcetera::choose_base_strategy()?.cache_dir().join("gguf-shorten"),
    })
}

/// Files of one kind.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those of `kind`, in the cache folder of this user. `None` where the system names none.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        Some(Self::in_folder(&folder().ok()?.join(kind)))
    }

    /// Those in `folder`.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// What was kept under `key`; `None` if nothing was.
    ///
    /// # Errors
    /// What was kept is damaged.
    pub fn get(&self, key: &blake3::Hash) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        let get = || {
            let mut bytes = match std::fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                bytes => bytes?,
            };
            let at = bytes.len().checked_sub(blake3::OUT_LEN);
            let hash = bytes.split_off(at.context("ends too early")?);
            ensure!(blake3::hash(&bytes).as_bytes()[..] == hash, "is not what was written");
            Ok(Some(bytes))
        };
        get().with_context(|| path.display().to_string())
    }

    /// Keeps `bytes` under `key`, in place of what was kept there.
    ///
    /// # Errors
    /// The system's, such as a folder that may not be written.
    pub fn put(&self, key: &blake3::Hash, bytes: &[u8]) -> Result<()> {
        let whole = [bytes, blake3::hash(bytes).as_bytes()].concat();
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| place::replace(&self.path(key), &whole, 0o600))
            .with_context(|| self.folder.display().to_string())
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
        let cache = Files::in_folder(&dir.path().join("a").join("b"));
        let (key, other) = (blake3::hash(b"key"), blake3::hash(b"other"));
        assert_eq!(cache.get(&key).unwrap(), None);
        cache.put(&key, b"first").unwrap();
        cache.put(&key, b"value").unwrap();
        cache.put(&other, b"").unwrap();
        assert_eq!(cache.get(&key).unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(cache.get(&other).unwrap().as_deref(), Some(&b""[..]));
        let path = cache.path(&key);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..3], &whole[..whole.len() - 1], &[0; 64][..]] {
            std::fs::write(&path, damaged).unwrap();
            assert!(cache.get(&key).is_err());
        }
        // Nothing unfinished is left.
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    }
}
