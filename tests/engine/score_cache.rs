//! The cache of scores. A second run evaluates nothing and finds the same numbers, and everything that scores depend on is part
//! of the key.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ggml::Backend;
use gguf_shorten::files::records::Records;
use gguf_shorten::files::stamp::Stamp;
use gguf_shorten::model::hashes::HASHES;
use gguf_shorten::watch::Silent;
use serde_json::{Value, json};

use crate::eval::byte_model;
use crate::program;

/// A folder with models of 6 blocks and a cache.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let mut spec = byte_model("llama", 6);
        // llama.cpp reads scales of llama, not of deci. As deci a block without attention is written.
        spec.omitted = |name| name.ends_with("scale");
        spec.save(Backend::init(), &folder.path("m.gguf")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        program::command(self.0.path(), &format!("{arguments} -t 1"))
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
        self.json(arguments)["calibration"]["cached"].as_bool().unwrap()
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path("cache").join(kind)) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A result without its only field that tells of the cache.
fn without_cached(mut result: Value) -> Value {
    assert!(result["calibration"]["cached"].take().is_boolean());
    result
}

const SCORE: &str = "score m.gguf --tokens 96 --window 32";

#[test]
fn a_second_run_evaluates_nothing_and_finds_the_same_numbers() {
    let folder = Folder::new();
    let first = folder.json(SCORE);
    assert_eq!(first["calibration"]["cached"], false);
    let second = folder.json(SCORE);
    assert_eq!(second["calibration"]["cached"], true);
    assert_eq!(without_cached(second), without_cached(first.clone()));
    // llama.cpp says much when it loads a model, and is not used.
    let drop = "m.gguf --drop 2 --method bi --tokens 96 --window 32 -o out.gguf --force -v";
    let said = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let output = folder.run(drop);
    assert_eq!(said(&output), "");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains("measured scores from the cache: 96 tokens of built-in text, 3 windows of 32\n"),
        "{shown}"
    );
    let cached = std::fs::read(folder.path("out.gguf")).unwrap();
    let output = folder.run(&format!("{drop} --no-cache"));
    assert!(said(&output).contains("llama_model_loader"));
    assert_eq!(std::fs::read(folder.path("out.gguf")).unwrap(), cached);
    // Neither the model's place nor the use of the scores matters.
    std::fs::rename(folder.path("m.gguf"), folder.path("n.gguf")).unwrap();
    assert!(folder.is_cached("n.gguf --drop 1 --method bi --tokens 96 --window 32 --dry-run"));
    assert!(
        folder.is_cached("n.gguf --drop 3 --method relative-magnitude --tokens 96 --window 32 --dry-run")
    );
    std::fs::copy(folder.path("n.gguf"), folder.path("o.gguf")).unwrap();
    assert!(folder.is_cached("score o.gguf --tokens 96 --window 32"));
    assert_eq!(folder.files("scores").len(), 1);
    let listed = folder.json_of("cache list");
    assert_eq!(listed["entries"][0]["model_blake3"], first["model"]["blake3"]);
    assert_eq!(listed["entries"][0]["scored"], "blocks");
    let cleared = folder.json_of("cache clear");
    assert_eq!(cleared["removed"], 1);
    assert!(!folder.path("cache").exists());
}

impl Folder {
    /// The JSON of a command that takes no threads.
    fn json_of(&self, arguments: &str) -> Value {
        program::parsed(&program::program(self.0.path(), &format!("{arguments} --json -")))
    }
}

#[test]
fn how_sure_scores_are_is_the_same_with_scores_from_the_cache() {
    let folder = Folder::new();
    let text = "--tokens 512 --window 16";
    for run in [
        format!("score m.gguf --drop 2 {text}"),
        format!("score m.gguf --drop 2 --method safe {text}"),
        format!("score m.gguf --drop 3 --sub-blocks {text}"),
        "score m.gguf --calibration self:64 --seed 3 --window 16".to_owned(),
        format!("score m.gguf --drop 2 --against-calibration t.txt {text}"),
        format!("m.gguf --drop-attention 2 --drop 1 --method bi --dry-run {text}"),
        format!("m.gguf --drop 2 --method run --dry-run {text}"),
        format!("m.gguf --drop 2 --method lorp --dry-run {text}"),
    ] {
        std::fs::write(folder.path("t.txt"), "Some other text. ".repeat(20)).unwrap();
        let _ = std::fs::remove_dir_all(folder.path("cache"));
        let [first, second] = [(); 2].map(|()| folder.json(&run));
        assert_eq!(first["calibration"]["cached"], false, "{run}");
        assert_eq!(second["calibration"]["cached"], true, "{run}");
        let against = |result: &mut Value| {
            if let Some(there) = result["against"].as_object_mut() {
                there["calibration"]["cached"].take();
            }
        };
        let [first, second] = [first, second].map(|mut result| {
            against(&mut result);
            without_cached(result)
        });
        assert_eq!(second, first, "{run}");
        let [cached, anew] = ["", " --no-cache"].map(|more| {
            let output = folder.run(&format!("{run}{more}"));
            let shown = String::from_utf8(output.stdout).unwrap();
            let is_time = |line: &str| line.starts_with("measured ") || line.starts_with("against ");
            let lines = shown.lines().filter(|line| !is_time(line));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        assert!(cached.len() > 2, "{run}: {cached:?}");
        assert_eq!(cached, anew, "{run}");
    }
}

#[test]
fn what_is_not_of_all_of_the_text_is_neither_kept_nor_found() {
    let folder = Folder::new();
    let text = "--tokens 1600 --window 16";
    let early = format!("score m.gguf --drop 2 --confidence 0.9 {text}");
    assert!(!folder.is_cached(&early));
    assert!(folder.files("scores").is_empty());
    assert!(!folder.is_cached(&format!("score m.gguf --pairs {text}")));
    assert_eq!(folder.files("scores").len(), 1);
    let pairs = folder.json(&format!("score m.gguf --pairs {text}"));
    assert_eq!(pairs["calibration"]["cached"], false);
    assert_eq!(pairs["pairs"]["cosine"].as_array().unwrap().len(), 7);
    assert!(!folder.is_cached(&early));
    assert!(folder.is_cached(&format!("score m.gguf --drop 2 {text}")));
    // Texts that are the same when read one after the other.
    for (name, n) in [("whole", 800), ("half", 400), ("rest", 400)] {
        std::fs::write(folder.path(name), "a".repeat(n)).unwrap();
    }
    let two = |texts: [&str; 2]| {
        let [a, b] = texts.map(|text| format!("--calibration {text}"));
        format!("score m.gguf {a} {b} {text}")
    };
    assert!(!folder.is_cached(&format!("score m.gguf --calibration whole {text}")));
    assert!(!folder.is_cached(&two(["half", "rest"])));
    // A result says what text it was asked for.
    let found = folder.json(&two(["rest", "half"]));
    assert_eq!(found["calibration"]["cached"], true);
    assert_eq!(found["calibration"]["source"], "rest, half");
}

#[test]
fn what_scores_depend_on_is_part_of_the_key() {
    let folder = Folder::new();
    std::fs::write(folder.path("t.txt"), "Some other text. ".repeat(20)).unwrap();
    byte_model("qwen2", 6).save(Backend::init(), &folder.path("other.gguf")).unwrap();
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
    assert!(shown["entries"].as_array().unwrap().iter().any(|entry| entry["scored"] == "runs of 3"));
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
    // A cache that cannot be one keeps nobody from scoring.
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
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(folder.files("scores").len(), 1);
    assert!(folder.is_cached(SCORE));
}

/// Records this hash of `m.gguf`. It is as if a program had read the file long after it was written.
#[cfg(unix)]
fn remember(folder: &Folder, hash: &Value) {
    let metadata = std::fs::metadata(folder.path("m.gguf")).unwrap();
    let files = [(std::os::unix::fs::MetadataExt::dev(&metadata), Stamp::of(&metadata))];
    let records = Records::in_folder(folder.path("cache"), &Silent);
    records.write(&records.path(HASHES, &files), &json!({"files": files, "blake3": hash}));
}

#[cfg(unix)]
#[test]
fn scores_of_another_model_are_not_written_from() {
    let folder = Folder::new();
    let parent = |name: &Path| std::fs::read(name).unwrap();
    byte_model("qwen2", 6).save(Backend::init(), &folder.path("other.gguf")).unwrap();
    let other = folder.json("score other.gguf --tokens 96 --window 32");
    let first = folder.json(SCORE);
    assert!(folder.files("hashes").is_empty(), "the file was just written");
    remember(&folder, &other["model"]["blake3"]);
    let before = parent(&folder.path("m.gguf"));
    let drop = "m.gguf --drop 2 --method bi --tokens 96 --window 32 -o out.gguf";
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
