//! Scores that were measured before: the cache in the platform's folder for such, or in the one that `GGUF_SHORTEN_CACHE` names.
//!
//! ```text
//! scores/<hash of the key>.json    scores of a model on a text
//! hashes/<hash of the files>.json  the hash of a model whose files have not changed since
//! own-text/<hash>                  text that a model wrote ([`crate::cache_folder`])
//! ```
//!
//! A key ([`Key`]) has all that scores depend on: the bytes of the model, the text and how it is cut, what was scored, and by
//! which versions. An entry is the hash of what follows on a line of its own, then JSON; what is not so is damaged, is said so
//! once, and is made again. Entries are written beside their place and renamed, so that processes side by side see all of one
//! or none.
//!
//! Hashing a model reads all of it. So its hash is remembered by what the system says of its files: device, number, length,
//! and the times of the last change of data and of anything, in nanoseconds. The second of these times cannot be set back. Files
//! that changed just before they were hashed are not remembered: a change within the same tick of the clock would not show. What
//! is written never rests on this: the hash of the parent is computed anew while it is copied, and compared.

mod entry;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache_folder;
use crate::input::Input;
use crate::save;

pub use entry::{Entry, Key, Measured, Scored};

/// The folder of texts that models wrote.
pub const OWN_TEXT: &str = "own-text";

/// Folders of the two kinds of entries.
const SCORES: &str = "scores";
const HASHES: &str = "hashes";

/// Bytes of an entry at most: enough for 100 blocks and 10,000 windows.
const MAX_ENTRY: u64 = 64 << 20;

/// Bytes of an entry beside its JSON: a hash in hexadecimal, and two ends of lines.
const HEAD: u64 = 66;

/// Files that changed less than this before they were hashed are not remembered, in nanoseconds: longer than a tick of any file
/// system's clock.
const TOO_FRESH: i128 = 3_000_000_000;

/// The hash of a model.
#[derive(Serialize, Deserialize)]
struct Remembered {
    files: Vec<Identity>,
    blake3: String,
}

/// What the system says of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    number: u64,
    n_bytes: u64,
    /// Of the data.
    changed: (i64, i64),
    /// Of anything.
    touched: (i64, i64),
}

/// A file of the cache, as `cache list` shows it.
pub struct Listed {
    /// Its bytes.
    pub n_bytes: u64,
    /// What it holds; `None` if it is damaged.
    pub entry: Option<Entry>,
}

/// The cache.
pub struct Cache {
    folder: PathBuf,
    quiet: bool,
}

impl Cache {
    /// The user's cache. `None` if the system knows no place for one.
    #[must_use]
    pub fn of_user(quiet: bool) -> Option<Self> {
        Some(Self {
            folder: cache_folder::folder().ok()?,
            quiet,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The hash of all bytes of `input`: the one that is remembered of its files, else computed and remembered.
    #[must_use]
    pub fn model_hash(&self, input: &Input) -> blake3::Hash {
        let Some(files) = identities(input) else {
            return input.blake3();
        };
        let path = self.path(HASHES, &files);
        if let Some(remembered) = self.read::<Remembered>(&path)
            && remembered.files == files
            && let Ok(hash) = blake3::Hash::from_hex(&remembered.blake3)
        {
            return hash;
        }
        let start = now();
        let hash = input.blake3();
        let is_fresh = |file: &Identity| {
            let latest = nanoseconds(file.changed).max(nanoseconds(file.touched));
            start.is_none_or(|start| start - latest < TOO_FRESH)
        };
        // Nor what changed while it was read.
        if !files.iter().any(is_fresh) && identities(input).as_ref() == Some(&files) {
            let blake3 = hash.to_hex().to_string();
            self.write(&path, &Remembered { files, blake3 });
        }
        hash
    }

    /// Forgets the hash of `input`.
    pub fn forget(&self, input: &Input) {
        if let Some(files) = identities(input) {
            // What is not there is forgotten.
            let _ = fs::remove_file(self.path(HASHES, &files));
        }
    }

    /// What is known under this key.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<Entry> {
        let entry: Entry = self.read(&self.path(SCORES, key))?;
        (entry.key == *key).then_some(entry)
    }

    /// Keeps an entry.
    pub fn keep(&self, entry: &Entry) {
        self.write(&self.path(SCORES, &entry.key), entry);
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

    /// Removes all entries. Returns how many there were, and their bytes. What is no entry stays.
    ///
    /// # Errors
    /// An entry that cannot be removed.
    pub fn clear(&self) -> Result<(usize, u64)> {
        let (mut n, mut n_bytes) = (0, 0);
        for folder in [SCORES, HASHES, OWN_TEXT] {
            for path in self.files(folder)? {
                let len = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                match fs::remove_file(&path) {
                    // Somebody else was quicker.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    result => result.with_context(|| path.display().to_string())?,
                }
                n += 1;
                n_bytes += len;
            }
            // A folder stays if something else is in it.
            let _ = fs::remove_dir(self.folder.join(folder));
        }
        // So does that of all.
        let _ = fs::remove_dir(&self.folder);
        Ok((n, n_bytes))
    }

    /// The entries of one kind, and what was left of one that was never finished.
    fn files(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join(kind);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| folder.display().to_string())?,
        };
        let mut paths = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_hash =
                |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
            let (start, end) = crate::commit::TEMPORARY;
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

    fn path(&self, kind: &str, key: &impl Serialize) -> PathBuf {
        let key = serde_json::to_vec(key).unwrap_or_default();
        let name = format!("{}.json", blake3::hash(&key).to_hex());
        self.folder.join(kind).join(name)
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        match parse(path) {
            Ok(content) => content,
            Err(error) => {
                self.say(&format!(
                    "the cache's {} is damaged and is made again: {error:#}",
                    path.display()
                ));
                None
            }
        }
    }

    fn write(&self, path: &Path, content: &impl Serialize) {
        let write = || -> Result<()> {
            let json = serde_json::to_string(content)?;
            ensure!(
                json.len() as u64 + HEAD <= MAX_ENTRY,
                "{} bytes of it are too many",
                json.len()
            );
            let folder = path.parent().context("bug: a path without a folder")?;
            fs::create_dir_all(folder)?;
            let text = format!("{}\n{json}\n", blake3::hash(json.as_bytes()).to_hex());
            save::text(path, &text)
        };
        if let Err(error) = write() {
            self.say(&format!(
                "nothing is kept in the cache: {}: {error:#}",
                path.display()
            ));
        }
    }

    /// What is wrong with the cache is said once in a run.
    fn say(&self, what: &str) {
        static HAS_SPOKEN: AtomicBool = AtomicBool::new(false);
        if !self.quiet && !HAS_SPOKEN.swap(true, Ordering::Relaxed) {
            eprintln!(
                "gguf-shorten: note: {}",
                what.replace(char::is_control, " ")
            );
        }
    }
}

/// What an entry's file holds; `None` if it is not there.
fn parse<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use std::io::Read;
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    ensure!(metadata.is_file(), "is not a regular file");
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_ENTRY + 1)
        .read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_ENTRY, "is too large");
    let (hash, json) = text.split_once('\n').context("has no second line")?;
    let json = json.strip_suffix('\n').context("ends too early")?;
    ensure!(
        blake3::Hash::from_hex(hash).is_ok_and(|hash| hash == blake3::hash(json.as_bytes())),
        "is not what was written"
    );
    let content = serde_json::from_str(json).map_err(|_| anyhow::anyhow!("is of another form"))?;
    Ok(Some(content))
}

/// What the system says of the files of `input`; `None` where it does not say enough.
#[cfg(unix)]
fn identities(input: &Input) -> Option<Vec<Identity>> {
    use std::os::unix::fs::MetadataExt;
    let identity = |part: &crate::input::Part| {
        let metadata = part.mapping.file().metadata().ok()?;
        Some(Identity {
            device: metadata.dev(),
            number: metadata.ino(),
            n_bytes: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
            touched: (metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    input.parts().iter().map(identity).collect()
}

#[cfg(not(unix))]
fn identities(_input: &Input) -> Option<Vec<Identity>> {
    None
}

fn nanoseconds((seconds, nanoseconds): (i64, i64)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

fn now() -> Option<i128> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i128::try_from(since.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::importance::{BlockImportance, HalfImportance, Halves, Importance, WindowSums};
    use crate::model::BlockId;
    use crate::quality::recorded::noise;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache {
            folder: dir.path().join("c"),
            quiet: true,
        };
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
        }
    }

    fn importance(has_halves: bool) -> Importance {
        let mut next = noise(3);
        let mut number = || f64::from(next()) / 3.0;
        let mut half = || HalfImportance {
            bi: number(),
            bi_stderr: Some(number()),
            relative_magnitude: number(),
            relative_magnitude_stderr: None,
        };
        let blocks = (0..5).map(|i| {
            let whole = half();
            BlockImportance {
                block: BlockId::new(i),
                bi: whole.bi,
                bi_stderr: whole.bi_stderr,
                relative_magnitude: whole.relative_magnitude,
                relative_magnitude_stderr: whole.relative_magnitude_stderr,
                n_zero_rows: i as u64,
                halves: has_halves.then(|| Halves {
                    attention: half(),
                    ffn: half(),
                }),
            }
        });
        let blocks = blocks.collect();
        let mut next = noise(4);
        let mut window = |n| WindowSums {
            n,
            n_zero_rows: 64 - n,
            distance: f64::from(next()) / 3.0,
            relative_magnitude: f64::from(next()) / 7.0,
        };
        Importance {
            blocks,
            n_windows: 8,
            n_tokens: 512,
            windows: (0..5)
                .map(|_| (57..65).map(&mut window).collect())
                .collect(),
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
            assert_eq!(
                found.blocks(5).unwrap(),
                importance(scored == Scored::Halves)
            );
            assert!(found.blocks(4).is_none());
        }
        let distances = [0.1, 1.0 / 3.0, 5e-324, 0.7];
        let runs = Entry::of_runs(key(Scored::Runs(3)), String::new(), measured(), &distances);
        cache.keep(&runs);
        assert_eq!(
            cache.find(&key(Scored::Runs(3))).unwrap().runs(6).unwrap(),
            distances
        );
        assert!(cache.find(&key(Scored::Runs(2))).is_none());
        assert_eq!(cache.list().unwrap().len(), 3);
        assert_eq!(cache.clear().unwrap().0, 3);
        assert!(cache.list().unwrap().is_empty() && !cache.folder().exists());
    }

    #[test]
    fn a_damaged_entry_is_none_wherever_it_is_damaged() {
        let (_dir, cache) = cache();
        cache.keep(&entry(Scored::Halves));
        let path = cache.path(SCORES, &key(Scored::Halves));
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
        assert_eq!(cache.clear().unwrap().0, 1);
        assert_eq!(fs::read_to_string(other).unwrap(), "mine");
    }

    #[cfg(unix)]
    #[test]
    fn a_hash_is_remembered_of_files_that_have_not_changed_for_a_while() {
        let (dir, cache) = cache();
        let path = dir.path().join("m.gguf");
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([0; 16]);
        fs::write(&path, &bytes).unwrap();
        let input = Input::open_file(&path).unwrap();
        let n_remembered = || cache.files(HASHES).unwrap().len();
        assert_eq!(cache.model_hash(&input), blake3::hash(&bytes));
        // Too fresh.
        assert_eq!(n_remembered(), 0);
        std::thread::sleep(std::time::Duration::from_millis(3100));
        assert_eq!(cache.model_hash(&input), blake3::hash(&bytes));
        assert_eq!(n_remembered(), 1);
        let files = identities(&input).unwrap();
        let lie = Remembered {
            files: files.clone(),
            blake3: "0".repeat(64),
        };
        cache.write(&cache.path(HASHES, &files), &lie);
        assert_eq!(cache.model_hash(&input).to_hex().as_str(), "0".repeat(64));
        cache.forget(&input);
        assert_eq!(cache.model_hash(&input), blake3::hash(&bytes));
        // A change shows, also where length and time of the data are put back.
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        bytes[8..].fill(0);
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(changed).unwrap();
        assert_ne!(identities(&input).unwrap(), files);
    }
}
