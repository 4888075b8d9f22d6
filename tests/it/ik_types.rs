//! Types of `ik_llama.cpp`: copied, named, checked for their length, and not evaluated.

use gguf_shorten::gguf::{File, ValueOut};

use crate::make::Make;

const IQ4_KS: u32 = 144;
const IQ2_K_R4: u32 = 337;

fn mixed() -> Make {
    let mut make = Make::new("llama", 4).set("tokenizer.ggml.pre", ValueOut::string("default"));
    for block in 0..4 {
        make = make.tensor(&format!("blk.{block}.ffn_up.weight"), &[512, 3], IQ4_KS).tensor(
            &format!("blk.{block}.ffn_gate.weight"),
            &[256, 4],
            IQ2_K_R4,
        );
    }
    make
}

#[test]
fn they_are_copied_named_and_verified() {
    let dir = mixed().dir();
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    let out = File::parse(&out).unwrap();
    // Two quantisation blocks of 136 bytes, and a float for each row.
    let tensor = out.tensors().get("blk.1.ffn_up.weight").unwrap();
    assert_eq!((tensor.tensor_type().name(), tensor.n_bytes()), ("IQ4_KS", 3 * (4 + 2 * 136)));
    let parent = dir.read("m.gguf");
    let parent = File::parse(&parent).unwrap();
    assert!(tensor.bytes() == parent.tensors().get("blk.2.ffn_up.weight").unwrap().bytes());
    assert_eq!(out.tensors().get("blk.2.ffn_gate.weight").unwrap().n_bytes(), 4 * 76);
    dir.run("verify out.gguf --parent m.gguf").succeeds();
    let shown = dir.run("show m.gguf --tensors").succeeds();
    shown.check(shown.stdout.contains("blk.0.ffn_up.weight IQ4_KS [512, 3]"), "the type by name");
}

#[test]
fn what_would_evaluate_them_is_refused() {
    let dir = mixed().dir();
    for line in [
        "score m.gguf",
        "m.gguf --drop 1 -o out.gguf",
        "eval m.gguf",
        "m.gguf --blocks 1 --requantize Q4_K_M -o out.gguf",
    ] {
        let output = dir.run(line).refused();
        output.check(output.error().contains("of ik_llama.cpp, which llama.cpp does not evaluate"), line);
    }
}

#[test]
fn room_that_the_type_does_not_take_is_refused() {
    // As if the rows had no floats of their own: the file is that much too short.
    let dir = mixed().tensor("blk.3.last.weight", &[512, 40], IQ4_KS).without_end_padding().dir();
    let bytes = dir.read("m.gguf");
    dir.write("short.gguf", &bytes[..bytes.len() - 40 * 4]);
    dir.run("short.gguf --blocks 1 -o out.gguf").fails(1, "tensor 'blk.3.last.weight'");
    dir.write("long.gguf", &[&bytes[..], &[7; 4096]].concat());
    let output = dir
        .run("long.gguf --blocks 1 -o out.gguf")
        .fails(1, "tensor 'blk.3.last.weight' has type 144 (IQ4_KS)");
    output.check(output.hint().is_some(), "a hint");
}
