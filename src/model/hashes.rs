//! Hashes of models, remembered by what the system says of their files.
//!
//! Hashing a model reads all of it. So its hash is remembered by device, number, length, and the times of the last change of
//! data and of anything, in nanoseconds. The second of these times cannot be set back. Files that changed just before they were
//! hashed are not remembered: a change within the same tick of the clock would not show. What is written never rests on this:
//! the hash of the parent is computed anew while it is copied, and compared.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::records::Records;
use crate::model::input::Input;
use crate::watch::Watch;

/// The folder of remembered hashes among the records.
pub const HASHES: &str = "hashes";

/// The hash of all bytes of `input`: the one that is remembered of its files, else computed and remembered.
#[must_use]
pub fn remembered(input: &Input, watch: &dyn Watch) -> blake3::Hash {
    match Records::of_user(watch) {
        Some(records) => hash(&records, input),
        None => input.blake3(),
    }
}

fn hash(records: &Records<'_>, input: &Input) -> blake3::Hash {
    let Some(files) = identities(input) else {
        return input.blake3();
    };
    let path = records.path(HASHES, &files);
    if let Some(remembered) = records.read::<Remembered>(&path)
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
        records.write(&path, &Remembered { files, blake3 });
    }
    hash
}

/// Forgets the hash of `input`.
pub fn forget(input: &Input, watch: &dyn Watch) {
    if let Some(records) = Records::of_user(watch) {
        forget_in(&records, input);
    }
}

fn forget_in(records: &Records<'_>, input: &Input) {
    if let Some(files) = identities(input) {
        // What is not there is forgotten.
        let _ = fs::remove_file(records.path(HASHES, &files));
    }
}

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

/// What the system says of the files of `input`; `None` where it does not say enough.
#[cfg(unix)]
fn identities(input: &Input) -> Option<Vec<Identity>> {
    use std::os::unix::fs::MetadataExt;
    let identity = |part: &crate::model::part::Part| {
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
    use crate::watch::Silent;

    #[cfg(unix)]
    #[test]
    fn a_hash_is_remembered_of_files_that_have_not_changed_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::in_folder(dir.path().join("c"), &Silent);
        let path = dir.path().join("m.gguf");
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([0; 16]);
        fs::write(&path, &bytes).unwrap();
        let input = Input::open_file(&path).unwrap();
        let n_remembered = || fs::read_dir(records.folder().join(HASHES)).map_or(0, Iterator::count);
        assert_eq!(hash(&records, &input), blake3::hash(&bytes));
        // Too fresh.
        assert_eq!(n_remembered(), 0);
        std::thread::sleep(std::time::Duration::from_millis(3100));
        assert_eq!(hash(&records, &input), blake3::hash(&bytes));
        assert_eq!(n_remembered(), 1);
        let files = identities(&input).unwrap();
        let lie = Remembered { files: files.clone(), blake3: "0".repeat(64) };
        records.write(&records.path(HASHES, &files), &lie);
        assert_eq!(hash(&records, &input).to_hex().as_str(), "0".repeat(64));
        forget_in(&records, &input);
        assert_eq!(hash(&records, &input), blake3::hash(&bytes));
        // A change shows, also where length and time of the data are put back.
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        bytes[8..].fill(0);
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(changed).unwrap();
        assert_ne!(identities(&input).unwrap(), files);
    }
}
