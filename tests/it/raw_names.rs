//! Names of files that are not UTF-8, where the system has such.
#![cfg(unix)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde_json::Value;

use crate::make::Make;
use crate::shorten::check_tensors;
use crate::util::Dir;

/// Latin 1.
fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn write(dir: &Dir, name: &OsStr, make: &Make) {
    fs::write(dir.root().join(name), make.bytes()).unwrap();
}

/// Arguments, of which those with `#` have that name in its place.
fn arguments(line: &str, name: &OsStr) -> Vec<OsString> {
    let with_name = |word: &str| match word.split_once('#') {
        Some((before, after)) => {
            let mut word = OsString::from(before);
            word.push(name);
            word.push(after);
            word
        }
        None => word.into(),
    };
    line.split_whitespace().map(with_name).collect()
}

#[test]
fn input_and_output_may_have_any_name() {
    let dir = Dir::new();
    let odd = name(b"mod\xe8le");
    let model = Make::new("llama", 5);
    write(&dir, &name(b"mod\xe8le.gguf"), &model);
    let run = |line: &str| dir.run_with(arguments(line, &odd)).succeeds();
    let output = run("#.gguf --blocks 1,3 -o #-short.gguf --json -");
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["output"]["path"], "mod\u{fffd}le-short.gguf");
    let short = fs::read(dir.root().join(name(b"mod\xe8le-short.gguf"))).unwrap();
    check_tensors(&model.bytes(), &short, &[1, 3]);
    run("verify #-short.gguf --parent #.gguf --json #.json");
    run("show #.gguf");
    assert!(dir.root().join(name(b"mod\xe8le.json")).exists());
    // Parts of a split model.
    for (i, part) in model.split(2).iter().enumerate() {
        let mut name = odd.clone();
        name.push(format!("-{:05}-of-00002.gguf", i + 1));
        write(&dir, &name, part);
    }
    run("#-00002-of-00002.gguf --blocks 1,3 -o #-again.gguf");
    let again = fs::read(dir.root().join(name(b"mod\xe8le-again.gguf"))).unwrap();
    check_tensors(&model.bytes(), &again, &[1, 3]);
}

#[test]
fn a_batch_takes_any_name_and_goes_on_after_it() {
    let dir = Dir::new();
    let zoo = name(b"zo\xf6");
    fs::create_dir(dir.root().join(&zoo)).unwrap();
    for file in [&b"zo\xf6/a.gguf"[..], b"zo\xf6/b\xe8.gguf", b"zo\xf6/c.gguf"] {
        write(&dir, &name(file), &Make::new("llama", 4));
    }
    fs::write(dir.root().join("list"), b"# in Latin 1\n zo\xf6/b\xe8.gguf \nzo\xf6/c.gguf\n").unwrap();
    let batch = |line: &str, done: &str| {
        let output = dir.run_with(arguments(line, &zoo)).output();
        output.check(output.status.success(), "success");
        output.check(output.stdout.contains(done), done);
    };
    let all = "batch # --drop 1 --method reverse --out-dir out#";
    batch(all, "3 done");
    let out = dir.root().join(name(b"outzo\xf6"));
    for file in ["a-drop1.gguf", "b%E8-drop1.gguf", "c-drop1.gguf"] {
        assert!(Path::new(&out).join(file).exists(), "{file}");
    }
    // What is done is known again.
    batch(all, "3 done before");
    batch("batch @list --drop 1 --method reverse --out-dir out#", "2 done before");
    fs::remove_file(out.join("b%E8-drop1.gguf")).unwrap();
    batch(all, "1 done, 2 done before");
    // Results are lines of JSON.
    let results = fs::read_to_string(out.join("results.jsonl")).unwrap();
    let lines: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let has_name = |line: &&Value| line["model"]["path"] == "zo\u{fffd}/b\u{fffd}.gguf";
    assert_eq!(lines.iter().filter(has_name).count(), 1);
}

#[test]
fn what_no_modelfile_can_hold_is_refused_before_the_work() {
    let dir = Make::new("llama", 4).dir();
    let line = "m.gguf --blocks 1 -o # --ollama m";
    let odd = OsStr::from_bytes(b"m\xe8.gguf");
    dir.run_with(arguments(line, odd))
        .fails(1, "m\u{fffd}.gguf: a Modelfile holds no name that is not UTF-8");
}
