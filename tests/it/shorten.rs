//! The main job with blocks chosen by hand or by their number: what the output holds.

use std::collections::BTreeMap;

use gguf_shorten::gguf::{Entry, File, ValueOut, ValueType};

use crate::make::{F32, I8, Make, Q4_1};
use crate::util::Dir;

/// The new name of a tensor, found without the project's parser.
fn renamed(name: &str, removed: &[usize]) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    if parts[0] != "blk" || parts.len() < 3 {
        return Some(name.to_owned());
    }
    let block: usize = parts[1].parse().unwrap();
    if removed.contains(&block) {
        return None;
    }
    let new = block - removed.iter().filter(|&&r| r < block).count();
    Some(format!("blk.{new}.{}", parts[2..].join(".")))
}

/// Checks that `out` has exactly the parent's tensors without `removed` blocks. They are in order, and equal byte for byte.
#[track_caller]
pub fn check_tensors(parent: &[u8], out: &[u8], removed: &[usize]) {
    let (parent, out) = (File::parse(parent).unwrap(), File::parse(out).unwrap());
    let mut left = out.tensors().iter();
    for tensor in parent.tensors() {
        let Some(name) = renamed(tensor.name(), removed) else {
            continue;
        };
        let found = left.next().unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(found.name(), name);
        assert_eq!(
            (found.n_dims(), found.dims(), found.tensor_type()),
            (tensor.n_dims(), tensor.dims(), tensor.tensor_type()),
            "{name}"
        );
        assert!(found.bytes() == tensor.bytes(), "bytes of {name}");
    }
    assert_eq!(left.next().map(|tensor| tensor.name()), None, "one too many");
}

/// The model's own keys that every shortening changes, drops or adds.
const ALWAYS: [&str; 9] = [
    "general.name",
    "general.base_model.count",
    "general.base_model.0.name",
    "gguf_shorten.version",
    "gguf_shorten.parent.blake3",
    "gguf_shorten.parent.block_count",
    "gguf_shorten.blocks",
    "gguf_shorten.method",
    "gguf_shorten.heal",
];

/// Checks that exactly `<arch>.block_count` and these keys differ. Those that always do may, too. The others are there byte for
/// byte, in their order.
#[track_caller]
pub fn check_metadata(parent: &[u8], out: &[u8], changed: &[&str]) {
    let (parent, out) = (File::parse(parent).unwrap(), File::parse(out).unwrap());
    let raw = |file: &File<'_>| -> BTreeMap<String, Vec<u8>> {
        file.metadata().iter().map(|entry| (entry.key().to_owned(), entry.raw().to_vec())).collect()
    };
    let (before, after) = (raw(&parent), raw(&out));
    let mut differing: Vec<&str> = before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key))
        .map(String::as_str)
        .filter(|key| !ALWAYS.contains(key) && !key.ends_with(".block_count"))
        .collect();
    differing.dedup();
    differing.sort_unstable();
    differing.dedup();
    let mut changed = changed.to_vec();
    changed.sort_unstable();
    assert_eq!(differing, changed);
    let order = |file: &File<'_>, other: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
        file.metadata()
            .iter()
            .map(Entry::key)
            .filter(|key| other.contains_key(*key) && !key.contains("base_model"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(order(&parent, &after), order(&out, &before));
}

/// Removes blocks, and checks all tensors and which entries change. Returns the output.
#[track_caller]
pub fn removes(make: &Make, blocks: &[usize], changed: &[&str]) -> Vec<u8> {
    let dir = make.dir();
    let list: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    dir.run(&format!("m.gguf --blocks {} -o out.gguf", list.join(","))).succeeds();
    assert_eq!(dir.names(), ["m.gguf", "out.gguf"]);
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    check_tensors(&parent, &out, blocks);
    check_metadata(&parent, &out, changed);
    out
}

/// The value under `key`, or its absence, as text.
pub fn value(bytes: &[u8], key: &str) -> String {
    let file = File::parse(bytes).unwrap();
    let Some(entry) = file.metadata().get(key) else {
        return "none".to_owned();
    };
    let value = entry.value();
    let one = |value: gguf_shorten::gguf::Value<'_>| match value.value_type() {
        ValueType::String => value.as_str().unwrap().to_owned(),
        ValueType::Bool => value.as_bool().unwrap().to_string(),
        ValueType::F32 => value.as_f32().unwrap().to_string(),
        _ => value.as_i64().unwrap().to_string(),
    };
    if value.value_type() != ValueType::Array {
        return format!("{} {}", value.value_type(), one(value));
    }
    let array = value.as_array().unwrap();
    let elements: Vec<String> = array.elements().map(one).collect();
    format!("{}[] {}", array.element_type(), elements.join(" "))
}

#[test]
fn kept_tensors_are_byte_identical_under_new_numbers() {
    let make = Make::new("llama", 5);
    for blocks in [&[0][..], &[4], &[2], &[0, 4], &[1, 2, 3], &[0, 1, 2, 3]] {
        removes(&make, blocks, &[]);
    }
}

#[test]
fn every_alignment_that_llama_cpp_can_map_version_and_end_are_kept() {
    for alignment in [1, 2, 4, 8, 16, 32, 64, 256, 4096] {
        for version in [2, 3] {
            let make = Make::new("llama", 3).alignment(alignment).version(version);
            for make in [make.clone(), make.without_end_padding()] {
                let raised = ["general.alignment"];
                let changed = if alignment < 32 { &raised[..] } else { &[] };
                let out = removes(&make, &[1], changed);
                let parent = make.bytes();
                let (out, parent) = (File::parse(&out).unwrap(), File::parse(&parent).unwrap());
                assert_eq!(out.header().version, version);
                assert_eq!(out.alignment(), u64::from(alignment.max(32)));
                assert!(out.is_mappable());
                assert_eq!(out.ends_padded(), parent.ends_padded() || is_whole(&out));
                assert!(out.trailing_bytes().is_empty());
            }
        }
    }
}

/// Whether the data ends where padding would.
fn is_whole(file: &File<'_>) -> bool {
    (file.bytes().len() as u64).is_multiple_of(file.alignment())
}

#[test]
fn only_the_first_number_of_a_name_at_its_start_is_a_block() {
    let make = Make::new("llama", 4)
        .tensor("v.blk.0.attn_q.weight", &[32, 2], Q4_1)
        .tensor("v.blk.1.attn_q.weight", &[32, 2], Q4_1)
        .tensor("enc.blk.1.ffn_up.weight", &[3], F32)
        .tensor("blk.3.ffn_gate.7.weight", &[7], I8)
        .tensor("blk.1.ffn_gate.3.weight", &[7], I8)
        .tensor("blk.3.ssm_a", &[2], F32)
        .tensor("blk.3.attn_q.blk.1.lora_a", &[2], F32);
    let out = removes(&make, &[1], &[]);
    let out = File::parse(&out).unwrap();
    for name in [
        "v.blk.0.attn_q.weight",
        "v.blk.1.attn_q.weight",
        "enc.blk.1.ffn_up.weight",
        "blk.2.ffn_gate.7.weight",
        "blk.2.ssm_a",
        "blk.2.attn_q.blk.1.lora_a",
    ] {
        assert!(out.tensors().get(name).is_some(), "{name}");
    }
    assert!(out.tensors().get("blk.1.ffn_gate.3.weight").is_none());
}

#[test]
fn numbers_of_two_digits_are_numbers() {
    let make = Make::new("llama", 12);
    removes(&make, &[1, 10], &[]);
    removes(&make, &[0, 2, 3, 4, 5, 6, 7, 8, 9], &[]);
}

#[test]
fn tensors_of_no_bytes_and_of_no_dimensions_are_kept() {
    let make = Make::new("llama", 2)
        .tensor("blk.0.none", &[0, 3], F32)
        .tensor("blk.1.none", &[0, 3], F32)
        .tensor("blk.1.scalar", &[], F32)
        .tensor("four", &[2, 1, 3, 1], F32);
    removes(&make, &[0], &[]);
}

#[test]
fn the_block_count_keeps_its_type() {
    for (value_type, text) in [
        (ValueType::U8, "u8 3"),
        (ValueType::I8, "i8 3"),
        (ValueType::U16, "u16 3"),
        (ValueType::U32, "u32 3"),
        (ValueType::I32, "i32 3"),
        (ValueType::U64, "u64 3"),
        (ValueType::I64, "i64 3"),
    ] {
        let count = ValueOut::integer(value_type, 4).unwrap();
        let make = Make::new("llama", 4).set("llama.block_count", count);
        assert_eq!(value(&removes(&make, &[0], &[]), "llama.block_count"), text);
    }
}

#[test]
fn the_name_says_how_many_blocks_are_left_and_the_parent_is_named() {
    let make = Make::new("llama", 4)
        .set("general.organization", ValueOut::string("Makers"))
        .set("general.version", ValueOut::string("v1"))
        .set("general.repo_url", ValueOut::string("https://example.org/m"))
        .set("general.base_model.count", ValueOut::u32(1))
        .set("general.base_model.0.name", ValueOut::string("Ancestor"))
        .set("general.base_model.0.doi", ValueOut::string("10.1/x"));
    let out = removes(
        &make,
        &[2],
        &[
            "general.base_model.0.doi",
            "general.base_model.0.organization",
            "general.base_model.0.version",
            "general.base_model.0.repo_url",
        ],
    );
    for (key, text) in [
        ("general.name", "str Tiny (3 of 4 blocks)"),
        ("general.organization", "str Makers"),
        ("general.base_model.count", "u32 1"),
        ("general.base_model.0.name", "str Tiny"),
        ("general.base_model.0.organization", "str Makers"),
        ("general.base_model.0.version", "str v1"),
        ("general.base_model.0.repo_url", "str https://example.org/m"),
        ("general.base_model.0.doi", "none"),
    ] {
        assert_eq!(value(&out, key), text, "{key}");
    }
}

#[test]
fn a_model_without_a_name_gets_none() {
    let out = removes(&Make::new("llama", 3).unset("general.name"), &[1], &[]);
    assert_eq!(value(&out, "general.name"), "none");
    assert_eq!(value(&out, "general.base_model.count"), "none");
    assert_eq!(value(&out, "general.base_model.0.name"), "none");
}

#[test]
fn the_output_says_where_it_comes_from() {
    let make = Make::new("llama", 5);
    let out = removes(&make, &[1, 2], &[]);
    let parent = blake3::hash(&make.bytes()).to_hex();
    for (key, text) in [
        ("gguf_shorten.version", concat!("str ", env!("CARGO_PKG_VERSION"))),
        ("gguf_shorten.parent.blake3", &format!("str {parent}")),
        ("gguf_shorten.parent.block_count", "u32 5"),
        ("gguf_shorten.blocks", "i32[] 0 3 4"),
        ("gguf_shorten.method", "str blocks"),
        ("gguf_shorten.heal", "str none"),
    ] {
        assert_eq!(value(&out, key), text, "{key}");
    }
}

#[test]
fn older_provenance_gives_way() {
    let make = Make::new("llama", 5)
        .set("gguf_shorten.blocks", ValueOut::i32s(&[0, 2, 4, 6, 7]))
        .set("gguf_shorten.something", ValueOut::u32(1));
    let out = removes(&make, &[0], &["gguf_shorten.something"]);
    assert_eq!(value(&out, "gguf_shorten.blocks"), "i32[] 1 2 3 4");
}

#[test]
fn per_block_arrays_lose_the_entries_of_removed_blocks() {
    let make = Make::new("llama", 4)
        .set("llama.attention.head_count", ValueOut::u32s(&[4, 8, 4, 16]))
        .set("llama.attention.head_count_kv", ValueOut::i32s(&[1, 2, 3, 4]))
        .set("llama.feed_forward_length", ValueOut::u32s(&[10, 20, 30, 40]));
    let keys = [
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.feed_forward_length",
        // What llama.cpp would else derive from the heads of block 0.
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
    ];
    let out = removes(&make, &[1], &keys);
    assert_eq!(value(&out, keys[0]), "u32[] 4 4 16");
    assert_eq!(value(&out, keys[1]), "i32[] 1 3 4");
    assert_eq!(value(&out, keys[2]), "u32[] 10 30 40");
}

#[test]
fn a_per_block_array_of_another_length_is_refused() {
    for key in [
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.feed_forward_length",
        "llama.attention.sliding_window_pattern",
    ] {
        for n in [0, 3, 5] {
            let dir = Dir::new();
            Make::new("llama", 4).set(key, ValueOut::u32s(&vec![1; n])).write(&dir, "m.gguf");
            dir.run("m.gguf --blocks 1 -o out.gguf").fails(
                1,
                &format!("m.gguf: metadata '{key}' has {n} entries, expected one for each of the 4 blocks"),
            );
        }
    }
}

#[test]
fn an_unknown_array_as_long_as_there_are_blocks_is_refused_by_name() {
    let dir = Dir::new();
    Make::new("llama", 4).set("llama.expert_scale", ValueOut::f32s(&[1.0; 4])).write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 1 -o out.gguf")
        .fails(1, "m.gguf: metadata 'llama.expert_scale' has as many entries as the model has blocks");
}

#[test]
fn arrays_that_are_not_per_block_are_kept() {
    let make = Make::new("llama", 4)
        .set("llama.rope.dimension_sections", ValueOut::i32s(&[1, 2, 3, 4]))
        .set("llama.other", ValueOut::f32s(&[1.0; 5]))
        .set("tokenizer.ggml.merges", ValueOut::strings(&["a b"; 4]))
        .set("other.feed_forward_length", ValueOut::u32s(&[1; 4]));
    removes(&make, &[1], &[]);
}

#[test]
fn removing_in_two_steps_equals_removing_at_once() {
    let pattern = "gemma3.attention.sliding_window_pattern";
    let window = |make: Make| make.set("gemma3.attention.sliding_window", ValueOut::u32(8));
    for make in [
        Make::new("llama", 8).set("llama.feed_forward_length", ValueOut::u32s(&[1, 2, 3, 4, 5, 6, 7, 8])),
        window(Make::new("gemma3", 8)),
        window(Make::new("gemma3", 8)).set(pattern, ValueOut::u32(3)),
        Make::new("gemma2", 8),
    ] {
        let dir = make.dir();
        // Blocks 1, 4, 5: as numbers of the first output, 4 and 5 are 3 and 4.
        for line in [
            "m.gguf --blocks 1,4,5 -o both.gguf",
            "m.gguf --blocks 1 -o a.gguf",
            "a.gguf --blocks 3-4 -o ab.gguf",
            "m.gguf --blocks 4,5 -o b.gguf",
            "b.gguf --blocks 1 -o ba.gguf",
        ] {
            dir.run(line).succeeds();
        }
        let parent = dir.read("m.gguf");
        let both = dir.read("both.gguf");
        for name in ["ab.gguf", "ba.gguf"] {
            let other = dir.read(name);
            check_tensors(&parent, &other, &[1, 4, 5]);
            let line = format!("verify {name} --parent m.gguf --weights --json -");
            let found: serde_json::Value = serde_json::from_str(&dir.run(&line).succeeds().stdout).unwrap();
            assert_eq!(found["removed"], serde_json::json!([1, 4, 5]));
            let kept = |bytes: &[u8]| -> BTreeMap<String, Vec<u8>> {
                let file = File::parse(bytes).unwrap();
                file.metadata()
                    .iter()
                    .filter(|entry| !ALWAYS.contains(&entry.key()))
                    .map(|entry| (entry.key().to_owned(), entry.raw().to_vec()))
                    .collect()
            };
            assert!(kept(&both) == kept(&other), "{name}");
        }
    }
}

#[test]
fn a_list_of_blocks_that_stay_says_which_go() {
    let dir = Make::new("llama", 10).dir();
    dir.run("m.gguf --layers 0-5,8 -o a.gguf").succeeds();
    dir.run("m.gguf --blocks 6-7,9 -o b.gguf").succeeds();
    assert!(dir.read("a.gguf") == dir.read("b.gguf"));
    dir.run("m.gguf --layers 0-9 -o c.gguf")
        .fails(1, "--layers names all 10 blocks of the model, so none would be removed");
    dir.run("m.gguf --layers 3-10 -o c.gguf")
        .fails(1, "cannot keep block 10: the model has 10 blocks, 0 to 9");
    dir.run("m.gguf --layers 5-3 -o c.gguf").fails(2, "the range 5-3 runs backwards");
    for other in ["--drop 2", "--blocks 1", "--keep 1", "--method bi", "--effort quick", "--target-size 1M"] {
        dir.run(&format!("m.gguf --layers 0-3 {other} -o c.gguf")).fails(2, "cannot be used with");
    }
    // Prediction blocks stay, unless they go by a flag of their own.
    let dir = Make::new("glm4", 6).predicting("glm4", 5..6).dir();
    dir.run("m.gguf --layers 0-2 -o a.gguf").succeeds();
    dir.run("m.gguf --blocks 3-4 -o b.gguf").succeeds();
    assert!(dir.read("a.gguf") == dir.read("b.gguf"));
    dir.run("m.gguf --layers 0-4 --drop-mtp -o c.gguf").succeeds();
    dir.run("m.gguf --layers 0-5 --drop-mtp -o d.gguf")
        .fails(1, "cannot keep block 5: --drop-mtp removes it");
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1 -o a.gguf").succeeds();
    dir.run("shorten m.gguf --blocks 1 -o b.gguf").succeeds();
    dir.run("m.gguf --blocks 1-1,1 -q -o c.gguf").succeeds();
    assert!(dir.read("a.gguf") == dir.read("b.gguf"));
    assert!(dir.read("a.gguf") == dir.read("c.gguf"));
}

/// The numbers of the parent's blocks that are kept.
#[track_caller]
fn kept(arguments: &str) -> String {
    let dir = Make::new("llama", 10).dir();
    dir.run(&format!("m.gguf {arguments} -o out.gguf")).succeeds();
    let out = dir.read("out.gguf");
    let kept = value(&out, "gguf_shorten.blocks");
    let removed: Vec<usize> = (0..10).filter(|i| !kept.split(' ').any(|k| k == i.to_string())).collect();
    check_tensors(&dir.read("m.gguf"), &out, &removed);
    kept.strip_prefix("i32[] ").unwrap().to_owned()
}

#[test]
fn sequential_takes_the_last_blocks_and_reverse_the_first() {
    assert_eq!(kept("--drop 3 --method sequential"), "0 1 2 3 4 5 6");
    assert_eq!(kept("--drop 3 --method reverse"), "3 4 5 6 7 8 9");
    assert_eq!(kept("--drop 9 --method reverse"), "9");
}

#[test]
fn a_share_is_rounded_down_and_at_least_one() {
    assert_eq!(kept("--drop 25% --method sequential"), "0 1 2 3 4 5 6 7");
    assert_eq!(kept("--drop 29.9% --method sequential"), "0 1 2 3 4 5 6 7");
    assert_eq!(kept("--drop 30% --method sequential"), "0 1 2 3 4 5 6");
    assert_eq!(kept("--drop 1% --method reverse"), "1 2 3 4 5 6 7 8 9");
}

#[test]
fn blocks_to_keep_are_kept() {
    assert_eq!(kept("--drop 3 --method sequential --keep 9,5-7"), "0 1 2 5 6 7 9");
    assert_eq!(kept("--drop 2 --method reverse --keep 0"), "0 3 4 5 6 7 8 9");
}

#[test]
fn keeping_too_many_is_refused() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --drop 3 --method reverse --keep 0,1 -o out.gguf")
        .fails(1, "m.gguf: cannot remove 3 blocks: 2 of 4 must stay");
    dir.run("m.gguf --drop 1 --method reverse --keep 4 -o out.gguf")
        .fails(1, "m.gguf: cannot keep block 4: the model has 4 blocks, 0 to 3");
}

#[test]
fn the_chosen_method_is_written_down() {
    let dir = Make::new("llama", 4).dir();
    for method in ["sequential", "reverse"] {
        dir.run(&format!("m.gguf --drop 1 --method {method} -o {method}.gguf")).succeeds();
        assert_eq!(
            value(&dir.read(&format!("{method}.gguf")), "gguf_shorten.method"),
            format!("str {method}")
        );
    }
}

#[test]
fn the_alignment_of_a_split_model_is_that_of_its_first_part() {
    let dir = Dir::new();
    let mut parts = Make::new("llama", 4).alignment(64).split(2);
    parts[1] = parts[1].clone().alignment(128);
    crate::make::write_parts(&dir, &parts);
    dir.run("m-00001-of-00002.gguf --blocks 0 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(File::parse(&out).unwrap().alignment(), 64);
    check_tensors(&Make::new("llama", 4).bytes(), &out, &[0]);
}
