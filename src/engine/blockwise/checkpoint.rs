//! Checkpoints: how far a pass is, in a folder. After an interrupt it goes on at the block that was not finished.
//!
//! ```text
//! blockwise-<key>.json   the next block, the hash of its states, and what was measured so far
//! blockwise-<key>.0, .1  the states before a block and those after it, in turn
//! blockwise-<key>.<i>.sums  what the weights of block i multiplied, where that is added up
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::states::{States, hash};
use crate::engine::conversion::Conversion;
use crate::engine::imatrix::Gathered;
use crate::files::records::Records;
use crate::files::{place, system};
use crate::watch::Watch;

/// The checkpoint of one pass. Its files are locked.
pub(super) struct Checkpoint {
    folder: PathBuf,
    /// What the names of its files begin with.
    stem: String,
}

/// How far a pass is.
#[derive(Serialize, Deserialize)]
pub(super) struct Record<M> {
    /// What the pass depends on.
    pub(super) key: String,
    /// The block that comes next.
    pub(super) next: usize,
    /// The number of the file with the states before it.
    pub(super) file: usize,
    /// The hash of these states.
    pub(super) blake3: String,
    /// What the weights of blocks are converted to.
    pub(super) conversion: Conversion,
    /// The caller's measurements of the blocks before it.
    pub(super) measured: M,
}

impl Checkpoint {
    /// Opens the checkpoint of the pass that `key` stands for in `folder`: `n_windows` states of `n_floats` each.
    ///
    /// What is damaged is said so and begun anew.
    ///
    /// # Errors
    /// A folder that cannot be written; another run that uses it; not enough room.
    pub(super) fn open<M: DeserializeOwned>(
        folder: &Path,
        key: &blake3::Hash,
        n_windows: usize,
        n_floats: usize,
        watch: &dyn Watch,
    ) -> Result<(Self, States, Option<Record<M>>)> {
        let at_folder = || folder.display().to_string();
        let key = key.to_hex();
        let checkpoint = Self { folder: folder.to_owned(), stem: format!("blockwise-{}", &key[..16]) };
        let n_bytes = (n_windows as u64).saturating_mul(n_floats as u64).saturating_mul(4);
        let places = [0, 1].map(|number| checkpoint.path(&number.to_string()));
        let n_there = places.each_ref().map(|place| fs::metadata(&place.0).map_or(0, |file| file.len()));
        let n_more: u64 = n_there.iter().map(|n| n_bytes.saturating_sub(*n)).sum();
        // Before anything is made that would stay.
        let on_disk = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        place::check_free(on_disk, n_more, 0).context("hidden states of the text")?;
        fs::create_dir_all(folder).with_context(at_folder)?;
        let mut files = places.map(|place| place.open());
        let mut opened = Vec::new();
        for file in &mut files {
            let file = file.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            opened.push(file.try_clone()?);
        }
        let Ok([first, second]) = <[File; 2]>::try_from(opened) else {
            bail!("bug: not two files");
        };
        let mut files = [first, second];
        let records = Records::in_folder(folder.to_owned(), watch);
        let record: Option<Record<M>> = records.read(&checkpoint.path("json").0);
        let record = record.filter(|record| record.key == *key);
        let Some(record) = record else {
            return Ok((checkpoint, States::in_files(files, n_floats, 0), None));
        };
        let found = files.get_mut(record.file).context("no such file").and_then(|file| hash(file, n_bytes));
        let is_whole = match found {
            Ok(found) => found.to_hex().as_str() == record.blake3,
            Err(_) => false,
        };
        if !is_whole {
            watch.note(&format!(
                "the hidden states in '{}' are damaged; all blocks are evaluated anew",
                folder.display()
            ));
            return Ok((checkpoint, States::in_files(files, n_floats, 0), None));
        }
        let states = States::in_files(files, n_floats, record.file);
        Ok((checkpoint, states, Some(record)))
    }

    /// Keeps how far the pass is.
    pub(super) fn keep<M: Serialize>(&self, record: &Record<M>, watch: &dyn Watch) {
        Records::in_folder(self.folder.clone(), watch).write(&self.path("json").0, record);
    }

    /// Keeps the sums of a block.
    pub(super) fn keep_sums(&self, block: usize, sums: &Gathered, watch: &dyn Watch) {
        Records::in_folder(self.folder.clone(), watch).write(&self.sums_of(block).0, sums);
    }

    /// The sums of the first `n_blocks` blocks. `None` where some are missing or damaged.
    pub(super) fn sums(&self, n_blocks: usize, watch: &dyn Watch) -> Option<Gathered> {
        let records = Records::in_folder(self.folder.clone(), watch);
        let mut all = Gathered::default();
        for block in 0..n_blocks {
            all.merge(records.read(&self.sums_of(block).0)?).ok()?;
        }
        Some(all)
    }

    fn sums_of(&self, block: usize) -> Place {
        self.path(&format!("{block}.sums"))
    }

    /// Removes its files: the pass of so many blocks is at its end.
    pub(super) fn remove(&self, n_blocks: usize) {
        let of_pass = ["json", "0", "1"].map(|end| self.path(end));
        for Place(path) in (0..n_blocks).map(|block| self.sums_of(block)).chain(of_pass) {
            // What is not there needs not be removed.
            let _ = fs::remove_file(path);
        }
    }

    fn path(&self, end: &str) -> Place {
        Place(self.folder.join(format!("{}.{end}", self.stem)))
    }
}

/// The place of one of the files.
struct Place(PathBuf);

impl Place {
    /// Opens it, and locks it for this run.
    fn open(&self) -> Result<File> {
        let at_path = || self.0.display().to_string();
        // What others may have put here is not written to by way of a link.
        let check = || match fs::symlink_metadata(&self.0) {
            Ok(there) => {
                ensure!(there.is_file(), "{}: is not a regular file", at_path());
                ensure!(
                    system::n_links(&there) == 1,
                    "{}: has another name, expected a file of its own",
                    at_path()
                );
                Ok(())
            }
            Err(_) => Ok(()),
        };
        check()?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.0);
        let file = file.with_context(at_path)?;
        check()?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                bail!("{}: another run of the same job is using it", at_path())
            }
            // Some file systems have no locks.
            Err(fs::TryLockError::Error(_)) => Ok(file),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::watch::Silent;

    #[test]
    fn nothing_is_written_by_way_of_a_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("precious"), "precious").unwrap();
        let place = Place(at("blockwise-1.0"));
        for is_symbolic in [true, false] {
            match is_symbolic {
                true => std::os::unix::fs::symlink(at("precious"), &place.0).unwrap(),
                false => fs::hard_link(at("precious"), &place.0).unwrap(),
            }
            place.open().unwrap_err();
            fs::remove_file(&place.0).unwrap();
        }
        assert_eq!(fs::read(at("precious")).unwrap(), b"precious");
        place.open().unwrap();
        // Nor is what a link leads to made.
        std::os::unix::fs::symlink(at("absent"), at("blockwise-2.0")).unwrap();
        Place(at("blockwise-2.0")).open().unwrap_err();
        assert!(!at("absent").exists());
    }

    #[test]
    fn nothing_is_left_where_there_is_no_room() {
        let root = tempfile::tempdir().unwrap();
        let open =
            |folder: &Path| Checkpoint::open::<()>(folder, &blake3::hash(b""), 1 << 40, 1 << 20, &Silent);
        let error = open(&root.path().join("a/b")).map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("No space left on device"), "{error:#}");
        open(root.path()).map(drop).unwrap_err();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
