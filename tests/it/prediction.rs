//! Trailing blocks for multi-token prediction (MTP, NextN): dropped on request, and where the file only counts them.

use gguf_shorten::gguf::{File, ValueOut};
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::make::{F32, I8, Make};
use crate::shorten::{check_metadata, check_tensors, value};

const COUNT: &str = "glm4.nextn_predict_layers";
const WIDTHS: &str = "glm4.feed_forward_length";
const HEADS: &str = "glm4.attention.head_count_kv";

/// Four blocks and two prediction blocks, with lists for six and four.
fn glm4() -> Make {
    Make::new("glm4", 6)
        .set(COUNT, ValueOut::u32(2))
        .set(WIDTHS, ValueOut::u32s(&[1, 2, 3, 4, 5, 6]))
        .set(HEADS, ValueOut::u32s(&[1, 2, 3, 4]))
        .tensor("blk.4.nextn.eh_proj.weight", &[3, 2], F32)
        .tensor("blk.5.nextn.eh_proj.weight", &[3, 2], F32)
}

/// The same, but the two blocks are only counted.
fn counted() -> Make {
    let head = Make::new("glm4", 4)
        .set(COUNT, ValueOut::u32(2))
        .set(WIDTHS, ValueOut::u32s(&[1, 2, 3, 4, 5, 6]))
        .set(HEADS, ValueOut::u32s(&[1, 2, 3, 4]));
    head.set("glm4.block_count", ValueOut::u32(6))
}

/// Six equal blocks, of which the file counts two as prediction blocks.
fn miscounted() -> Make {
    Make::new("glm4", 6).set(COUNT, ValueOut::u32(2)).set(WIDTHS, ValueOut::u32s(&[1, 2, 3, 4, 5, 6]))
}

/// Runs on a model. Checks all tensors, that only these entries change, and that the result is verified.
#[track_caller]
fn drops(make: &Make, arguments: &str, removed: &[usize], changed: &[&str]) -> Vec<u8> {
    let dir = make.dir();
    dir.run(&format!("m.gguf {arguments} -o out.gguf")).succeeds();
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    check_tensors(&parent, &out, removed);
    check_metadata(&parent, &out, changed);
    dir.run("verify out.gguf --parent m.gguf").succeeds();
    out
}

#[test]
fn dropping_prediction_blocks_removes_nothing_else() {
    for arguments in ["--drop-mtp", "--drop-mtp --keep 0-3"] {
        let out = drops(&glm4(), arguments, &[4, 5], &[COUNT, WIDTHS]);
        assert_eq!(value(&out, "glm4.block_count"), "u32 4");
        assert_eq!(value(&out, COUNT), "u32 0");
        assert_eq!(value(&out, WIDTHS), "u32[] 1 2 3 4");
        assert_eq!(value(&out, HEADS), "u32[] 1 2 3 4");
        assert_eq!(value(&out, "gguf_shorten.blocks"), "i32[] 0 1 2 3");
        assert_eq!(value(&out, "gguf_shorten.parent.block_count"), "u32 6");
        assert_eq!(value(&out, "gguf_shorten.method"), "str blocks");
        assert_eq!(value(&out, "general.name"), "str Tiny (4 of 6 blocks)");
    }
}

#[test]
fn prediction_blocks_are_dropped_along_with_others() {
    let changed = [COUNT, WIDTHS, HEADS];
    for (arguments, removed) in [
        ("--drop-mtp --blocks 0,2", [0, 2, 4, 5]),
        // It may be named too.
        ("--drop-mtp --blocks 0,2,5", [0, 2, 4, 5]),
        ("--drop-mtp --drop 2 --method sequential", [2, 3, 4, 5]),
        ("--drop-mtp --drop 2 --method sequential --keep 3", [1, 2, 4, 5]),
        // Half of four, not of six.
        ("--drop-mtp --drop 50% --method reverse", [0, 1, 4, 5]),
    ] {
        let out = drops(&glm4(), arguments, &removed, &changed);
        assert_eq!(value(&out, "glm4.block_count"), "u32 2", "{arguments}");
        assert_eq!(value(&out, COUNT), "u32 0", "{arguments}");
    }
    let out = drops(&glm4(), "--drop-mtp --blocks 0,2", &[0, 2, 4, 5], &changed);
    assert_eq!(value(&out, WIDTHS), "u32[] 2 4");
    assert_eq!(value(&out, HEADS), "u32[] 2 4");
}

#[test]
fn kept_prediction_blocks_stay_last_with_both_lengths_of_lists() {
    let out = drops(&glm4(), "--blocks 0,2", &[0, 2], &[WIDTHS, HEADS]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 4");
    assert_eq!(value(&out, COUNT), "u32 2");
    assert_eq!(value(&out, WIDTHS), "u32[] 2 4 5 6");
    assert_eq!(value(&out, HEADS), "u32[] 2 4");
    let out = File::parse(&out).unwrap();
    for block in [2, 3] {
        let name = format!("blk.{block}.nextn.eh_proj.weight");
        assert!(out.tensors().get(&name).is_some(), "{name}");
    }
}

#[test]
fn blocks_that_are_only_counted_are_not_counted_in_the_output() {
    let changed = [COUNT, WIDTHS, HEADS];
    for arguments in ["--blocks 1", "--blocks 1 --drop-mtp"] {
        let out = drops(&counted(), arguments, &[1], &changed);
        assert_eq!(value(&out, "glm4.block_count"), "u32 3");
        assert_eq!(value(&out, COUNT), "u32 0");
        assert_eq!(value(&out, WIDTHS), "u32[] 1 3 4");
        assert_eq!(value(&out, HEADS), "u32[] 1 3 4");
        assert_eq!(value(&out, "gguf_shorten.blocks"), "i32[] 0 2 3");
    }
    let out = drops(&counted(), "--drop-mtp", &[], &[COUNT, WIDTHS]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 4");
    let dir = counted().dir();
    dir.run("m.gguf --drop 1 --method reverse --keep 5 -o out.gguf")
        .fails(1, "m.gguf: cannot keep block 5: it has no tensors");
    let shown = dir.run("show m.gguf").succeeds().stdout;
    assert!(
        shown.contains("   5    0 tensors         0 B    prediction (MTP)  not in the file\n"),
        "{shown}"
    );
}

#[test]
fn what_goes_is_said_with_prediction_blocks_apart() {
    let dir = glm4().dir();
    for (arguments, removed) in [
        ("--blocks 0,2", "0,2 (2 of 4 blocks, as listed)"),
        ("--drop-mtp", "prediction blocks 4-5"),
        ("--drop-mtp --drop 1 --method reverse", "0 (1 of 4 blocks, by reverse), prediction blocks 4-5"),
    ] {
        let output = dir.run(&format!("m.gguf {arguments} --dry-run --json x.json")).succeeds();
        output.check(output.stdout.contains(&format!("removed  {removed}\n")), removed);
    }
    let json: serde_json::Value = serde_json::from_slice(&dir.read("x.json")).unwrap();
    assert_eq!(json["removed"], serde_json::json!([0, 4, 5]));
    assert_eq!(json["model"]["prediction_block_count"], 2);
    assert_eq!(json["blocks"][5]["removed"], true);
    assert_eq!(json["output"]["block_count"], 3);
    let shown = dir.run("show m.gguf").succeeds().stdout;
    assert!(shown.contains("  prediction (MTP)  stays: is a next-token"), "{shown}");
}

#[test]
fn a_model_without_prediction_blocks_has_none_to_drop() {
    let dir = Make::new("glm4", 3).dir();
    Make::new("glm4", 3).set(COUNT, ValueOut::u32(0)).write(&dir, "zero.gguf");
    for name in ["m.gguf", "zero.gguf"] {
        for arguments in ["", "--drop 1 --method reverse", "--blocks 1"] {
            dir.run(&format!("{name} --drop-mtp {arguments} -o out.gguf"))
                .fails(1, &format!("{name}: has no next-token prediction blocks (MTP) to drop"));
        }
    }
}

#[test]
fn what_is_dropped_cannot_be_kept() {
    let dir = glm4().dir();
    for choice in ["", "--drop 1"] {
        dir.run(&format!("m.gguf --drop-mtp {choice} --keep 1,5 -o out.gguf"))
            .fails(1, "m.gguf: cannot keep block 5: --drop-mtp removes it");
    }
    dir.run("m.gguf --drop-mtp --keep 7 -o out.gguf")
        .fails(1, "m.gguf: cannot keep block 7: the model has 6 blocks, 0 to 5");
}

#[test]
fn prediction_blocks_alone_are_no_model() {
    let dir = Make::new("glm4", 0)
        .set("glm4.block_count", ValueOut::u32(3))
        .set(COUNT, ValueOut::u32(1))
        .tensor("blk.2.nextn.eh_proj.weight", &[3, 2], F32)
        .dir();
    dir.run("m.gguf --blocks 0 -o out.gguf")
        .fails(1, "m.gguf: has tensors of prediction blocks (MTP) alone: a draft head, not a model");
}

#[test]
fn a_prediction_block_that_goes_on_trust_is_not_counted() {
    let out = {
        let dir = glm4().dir();
        dir.run("m.gguf --blocks 1,4 --trust-any-cut -o out.gguf").succeeds();
        dir.read("out.gguf")
    };
    assert_eq!(value(&out, "glm4.block_count"), "u32 4");
    assert_eq!(value(&out, COUNT), "u32 1");
}

#[test]
fn a_file_that_keeps_the_count_or_a_block_is_found() {
    let dir = glm4().dir();
    dir.run("m.gguf --drop-mtp -o out.gguf").succeeds();
    let mut bytes = dir.read("out.gguf");
    let entry = File::parse(&bytes).unwrap();
    let raw = entry.metadata().get(COUNT).unwrap().raw().to_vec();
    let at = bytes.windows(raw.len()).position(|w| w == raw).unwrap() + raw.len() - 4;
    bytes[at] = 1;
    dir.write("out.gguf", &bytes);
    let output = dir.run("verify out.gguf --parent m.gguf").output();
    output.check(output.error().contains("'glm4.nextn_predict_layers'"), "the entry");
}

/// deepseek4 blocks without the prediction projection are the trunk's own in llama.cpp.
#[test]
fn deepseek4_counts_no_prediction_block_that_is_not_there() {
    let make = Make::new("deepseek4", 4).set("deepseek4.nextn_predict_layers", ValueOut::u32(1)).tensor(
        "blk.2.nextn.eh_proj.weight",
        &[3],
        I8,
    );
    let n_trunk_blocks = |bytes: &[u8]| {
        let model = Model::new(vec![File::parse(bytes).unwrap()]).unwrap();
        model.n_trunk_blocks()
    };
    assert_eq!(n_trunk_blocks(&make.bytes()), 4);
    let make = make.tensor("blk.3.nextn.eh_proj.weight", &[3], I8);
    assert_eq!(n_trunk_blocks(&make.bytes()), 3);
}

#[test]
fn a_library_user_finds_the_blocks_that_go_along() {
    let bytes = counted().bytes();
    let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    let both = [4, 5].map(BlockId::new);
    assert_eq!(constraints.dropped, both.into());
    assert!(constraints.check(&both.into()).is_ok());
    assert!(constraints.check(&[BlockId::new(1)].into()).is_ok());
}

#[test]
fn a_count_of_blocks_that_do_not_predict_is_mended_and_no_block_goes_for_it() {
    let out = drops(&miscounted(), "--drop-mtp", &[], &[COUNT]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 6");
    assert_eq!(value(&out, COUNT), "u32 0");
    assert_eq!(value(&out, "gguf_shorten.blocks"), "i32[] 0 1 2 3 4 5");
    for arguments in ["--blocks 1,4", "--blocks 1,4 --drop-mtp"] {
        let out = drops(&miscounted(), arguments, &[1, 4], &[COUNT, WIDTHS]);
        assert_eq!(value(&out, "glm4.block_count"), "u32 4", "{arguments}");
        assert_eq!(value(&out, COUNT), "u32 0", "{arguments}");
        assert_eq!(value(&out, WIDTHS), "u32[] 1 3 4 6", "{arguments}");
    }
    let dir = miscounted().dir();
    let output = dir.run("m.gguf --drop-mtp -o out.gguf --json x.json").succeeds();
    output.check(
        output
            .stderr
            .contains("counts 2 for prediction (MTP), but blocks 4 to 5, without 'nextn.eh_proj.weight'"),
        "a note",
    );
    let json: serde_json::Value = serde_json::from_slice(&dir.read("x.json")).unwrap();
    assert_eq!(json["removed"], serde_json::json!([]));
    assert_eq!(json["model"]["prediction_block_count"], 0);
    // It may be dropped again: there is nothing left to mend.
    dir.run("out.gguf --drop-mtp -o again.gguf")
        .fails(1, "out.gguf: has no next-token prediction blocks (MTP) to drop");
}

#[test]
fn of_counted_blocks_those_that_predict_are_told_from_others() {
    let first = Make::new("glm4", 4).set(COUNT, ValueOut::u32(2));
    let both =
        |make: Make, block: usize| make.tensor(&format!("blk.{block}.nextn.eh_proj.weight"), &[3, 2], F32);
    // Three blocks as any other and one that predicts.
    let one = both(first, 3);
    let out = drops(&one, "--drop-mtp", &[3], &[COUNT]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 3");
    let out = drops(&one, "--blocks 2", &[2], &[COUNT]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 3");
    assert_eq!(value(&out, COUNT), "u32 1");
    // Behind one that predicts, one that is not in the file.
    let half =
        both(Make::new("glm4", 4), 3).set("glm4.block_count", ValueOut::u32(5)).set(COUNT, ValueOut::u32(2));
    let out = drops(&half, "--blocks 0", &[0], &[COUNT]);
    assert_eq!(value(&out, "glm4.block_count"), "u32 3");
    assert_eq!(value(&out, COUNT), "u32 1");
}
