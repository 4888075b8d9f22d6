//! The file of results: JSON lines, one for each output.
//!
//! It is written anew for each result, beside its place, synced and renamed, rather than added to. So whoever reads it
//! meanwhile finds whole lines, and a result that is made again takes the place of the old one. A power cut leaves the file
//! with the result or without it. That costs a write of all lines for each model: some kilobytes for each that is done, little
//! beside the models themselves.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::record::Record;
use crate::error::Hint;
use crate::files::place::{is_same, read_at_most};
use crate::files::staged::{TEMPORARY, folder_of, renamed, temporary_in};

/// No batch has so many results.
const MAX_BYTES: u64 = 1 << 30;

/// The results of one file, which no other run writes to meanwhile.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    /// The file as it was written last. Its lock is what keeps others out.
    file: File,
    records: Vec<Record>,
    /// Lines of other tasks' files, which are read alone.
    others: BTreeMap<String, Record>,
    /// What could not be written.
    unsaved: Option<String>,
}

impl Results {
    /// Opens the file at `path`, made if it is not there. Reads those of other tasks beside it, whose names are the same or
    /// have a task's numbers after them.
    ///
    /// # Errors
    /// A file with other lines, or one that another run is writing to.
    pub fn open(path: &Path, all: &Path) -> Result<Self> {
        let at_path = || path.display().to_string();
        let file = lock(path).with_context(at_path)?;
        let mut results = Self {
            path: path.to_owned(),
            file,
            records: read(path)?,
            others: BTreeMap::new(),
            unsaved: None,
        };
        for other in of_tasks(all) {
            if is_same(&other, path) {
                continue;
            }
            for record in read(&other)? {
                let name = record.run.output.clone();
                let newer = results
                    .others
                    .get(&name)
                    .is_none_or(|known| known.run.outputs_read_ns <= record.run.outputs_read_ns);
                if newer {
                    results.others.insert(name, record);
                }
            }
        }
        Ok(results)
    }

    /// The record of an output.
    #[must_use]
    pub fn get(&self, output: &str) -> Option<&Record> {
        let own = self.records.iter().find(|r| r.run.output == output);
        own.or_else(|| self.others.get(output))
    }

    /// Whether an output's line is in this file, not another task's.
    #[must_use]
    pub fn is_own(&self, output: &str) -> bool {
        self.records.iter().any(|r| r.run.output == output)
    }

    /// Keeps a record in place of the same output's, and saves all. A file that cannot be written, as on a full disk, is
    /// tried again with the next one; [`Results::finish`] says if it never could.
    pub fn put(&mut self, record: Record) {
        let output = &record.run.output;
        match self.records.iter_mut().find(|r| r.run.output == *output) {
            Some(old) => *old = record,
            None => self.records.push(record),
        }
        self.save();
    }

    /// Puts back what was known of an output, and saves all. That is from before it was begun again.
    pub fn put_back(&mut self, known: &Record) {
        match self.others.contains_key(&known.run.output) {
            // It is another task's line, which is as it was.
            true => self.remove(&known.run.output),
            false => self.put(known.clone()),
        }
    }

    /// Takes a record away, and saves all.
    pub fn remove(&mut self, output: &str) {
        self.records.retain(|record| record.run.output != output);
        self.save();
    }

    fn save(&mut self) {
        self.unsaved = match self.write() {
            Ok(file) => {
                self.file = file;
                None
            }
            Err(error) => Some(error.to_string()),
        };
    }

    fn write(&self) -> std::io::Result<File> {
        let folder = folder_of(&self.path);
        let (mut temporary, _removed) = temporary_in(folder, TEMPORARY.0, 0o666)?;
        let text: String = self.records.iter().map(|r| r.line() + "\n").collect();
        temporary.write_all(text.as_bytes())?;
        temporary.as_file().sync_all()?;
        // Before it has the name by which others find it. Where there are no locks, nobody is kept out.
        let _ = temporary.as_file().try_lock();
        let file = renamed(temporary, &self.path)?;
        // So that the name is on disk too; not every system can.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(file)
    }

    /// Ends with all saved.
    ///
    /// # Errors
    /// What could not be written.
    pub fn finish(mut self) -> Result<()> {
        if self.unsaved.is_some() {
            self.save();
        }
        match self.unsaved {
            None => Ok(()),
            Some(why) => bail!("{}: the results could not be saved: {why}", self.path.display()),
        }
    }
}

/// Opens the file at `path` and locks it.
fn lock(path: &Path) -> Result<File> {
    // Another run may replace the file between the two.
    for _ in 0..100 {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(anyhow::anyhow!("another run is writing to it").context(Hint(
                    "give each of several runs its own --results, or its own --task".to_owned(),
                )));
            }
            // Not every file system knows locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let handle = same_file::Handle::from_file(file.try_clone()?)?;
        if same_file::Handle::from_path(path).is_ok_and(|now| now == handle) {
            return Ok(file);
        }
    }
    bail!("another run is writing to it")
}

/// The results files of a batch and of its tasks: `results.jsonl`, `results-1-of-4.jsonl` and so on.
fn of_tasks(all: &Path) -> Vec<PathBuf> {
    let stem = all.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let is_of_task = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let rest = name.strip_prefix(&stem).map(str::to_owned);
        path.extension() == all.extension()
            && rest.is_some_and(|rest| {
                let numbers = rest.strip_prefix('-').and_then(|r| r.split_once("-of-"));
                let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
                rest.is_empty() || numbers.is_some_and(|(a, b)| is_number(a) && is_number(b))
            })
    };
    let entries = std::fs::read_dir(folder_of(all)).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && is_of_task(path))
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = read_at_most(path, MAX_BYTES, "a file of results");
    let text = bytes.and_then(|bytes| Ok(String::from_utf8(bytes)?));
    let text = text.with_context(|| path.display().to_string())?;
    let lines = text.lines().enumerate();
    let records = lines.filter(|(_, line)| !line.trim().is_empty()).map(|(i, line)| {
        Record::parse(line).with_context(|| format!("{}:{}", path.display(), i + 1)).map_err(|error| {
            error.context(Hint(
                "--results names another file; without this line its model is done again".to_owned(),
            ))
        })
    });
    records.collect()
}
