//! Scores that were measured before. The cache in the platform's folder for such, or in the one that `GGUF_SHORTEN_CACHE` names.
//!
//! ```text
//! scores/<hash of the key>.json    scores of a model on a text
//! hashes/<hash of the files>.json  the hash of a model whose files have not changed since
//! own-text/<hash>                  text that a model wrote ([`crate::files::cache`])
//! ```
//!
//! A key ([`Key`]) has all that scores depend on: the bytes of the model, the text and how it is cut, what was scored, and by
//! which versions. An entry is the hash of what follows on a line of its own, then JSON; what is not so is damaged, is said so
//! once, and is made again. Entries are written beside their place and renamed, so that processes side by side see all of one
//! or none.
//!
//! Hashes of models are remembered beside the scores ([`crate::model::hashes`]).

pub(crate) mod cached;

mod entry;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files::cache::OWN_TEXT;
use crate::files::records::{Records, parse};
use crate::model::hashes::HASHES;
use crate::watch::Watch;

pub use entry::{Entry, Key, Measured, Scored};

/// The folder of the losses of fits.
pub const FITS: &str = "fits";

/// The folder of scores.
const SCORES: &str = "scores";

/// A file of the cache, as `cache list` shows it.
pub struct Listed {
    /// Its bytes.
    pub n_bytes: u64,
    /// What it holds; `None` if it is damaged.
    pub entry: Option<Entry>,
}

/// The cache.
pub struct Cache<'w> {
    records: Records<'w>,
}

impl<'w> Cache<'w> {
    /// The user's cache. `None` if the system knows no place for one.
    #[must_use]
    pub fn of_user(watch: &'w dyn Watch) -> Option<Self> {
        Some(Self { records: Records::of_user(watch)? })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.records.folder()
    }

    /// What is known under this key.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<Entry> {
        let entry: Entry = self.records.read(&self.records.path(SCORES, key))?;
        (entry.key == *key).then_some(entry)
    }

    /// Keeps an entry.
    pub fn keep(&self, entry: &Entry) {
        self.records.write(&self.records.path(SCORES, &entry.key), entry);
    }

    /// All scores, latest first.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for path in self.files(SCORES)? {
            let n_bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            let entry = parse(&path).ok().flatten();
            listed.push(Listed { n_bytes, entry });
        }
        let written = |listed: &Listed| listed.entry.as_ref().map(|entry| entry.written);
        listed.sort_by_key(|listed| std::cmp::Reverse(written(listed)));
        Ok(listed)
    }

    /// How many texts there are that models wrote, and their bytes.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn own_texts(&self) -> Result<(usize, u64)> {
        let paths = self.files(OWN_TEXT)?;
        let len = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        Ok((paths.len(), paths.iter().map(len).sum()))
    }

    /// Removes all entries, texts, hashes and losses of fits. Returns how many entries there were and their bytes, and as much of texts. What is
    /// none of those stays.
    ///
    /// # Errors
    /// An entry that cannot be removed.
    pub fn clear(&self) -> Result<[(usize, u64); 2]> {
        let mut removed = [(0, 0); 4];
        for (folder, (n, n_bytes)) in [SCORES, OWN_TEXT, HASHES, FITS].into_iter().zip(&mut removed) {
            for path in self.files(folder)? {
                let len = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                match fs::remove_file(&path) {
                    // Somebody else was quicker.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    result => result.with_context(|| path.display().to_string())?,
                }
                *n += 1;
                *n_bytes += len;
            }
            // A folder stays if something else is in it.
            let _ = fs::remove_dir(self.folder().join(folder));
        }
        // So does that of all.
        let _ = fs::remove_dir(self.folder());
        let [scores, texts, ..] = removed;
        Ok([scores, texts])
    }

    /// The entries of one kind, and remains of unfinished ones.
    fn files(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder().join(kind);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| folder.display().to_string())?,
        };
        let mut paths = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_hash = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
            let (start, end) = crate::files::staged::TEMPORARY;
            let stem = match kind {
                OWN_TEXT => Some(&*name),
                _ => name.strip_suffix(".json"),
            };
            if stem.is_some_and(is_hash) || (name.starts_with(start) && name.ends_with(end)) {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::conversion::Conversion;
    use crate::measure::importance::{BlockImportance, Each, Halves, Importance, Metric, WindowSums};
    use crate::measure::mean::Mean;
    use crate::measure::noise::noise;
    use crate::model::BlockId;
    use crate::watch::Silent;

    fn cache() -> (tempfile::TempDir, Cache<'static>) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { records: Records::in_folder(dir.path().join("c"), &Silent) };
        (dir, cache)
    }

    fn key(scored: Scored) -> Key {
        Key {
            gguf_shorten: "1".to_owned(),
            llama_cpp: "2".to_owned(),
            model: "m".to_owned(),
            texts: "t".to_owned(),
            tokens: 512,
            window: 64,
            window_is_default: true,
            gpu_layers: None,
            rpc: String::new(),
            conversion: None,
            scored,
        }
    }

    fn measured() -> Measured {
        Measured {
            windows: 8,
            window: 64,
            tokens: 512,
            bos: true,
            source: "s".to_owned(),
            blake3: "b".to_owned(),
            seconds: 0.1 + 0.2,
            conversion: Conversion::F32,
        }
    }

    fn importance(has_halves: bool) -> Importance {
        let mut next = noise(3);
        let mut number = || f64::from(next()) / 3.0;
        let mut half = || {
            Each::new(|metric| Mean {
                mean: number(),
                stderr: (metric == Metric::BlockInfluence).then(&mut number),
            })
        };
        let blocks = (0..5).map(|i| BlockImportance {
            block: BlockId::new(i),
            scores: half(),
            n_zero_rows: i as u64,
            halves: has_halves.then(|| Halves { attention: half(), ffn: half() }),
        });
        let blocks = blocks.collect();
        let mut next = noise(4);
        let mut window =
            |n| WindowSums { n, n_zero_rows: 64 - n, sums: Each::new(|_| f64::from(next()) / 3.0) };
        Importance {
            blocks,
            n_windows: 8,
            n_tokens: 512,
            windows: (0..5).map(|_| (57..65).map(&mut window).collect()).collect(),
            lorp: None,
        }
    }

    fn entry(scored: Scored) -> Entry {
        let importance = importance(scored == Scored::Halves);
        Entry::of_blocks(key(scored), "p".to_owned(), measured(), &importance)
    }

    #[test]
    fn scores_come_back_to_the_last_bit() {
        let (_dir, cache) = cache();
        for scored in [Scored::Blocks, Scored::Halves] {
            assert!(cache.find(&key(scored)).is_none());
            cache.keep(&entry(scored));
            let found = cache.find(&key(scored)).unwrap();
            assert_eq!(found, entry(scored));
            assert_eq!(found.blocks(5).unwrap(), importance(scored == Scored::Halves));
            assert!(found.blocks(4).is_none());
        }
        let distances = [0.1, 1.0 / 3.0, 5e-324, 0.7];
        let runs = Entry::of_runs(key(Scored::Runs(3)), String::new(), measured(), &distances);
        cache.keep(&runs);
        assert_eq!(cache.find(&key(Scored::Runs(3))).unwrap().runs(6).unwrap(), distances);
        assert!(cache.find(&key(Scored::Runs(2))).is_none());
        assert_eq!(cache.list().unwrap().len(), 3);
        assert_eq!(cache.clear().unwrap()[0].0, 3);
        assert!(cache.list().unwrap().is_empty() && !cache.folder().exists());
    }

    #[test]
    fn a_damaged_entry_is_none_wherever_it_is_damaged() {
        let (_dir, cache) = cache();
        cache.keep(&entry(Scored::Halves));
        let path = cache.records.path(SCORES, &key(Scored::Halves));
        let whole = fs::read(&path).unwrap();
        for i in (0..whole.len()).step_by(7) {
            let mut flipped = whole.clone();
            flipped[i] ^= 1;
            for damaged in [&flipped[..], &whole[..i]] {
                fs::write(&path, damaged).unwrap();
                assert!(cache.find(&key(Scored::Halves)).is_none(), "{i}");
            }
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(cache.find(&key(Scored::Halves)).is_none());
    }

    #[test]
    fn what_is_no_entry_stays() {
        let (_dir, cache) = cache();
        cache.keep(&entry(Scored::Blocks));
        let other = cache.folder().join(SCORES).join("notes.json");
        fs::write(&other, "mine").unwrap();
        assert_eq!(cache.clear().unwrap()[0].0, 1);
        assert_eq!(fs::read_to_string(other).unwrap(), "mine");
    }
}
