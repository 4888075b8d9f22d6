//! Numbers of blocks that llama.cpp treats in a special way. Refused, or kept by what is written into the output.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, I8, Make};
use crate::shorten::{removes, value};
use crate::util::Dir;

#[track_caller]
fn refuses(make: &Make, blocks: &str, message: &str) {
    let dir = make.dir();
    dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf")).fails(1, &format!("m.gguf: {message}"));
    // The same by number, before anything is measured for it.
    let n = match blocks.split_once('-') {
        Some((start, end)) => end.parse::<u32>().unwrap() - start.parse::<u32>().unwrap() + 1,
        None => 1,
    };
    dir.run(&format!("m.gguf --drop {n} -o out.gguf")).fails(1, &format!("m.gguf: {message}"));
}

/// Heads of 12 in a model of width 32 with 4 heads. Another width per head than head size.
fn gemma(architecture: &str, n_blocks: u32) -> Make {
    let make = Make::new(architecture, n_blocks);
    make.set(&format!("{architecture}.attention.key_length"), ValueOut::u32(12))
}

#[test]
fn landing_on_the_count_that_scales_gemma_is_refused() {
    for (architecture, count) in [("gemma2", 46), ("gemma3", 62)] {
        let rule = format!(
            "llama.cpp scales queries by the width per head instead of the head size if there are exactly {count} blocks"
        );
        refuses(
            &gemma(architecture, count + 2),
            "3-4",
            &format!("cannot shorten {} blocks to {count}: {rule}", count + 2),
        );
        // Where both are the same it does not matter.
        let pattern = format!("{architecture}.attention.sliding_window_pattern");
        let changed = match architecture {
            "gemma2" => &[&pattern[..]][..],
            _ => &[],
        };
        removes(&Make::new(architecture, count + 2), &[3, 4], changed);
        removes(&Make::new(architecture, count), &[3], changed);
    }
    removes(&gemma("gemma3", 64), &[0, 1, 2], &[]);
    removes(&gemma("gemma3", 61), &[0], &[]);
}

#[test]
fn leaving_the_count_that_scales_gemma3_multiplies_the_norms_of_queries() {
    let dir = Dir::new();
    let name = |block| format!("blk.{block}.attn_q_norm.weight");
    let make = (0..62).fold(gemma("gemma3", 62), |make, block| make.tensor(&name(block), &[12], F32));
    make.write(&dir, "m.gguf");
    let output = dir.run("m.gguf --blocks 1,60 -o out.gguf").succeeds();
    // The root of 12 over 8.
    let line = "changed  'blk.0.attn_q_norm.weight' and 59 more: times 1.224745, which llama.cpp does to queries if there \
                are exactly 62 blocks; the same up to rounding\n";
    output.check(output.stdout.contains(line), line);
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    let [parent, out] = [&parent, &out].map(|bytes| gguf_shorten::gguf::File::parse(bytes).unwrap());
    let factor = 1.5f64.sqrt();
    for (block, old) in [(0, 0), (1, 2), (58, 59), (59, 61)] {
        let floats = |file: &gguf_shorten::gguf::File<'_>, block| -> Vec<f32> {
            let bytes = file.tensors().get(&name(block)).unwrap().bytes();
            let floats = bytes.chunks_exact(4);
            floats.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
        };
        for (new, old) in floats(&out, block).iter().zip(floats(&parent, old)) {
            let expected = f64::from(old) * factor;
            let difference = (f64::from(*new) - expected).abs();
            assert!(!expected.is_finite() || difference <= expected.abs() * 6e-8 + 1e-45);
        }
    }
    let verified = dir.run("verify out.gguf --parent m.gguf").succeeds();
    let line = "identical, 0 sliced, 60 changed, 0 new, 0 left out\n";
    verified.check(verified.stdout.contains(line), line);
    let json = dir.run("verify out.gguf --parent m.gguf --json -").output();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["changes"].as_array().unwrap().len(), 60);
    assert_eq!(json["changes"][1]["tensor"], name(1));
    assert_eq!(json["changes"][1]["parent"], name(2));
    assert_eq!(json["changes"][1]["change"], "changed");
    dir.run("verify out.gguf --parent m.gguf --run")
        .fails(1, "out.gguf: cannot be compared by a run, bit for bit: tensor 'blk.0.attn_q_norm.weight'");
}

#[test]
fn leaving_the_count_that_scales_gemma2_adds_scales_of_queries() {
    let dir = gemma("gemma2", 46).tensor("blk.2.attn_q.scale", &[1], F32).dir();
    let output = dir.run("m.gguf --blocks 0 -o out.gguf").succeeds();
    for line in [
        "new      'blk.0.attn_q.scale' and 43 more: times 1.224745",
        "changed  'blk.1.attn_q.scale': times 1.224745",
    ] {
        output.check(output.stdout.contains(line), line);
    }
    let out = dir.read("out.gguf");
    let file = gguf_shorten::gguf::File::parse(&out).unwrap();
    let scale = file.tensors().get("blk.44.attn_q.scale").unwrap();
    assert_eq!(scale.bytes(), 1.5f32.sqrt().to_le_bytes());
    assert_eq!((scale.n_dims(), scale.dims()), (1, [1; 4]));
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn a_scale_that_no_tensor_can_hold_is_refused() {
    let rule = |count| {
        format!(
            "cannot shorten {count} blocks to {}: llama.cpp scales queries by the width per head instead of the head size \
             if there are exactly {count} blocks, and ",
            count - 1
        )
    };
    refuses(
        &gemma("gemma3", 62).tensor("blk.0.attn_q_norm.weight", &[12], F32),
        "0",
        &format!("{}block 1 has no F32 tensor 'attn_q_norm.weight' to hold the scale", rule(62)),
    );
    let fused = Make::empty()
        .set("general.architecture", ValueOut::string("gemma2"))
        .set("gemma2.block_count", ValueOut::u32(46))
        .set("gemma2.embedding_length", ValueOut::u32(32))
        .set("gemma2.attention.head_count", ValueOut::u32(4))
        .set("gemma2.attention.key_length", ValueOut::u32(12))
        .tensor("blk.7.attn_qkv.weight", &[12], F32);
    refuses(&fused, "0", &format!("{}block 0 has no queries of their own to scale", rule(46)));
    refuses(
        &gemma("gemma2", 46).tensor("blk.7.attn_q.bias", &[12], I8),
        "0",
        &format!("{}tensor 'attn_q.bias' of block 7 is not F32", rule(46)),
    );
}

#[test]
fn what_deepseek2_derives_from_the_number_of_blocks_is_written() {
    let (rank, gating) = ("deepseek2.attention.q_lora_rank", "deepseek2.expert_gating_func");
    let out = removes(&Make::new("deepseek2", 27), &[1, 2], &[rank, gating]);
    assert_eq!(value(&out, rank), "u32 0");
    assert_eq!(value(&out, gating), "u32 1");
    let make = Make::new("deepseek2", 47)
        .set(rank, ValueOut::u32(768))
        .set("deepseek2.vocab_size", ValueOut::u32(154_880));
    let out = removes(&make, &[3], &[gating]);
    assert_eq!(value(&out, gating), "u32 2");
    let make = make.set(gating, ValueOut::u32(1));
    let out = removes(&make, &[3], &[]);
    assert_eq!(value(&out, gating), "u32 1");
    refuses(
        &Make::new("deepseek2", 28).set(rank, ValueOut::u32(768)),
        "0",
        "cannot shorten 28 blocks to 27: llama.cpp takes queries for one matrix",
    );
}

#[test]
fn crossing_the_count_at_which_command_r_loads_norms_is_refused() {
    let rule = "llama.cpp loads norms of queries and keys (command-r.cpp)";
    refuses(&Make::new("command-r", 64), "9", &format!("cannot shorten 64 blocks to 63: {rule}"));
    refuses(&Make::new("command-r", 66), "9-11", &format!("cannot shorten 66 blocks to 63: {rule}"));
    removes(&Make::new("command-r", 66), &[0, 1], &[]);
    removes(&Make::new("command-r", 63), &[0], &[]);
}

#[test]
fn the_count_that_gives_exaone4_a_window_is_refused() {
    let rule = "llama.cpp gives exaone4 a sliding window";
    refuses(&Make::new("exaone4", 64), "0", &format!("cannot shorten 64 blocks to 63: {rule}"));
    refuses(&Make::new("exaone4", 65), "0", &format!("cannot shorten 65 blocks to 64: {rule}"));
    removes(&Make::new("exaone4", 30), &[0], &[]);
}
