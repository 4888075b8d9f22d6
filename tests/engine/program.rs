//! Runs of the program.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program with blank-separated arguments in `dir`, where its cache is.
pub fn command(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gguf-shorten"));
    command.args(arguments.split_whitespace()).current_dir(dir).env("GGUF_SHORTEN_CACHE", dir.join("cache"));
    command
}

/// Runs the program in `dir`.
pub fn program(dir: &Path, arguments: &str) -> Output {
    command(dir, arguments).output().unwrap()
}

/// Runs the program on one thread. The threads of ggml spin at barriers, and tests run side by side.
pub fn on_one_thread(dir: &Path, arguments: &str) -> Output {
    program(dir, &format!("{arguments} -t 1"))
}

/// The result as JSON of a run that succeeds.
#[track_caller]
pub fn parsed(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The result as JSON of a run on one thread that succeeds.
#[track_caller]
pub fn json(dir: &Path, arguments: &str) -> Value {
    parsed(&on_one_thread(dir, &format!("{arguments} --json -")))
}

/// The stderr of a run that fails with status 1. It must have written nothing.
pub fn failure(dir: &Path, arguments: &str) -> String {
    let names = || {
        let entries = std::fs::read_dir(dir).unwrap();
        let size = |entry: std::fs::DirEntry| (entry.file_name(), entry.metadata().unwrap().len());
        entries
            .map(|entry| size(entry.unwrap()))
            .filter(|(name, _)| name != "cache")
            .collect::<BTreeMap<_, _>>()
    };
    let before = names();
    let output = program(dir, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(names(), before);
    String::from_utf8(output.stderr).unwrap()
}
