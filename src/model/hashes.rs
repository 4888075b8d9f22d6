//! Hashes of models, remembered by what the system says of their files.
//!
//! Hashing a model reads all of it. So its hash is remembered by device and stamp ([`Stamp`]), of which no program can set one
//! time back. Files that changed just before they were hashed are not remembered: another change might not show. What is written
//! never rests on this: the hash of the parent is computed anew while it is copied, and compared.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::files::records::Records;
use crate::files::stamp::{Stamp, now_ns};
use crate::files::system::identity;
use crate::model::input::Input;
use crate::watch::Watch;

/// The folder of remembered hashes among the records.
pub const HASHES: &str = "hashes";

/// The hash of all bytes of `input`. The one that is remembered of its files, else computed and remembered.
#[must_use]
pub fn remembered(input: &Input, watch: &dyn Watch) -> blake3::Hash {
    match Records::of_user(watch) {
        Some(records) => hash(&records, input, now_ns()),
        None => input.blake3_once(),
    }
}

/// As [`remembered`], or computed where nothing is to be kept.
pub fn of(input: &Input, with_cache: bool, watch: &dyn Watch) -> blake3::Hash {
    match with_cache {
        true => remembered(input, watch),
        false => input.blake3_once(),
    }
}

/// The hash that is remembered of the files of `input`.
#[must_use]
pub fn known(input: &Input, watch: &dyn Watch) -> Option<blake3::Hash> {
    known_in(&Records::of_user(watch)?, &identities(input)?)
}

/// Remembers the hash of `input`, which was read since `start_ns`.
pub fn remember(input: &Input, hash: blake3::Hash, start_ns: i64, watch: &dyn Watch) {
    if let (Some(records), Some(files)) = (Records::of_user(watch), identities(input)) {
        remember_in(&records, files, hash, start_ns);
    }
}

fn known_in(records: &Records<'_>, files: &Vec<Identity>) -> Option<blake3::Hash> {
    let remembered = records.read::<Remembered>(&records.path(HASHES, files))?;
    (remembered.files == *files).then(|| blake3::Hash::from_hex(&remembered.blake3).ok())?
}

fn remember_in(records: &Records<'_>, files: Vec<Identity>, hash: blake3::Hash, start_ns: i64) {
    if files.iter().all(|(_, stamp)| stamp.is_settled(start_ns)) {
        let blake3 = hash.to_hex().to_string();
        records.write(&records.path(HASHES, &files), &Remembered { files, blake3 });
    }
}

/// `start_ns` is the time now.
fn hash(records: &Records<'_>, input: &Input, start_ns: i64) -> blake3::Hash {
    let Some(files) = identities(input) else {
        return input.blake3_once();
    };
    if let Some(known) = known_in(records, &files) {
        return known;
    }
    // Anew: what was hashed before may have changed since.
    let hash = input.blake3();
    input.keep_blake3(hash);
    // What changed while it was read is not remembered.
    if identities(input).as_ref() == Some(&files) {
        remember_in(records, files, hash, start_ns);
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

/// The hash of a model.
#[derive(Serialize, Deserialize)]
struct Remembered {
    files: Vec<Identity>,
    blake3: String,
}

/// The device of a file, and its stamp.
type Identity = (u64, Stamp);

/// What the system says of the files of `input`. `None` where it does not say enough.
fn identities(input: &Input) -> Option<Vec<Identity>> {
    let of_part = |part: &crate::model::part::Part| {
        let metadata = part.mapping.file().metadata().ok()?;
        Some((identity(&metadata)?.device, Stamp::of(&metadata)))
    };
    input.parts().iter().map(of_part).collect()
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
        let later = now_ns() + 3_000_000_000;
        assert_eq!(hash(&records, &input, now_ns()), blake3::hash(&bytes));
        // Too fresh.
        assert_eq!(n_remembered(), 0);
        assert_eq!(hash(&records, &input, later), blake3::hash(&bytes));
        assert_eq!(n_remembered(), 1);
        let files = identities(&input).unwrap();
        let lie = Remembered { files: files.clone(), blake3: "0".repeat(64) };
        records.write(&records.path(HASHES, &files), &lie);
        assert_eq!(hash(&records, &input, later).to_hex().as_str(), "0".repeat(64));
        forget_in(&records, &input);
        assert_eq!(hash(&records, &input, later), blake3::hash(&bytes));
        // A change shows even if the data's length and time are restored.
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        bytes[8..].fill(0);
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(changed).unwrap();
        assert_ne!(identities(&input).unwrap(), files);
    }
}
