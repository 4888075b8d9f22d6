//! Metadata of the output that says something of the file itself: its size, its name, its alignment.

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::Value;

use crate::make::{F32, Make};
use crate::shorten::{removes, value};
use crate::util::Dir;

const COUNT: &str = "general.parameter_count";
const LABEL: &str = "general.size_label";

#[test]
fn the_size_is_the_outputs() {
    let make = Make::new("llama", 6).set(COUNT, ValueOut::u64(99)).set(LABEL, ValueOut::string("8B"));
    let out = removes(&make, &[1, 2], &[COUNT, LABEL]);
    let n: u64 = File::parse(&out).unwrap().tensors().iter().map(|tensor| tensor.n_elements()).sum();
    assert_eq!(value(&out, COUNT), format!("u64 {n}"));
    assert_eq!(n, 1024 + 32 + 4 * (32 + 96 + 15));
    assert_eq!(value(&out, LABEL), "str 1.6K");
    // A type that cannot hold it, and a form without rule.
    let make = make.set(COUNT, ValueOut::string("many")).set(LABEL, ValueOut::string("large"));
    let out = removes(&make, &[1], &[COUNT, LABEL]);
    assert_eq!((value(&out, COUNT), value(&out, LABEL)), ("none".to_owned(), "none".to_owned()));
    // None is added.
    removes(&Make::new("llama", 2), &[1], &[]);
}

#[test]
fn a_label_of_experts_counts_one_of_them() {
    let make = Make::new("llama", 3).set(LABEL, ValueOut::string("8x7B"));
    let make = (0..3)
        .fold(make, |make, block| make.tensor(&format!("blk.{block}.ffn_up_exps.weight"), &[32, 50, 4], F32));
    let out = removes(&make, &[1], &[LABEL]);
    // What is shared, and an expert of each block.
    assert_eq!(1024 + 32 + 2 * (32 + 96 + 15) + 2 * 32 * 50, 4542);
    assert_eq!(value(&out, LABEL), "str 4x4.5K");
}

#[test]
fn names_that_are_no_text_keep_their_bytes() {
    let keys = ["organization", "version", "repo_url"];
    let bytes = b"Mod\xe8le";
    let make = keys.iter().fold(Make::new("llama", 4), |make, key| {
        make.set(&format!("general.{key}"), ValueOut::string(bytes))
    });
    let make = make
        .set("general.name", ValueOut::string(bytes))
        .set("general.license", ValueOut::string(b"caf\xe9"))
        .set("general.tags", ValueOut::strings(&[b"caf\xe9"]))
        .set("tokenizer.ggml.pre", ValueOut::string("default"));
    let dir = make.dir();
    dir.run("m.gguf --blocks 1 -o out.gguf --card out.md --json out.json").succeeds();
    let out = dir.read("out.gguf");
    let file = File::parse(&out).unwrap();
    let raw = |key: &str| file.metadata().get(key).unwrap().value().as_bytes().unwrap();
    assert_eq!(raw("general.name"), b"Mod\xe8le (3 of 4 blocks)");
    assert_eq!(raw("general.base_model.0.name"), bytes);
    for key in keys {
        assert_eq!(raw(&format!("general.{key}")), bytes);
        assert_eq!(raw(&format!("general.base_model.0.{key}")), bytes);
    }
    let card = String::from_utf8(dir.read("out.md")).unwrap();
    assert!(card.contains("# Mod\u{fffd}le (3 of 4 blocks)"), "{card}");
    dir.run("m.gguf --blocks 1 --dry-run --json dry.json").succeeds();
    for command in [
        "verify out.gguf --parent m.gguf",
        "show out.gguf",
        "show m.gguf --json -",
        "out.gguf --blocks 2 -o again.gguf",
    ] {
        dir.run(command).succeeds();
    }
    dir.run("report out.json -o pages").succeeds();
}

#[test]
fn a_name_that_is_no_text_names_a_model_without_attention_too() {
    let dir = Dir::new();
    let mut make = Make::new("llama", 3).without_tensors().set("general.name", ValueOut::string(b"\xff"));
    for block in 0..3 {
        make = make.tensor(&format!("blk.{block}.attn_q.weight"), &[32], F32).tensor(
            &format!("blk.{block}.ffn_up.weight"),
            &[32],
            F32,
        );
    }
    make.write(&dir, "m.gguf");
    dir.run("m.gguf --attention-blocks 2 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    let file = File::parse(&out).unwrap();
    let name = file.metadata().get("general.name").unwrap().value();
    assert_eq!(name.as_bytes().unwrap(), b"\xff (3 of 3 blocks, 1 without attention)");
}

#[test]
fn an_alignment_that_is_raised_is_said() {
    let dir = Dir::new();
    for (alignment, is_raised) in [(16, true), (32, false), (4096, false)] {
        Make::new("llama", 4).alignment(alignment).write(&dir, "m.gguf");
        let output = dir.run("m.gguf --blocks 1 -o out.gguf --force --json out.json").succeeds();
        let note =
            "metadata 'general.alignment' is raised from 16 to 32: llama.cpp may not map a file with less";
        assert_eq!(output.stderr.contains(note), is_raised, "{}", output.stderr);
        let json: Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
        let notes = json["output"]["notes"].as_array().unwrap();
        assert_eq!(notes.contains(&Value::from(note)), is_raised);
        dir.run("verify out.gguf --parent m.gguf").succeeds();
        std::fs::remove_file(dir.path("out.json")).unwrap();
    }
}

#[test]
fn parts_are_aligned_as_the_whole_is() {
    let dir = Dir::new();
    crate::make::write_parts(&dir, &Make::new("llama", 4).alignment(8).split(2));
    dir.run("m-00001-of-00002.gguf --blocks 1 -o out.gguf --keep-split").succeeds();
    for part in 1..=2 {
        let bytes = dir.read(&format!("out-0000{part}-of-00002.gguf"));
        let file = File::parse(&bytes).unwrap();
        assert_eq!(file.alignment(), 32);
        assert!(file.is_mappable());
    }
    dir.run("verify out-00001-of-00002.gguf --parent m-00001-of-00002.gguf").succeeds();
}

#[test]
fn lists_of_adapters_are_not_of_blocks() {
    let tokens = ["activate", "substitute"].map(|what| format!("graniteswitch.adapters.token_ids_{what}"));
    let ids = || ValueOut::i32s(&[1, 2, 3, 4]);
    let make = Make::new("graniteswitch", 4)
        .set("graniteswitch.adapters.count", ValueOut::u32(4))
        .set(&tokens[0], ids())
        .set(&tokens[1], ids());
    removes(&make, &[1, 2], &[]);
}
