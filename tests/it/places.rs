//! Where the data of tensors lies. In any order, and with no more room than the types take.

use gguf_shorten::gguf::File;

use crate::make::{I8, Raw};
use crate::util::Dir;

/// Type 42 is `Q2_0` here: 72 bytes for 256 weights, and 84 in the files of another program.
const COLLIDING: u32 = 42;

/// Two blocks of 16 rows of 256 weights in the colliding type. Each has `n_bytes` bytes of data.
fn colliding(n_bytes: usize, last: Option<&str>) -> Raw {
    let raw = Raw::new().string("general.architecture", b"llama").u32("llama.block_count", 2);
    let raw = (0..2).fold(raw, |raw, block| {
        let name = format!("blk.{block}.ffn_down.weight");
        raw.tensor(&name, &[256, 16], COLLIDING, &vec![7; n_bytes])
    });
    match last {
        Some(last) => raw.tensor(last, &[32], I8, &[1; 32]),
        None => raw,
    }
}

#[test]
fn a_type_that_is_another_to_who_wrote_the_file_is_refused() {
    let dir = Dir::new();
    dir.write("right.gguf", &colliding(16 * 72, Some("output_norm.weight")).bytes());
    dir.run("right.gguf --blocks 1 -o out.gguf").succeeds();
    dir.write("wrong.gguf", &colliding(16 * 84, Some("output_norm.weight")).bytes());
    let message =
        "wrong.gguf: tensor 'blk.0.ffn_down.weight' has type 42 (Q2_0), 1152 bytes, but the next tensor";
    for command in
        ["wrong.gguf --blocks 1 -o other.gguf", "show wrong.gguf", "verify out.gguf --parent wrong.gguf"]
    {
        let output = dir.run(command).fails(1, message);
        assert!(output.hint().unwrap().contains("numbers tensor types in another way"));
    }
}

#[test]
fn the_last_tensor_is_no_exception() {
    let dir = Dir::new();
    let one = |n_bytes: usize| {
        Raw::new()
            .string("general.architecture", b"llama")
            .u32("llama.block_count", 2)
            .tensor("blk.0.ffn_down.weight", &[32], I8, &[1; 32])
            .tensor("blk.1.ffn_down.weight", &[256, 16], COLLIDING, &vec![7; n_bytes])
            .bytes()
    };
    dir.write("wrong.gguf", &one(16 * 84));
    let message =
        "wrong.gguf: tensor 'blk.1.ffn_down.weight' has type 42 (Q2_0), 1152 bytes, but the file goes on";
    dir.run("wrong.gguf --blocks 0 -o out.gguf").fails(1, message);
    // What is all zeros is no tensor's.
    let mut zeros = one(16 * 72);
    zeros.extend([0; 4096]);
    dir.write("zeros.gguf", &zeros);
    dir.run("zeros.gguf --blocks 0 -o out.gguf").succeeds();
    assert!(File::parse(&dir.read("out.gguf")).unwrap().trailing_bytes().is_empty());
}

#[test]
fn tensors_in_another_order_are_taken() {
    let dir = Dir::new();
    let mut raw = Raw::new()
        .string("general.architecture", b"llama")
        .u32("llama.block_count", 2)
        .tensor("blk.0.ffn_down.weight", &[32], I8, &[1; 32])
        .tensor("blk.1.ffn_down.weight", &[64], I8, &[2; 64])
        .bytes();
    let head = File::parse(&raw).unwrap().data_start().0 as usize;
    // The offset is the last number of an info: the second tensor now lies first.
    let offset_of = |raw: &[u8], name: &[u8]| {
        let at = raw.windows(name.len()).position(|window| window == name);
        at.unwrap() + name.len() + 4 + 8 + 4
    };
    for (name, offset) in [(&b"blk.0.ffn_down.weight"[..], 64u64), (b"blk.1.ffn_down.weight", 0)] {
        let at = offset_of(&raw, name);
        raw[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    }
    raw[head..].rotate_left(32);
    dir.write("m.gguf", &raw);
    dir.run("m.gguf --blocks 0 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    let out = File::parse(&out).unwrap();
    assert_eq!(out.tensors().get("blk.0.ffn_down.weight").unwrap().bytes(), [2; 64]);
}
