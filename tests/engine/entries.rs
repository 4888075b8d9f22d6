//! Entries that llama.cpp reads besides what a block is: alignment, names of tensors, lists of adapters.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, ValueOut, write};
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::program;
use crate::random_model::Spec;
use crate::support::{load, shorten};

/// Rewrites the model at `from` with data aligned to `alignment`. Its head is `n_filler` bytes longer.
fn align(from: &Path, alignment: u32, n_filler: usize, to: &Path) {
    let bytes = std::fs::read(from).unwrap();
    let file = File::parse(&bytes).unwrap();
    let mut entries: Vec<_> = file.metadata().iter().map(EntryOut::keep).collect();
    entries.push(EntryOut::u32("general.alignment", alignment));
    entries.push(EntryOut::string("general.description", &"x".repeat(n_filler)));
    let tensors = file.tensors().iter().map(TensorOut::keep).collect();
    let layout = Layout::new(3, alignment.into(), entries, tensors, true).unwrap();
    let data: Vec<&[u8]> = file.tensors().iter().map(|tensor| tensor.bytes()).collect();
    let mut out = std::io::BufWriter::new(std::fs::File::create(to).unwrap());
    write(&layout, &mut out, |i, out| out.write_all(data[i])).unwrap();
}

/// The run of `verify` as JSON.
#[track_caller]
fn verified(dir: &Path) -> Value {
    let output = program(dir, "verify out.gguf --parent parent.gguf --run -t 1 --json -");
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["run"]["floats_different"], 0);
    json
}

#[test]
fn every_alignment_is_read_and_what_is_written_can_be_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [plain, parent, out] = ["plain", "parent.gguf", "out.gguf"].map(|name| dir.join(name));
    byte_model("llama", 3).save(Backend::init(), &plain).unwrap();
    let mut n_unmapped = 0;
    for alignment in [1, 2, 4, 8, 16, 32, 64, 1024, 4096] {
        for n_filler in [0, 24] {
            align(&plain, alignment, n_filler, &parent);
            let bytes = std::fs::read(&parent).unwrap();
            n_unmapped += usize::from(!File::parse(&bytes).unwrap().is_mappable());
            shorten(&parent, &[1], &out).unwrap();
            load(&out).unwrap();
        }
        verified(dir);
    }
    assert!(n_unmapped > 0, "none that llama.cpp cannot map");
}

#[test]
fn models_of_any_alignment_are_measured_and_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let plain = dir.join("plain.gguf");
    byte_model("llama", 3).save(Backend::init(), &plain).unwrap();
    let text = "--tokens 64 --window 32 -t 1 --json -";
    let rows = |name: &str| -> Vec<Value> {
        let arguments = format!("compare {name} --drop 1 --method sequential --requantize Q8_0 {text}");
        let output = program(dir, &arguments);
        assert!(output.status.success(), "{name}: {output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["rows"].as_array().unwrap().clone()
    };
    let expected = rows("plain.gguf");
    assert!(expected.len() >= 3, "{expected:?}");
    for (alignment, n_filler) in [(8, 0), (8, 8), (64, 0), (4096, 0)] {
        align(&plain, alignment, n_filler, &dir.join("m.gguf"));
        for (found, expected) in rows("m.gguf").iter().zip(&expected) {
            assert_eq!(found["error"], Value::Null, "alignment {alignment}");
            for key in ["perplexity", "parameters"] {
                assert_eq!(found[key], expected[key], "alignment {alignment}");
            }
        }
    }
}

#[test]
fn names_of_tensors_do_not_keep_segments_from_being_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut spec = byte_model("llama", 4);
    let names = ["blk.0.ffn_down.weight", "blk.2.attn_q.weight", "blk.3.attn_q.weight"];
    spec.extra.extend([
        ("general.tensor_extra.name", ValueOut::strings(&names)),
        ("general.tensor_extra.prec_a4", ValueOut::bools(&[false; 3])),
    ]);
    spec.save(Backend::init(), &dir.join("parent.gguf")).unwrap();
    let arguments = "parent.gguf --drop 2 --method search --tokens 64 --window 32 -t 1 -o out.gguf --json -";
    let output = program(dir, arguments);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["search"]["evaluated"], "segments");
    let removed: Vec<u64> =
        json["removed"].as_array().unwrap().iter().map(|block| block.as_u64().unwrap()).collect();
    let expected: Vec<String> = [(0, "ffn_down"), (2, "attn_q"), (3, "attn_q")]
        .iter()
        .filter(|(block, _)| !removed.contains(block))
        .map(|(block, name)| {
            let n_before = removed.iter().filter(|other| *other < block).count() as u64;
            format!("blk.{}.{name}.weight", block - n_before)
        })
        .collect();
    let bytes = std::fs::read(dir.join("out.gguf")).unwrap();
    let file = File::parse(&bytes).unwrap();
    let found: Vec<&str> = match file.metadata().get("general.tensor_extra.name") {
        Some(entry) => {
            let array = entry.value().as_array().unwrap();
            array.strs().map(Result::unwrap).collect()
        }
        None => Vec::new(),
    };
    assert_eq!(found, expected);
    verified(dir);
}

#[test]
fn a_switch_with_as_many_adapters_as_blocks_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out] = ["parent.gguf", "out.gguf"].map(|name| dir.path().join(name));
    let mut spec = Spec::new("graniteswitch", 4);
    spec.extra.retain(|(key, _)| !key.starts_with(".adapters.token_ids") && *key != ".adapters.count");
    spec.extra.extend([
        (".adapters.count", ValueOut::u32(4)),
        (".adapters.token_ids_activate", ValueOut::i32s(&[7, 9, 11, 13])),
        (".adapters.token_ids_substitute", ValueOut::i32s(&[8, 10, 12, 14])),
    ]);
    spec.save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[1], &out).unwrap();
    load(&out).unwrap();
    verified(dir.path());
}
