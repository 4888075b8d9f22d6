//! `--portable`: the best set that keeps the built-in pattern, and no list that an older llama.cpp would ignore.

use std::collections::BTreeSet;

use gguf_shorten::choose::removal;
use gguf_shorten::gguf::{File, ValueOut};
use gguf_shorten::model::Model;
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::plan::Constraints;
use gguf_shorten::plan::Method;

use crate::make::Make;
use crate::shorten::{check_metadata, check_tensors, value};
use crate::util::Dir;

const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
const RECURRENT: &str = "qwen35.attention.recurrent_layers";

fn gemma3(n_blocks: u32) -> Make {
    Make::new("gemma3", n_blocks).set("gemma3.attention.sliding_window", ValueOut::u32(512))
}

/// Removes blocks portably, and checks that only `changed` changes. No note is printed, and the result is verified. Returns it.
#[track_caller]
fn portable(make: &Make, arguments: &str, removed: &[usize], changed: &[&str]) -> Vec<u8> {
    let dir = make.dir();
    let output = dir.run(&format!("m.gguf {arguments} --portable -o out.gguf")).succeeds();
    assert_eq!(output.stderr, "");
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    check_tensors(&parent, &out, removed);
    check_metadata(&parent, &out, changed);
    dir.run("verify out.gguf --parent m.gguf").succeeds();
    out
}

#[test]
fn whole_periods_go_and_no_list_is_written() {
    // 111110 111110 1111 before.
    for (list, removed) in [
        ("0-5", &[0, 1, 2, 3, 4, 5][..]),
        ("3-8", &[3, 4, 5, 6, 7, 8]),
        ("0-1,5-8", &[0, 1, 5, 6, 7, 8]),
        ("15", &[15]),
        ("12-15", &[12, 13, 14, 15]),
    ] {
        let out = portable(&gemma3(16), &format!("--blocks {list}"), removed, &[]);
        assert_eq!(value(&out, PATTERN), "none", "{list}");
    }
}

#[test]
fn a_period_of_the_files_own_stays_as_it_is() {
    let make = gemma3(12).set(PATTERN, ValueOut::u32(3));
    let out = portable(&make, "--blocks 3-5", &[3, 4, 5], &[]);
    assert_eq!(value(&out, PATTERN), "u32 3");
    let interval = "qwen35.full_attention_interval";
    let make = Make::new("qwen35", 12).set(interval, ValueOut::u32(3));
    let out = portable(&make, "--blocks 1-3", &[1, 2, 3], &[]);
    assert_eq!(value(&out, interval), "u32 3");
    assert_eq!(value(&out, RECURRENT), "none");
}

#[test]
fn a_list_that_says_what_the_pattern_says_is_left_out() {
    let flags: Vec<bool> = (0..12).map(|i| i % 6 != 5).collect();
    let make = gemma3(12).set(PATTERN, ValueOut::bools(&flags));
    let out = portable(&make, "--blocks 2-7", &[2, 3, 4, 5, 6, 7], &[PATTERN]);
    assert_eq!(value(&out, PATTERN), "none");
    let recurrent: Vec<bool> = (0..12).map(|i| i % 4 != 3).collect();
    let make = Make::new("qwen35", 12).set(RECURRENT, ValueOut::bools(&recurrent));
    let out = portable(&make, "--blocks 4-7", &[4, 5, 6, 7], &[RECURRENT]);
    assert_eq!(value(&out, RECURRENT), "none");
    // Another list too, where what is left of it is the pattern.
    let mut flags: Vec<bool> = (0..9).map(|i| i % 6 != 5).collect();
    flags.insert(2, false);
    let make = gemma3(10).set(PATTERN, ValueOut::bools(&flags));
    let out = portable(&make, "--blocks 2", &[2], &[PATTERN]);
    assert_eq!(value(&out, PATTERN), "none");
}

#[test]
fn lists_that_llama_cpp_needs_stay() {
    let heads = "jamba.attention.head_count_kv";
    let make = Make::new("jamba", 4).set(heads, ValueOut::u32s(&[0, 4, 0, 4]));
    let out = portable(&make, "--blocks 1", &[1], &[heads]);
    assert_eq!(value(&out, heads), "u32[] 0 0 4");
    let pattern = "mimo2.attention.sliding_window_pattern";
    let make = Make::new("mimo2", 4).set(pattern, ValueOut::u32s(&[0, 1, 1, 0]));
    let out = portable(&make, "--blocks 1", &[1], &[pattern]);
    assert_eq!(value(&out, pattern), "u32[] 0 1 0");
}

#[test]
fn a_list_of_blocks_that_breaks_the_pattern_is_refused_with_the_nearest() {
    let dir = gemma3(16).dir();
    let output = dir
        .run("m.gguf --portable --blocks 3 -o out.gguf")
        .fails(1, "block 5, which does not have a sliding window, would become block 4");
    assert_eq!(output.hint(), Some("the nearest allowed set is --blocks 12"));
    // Five windows and no full block: one of the six is exchanged.
    let output = dir.run("m.gguf --portable --blocks 0-4,6 -o out.gguf").refused();
    assert_eq!(output.hint(), Some("the nearest allowed set is --blocks 1-6"));
    dir.run("m.gguf --portable --trust-any-cut --blocks 3 -o out.gguf").refused().check_error_lines();
}

#[test]
fn by_number_the_best_set_that_keeps_the_pattern_goes() {
    // The first that may: of the last four blocks, after which no full one comes.
    let out = portable(&gemma3(16), "--drop 2 --method reverse", &[12, 13], &[]);
    assert_eq!(value(&out, "gguf_shorten.method"), "str reverse");
    // A whole period as soon as it can.
    portable(&gemma3(16), "--drop 6 --method reverse", &[0, 1, 2, 3, 4, 5], &[]);
    let dir = Dir::new();
    // Full blocks 2 and 8 where the pattern has 5 and 11: the first of them goes, and two in front of the other.
    let flags: Vec<bool> = (0..12).map(|i| i % 6 != 2).collect();
    gemma3(12).set(PATTERN, ValueOut::bools(&flags)).write(&dir, "other.gguf");
    let output = dir
        .run("other.gguf --portable --drop 1 --method reverse -o out.gguf")
        .fails(1, "no set of 1 block may be removed from this model; the nearest number that may is 3");
    assert_eq!(output.hint(), Some("without --portable a list keeps what the pattern would change"));
}

/// The choice against every subset, by total score.
#[test]
fn the_choice_is_the_best_of_all_sets_that_keep_the_pattern() {
    let bytes = gemma3(13).bytes();
    let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
    let constraints = Constraints::of(&model).unwrap().portable();
    let kept_pattern = |set: &BTreeSet<usize>| {
        let kept = (0..13usize).filter(|block| !set.contains(block));
        kept.enumerate().all(|(number, block)| (number % 6 == 5) == (block % 6 == 5))
    };
    for n in 1..12 {
        // Among sets of one size `reverse` minimises the sum of the numbers.
        let lowest = (1u32..1 << 13)
            .filter(|bits| bits.count_ones() == n)
            .map(|bits| (0..13).filter(|i| bits & (1 << i) != 0).collect())
            .filter(kept_pattern)
            .map(|set: BTreeSet<usize>| set.iter().sum::<usize>())
            .min();
        let chosen = removal::choose(&constraints, Method::Reverse, None, &BTreeSet::new(), n as usize);
        let chosen = chosen.ok().map(|set: BlockSet| set.iter().map(|block| block.index()).sum::<usize>());
        assert_eq!(chosen, lowest, "{n} blocks");
    }
}

#[test]
fn a_portable_file_without_the_pattern_is_not_verified() {
    let dir = gemma3(12).dir();
    // Without its list, a file that breaks the pattern is not portable.
    dir.run("m.gguf --blocks 3 -o out.gguf").succeeds();
    let bytes = dir.read("out.gguf");
    let file = File::parse(&bytes).unwrap();
    let entries = file
        .metadata()
        .iter()
        .filter(|entry| entry.key() != PATTERN)
        .map(gguf_shorten::gguf::EntryOut::keep)
        .collect();
    let tensors = file.tensors().iter().map(gguf_shorten::gguf::TensorOut::keep);
    let layout = gguf_shorten::gguf::Layout::new(3, 32, entries, tensors.collect(), true).unwrap();
    let mut without = Vec::new();
    gguf_shorten::gguf::write(&layout, &mut without, |i, writer| {
        writer.write_all(file.tensors().iter().nth(i).unwrap().bytes())
    })
    .unwrap();
    dir.write("without.gguf", &without);
    let output = dir.run("verify without.gguf --parent m.gguf").output();
    output.check(output.status.code() == Some(1), "status 1");
    output.check(output.stdout.contains(&format!("metadata '{PATTERN}' is missing")), "the list is missed");
    // With and without a list, where both are right.
    for flag in ["", "--portable"] {
        dir.run(&format!("m.gguf --blocks 0-5 {flag} -o out.gguf --force")).succeeds();
        let has_list = value(&dir.read("out.gguf"), PATTERN) != "none";
        assert_eq!(has_list, flag.is_empty());
        for trust in ["", "--trust-any-cut"] {
            let output = dir.run(&format!("verify out.gguf --parent m.gguf {trust} --json -")).succeeds();
            let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(json["verified"], true);
            assert_eq!(json["on_trust"], serde_json::Value::Null);
        }
    }
}
