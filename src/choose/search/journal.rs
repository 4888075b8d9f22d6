//! Journal: the measurements of a search on disk. An interrupted search goes on where it was.
//!
//! A journal is a file of JSON lines that only grows. Its name is the hash of all that a measurement depends on ([`Key`]),
//! so a search with another goal or another number of blocks uses the same one. Each line is `{"check": ..., "entry":
//! [...]}`, where `check` is the hash of the key and the entry: a line that is damaged or another search's does not pass.
//! Floats are kept as the integers of their bits, so that nothing is rounded. A line that an interrupt has torn at the end is
//! cut off; with any other damage the journal is begun anew.
//!
//! A journal belongs to one process at a time, by a lock of the system that ends with the process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Record;
use crate::measure::loss::{Loss, TaskLoss};
use crate::model::BlockId;
use crate::model::block::BlockSet;

/// Lines are on disk at the latest after so long. Before, only a failure of the system loses them.
const SYNC_AFTER: Duration = Duration::from_secs(5);

/// A longer file is none of ours. Of the largest models, a search measures some hundred thousand losses.
const MAX_BYTES: u64 = 256 << 20;

/// How often a journal is opened again that another process removes meanwhile.
const N_TRIES: usize = 8;

/// The hash of all that a loss depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(blake3::Hash);

impl Key {
    /// Of these parts, in order, each with its length.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize())
    }

    fn file_name(&self) -> String {
        format!("search-{}.jsonl", &self.0.to_hex()[..32])
    }
}

/// How many blocks and windows a search has: what a record may name.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Blocks.
    pub n_blocks: usize,
    /// Windows.
    pub n_windows: usize,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    key: Key,
    synced: Instant,
}

/// A journal, and what was in it.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// Its records.
    pub records: Vec<Record>,
    /// Why it was begun anew, though there was one.
    pub damage: Option<String>,
}

impl Journal {
    /// Opens the journal of `key` in `folder`, or begins it.
    ///
    /// # Errors
    /// The system's; another process that has it open.
    pub fn open(folder: &Path, key: Key, extent: Extent) -> Result<Opened> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(key.file_name());
        Self::open_at(path.clone(), key, extent).with_context(|| path.display().to_string())
    }

    fn open_at(path: PathBuf, key: Key, extent: Extent) -> Result<Opened> {
        let mut file = locked(&path)?;
        let (records, n_good, damage) = match read(&mut file, key, extent) {
            Ok((records, n_good)) => (records, n_good, None),
            Err(damage) => (Vec::new(), 0, Some(format!("{damage:#}"))),
        };
        file.set_len(n_good)?;
        file.seek(SeekFrom::Start(n_good))?;
        let journal = Self { path, file, key, synced: Instant::now() };
        Ok(Opened { journal, records, damage })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record.
    ///
    /// # Errors
    /// The system's, such as a full disk.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let line = line(self.key, record)?;
        // In one piece: an interrupt between two writes would tear more lines than it has to.
        let result = self.file.write_all(line.as_bytes()).and_then(|()| {
            if self.synced.elapsed() < SYNC_AFTER {
                return Ok(());
            }
            self.synced = Instant::now();
            self.file.sync_data()
        });
        result.with_context(|| self.path.display().to_string())
    }

    /// Removes it: what it was for is done.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(self) -> Result<()> {
        // While it is locked: another process that waits for its name finds it gone.
        fs::remove_file(&self.path).with_context(|| self.path.display().to_string())
    }
}

/// The file at `path`, locked.
fn locked(path: &Path) -> Result<File> {
    for _ in 0..N_TRIES {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another search writes to it"),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // The one that had it before may have removed it.
        let is_there = match same_file::Handle::from_path(path) {
            Ok(there) => there == same_file::Handle::from_file(file.try_clone()?)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error.into()),
        };
        if is_there {
            return Ok(file);
        }
    }
    bail!("others remove it again and again")
}

/// The records of a journal, and where the last good line ends.
fn read(file: &mut File, key: Key, extent: Extent) -> Result<(Vec<Record>, u64)> {
    let length = file.metadata()?.len();
    ensure!(length <= MAX_BYTES, "has {length} bytes, which is too long for a journal");
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let mut records = Vec::new();
    let mut n_good = 0;
    for (i, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        // Without an end it was torn.
        let Some(line_text) = line.strip_suffix(b"\n") else {
            break;
        };
        let record = parse(line_text, key, extent).with_context(|| format!("line {}", i + 1))?;
        records.push(record);
        n_good += line.len() as u64;
    }
    Ok((records, n_good))
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line<'l> {
    check: String,
    #[serde(borrow)]
    entry: &'l serde_json::value::RawValue,
}

/// A line: the blocks, the window or nothing for tasks, and the numbers of the loss.
#[derive(Serialize, Deserialize)]
struct Entry(Vec<usize>, Option<usize>, [u64; 5]);

fn check(key: Key, entry: &str) -> String {
    let hash = blake3::keyed_hash(key.0.as_bytes(), entry.as_bytes());
    hash.to_hex()[..16].to_owned()
}

fn line(key: Key, record: &Record) -> Result<String> {
    let numbers = |set: &BlockSet| set.iter().map(|block| block.index()).collect();
    let entry = match record {
        Record::Window(set, window, loss) => Entry(
            numbers(set),
            Some(*window),
            [
                loss.n_tokens,
                loss.nll.to_bits(),
                loss.parent_nll.to_bits(),
                loss.kl.to_bits(),
                loss.n_same_top,
            ],
        ),
        Record::Tasks(set, loss) => {
            Entry(numbers(set), None, [loss.n_tasks, loss.n_correct, loss.cross_entropy.to_bits(), 0, 0])
        }
    };
    let entry = serde_json::value::to_raw_value(&entry)?;
    let line = Line { check: check(key, entry.get()), entry: &entry };
    Ok(serde_json::to_string(&line)? + "\n")
}

fn parse(line: &[u8], key: Key, extent: Extent) -> Result<Record> {
    let line: Line<'_> = serde_json::from_slice(line).context("is not a record")?;
    ensure!(line.check == check(key, line.entry.get()), "is damaged, or of another search");
    let Entry(blocks, window, [a, b, c, d, e]) = serde_json::from_str(line.entry.get())?;
    ensure!(blocks.iter().all(|&block| block < extent.n_blocks), "names a block that does not exist");
    let set: BlockSet = blocks.into_iter().map(BlockId::new).collect();
    let float = f64::from_bits;
    Ok(match window {
        Some(window) => {
            ensure!(window < extent.n_windows, "names a window that does not exist");
            let loss = Loss { n_tokens: a, nll: float(b), parent_nll: float(c), kl: float(d), n_same_top: e };
            Record::Window(set, window, loss)
        }
        None => {
            let loss = TaskLoss { n_tasks: a, n_correct: b, cross_entropy: float(c) };
            Record::Tasks(set, loss)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent { n_blocks: 9, n_windows: 4 };

    fn record(block: usize, window: usize) -> Record {
        let loss = Loss {
            n_tokens: 15,
            // Neither has a short decimal form, and the divergence may be infinite.
            nll: 0.1 + 0.2 * block as f64,
            parent_nll: 1.0 / 3.0,
            kl: if window == 3 { f64::INFINITY } else { 1e-300 },
            n_same_top: 7,
        };
        Record::Window([0, block].map(BlockId::new).into(), window, loss)
    }

    fn tasks() -> Record {
        let loss = TaskLoss { n_tasks: 3, n_correct: 1, cross_entropy: 2.0f64.sqrt() };
        Record::Tasks([BlockId::new(3)].into(), loss)
    }

    fn open(folder: &Path, key: &[u8]) -> Opened {
        Journal::open(folder, Key::of(&[key]), EXTENT).unwrap()
    }

    /// A folder with a journal of five records, and its path.
    fn journal() -> (tempfile::TempDir, PathBuf, Vec<Record>) {
        let folder = tempfile::tempdir().unwrap();
        let mut records: Vec<Record> = (0..4).map(|i| record(i + 1, i)).collect();
        records.push(tasks());
        let mut opened = open(folder.path(), b"k");
        assert!(opened.records.is_empty() && opened.damage.is_none());
        for record in &records {
            opened.journal.add(record).unwrap();
        }
        let path = opened.journal.path().to_owned();
        (folder, path, records)
    }

    #[test]
    fn what_was_recorded_is_there_bit_for_bit_and_goes_on() {
        let (folder, path, mut records) = journal();
        let mut opened = open(folder.path(), b"k");
        assert_eq!((opened.damage, &opened.records), (None, &records));
        opened.journal.add(&record(8, 2)).unwrap();
        records.push(record(8, 2));
        drop(opened.journal);
        let opened = open(folder.path(), b"k");
        assert_eq!(opened.records, records);
        opened.journal.remove().unwrap();
        assert!(!path.exists());
        assert!(open(folder.path(), b"k").records.is_empty());
    }

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let (folder, path, records) = journal();
        let whole = fs::read(&path).unwrap();
        let start = whole.trim_ascii_end().iter().rposition(|&b| b == b'\n');
        for length in start.unwrap() + 1..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut opened = open(folder.path(), b"k");
            assert_eq!(opened.damage, None, "{length}");
            assert_eq!(opened.records, records[..4]);
            opened.journal.add(&records[4]).unwrap();
            drop(opened);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (folder, path, _) = journal();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let opened = open(folder.path(), b"k");
            // Without its end the last line counts as torn.
            if at + 1 < whole.len() {
                assert!(opened.damage.is_some(), "byte {at}");
                assert!(opened.records.is_empty());
                assert_eq!(fs::metadata(&path).unwrap().len(), 0);
            }
        }
    }

    #[test]
    fn a_journal_of_another_search_is_not_used() {
        let (folder, path, _) = journal();
        let other = folder.path().join(Key::of(&[b"other"]).file_name());
        fs::rename(path, other).unwrap();
        let opened = open(folder.path(), b"other");
        assert_eq!(opened.damage.as_deref(), Some("line 1: is damaged, or of another search"));
        assert_ne!(Key::of(&[b"a", b"bc"]), Key::of(&[b"ab", b"c"]));
    }

    #[test]
    fn one_process_at_a_time_has_it() {
        let (folder, path, _) = journal();
        let first = open(folder.path(), b"k");
        let error = Journal::open(folder.path(), Key::of(&[b"k"]), EXTENT).unwrap_err();
        assert_eq!(format!("{error:#}"), format!("{}: another search writes to it", path.display()));
        // Another search has another one.
        open(folder.path(), b"other");
        drop(first);
        assert_eq!(open(folder.path(), b"k").records.len(), 5);
    }

    #[test]
    fn numbers_out_of_range_are_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        for bad in [record(9, 0), record(1, 4)] {
            open(folder.path(), b"k").journal.add(&bad).unwrap();
            assert!(open(folder.path(), b"k").damage.is_some());
        }
    }
}
