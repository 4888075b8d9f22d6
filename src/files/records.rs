//! Records: JSON in the platform's folder for caches, each with a hash of its own.
//!
//! A record is a line with the hash of what comes after it, then JSON. What is not so is damaged, which is said once, and is
//! made again. Records are written beside their place and renamed, so that processes side by side see all of one or none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::cache;
use crate::files::place;
use crate::watch::Watch;

/// Bytes of a record at most. They hold the scores of 100 blocks and 10,000 windows, and 8 million sums.
const MAX_RECORD: u64 = 160 << 20;

/// Bytes of a record beside its JSON: a hash in hexadecimal, and two ends of lines.
const HEAD: u64 = 66;

/// The folder of all records.
pub struct Records<'w> {
    folder: PathBuf,
    watch: &'w dyn Watch,
}

impl<'w> Records<'w> {
    /// Those of the user. `None` if the system knows no place for them.
    #[must_use]
    pub fn of_user(watch: &'w dyn Watch) -> Option<Self> {
        Some(Self::in_folder(cache::folder().ok()?, watch))
    }

    /// Those in `folder`.
    #[must_use]
    pub fn in_folder(folder: PathBuf, watch: &'w dyn Watch) -> Self {
        Self { folder, watch }
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The place of a record of `kind` under `key`.
    #[must_use]
    pub fn path(&self, kind: &str, key: &impl Serialize) -> PathBuf {
        let key = serde_json::to_vec(key).unwrap_or_default();
        let name = format!("{}.json", blake3::hash(&key).to_hex());
        self.folder.join(kind).join(name)
    }

    /// The record at `path`, if there is one.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        match parse(path) {
            Ok(content) => content,
            Err(error) => {
                self.say(&format!("the cache's {} is damaged and is made again: {error:#}", path.display()));
                None
            }
        }
    }

    /// Keeps `content` at `path`.
    pub fn write(&self, path: &Path, content: &impl Serialize) {
        let write = || -> Result<()> {
            let json = serde_json::to_string(content)?;
            ensure!(json.len() as u64 + HEAD <= MAX_RECORD, "{} bytes of it are too many", json.len());
            let folder = path.parent().context("bug: a path without a folder")?;
            fs::create_dir_all(folder)?;
            let text = format!("{}\n{json}\n", blake3::hash(json.as_bytes()).to_hex());
            place::text(path, &text)
        };
        if let Err(error) = write() {
            self.say(&format!("nothing is kept in the cache: {}: {error:#}", path.display()));
        }
    }

    /// What is wrong with the cache is said once in a run.
    fn say(&self, what: &str) {
        static HAS_SPOKEN: AtomicBool = AtomicBool::new(false);
        if !HAS_SPOKEN.swap(true, Ordering::Relaxed) {
            self.watch.note(&what.replace(char::is_control, " "));
        }
    }
}

/// The content of a record's file; `None` if it is not there.
///
/// # Errors
/// A damaged record.
pub fn parse<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use std::io::Read;
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    ensure!(metadata.is_file(), "is not a regular file");
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_RECORD + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_RECORD, "is too large");
    let (hash, json) = text.split_once('\n').context("has no second line")?;
    let json = json.strip_suffix('\n').context("ends too early")?;
    ensure!(
        blake3::Hash::from_hex(hash).is_ok_and(|hash| hash == blake3::hash(json.as_bytes())),
        "is not what was written"
    );
    let content = serde_json::from_str(json).map_err(|_| anyhow::anyhow!("is of another form"))?;
    Ok(Some(content))
}
