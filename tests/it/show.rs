//! `show`, compared with texts under `testdata/golden/`.

use gguf_shorten::gguf::ValueOut;

use crate::make::{I8, Make, Raw, array, part_name, write_parts};
use crate::util::{Dir, golden};

/// What `show` says of the file: all but the last section, which is about this machine.
#[track_caller]
fn of_the_file(shown: &str) -> &str {
    let end = shown.find("\ndevices\n").expect("a section of devices");
    &shown[..end]
}

/// Shows a model before and after blocks are removed.
#[track_caller]
fn before_and_after(name: &str, make: &Make, blocks: &str) {
    let dir = make.dir();
    let before = dir.run("show --diffable m.gguf").succeeds();
    golden(&format!("{name}.txt"), &before.stdout);
    dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf")).succeeds();
    let after = dir.run("show --diffable out.gguf").succeeds();
    golden(&format!("{name}-without-{blocks}.txt"), &after.stdout);
}

#[test]
fn a_llama_without_two_blocks() {
    let make = Make::new("llama", 4)
        .set("llama.attention.head_count_kv", ValueOut::u32s(&[1, 2, 1, 2]))
        .set("general.organization", ValueOut::string("Makers"))
        .set("general.tags", ValueOut::strings(&["text", "tiny"]))
        .tensor("v.blk.1.attn_q.weight", &[3, 2], I8);
    before_and_after("llama", &make, "1,3");
}

#[test]
fn a_gemma3_without_three_blocks() {
    let make = Make::new("gemma3", 8)
        .set("gemma3.attention.sliding_window", ValueOut::u32(512))
        .alignment(64)
        .version(2);
    before_and_after("gemma3", &make, "0-1,6");
}

/// Metadata and no tensors, as llama.cpp's `ggml-vocab-*.gguf`.
fn vocabulary() -> Make {
    let tokens: Vec<String> = (0..300).map(|i| format!("token {i}")).collect();
    Make::empty()
        .set("general.architecture", ValueOut::string("llama"))
        .set("llama.block_count", ValueOut::u32(32))
        .set("tokenizer.ggml.tokens", ValueOut::strings(&tokens))
        .set("tokenizer.ggml.token_type", ValueOut::i32s(&[vec![3], vec![1; 299]].concat()))
        .set("tokenizer.ggml.scores", ValueOut::f32s(&vec![0.5; 600]))
        .set("tokenizer.chat_template", ValueOut::string(&"{% for message in messages %}\n".repeat(9)))
}

#[test]
fn a_vocabulary_is_shown_and_says_that_it_is_no_model() {
    let dir = Dir::new();
    vocabulary().write(&dir, "vocab.gguf");
    golden("vocabulary.txt", of_the_file(&dir.run("show vocab.gguf").succeeds().stdout));
    golden("vocabulary-diffable.txt", &dir.run("show --diffable vocab.gguf").succeeds().stdout);
}

#[test]
fn an_unknown_architecture_is_shown_and_says_that_nothing_may_go() {
    let dir = Make::new("perceiver", 3).dir();
    golden("unknown-architecture.txt", of_the_file(&dir.run("show --tensors m.gguf").succeeds().stdout));
}

#[test]
fn what_must_stay_is_said_with_the_reason() {
    let dir = Make::new("gemma3", 7)
        .set("gemma3.attention.sliding_window", ValueOut::u32(512))
        .predicting("gemma3", 6..7)
        .set("gemma3.attention.sliding_window_pattern", ValueOut::u32(3))
        .dir();
    golden("must-stay.txt", of_the_file(&dir.run("show m.gguf").succeeds().stdout));
}

#[test]
fn every_type_of_value_is_shown_on_one_line() {
    let scalar = |type_id: u32, bytes: &[u8]| (type_id, bytes.to_vec());
    let values = [
        scalar(0, &[200]),
        scalar(1, &[200]),
        scalar(2, &[0, 200]),
        scalar(3, &[0, 200]),
        scalar(4, &[0, 0, 0, 200]),
        scalar(5, &[0, 0, 0, 200]),
        scalar(6, &1.5f32.to_le_bytes()),
        scalar(7, &[2]),
        scalar(8, &crate::make::string("line\nand \u{1b}[31mred\u{1b}[0m é".as_bytes())),
        scalar(8, &crate::make::string(b"\xff\xfe")),
        scalar(9, &array(9, 1, &array(0, 2, &[1, 2]))),
        scalar(9, &array(7, 12, &[1; 12])),
        scalar(9, &array(4, 0, &[])),
        scalar(10, &u64::MAX.to_le_bytes()),
        scalar(11, &i64::MIN.to_le_bytes()),
        scalar(12, &1e300f64.to_le_bytes()),
    ];
    let mut raw = Raw::new().string("general.architecture", b"llama");
    for (i, (type_id, value)) in values.iter().enumerate() {
        raw = raw.entry(format!("key {i}").as_bytes(), *type_id, value);
    }
    let dir = Dir::new();
    dir.write("m.gguf", &raw.entry(b"k\ney", 0, &[1]).bytes());
    let shown = dir.run("show --diffable m.gguf").succeeds().stdout;
    assert_eq!(shown.lines().count(), 1 + 1 + values.len() + 1);
    golden("values.txt", &shown);
}

#[test]
fn a_hostile_architecture_stays_on_its_line() {
    let dir = Dir::new();
    let name = b"a\nb\x1b[31m";
    let raw = Raw::new()
        .string("general.architecture", name)
        .entry(b"a\nb\x1b[31m.block_count", 4, &[2, 0, 0, 0])
        .tensor("blk.0.a", &[1], I8, &[1]);
    dir.write("m.gguf", &raw.bytes());
    let shown = dir.run("show m.gguf").succeeds().stdout;
    assert!(!shown.contains('\u{1b}'), "{shown}");
    assert!(shown.contains(r"a\nb\u{1b}[31m, 2 blocks"), "{shown}");
}

#[test]
fn a_split_model_is_shown_whole_from_any_part() {
    let dir = Dir::new();
    write_parts(&dir, &Make::new("llama", 4).split(3));
    let from = |i| dir.run(&format!("show --diffable {}", part_name(i, 3))).succeeds().stdout;
    assert_eq!(from(0), from(1));
    assert_eq!(from(0), from(2));
    assert!(from(2).contains("blk.0.attn_norm.weight F32 [32]"));
}

#[test]
fn the_json_has_metadata_and_blocks() {
    let dir = Make::new("gemma3", 7).set("gemma3.attention.sliding_window", ValueOut::u32(512)).dir();
    let output = dir.run("show m.gguf --json -").succeeds();
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["model"]["architecture"], "gemma3");
    assert_eq!(json["model"]["block_count"], 7);
    assert_eq!(json["model"]["blake3"], blake3::hash(&dir.read("m.gguf")).to_hex().as_str());
    assert_eq!(json["metadata"]["gemma3.block_count"], "u32 7");
    assert_eq!(json["blocks"].as_array().unwrap().len(), 7);
    assert_eq!(json["blocks"][5]["block"], 5);
    assert_eq!(json["blocks"][5]["kinds"][0], "full attention");
    assert_eq!(json["blocks"][6]["kinds"][0], "sliding window");
    assert_eq!(json["refused"], serde_json::Value::Null);
}

#[test]
fn the_json_of_no_model_is_an_error_without_output() {
    let dir = Dir::new();
    dir.write("m.gguf", &Raw::new().bytes());
    dir.run("show m.gguf --json x.json").fails(1, "m.gguf: metadata 'general.architecture' is missing");
}

#[test]
fn a_closed_pipe_ends_show_quietly() {
    let dir = Make::new("llama", 500).dir();
    // Far more than a pipe holds.
    assert!(dir.run("show --tensors m.gguf").succeeds().stdout.len() > 100_000);
    let output = dir.sh("{ $PROGRAM show --tensors m.gguf; echo status $? >&2; } | true").output();
    assert_eq!(output.stderr, "status 0\n");
}
