//! What an architecture asks for: sliding windows, prediction blocks, blocks that receive images.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, I8, Make};
use crate::shorten::{removes, value};
use crate::util::Dir;

const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
const WINDOW: &str = "gemma3.attention.sliding_window";

fn gemma3(n_blocks: u32) -> Make {
    Make::new("gemma3", n_blocks).set(WINDOW, ValueOut::u32(512))
}

/// `1` for each block with a window, `0` for each without.
pub fn flags(out: &[u8], key: &str) -> String {
    let text = value(out, key);
    let (_, flags) = text.split_once("[] ").unwrap_or_else(|| panic!("{text}"));
    flags.replace("true", "1").replace("false", "0").replace(' ', "")
}

#[test]
fn the_built_in_period_of_gemma3_becomes_flags() {
    // 11111011 before.
    let flags = |blocks: &[usize]| flags(&removes(&gemma3(8), blocks, &[PATTERN]), PATTERN);
    assert_eq!(flags(&[0]), "1111011");
    assert_eq!(flags(&[5]), "1111111");
    assert_eq!(flags(&[0, 1, 2, 6]), "1101");
    assert_eq!(flags(&[0, 1, 2, 3, 4]), "011");
}

#[test]
fn a_period_of_gemma3_becomes_flags() {
    let removed = |period: ValueOut, blocks: &[usize]| {
        let make = gemma3(7).set(PATTERN, period);
        flags(&removes(&make, blocks, &[PATTERN]), PATTERN)
    };
    assert_eq!(removed(ValueOut::u32(3), &[1, 3]), "10101");
    assert_eq!(removed(ValueOut::i32(2), &[0]), "010101");
    // llama.cpp: 0 is a window everywhere, 1 nowhere.
    assert_eq!(removed(ValueOut::u32(0), &[6]), "111111");
    assert_eq!(removed(ValueOut::u32(1), &[6]), "000000");
}

#[test]
fn flags_of_gemma3_lose_those_of_removed_blocks() {
    let bools = ValueOut::bools(&[true, false, false, true, true]);
    let numbers = ValueOut::u32s(&[1, 0, 0, 1, 1]);
    let signed = ValueOut::i32s(&[1, 0, 0, 1, 1]);
    for array in [bools, numbers, signed] {
        let make = gemma3(5).set(PATTERN, array);
        let out = removes(&make, &[0, 2], &[PATTERN]);
        assert_eq!(flags(&out, PATTERN), "011");
    }
}

#[test]
fn flags_of_gemma3_that_are_too_many_or_too_few_are_refused() {
    for n in [0, 4, 6] {
        let dir = Dir::new();
        gemma3(5).set(PATTERN, ValueOut::bools(&vec![true; n])).write(&dir, "m.gguf");
        dir.run("m.gguf --blocks 0 -o out.gguf").fails(
            1,
            &format!("m.gguf: metadata '{PATTERN}' has {n} entries, expected one for each of the 5 blocks"),
        );
    }
}

#[test]
fn gemma3_without_a_window_gets_no_flags() {
    let without = Make::new("gemma3", 8);
    let zero = without.clone().set(WINDOW, ValueOut::u32(0));
    for make in [without, zero] {
        // All blocks are alike, so all but one may go.
        let out = removes(&make, &[0, 1, 2, 3, 4, 6, 7], &[]);
        assert_eq!(value(&out, PATTERN), "none");
    }
}

#[test]
fn gemma2_always_has_windows() {
    let pattern = "gemma2.attention.sliding_window_pattern";
    let flags = |blocks: &[usize]| {
        let make = Make::new("gemma2", 6);
        flags(&removes(&make, blocks, &[pattern]), pattern)
    };
    // 101010 before.
    assert_eq!(flags(&[0]), "01010");
    assert_eq!(flags(&[1, 2, 5]), "101");
}

#[test]
fn the_last_block_with_a_window_stays() {
    let dir = gemma3(5).set(PATTERN, ValueOut::u32(2)).dir();
    dir.run("m.gguf --blocks 0,2,4 -o out.gguf")
        .fails(1, "m.gguf: cannot remove all 3 blocks with a sliding window: llama.cpp needs at least one");
    // Of 0, 2 and 4 one stays: with reverse the last.
    dir.run("m.gguf --drop 4 --method reverse -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, "gguf_shorten.blocks"), "i32[] 4");
    assert_eq!(flags(&out, PATTERN), "1");
}

fn glm4() -> Make {
    Make::new("glm4", 5)
        .set("glm4.nextn_predict_layers", ValueOut::u32(1))
        .set("glm4.feed_forward_length", ValueOut::u32s(&[1, 2, 3, 4, 5]))
        .tensor("blk.4.nextn.eh_proj.weight", &[3, 2], F32)
}

#[test]
fn prediction_blocks_stay_last() {
    let out = removes(&glm4(), &[0, 2], &["glm4.feed_forward_length"]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 3");
    assert_eq!(value(&out, "glm4.nextn_predict_layers"), "u32 1");
    assert_eq!(value(&out, "glm4.feed_forward_length"), "u32[] 2 4 5");
    let out = gguf_shorten::gguf::File::parse(&out).unwrap();
    assert!(out.tensors().get("blk.2.nextn.eh_proj.weight").is_some());
}

#[test]
fn prediction_blocks_are_neither_chosen_nor_counted() {
    let dir = glm4().dir();
    let output = dir
        .run("m.gguf --blocks 4 -o out.gguf")
        .fails(1, "m.gguf: cannot remove block 4: it is a next-token prediction block after the model's own");
    assert_eq!(output.hint(), Some("--drop-mtp removes all such blocks"));
    dir.run("m.gguf --drop 4 --method sequential -o out.gguf")
        .fails(1, "m.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay");
    dir.run("m.gguf --blocks 0-3 -o out.gguf")
        .fails(1, "m.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay");
    // A quarter of four, not of five.
    dir.run("m.gguf --drop 49% --method sequential -o out.gguf").succeeds();
    assert_eq!(value(&dir.read("out.gguf"), "gguf_shorten.blocks"), "i32[] 0 1 2 4");
}

#[test]
fn more_prediction_blocks_than_blocks_are_refused() {
    let dir = glm4().set("glm4.nextn_predict_layers", ValueOut::u32(5)).dir();
    dir.run("m.gguf --blocks 0 -o out.gguf")
        .fails(1, "m.gguf: metadata 'glm4.nextn_predict_layers' is 5, expected less than the 5 blocks");
}

#[test]
fn flags_are_written_for_prediction_blocks_too() {
    let make = gemma3(7).predicting("gemma3", 6..7);
    // Six blocks of the model's own: 111110; a prediction block has no window.
    let out = removes(&make, &[0, 1], &[PATTERN]);
    assert_eq!(flags(&out, PATTERN), "11100");
}

#[test]
fn blocks_that_receive_images_stay() {
    let dir = Make::new("qwen3vl", 4).set("qwen3vl.n_deepstack_layers", ValueOut::u32(2)).dir();
    dir.run("m.gguf --blocks 1 -o out.gguf")
        .fails(1, "m.gguf: cannot remove block 1: it receives features of images");
    dir.run("m.gguf --drop 2 --method reverse -o out.gguf").succeeds();
    assert_eq!(value(&dir.read("out.gguf"), "gguf_shorten.blocks"), "i32[] 0 1");

    let mapping = "granite.deepstack_mapping";
    let granite = Make::new("granite", 4).set(mapping, ValueOut::i32s(&[0, -1, 1, -1]));
    let out = removes(&granite, &[0, 1], &[mapping]);
    assert_eq!(value(&out, mapping), "i32[] 1 -1");
    granite.write(&dir, "g.gguf");
    dir.run("g.gguf --blocks 2 -o g-out.gguf")
        .fails(1, "g.gguf: cannot remove block 2: it receives features of images");
}

#[test]
fn an_architecture_that_cannot_be_shortened_is_refused_with_the_reason() {
    let dir = Make::new("baichuan", 3).dir();
    for flag in ["", " --trust-any-cut"] {
        dir.run(&format!("m.gguf --blocks 0 -o out.gguf{flag}"))
            .fails(1, "m.gguf: blocks of architecture 'baichuan' cannot be removed");
    }
}

#[test]
fn an_architecture_that_is_not_known_is_taken_on_the_users_word() {
    let dir = Make::new("llama-next", 3).set("llama-next.some_list", ValueOut::u32s(&[7, 8, 9])).dir();
    dir.run("m.gguf --blocks 1 -o out.gguf --trust-any-cut").succeeds();
    assert_eq!(value(&dir.read("out.gguf"), "llama-next.some_list"), "u32[] 7 9");
}

#[test]
fn kinds_that_a_number_decides_are_kept_and_the_nearest_set_is_named() {
    let dir = Make::new("smollm3", 12).dir();
    dir.run("m.gguf --blocks 5,6 -o out.gguf")
        .fails(1, "block 7, which has no rotary embedding, would become block 5");
    dir.run("m.gguf --blocks 4-7 -o out.gguf").succeeds();
}

#[test]
fn an_architecture_that_is_not_known_is_refused_by_name() {
    for architecture in ["llama-next", "x'y"] {
        let dir = Make::new(architecture, 3).dir();
        let name = architecture.replace('\'', r"\'");
        dir.run("m.gguf --blocks 0 -o out.gguf").fails(1, &format!("is not known for architecture '{name}'"));
    }
}

#[test]
fn a_tensor_of_a_block_that_does_not_exist_is_refused() {
    let dir = Dir::new();
    for (name, number) in [("blk.3.x", "3"), ("blk.99999999999999999999.x", "")] {
        Make::new("llama", 3).tensor(name, &[1], I8).write(&dir, "m.gguf");
        let number = match number {
            "" => usize::MAX.to_string(),
            number => number.to_owned(),
        };
        dir.run("m.gguf --blocks 0 -o out.gguf").fails(
            1,
            &format!("m.gguf: tensor '{name}' belongs to block {number}, but the model has 3 blocks, 0 to 2"),
        );
    }
}

#[test]
fn a_list_that_the_output_needs_is_noted() {
    let dir = gemma3(12).dir();
    let note = "needs a llama.cpp that reads 'gemma3.attention.sliding_window_pattern' block by block, as release 0.5.0 does;";
    let run = |blocks: &str| {
        dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf --force")).succeeds().stderr.contains(note)
    };
    assert!(run("3"));
    // What is made for Ollama is told of it too.
    let ollama = |blocks: &str| {
        let run = format!("m.gguf --blocks {blocks} -o out.gguf --force --ollama n");
        let said = dir.run(&run).env("PATH", &dir.path("none")).succeeds().stderr;
        said.contains("ignores 'gemma3.attention.sliding_window_pattern'")
    };
    assert!(ollama("3"));
    assert!(!ollama("0-5"));
    // A whole period, and the end: the built-in period gives the same.
    assert!(!run("0-5"));
    assert!(!run("10,11"));
}
