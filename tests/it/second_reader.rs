//! What we write, read by a reader that is not ours: the crate `gguf-rs`.

use std::collections::BTreeMap;

use gguf_rs::{GGUFModel, get_gguf_container_array_size};
use gguf_shorten::gguf::{File, TensorType, ValueOut};

use crate::make::{Make, part_name, write_parts};
use crate::util::Dir;

fn read(dir: &Dir, name: &str) -> GGUFModel {
    let path = dir.path(name);
    get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap().decode().unwrap()
}

/// The bytes of every tensor, where the second reader finds them.
fn tensors(dir: &Dir, name: &str) -> BTreeMap<String, (Vec<u64>, u32, Vec<u8>)> {
    let bytes = dir.read(name);
    let model = read(dir, name);
    model
        .tensors()
        .iter()
        .map(|tensor| {
            let tensor_type = TensorType::from_id(tensor.kind).unwrap();
            let n: u64 = tensor.shape.iter().product();
            let n = n / tensor_type.block_size() * tensor_type.block_bytes();
            let start = (model.data_offset() + tensor.offset) as usize;
            let data = bytes[start..start + n as usize].to_vec();
            (tensor.name.clone(), (tensor.shape.clone(), tensor.kind, data))
        })
        .collect()
}

/// All types that both readers know.
fn model() -> Make {
    let mut make = Make::new("llama", 4)
        .set("llama.feed_forward_length", ValueOut::u32s(&[10, 20, 30, 40]))
        .set("flags", ValueOut::bools(&[true, false]));
    for tensor_type in TensorType::all().filter(|t| t.id() < 40) {
        make = make.tensor(&format!("blk.2.{}.weight", tensor_type.name()), &[256, 2], tensor_type.id());
    }
    make
}

#[test]
fn the_second_reader_sees_kept_tensors_with_their_bytes() {
    for make in [model(), model().version(2).alignment(64), model().without_end_padding()] {
        let dir = make.dir();
        dir.run("m.gguf --blocks 0,3 -o out.gguf").succeeds();
        let mut before = tensors(&dir, "m.gguf");
        for (name, tensor) in tensors(&dir, "out.gguf") {
            // Blocks 1 and 2 became 0 and 1.
            let old = name.replace("blk.1.", "blk.2.").replace("blk.0.", "blk.1.");
            assert!(before.remove(&old).unwrap() == tensor, "{name}");
        }
        let left: Vec<_> = before.keys().map(String::as_str).collect();
        assert_eq!(
            left,
            [
                "blk.0.attn_norm.weight",
                "blk.0.attn_q.weight",
                "blk.0.ffn_down.weight",
                "blk.3.attn_norm.weight",
                "blk.3.attn_q.weight",
                "blk.3.ffn_down.weight",
            ]
        );
    }
}

#[test]
fn the_second_reader_sees_the_planned_metadata() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    let (parent, out) = (read(&dir, "m.gguf"), read(&dir, "out.gguf"));
    let changed: Vec<&str> = out
        .metadata()
        .iter()
        .filter(|(key, value)| parent.metadata().get(*key) != Some(value))
        .map(|(key, _)| key.as_str())
        .collect();
    assert_eq!(
        changed,
        [
            "general.base_model.0.name",
            "general.base_model.count",
            "general.name",
            "gguf_shorten.blocks",
            "gguf_shorten.heal",
            "gguf_shorten.method",
            "gguf_shorten.parent.blake3",
            "gguf_shorten.parent.block_count",
            "gguf_shorten.version",
            "llama.block_count",
            "llama.feed_forward_length",
        ]
    );
    assert_eq!(out.metadata()["llama.block_count"], 3);
    assert_eq!(out.metadata()["llama.feed_forward_length"], serde_json::json!([10, 30, 40]));
    assert_eq!(out.metadata()["gguf_shorten.blocks"], serde_json::json!([0, 2, 3]));
}

#[test]
fn the_two_readers_agree_on_the_head() {
    let dir = Dir::new();
    write_parts(&dir, &model().alignment(128).split(2));
    dir.run(&format!("{} --blocks 0-1 -o out.gguf", part_name(1, 2))).succeeds();
    let second = read(&dir, "out.gguf");
    let bytes = dir.read("out.gguf");
    let first = File::parse(&bytes).unwrap();
    assert_eq!(second.get_version(), "v3");
    assert_eq!(second.num_kv(), first.header().n_metadata);
    assert_eq!(second.metadata().len(), first.metadata().len());
    assert_eq!(second.num_tensor(), first.header().n_tensors);
    assert_eq!(second.alignment(), first.alignment());
    assert_eq!(second.data_offset(), first.data_start().0);
    for (second, first) in second.tensors().iter().zip(first.tensors()) {
        assert_eq!(second.name, first.name());
        assert_eq!(second.offset, first.offset().0);
        assert_eq!(second.shape, first.dims()[..first.n_dims()]);
        assert_eq!(second.kind, first.tensor_type().id());
    }
}
