//! The cache of scores: a second run evaluates nothing and finds the same numbers, and everything that scores depend on is
//! part of the key.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ggml::Backend;
use serde_json::Value;

use crate::eval::byte_model;

/// A folder with models of 6 blocks and a cache.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        byte_model("llama", 6)
            .save(Backend::init(), &folder.path("m.gguf"))
            .unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gguf-shorten"));
        command
            .args(arguments.split_whitespace())
            .args(["-t", "1"])
            .current_dir(self.0.path())
            .env("GGUF_SHORTEN_CACHE", self.path("cache"));
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The JSON of a run that succeeds.
    fn json(&self, arguments: &str) -> Value {
        let output = self.run(&format!("{arguments} --json -"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Whether the scores of a run came from the cache.
    fn is_cached(&self, arguments: &str) -> bool {
        self.json(arguments)["calibration"]["cached"]
            .as_bool()
            .unwrap()
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path("cache").join(kind)) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

const SCORE: &str = "score m.gguf --tokens 96 --window 32";

#[test]
fn a_second_run_evaluates_nothing_and_finds_the_same_numbers() {
    let folder = Folder::new();
    let first = folder.json(SCORE);
    assert_eq!(first["calibration"]["cached"], false);
    let second = folder.json(SCORE);
    assert_eq!(second["calibration"]["cached"], true);
    for key in ["model", "blocks", "method"] {
        assert_eq!(first[key], second[key]);
    }
    for key in [
        "source", "blake3", "windows", "window", "tokens", "bos", "seconds",
    ] {
        assert_eq!(first["calibration"][key], second["calibration"][key]);
    }
    // llama.cpp says much where it loads a model, and is not asked here.
    let drop = "m.gguf --drop 2 --tokens 96 --window 32 -o out.gguf --force -v";
    let said = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let output = folder.run(drop);
    assert_eq!(said(&output), "");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains(
            "measured scores from the cache: 96 tokens of built-in text, 3 windows of 32\n"
        ),
        "{shown}"
    );
    let cached = std::fs::read(folder.path("out.gguf")).unwrap();
    let output = folder.run(&format!("{drop} --no-cache"));
    assert!(said(&output).contains("llama_model_loader"));
    assert_eq!(std::fs::read(folder.path("out.gguf")).unwrap(), cached);
    // Where the model lies matters to nothing, nor does what is made of the scores.
    std::fs::rename(folder.path("m.gguf"), folder.path("n.gguf")).unwrap();
    assert!(folder.is_cached("n.gguf --drop 1 --tokens 96 --window 32 --dry-run"));
    assert!(folder.is_cached(
        "n.gguf --drop 3 --method relative-magnitude --tokens 96 --window 32 --dry-run"
    ));
    std::fs::copy(folder.path("n.gguf"), folder.path("o.gguf")).unwrap();
    assert!(folder.is_cached("score o.gguf --tokens 96 --window 32"));
    assert_eq!(folder.files("scores").len(), 1);
    let listed = folder.json_of("cache list");
    assert_eq!(
        listed["entries"][0]["model_blake3"],
        first["model"]["blake3"]
    );
    assert_eq!(listed["entries"][0]["scored"], "blocks");
    let cleared = folder.json_of("cache clear");
    assert_eq!(cleared["removed"], 1);
    assert!(!folder.path("cache").exists());
}

impl Folder {
    /// The JSON of a command that takes no threads.
    fn json_of(&self, arguments: &str) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_gguf-shorten"))
            .args(arguments.split_whitespace())
            .args(["--json", "-"])
            .env("GGUF_SHORTEN_CACHE", self.path("cache"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn what_scores_depend_on_is_part_of_the_key() {
    let folder = Folder::new();
    std::fs::write(folder.path("t.txt"), "Some other text. ".repeat(20)).unwrap();
    byte_model("qwen2", 6)
        .save(Backend::init(), &folder.path("other.gguf"))
        .unwrap();
    assert!(!folder.is_cached(SCORE));
    for other in [
        "score m.gguf --tokens 64 --window 32",
        "score m.gguf --tokens 96 --window 48",
        "score m.gguf --tokens 96 --window 32 --calibration t.txt",
        "score m.gguf --tokens 96 --window 32 --sub-blocks",
        "score m.gguf --tokens 96 --window 32 --gpu-layers 0",
        "score other.gguf --tokens 96 --window 32",
        "m.gguf --drop 2 --method run --tokens 96 --window 32 --dry-run",
        "m.gguf --drop 3 --method run --tokens 96 --window 32 --dry-run",
    ] {
        assert!(!folder.is_cached(other), "{other}");
        assert!(folder.is_cached(other), "{other}");
        assert!(!folder.is_cached(&format!("{other} --no-cache")), "{other}");
    }
    assert_eq!(folder.files("scores").len(), 9);
    let shown = folder.json_of("cache list");
    assert!(
        shown["entries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["scored"] == "runs of 3")
    );
    // Nothing is kept that is not to be.
    let empty = Folder::new();
    assert!(!empty.is_cached(&format!("{SCORE} --no-cache")));
    assert!(!empty.path("cache").exists());
}

#[test]
fn a_damaged_entry_is_said_once_and_made_again() {
    let folder = Folder::new();
    let first = folder.json(SCORE);
    let entry = folder.files("scores").remove(0);
    let whole = std::fs::read(&entry).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], b"", b"\xff\n{}\n"] {
        std::fs::write(&entry, damaged).unwrap();
        let output = folder.run(SCORE);
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("gguf-shorten: note: the cache's ")
                && said.contains("is damaged and is made again: ")
        );
        let again = folder.json(SCORE);
        assert_eq!(again["calibration"]["cached"], true);
        assert_eq!(again["blocks"], first["blocks"]);
    }
    // A cache that cannot be one keeps nothing, and keeps nobody from scoring.
    std::fs::remove_dir_all(folder.path("cache")).unwrap();
    std::fs::write(folder.path("cache"), "a file").unwrap();
    let output = folder.run(SCORE);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    let output = folder.run(&format!("{SCORE} -q"));
    assert!(output.status.success() && output.stderr.is_empty());
}

#[test]
fn processes_side_by_side_leave_one_whole_entry() {
    let folder = Folder::new();
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = folder.command(SCORE);
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    assert_eq!(folder.files("scores").len(), 1);
    assert!(folder.is_cached(SCORE));
}

/// Replaces the hash in the only file of remembered hashes.
#[cfg(unix)]
fn lie(folder: &Folder, hash: &str) {
    let path = folder.files("hashes").remove(0);
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, json) = text.trim_end().split_once('\n').unwrap();
    let mut json: Value = serde_json::from_str(json).unwrap();
    json["blake3"] = hash.into();
    let json = json.to_string();
    let sum = blake3::hash(json.as_bytes()).to_hex();
    std::fs::write(path, format!("{sum}\n{json}\n")).unwrap();
}

#[cfg(unix)]
#[test]
fn scores_of_another_model_are_not_written_from() {
    let folder = Folder::new();
    let parent = |name: &Path| std::fs::read(name).unwrap();
    byte_model("qwen2", 6)
        .save(Backend::init(), &folder.path("other.gguf"))
        .unwrap();
    let other = folder.json("score other.gguf --tokens 96 --window 32");
    assert!(folder.files("hashes").is_empty());
    // Files that are older than the clock's ticks are remembered.
    std::thread::sleep(std::time::Duration::from_millis(3200));
    let first = folder.json(SCORE);
    assert_eq!(folder.files("hashes").len(), 1);
    lie(&folder, other["model"]["blake3"].as_str().unwrap());
    let before = parent(&folder.path("m.gguf"));
    let drop = "m.gguf --drop 2 --tokens 96 --window 32 -o out.gguf";
    let output = folder.run(drop);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "gguf-shorten: out.gguf: nothing was written: m.gguf: is not the model that was scored: it was changed in place\n\
         hint: the next run scores it anew\n"
    );
    assert!(!folder.path("out.gguf").exists());
    assert_eq!(parent(&folder.path("m.gguf")), before);
    let json = folder.json(drop);
    assert_eq!(json["calibration"]["cached"], true);
    assert_eq!(json["model"]["blake3"], first["model"]["blake3"]);
}
