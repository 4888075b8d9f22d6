//! One task's share of models that several tasks work on. They run on one machine or many.
//!
//! A model goes to a task by its content alone. So the shares are disjoint and complete however each task finds the models, in
//! which order, and under which names. A model that is added later moves no other.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// Bytes of a file that are looked at. The start tells most models apart, places up to the end those that differ in their
/// weights alone.
const HEAD: u64 = 64 << 10;

const SAMPLE: u64 = 4 << 10;

const N_SAMPLES: u64 = 32;

/// A number by the content of `files` in order, nothing else. It is of the length and of samples of each. Two models that
/// differ elsewhere go to the same task, which does no harm.
///
/// # Errors
/// The system's.
pub fn fingerprint(files: &[PathBuf]) -> io::Result<u64> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        hasher.update(&len.to_le_bytes());
        let mut take = |at: u64, n: u64| -> io::Result<()> {
            file.seek(SeekFrom::Start(at))?;
            let mut bytes = Vec::new();
            (&mut file).take(n).read_to_end(&mut bytes)?;
            hasher.update(&bytes);
            Ok(())
        };
        take(0, HEAD)?;
        for i in 1..=N_SAMPLES {
            let end = len / N_SAMPLES * i + if i == N_SAMPLES { len % N_SAMPLES } else { 0 };
            take(end.saturating_sub(SAMPLE), SAMPLE)?;
        }
    }
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    Ok(u64::from_le_bytes(first))
}
