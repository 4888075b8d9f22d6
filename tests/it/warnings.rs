//! Warnings about models whose numbers may mean something else.

use std::fs;

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::json;

use crate::make::{F32, Make};
use crate::stores::Store;
use crate::util::Dir;

/// A llama whose blocks hold matrices of 4,096 bytes.
fn model(n_blocks: u32) -> Make {
    let wide = |make: Make, block| {
        make.tensor(&format!("blk.{block}.attn_k.weight"), &[32, 32], F32).tensor(
            &format!("blk.{block}.attn_v.bias"),
            &[1024],
            F32,
        )
    };
    (0..n_blocks).fold(Make::new("llama", n_blocks), wide)
}

/// Overwrites with zeros the tensors of the file whose names `is_wanted`.
fn zero(dir: &Dir, name: &str, is_wanted: impl Fn(&str) -> bool) {
    let mut bytes = dir.read(name);
    let copy = bytes.clone();
    for tensor in File::parse(&copy).unwrap().tensors() {
        if is_wanted(tensor.name()) {
            let [start, end] = [tensor.position(), tensor.end()].map(|at| at.0 as usize);
            bytes[start..end].fill(0);
        }
    }
    dir.write(name, &bytes);
}

#[test]
fn blocks_of_zeros_are_told_of() {
    let dir = model(6).dir();
    let shorten = "m.gguf --blocks 0 -o out.gguf --force";
    dir.run(shorten).warns(&[]);
    // As a download leaves it that reserves all room first.
    zero(&dir, "m.gguf", |name| ["blk.3.", "blk.4.", "blk.5."].iter().any(|block| name.starts_with(block)));
    let warning = "m.gguf: blocks 3-5 are all zeros: the download may be incomplete";
    dir.run(shorten).warns(&[warning]);
    dir.run("m.gguf --drop 1 --method reverse --dry-run").warns(&[warning]);
    dir.run("show m.gguf").warns(&[warning]);
    dir.run(&format!("{shorten} -q")).warns(&[]);
    // The hole begins inside of a block and contains the output matrix.
    model(6).tensor("output.weight", &[32, 64], F32).write(&dir, "m.gguf");
    zero(&dir, "m.gguf", |name| {
        name == "output.weight" || name == "blk.2.attn_k.weight" || name.starts_with("blk.3.")
    });
    dir.run("show m.gguf").warns(&[
        "m.gguf: block 3 and tensor 'blk.2.attn_k.weight' and 1 more are all zeros: the download may be incomplete",
    ]);
    // One byte is enough to be no hole, wherever it is.
    model(2).write(&dir, "m.gguf");
    zero(&dir, "m.gguf", |name| name.starts_with("blk.1."));
    let bytes = dir.read("m.gguf");
    let file = File::parse(&bytes).unwrap();
    let at = file.tensors().get("blk.1.attn_k.weight").unwrap().position();
    let mut bytes = bytes.clone();
    bytes[at.0 as usize + 4000] = 1;
    dir.write("m.gguf", &bytes);
    dir.run("show m.gguf").warns(&[]);
}

#[test]
fn what_may_well_be_zero_is_not_told_of() {
    let dir = model(3).dir();
    zero(&dir, "m.gguf", |name| {
        name.ends_with(".bias") || name.ends_with("norm.weight") || name.contains("ffn_down")
    });
    for command in ["show m.gguf", "m.gguf --blocks 0 -o out.gguf"] {
        dir.run(command).warns(&[]);
    }
}

#[test]
fn a_batch_passes_warnings_on() {
    let dir = Dir::new();
    fs::create_dir(dir.path("zoo")).unwrap();
    model(3).write(&dir, "zoo/m.gguf");
    zero(&dir, "zoo/m.gguf", |name| name.starts_with("blk.1."));
    let output = dir.run("batch zoo --drop 1 --method reverse --out-dir out").output();
    let warning = "gguf-shorten: warning: zoo/m.gguf: block 1 is all zeros: the download may be incomplete\n";
    output.check(output.status.success(), "success");
    output.check(output.stderr.contains(warning), warning);
}

#[test]
fn attention_without_kv_heads_is_told_of() {
    let dir = Dir::new();
    let attention =
        |make: Make, block| make.tensor(&format!("blk.{block}.attn_output.weight"), &[3, 32], F32);
    let heads = |heads: &[i32]| {
        let make = Make::new("jamba", 4).set("jamba.attention.head_count_kv", ValueOut::i32s(heads));
        [1, 3].into_iter().fold(make, attention)
    };
    // Blocks 0 and 2 hold what makes a block recurrent.
    let recurrent = |make: Make| {
        make.tensor("blk.0.ssm_in.weight", &[32, 3], F32).tensor("blk.2.ssm_in.weight", &[32, 3], F32)
    };
    recurrent(heads(&[0, 4, 0, 4])).write(&dir, "m.gguf");
    dir.run("show m.gguf").warns(&[]);
    recurrent(heads(&[0, 0, 0, 0])).write(&dir, "m.gguf");
    let warning = "m.gguf: metadata 'jamba.attention.head_count_kv' is 0 for blocks 1,3, but they hold attention \
                   ('attn_q.weight'): llama.cpp takes them for recurrent";
    dir.run("show m.gguf").warns(&[warning]);
    recurrent(heads(&[0, 4, 0, 0])).write(&dir, "m.gguf");
    dir.run("show m.gguf").warns(&[
        "m.gguf: metadata 'jamba.attention.head_count_kv' is 0 for block 3, but it holds attention ('attn_q.weight'): \
         llama.cpp takes it for recurrent",
    ]);
    let llama = (0..2).fold(Make::new("llama", 2), attention);
    llama.set("llama.attention.head_count_kv", ValueOut::u32(0)).write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 0 -o out.gguf").warns(&[
        "m.gguf: metadata 'llama.attention.head_count_kv' is 0 for blocks 0-1, but they hold attention ('attn_q.weight'): \
         llama.cpp takes them for blocks without attention",
    ]);
}

#[test]
fn an_adapter_of_ollamas_is_told_of_by_every_command() {
    let store = Store::new();
    let adapter = store.blob("application/vnd.ollama.image.adapter", b"GGUF adapter");
    let model = store.model();
    store.layers(&[model.clone(), adapter]);
    let digest = model["digest"].as_str().unwrap().replace(':', "-");
    let warning =
        "'ollama:m:latest' is a model with a LoRA adapter, which takes no part: its base alone is read";
    let path = store.dir.path("store/blobs").join(digest);
    let warning_of_path = format!("{}: {warning}", path.display());
    for command in [
        "ollama:m --blocks 1 -o out.gguf",
        "ollama:m --drop 1 --method reverse --dry-run",
        "show ollama:m",
        "verify out.gguf --parent ollama:m",
    ] {
        store.run(command).warns(&[&warning_of_path]);
    }
    let output = store.run("batch ollama:m --drop 1 --method reverse --out-dir all").output();
    output.check(output.status.success(), "success");
    let said = format!("gguf-shorten: warning: {warning}\n");
    output.check(output.stderr.contains(&said), &said);
    // Without an adapter not a word.
    store.layers(&[model, json!({"mediaType": "other", "digest": ""})]);
    store.run("show ollama:m").warns(&[]);
}
