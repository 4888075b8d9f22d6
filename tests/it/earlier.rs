//! `verify` of what version 0.1.0 wrote: its wrong files are found and told, its right ones pass.

use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, ValueOut, write};

use gguf_shorten::model::Model;
use gguf_shorten::output::verify::faults;

use crate::make::Make;
use crate::util::Dir;
use crate::verify::Taken;

/// What 0.1.0 made of `parent` without block 1. It is the same file, but for these entries, which it left as they were.
fn old(dir: &Dir, parent: &Make, entries: &[(&'static str, ValueOut)]) {
    parent.write(dir, "m.gguf");
    dir.run("m.gguf --blocks 1 -o new.gguf --force").succeeds();
    let new = dir.read("new.gguf");
    let mut taken = Taken::apart(&new);
    let version = ("gguf_shorten.version", ValueOut::string("0.1.0"));
    for (key, value) in entries.iter().chain([&version]) {
        let entry = taken.entries.iter_mut().find(|entry| entry.key() == *key);
        *entry.unwrap() = EntryOut::new(*key, value.clone());
    }
    dir.write("old.gguf", &taken.bytes());
}

/// Checks that verification fails at that entry. The note says why.
#[track_caller]
fn is_found(dir: &Dir, key: &str, why: &str) {
    let output = dir.run("verify old.gguf --parent m.gguf --json -").output();
    output.check(output.status.code() == Some(1), "status 1");
    let differs = format!("metadata '{key}' differs from the ");
    output.check(output.stderr.contains(&differs), &differs);
    let note = format!("gguf-shorten: note: version '0.1.0' {why}");
    output.check(output.stderr.contains(&note), &note);
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let faults = json["known_faults"].as_array().unwrap();
    let is_said = |fault: &serde_json::Value| fault.as_str().unwrap().starts_with(why);
    output.check(faults.iter().any(is_said), "the fault in JSON");
}

#[test]
fn names_that_were_left_are_found() {
    let dir = Dir::new();
    let names = |names: &[&str]| ValueOut::strings(names);
    let key = "general.tensor_extra.name";
    let parent = Make::new("llama", 4).set(key, names(&["blk.2.attn_q.weight"]));
    old(&dir, &parent, &[(key, names(&["blk.2.attn_q.weight"]))]);
    let why = "left metadata that names tensors or blocks as it was, such as 'general.tensor_extra.name'";
    is_found(&dir, key, why);
}

#[test]
fn sizes_that_were_left_are_found() {
    let dir = Dir::new();
    for (key, value) in
        [("general.parameter_count", ValueOut::u64(1628)), ("general.size_label", ValueOut::string("9.9K"))]
    {
        let parent = Make::new("llama", 4).set(key, value.clone());
        old(&dir, &parent, &[(key, value)]);
        is_found(&dir, key, &format!("left '{key}' as it was"));
    }
}

#[test]
fn lists_of_adapters_that_were_cut_are_found() {
    let dir = Dir::new();
    let key = "graniteswitch.adapters.token_ids_activate";
    let parent = Make::new("graniteswitch", 4).set(key, ValueOut::i32s(&[1, 2, 3, 4]));
    old(&dir, &parent, &[(key, ValueOut::i32s(&[1, 3, 4]))]);
    is_found(&dir, key, "took the list 'adapters.token_ids_activate' of adapters for one of blocks");
}

/// The entries and tensors of `bytes` at that alignment, as in 0.1.0.
fn at_alignment(bytes: &[u8], alignment: u32, description: &str) -> Vec<u8> {
    let file = File::parse(bytes).unwrap();
    let entries = file.metadata().iter().map(|entry| match entry.key() {
        "general.alignment" => EntryOut::u32("general.alignment", alignment),
        "gguf_shorten.version" => EntryOut::string("gguf_shorten.version", "0.1.0"),
        "general.license" => EntryOut::string("general.license", description),
        _ => EntryOut::keep(entry),
    });
    let tensors = file.tensors().iter().map(TensorOut::keep).collect();
    let layout = Layout::new(3, alignment.into(), entries.collect(), tensors, true).unwrap();
    let mut out = Vec::new();
    let data: Vec<&[u8]> = file.tensors().iter().map(|tensor| tensor.bytes()).collect();
    write(&layout, &mut out, |i, to| to.write_all(data[i])).unwrap();
    out
}

#[test]
fn an_alignment_that_was_kept_is_found_unless_llama_cpp_can_map_the_file() {
    let dir = Dir::new();
    let mut n_mappable = 0;
    for n in 0..3 {
        // Every place at which data can start.
        let licence = "x".repeat(n * 8);
        let make = Make::new("llama", 4)
            .without_tensors()
            .set("general.license", ValueOut::string(&licence))
            .alignment(16);
        let make = (0..4).fold(make, |make, block| {
            make.tensor(&format!("blk.{block}.attn_q.weight"), &[32], crate::make::F32)
        });
        make.write(&dir, "m.gguf");
        dir.run("m.gguf --blocks 1 -o new.gguf --force").succeeds();
        let old = at_alignment(&dir.read("new.gguf"), 16, &licence);
        dir.write("old.gguf", &old);
        if File::parse(&old).unwrap().is_mappable() {
            n_mappable += 1;
            dir.run("verify old.gguf --parent m.gguf").succeeds();
        } else {
            is_found(&dir, "general.alignment", "kept an alignment of 16");
        }
    }
    assert!((1..3).contains(&n_mappable));
}

#[test]
fn a_right_file_of_an_earlier_release_is_verified() {
    let dir = Dir::new();
    old(&dir, &Make::new("llama", 4), &[]);
    let output = dir.run("verify old.gguf --parent m.gguf").succeeds();
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", output.stderr);
    let note = format!("was written by version '0.1.0', this is {}", env!("CARGO_PKG_VERSION"));
    assert!(lines[0].contains(&note), "{}", lines[0]);
}

#[test]
fn a_block_that_went_as_a_prediction_block_and_was_none_is_found() {
    let dir = Dir::new();
    let counted = Make::new("glm4moe", 4).set("glm4moe.nextn_predict_layers", ValueOut::u32(1));
    counted.write(&dir, "m.gguf");
    // What --drop-mtp of 0.1.0 made of it; by hand, and by this release, it is a cut as any other.
    dir.run("m.gguf --blocks 3 -o new.gguf").succeeds();
    dir.run("verify new.gguf --parent m.gguf").succeeds();
    let new = dir.read("new.gguf");
    let mut taken = Taken::apart(&new);
    let version = taken.entries.iter_mut().find(|entry| entry.key() == "gguf_shorten.version");
    *version.unwrap() = EntryOut::new("gguf_shorten.version", ValueOut::string("0.1.0"));
    dir.write("old.gguf", &taken.bytes());
    let output = dir.run("verify old.gguf --parent m.gguf").output();
    output.check(output.status.code() == Some(1), "status 1");
    for text in ["block 3 was removed as a prediction block", "took block 3 for a prediction block"] {
        output.check(output.stderr.contains(text) || output.stdout.contains(text), text);
    }
}

#[test]
fn faults_are_told_of_releases_that_had_them_and_files_that_they_concern() {
    let of = |version: &str, parent: &Make| {
        let bytes = parent.bytes();
        let file = || File::parse(&bytes).unwrap();
        faults(version, &Model::new(vec![file()]).unwrap(), &[file()])
    };
    let counted = Make::new("glm4moe", 4).set("glm4moe.nextn_predict_layers", ValueOut::u32(1));
    let held = counted.clone().tensor("blk.3.nextn.eh_proj.weight", &[32], crate::make::F32);
    let all = counted.clone().alignment(16);
    assert!(of("0.1.0", &counted)[0].contains("a prediction block"));
    assert!(of("0.1.0", &held).is_empty());
    assert_eq!(of("0.1.0", &all).len(), 2);
    assert_eq!(of("0.0.9-rc.1", &all).len(), 2);
    for version in ["0.2.0", "1.0.0", "0.1.1", "x", "0.1"] {
        assert!(of(version, &all).is_empty(), "{version}");
    }
    for architecture in ["deepseek4", "minimax-m3", "granite_swa"] {
        let [fault] = &of("0.1.0", &Make::new(architecture, 4))[..] else {
            panic!("one fault");
        };
        assert!(fault.contains("could leave no block of a kind"), "{fault}");
    }
}
