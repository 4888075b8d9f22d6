//! Results of earlier runs, and whether they still hold.
//!
//! A file is taken for unchanged, without being read, where size, both times and inode are as they were when it was read. It
//! must not have been written shortly before ([`Stamp::is_settled`]). Else its bytes are hashed. No program can set the time of
//! change, so a write in between shows; a clock that is put back can hide one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::child;
use super::job::Job;
use super::record::{Record, Run, Seen, State};
use crate::files::part_name::Prefix;
use crate::files::staged::folder_of;
use crate::files::stamp::{Stamp, now_ns};

/// An input's files as they are now, and when they were read.
pub type NewStamps = (Vec<Seen>, i64);

/// State of an earlier output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it, with the same bytes.
    Whole,
    /// Some of its files are gone, and the others are the same.
    InPart,
    /// Nothing that is known to be the same.
    No,
}

/// The state of an earlier run's output in the folder of outputs.
///
/// # Errors
/// What cannot be read; that the batch is to end.
pub fn output(run: &Run, out_dir: &Path) -> io::Result<Kept> {
    let at = |seen: &Seen| out_dir.join(&seen.path);
    let files: Vec<(&Seen, Option<Stamp>)> =
        run.outputs.iter().chain(&run.beside).map(|seen| (seen, Stamp::at(&at(seen)).ok())).collect();
    if run.outputs.is_empty() {
        return Ok(Kept::No);
    }
    if files.iter().any(|(_, now)| now.is_none()) {
        let mut left = files.iter().filter_map(|(seen, now)| Some((seen, now.as_ref()?)));
        return Ok(match left.all(|(seen, now)| seen.stamp == *now) {
            true => Kept::InPart,
            false => Kept::No,
        });
    }
    let is_settled = |seen: &Seen| seen.stamp.is_settled(run.outputs_read_ns);
    if has_stamps(run, out_dir) && run.outputs.iter().all(is_settled) {
        return Ok(Kept::Whole);
    }
    let same_sizes = files.iter().all(|(seen, now)| now.is_some_and(|now| now.bytes == seen.stamp.bytes));
    let paths: Vec<PathBuf> = run.outputs.iter().map(at).collect();
    let is_same = same_sizes && run.outputs_blake3.as_deref() == Some(&*hash(&paths)?);
    Ok(if is_same { Kept::Whole } else { Kept::No })
}

/// Whether an output's files are what they were, by their stamps.
#[must_use]
pub fn has_stamps(run: &Run, out_dir: &Path) -> bool {
    let now = |seen: &Seen| Stamp::at(&out_dir.join(&seen.path)).ok();
    !run.outputs.is_empty() && run.outputs.iter().all(|seen| now(seen) == Some(seen.stamp))
}

/// Whether neither an output nor a part of it is there.
#[must_use]
pub fn is_free(output: &Path) -> bool {
    let mut names = fs::read_dir(folder_of(output)).into_iter().flatten().flatten();
    let prefix = Prefix::of_output(output);
    !names.any(|entry| {
        let name = entry.file_name();
        output.file_name() == Some(&name) || prefix.as_ref().is_some_and(|p| p.is_part(&name))
    })
}

/// The files of an output in `out_dir`, and those written with it.
#[must_use]
pub fn files(record: &Record, out_dir: &Path) -> [Vec<PathBuf>; 2] {
    let parts = record.field(&["output", "parts"]).and_then(|parts| parts.as_array());
    let parts = parts.into_iter().flatten();
    let parts = parts.filter_map(|part| part.get("path")?.as_str());
    let renumbered = record.text(&["output", "imatrix", "path"]);
    let measured = record.text(&["imatrix_out", "path"]);
    [
        // Only their names are text in any case.
        parts.filter_map(|part| Some(out_dir.join(Path::new(part).file_name()?))).collect(),
        renumbered.into_iter().chain(measured).map(PathBuf::from).collect(),
    ]
}

/// Whether `known` is the result of the same input, flags and versions. `None` if not. If it is, what is new to be kept of the
/// input's files, so that they need not be read the next time.
///
/// # Errors
/// What cannot be read; that the batch is to end.
pub fn is_done(job: &Job, known: &Record, run: &Run) -> io::Result<Option<Option<NewStamps>>> {
    let is_same = known.run.state == State::Done
        && known.is_of_this_version()
        && known.run.flags_blake3 == run.flags_blake3
        && !run.input.is_empty();
    if !is_same {
        return Ok(None);
    }
    let stamps = |files: &[Seen]| files.iter().map(|seen| seen.stamp).collect::<Vec<_>>();
    let is_settled = |seen: &Seen| seen.stamp.is_settled(known.run.input_read_ns);
    if stamps(&known.run.input) == stamps(&run.input) && known.run.input.iter().all(is_settled) {
        return Ok(Some(None));
    }
    let read_ns = now_ns();
    let found = hash(&job.source.files)?;
    let is_same = known.text(&["model", "blake3"]) == Some(&*found);
    Ok(is_same.then(|| Some((run.input.clone(), read_ns))))
}

/// Hash of all bytes of `files`, one after another, as text. They are read, not mapped: one that is made shorter meanwhile must
/// not end the run of all.
fn hash(files: &[PathBuf]) -> io::Result<String> {
    /// Ends early where the batch does.
    struct Stoppable(File);
    impl Read for Stoppable {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match child::is_stopping() {
                true => Err(io::ErrorKind::Other.into()),
                false => self.0.read(buffer),
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    for path in files {
        hasher.update_reader(Stoppable(File::open(path)?))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
