//! Architectures with listed kinds of blocks, or streams beyond a sum.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, Make};
use crate::shorten::{removes, value};

/// What `show` says of each block.
fn shown(make: &Make) -> Vec<String> {
    let dir = make.dir();
    let text = dir.run("show m.gguf").succeeds().stdout;
    let (_, blocks) = text.split_once("\nblocks\n").unwrap();
    blocks
        .lines()
        .take_while(|line| !line.contains("outside blocks"))
        .map(|line| line.rsplit_once("Q4_1").unwrap().1.trim().to_owned())
        .collect()
}

#[track_caller]
fn refuses(make: &Make, blocks: &str, message: &str) {
    let dir = make.dir();
    dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf")).fails(1, &format!("m.gguf: {message}"));
}

fn nemotron() -> Make {
    Make::new("nemotron_h_moe", 6)
        .set("nemotron_h_moe.attention.head_count_kv", ValueOut::u32s(&[0, 0, 2, 0, 0, 0]))
        .set("nemotron_h_moe.feed_forward_length", ValueOut::u32s(&[0, 8, 0, 9, 0, 10]))
        .set("nemotron_h_moe.expert_count", ValueOut::u32(4))
        .set("nemotron_h_moe.expert_used_count", ValueOut::u32s(&[0, 1, 0, 2, 0, 3]))
}

#[test]
fn a_block_of_nemotron_h_is_one_of_three() {
    assert_eq!(
        shown(&nemotron()),
        ["recurrent", "feed-forward", "attention", "feed-forward", "recurrent", "feed-forward"]
    );
    let keys = [
        "nemotron_h_moe.attention.head_count_kv",
        "nemotron_h_moe.feed_forward_length",
        "nemotron_h_moe.expert_used_count",
    ];
    let out = removes(&nemotron(), &[0, 3], &keys);
    assert_eq!(value(&out, keys[0]), "u32[] 0 2 0 0");
    assert_eq!(value(&out, keys[1]), "u32[] 8 0 0 10");
    assert_eq!(value(&out, keys[2]), "u32[] 1 0 0 3");
}

#[test]
fn one_of_each_kind_that_llama_cpp_needs_stays() {
    let needs = |blocks, what| {
        let message = format!("cannot remove all {what}: llama.cpp needs at least one");
        refuses(&nemotron(), blocks, &message);
    };
    needs("2", "1 attention blocks");
    needs("0,4", "2 recurrent blocks");
    needs("1,3,5", "3 blocks that use experts");
    // Without experts no feed-forward block is needed.
    let dense = nemotron()
        .unset("nemotron_h_moe.expert_used_count")
        .set("nemotron_h_moe.expert_count", ValueOut::u32(0));
    let dir = dense.dir();
    dir.run("m.gguf --blocks 1,3,5 -o out.gguf").succeeds();
}

#[test]
fn blocks_of_a_decision_head_stay_last() {
    let pattern = "modern-bert.attention.sliding_window_pattern";
    let make = Make::new("modern-bert", 7)
        .set("modern-bert.attention.sliding_window", ValueOut::u32(8))
        .set("modern-bert.decision.block_count", ValueOut::u32(2));
    // 01101 of the model's own before; the head attends to everything.
    let out = removes(&make, &[0, 2], &[pattern]);
    assert_eq!(value(&out, pattern), "bool[] true false true false false");
    assert_eq!(value(&out, "modern-bert.decision.block_count"), "u32 2");
    refuses(&make, "5", "cannot remove block 5: it belongs to the head after the model's own blocks");
    refuses(
        &make.set("modern-bert.decision.block_count", ValueOut::u32(7)),
        "0",
        "metadata 'modern-bert.decision.block_count' is 7, expected less than the 7 blocks",
    );
}

#[test]
fn blocks_stay_in_their_period_where_the_stream_is_halved() {
    let key = "rwkv6.rescale_every_n_layers";
    let rwkv = |period| Make::new("rwkv6", 8).set(key, ValueOut::u32(period));
    let halved = "the stream halved after it";
    let kinds = shown(&rwkv(3));
    assert_eq!(kinds, ["", "", halved, "", "", halved, "", ""].map(str::to_owned));
    // Ends, and what lies after the last halving.
    for blocks in [&[7][..], &[6], &[5, 6, 7], &[4, 5, 6, 7], &[3, 5, 6, 7]] {
        removes(&rwkv(3), blocks, &[]);
    }
    refuses(
        &rwkv(3),
        "3",
        "cannot remove these blocks: block 5, which has the stream halved after it, would become block 4",
    );
    refuses(
        &rwkv(3),
        "0-2",
        "cannot remove these blocks: block 3 would become block 0, before which fewer blocks have",
    );
    // Halved after every block: only ends.
    removes(&rwkv(1), &[6, 7], &[]);
    refuses(
        &rwkv(1),
        "6",
        "cannot remove these blocks: block 7 would become block 6, before which fewer blocks have",
    );
    removes(&rwkv(0), &[0, 3], &[]);
}

#[test]
fn blocks_that_bank_the_stream_keep_their_number() {
    let make = Make::new("kimi-k3", 8)
        .set("kimi-k3.attn_res.block_size", ValueOut::u32(3))
        .set("kimi-k3.attention.head_count_kv", ValueOut::u32s(&[0, 1, 0, 1, 0, 1, 0, 1]));
    removes(&make, &[7], &["kimi-k3.attention.head_count_kv"]);
    removes(&make, &[5, 6, 7], &["kimi-k3.attention.head_count_kv"]);
    refuses(
        &make,
        "1",
        "cannot remove these blocks: block 3, which has the stream banked before it, would become block 2",
    );
}

#[test]
fn lists_of_deepseek4_are_shortened_and_its_leading_blocks_counted() {
    let ratios = "deepseek4.attention.compress_ratios";
    let hashed = "deepseek4.hash_layer_count";
    let make = Make::new("deepseek4", 5)
        .set(hashed, ValueOut::u32(2))
        .set(ratios, ValueOut::u32s(&[0, 4, 128, 4, 128]));
    assert_eq!(
        shown(&make),
        [
            "experts by token  window only",
            "experts by token  keys compressed 4:1",
            "experts  keys compressed 128:1",
            "experts  keys compressed 4:1",
            "experts  keys compressed 128:1"
        ]
    );
    let out = removes(&make, &[1, 2], &[ratios, hashed]);
    assert_eq!(value(&out, ratios), "u32[] 0 4 128");
    assert_eq!(value(&out, hashed), "u32 1");
    // llama.cpp reads no more of a longer list than there are blocks.
    let longer = make.clone().set(ratios, ValueOut::u32s(&[0, 4, 128, 4, 128, 7, 7]));
    let out = removes(&longer, &[1, 2], &[ratios, hashed]);
    assert_eq!(value(&out, ratios), "u32[] 0 4 128");
    refuses(
        &make.clone().set(ratios, ValueOut::u32s(&[0, 4, 128])),
        "0",
        "metadata 'deepseek4.attention.compress_ratios' has 3 entries, expected one for each of the 5 blocks",
    );
    refuses(
        &make.set(ratios, ValueOut::i32s(&[0, 4, 128, -4, 128])),
        "0",
        "metadata 'deepseek4.attention.compress_ratios' has the entry -4, expected 0 or more",
    );
}

#[test]
fn plamo2_begins_with_a_block_that_has_heads_if_it_did() {
    let (heads, kv) = ("plamo2.attention.head_count", "plamo2.attention.head_count_kv");
    let make = Make::new("plamo2", 4)
        .set(heads, ValueOut::u32s(&[0, 4, 0, 4]))
        .set(kv, ValueOut::u32s(&[0, 2, 0, 2]))
        .tensor("blk.0.ssm_a", &[1], F32);
    refuses(&make, "0", "cannot remove these blocks: block 1 cannot be the first");
    let out = removes(&make, &[0, 1], &[heads, kv]);
    assert_eq!(value(&out, heads), "u32[] 0 4");
    // llama.cpp would not come back from it.
    let dir = make.dir();
    for command in ["score m.gguf", "eval m.gguf", "m.gguf --drop 1 -o out.gguf"] {
        dir.run(command).fails(
            1,
            "m.gguf: cannot be evaluated: metadata 'plamo2.attention.head_count' says no heads for block 0",
        );
    }
}
