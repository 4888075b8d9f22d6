//! `verify --weights`: what another program rewrote, or cut twice, is found to have the parent's weights, and nothing else is.

use gguf_shorten::gguf::{EntryOut, File, ValueOut};
use gguf_shorten::model::Model;
use gguf_shorten::output::verify::{BlocksBy, Verification, verify_weights};
use gguf_shorten::plan::Constraints;
use serde_json::{Value, json};

use crate::make::{F32, Make, part_name, write_parts};
use crate::util::Dir;
use crate::verify::Taken;

/// Verifies in this process.
fn check(parent: &[u8], out: &[u8]) -> Result<Verification, String> {
    let run = || -> anyhow::Result<Verification> {
        let out = File::parse(out)?;
        let parent = Model::new(vec![File::parse(parent)?])?;
        verify_weights(&parent, &Constraints::of(&parent)?, &[out], None, &|_| {})
    };
    run().map_err(|error| format!("{error:#}"))
}

#[track_caller]
fn differences(parent: &[u8], out: &[u8]) -> Vec<String> {
    check(parent, out).unwrap().differences.first().iter().map(ToString::to_string).collect()
}

fn removed(found: &Verification) -> Vec<usize> {
    found.removed.iter().map(|block| block.index()).collect()
}

/// A file as another program would rewrite it: tensors in another order, integers of other types, other words about it.
fn rewritten(bytes: &[u8], keeps_own: bool) -> Vec<u8> {
    let file = File::parse(bytes).unwrap();
    let mut taken = Taken::apart(bytes);
    taken.tensors.reverse();
    taken.entries.clear();
    for entry in file.metadata() {
        let key = entry.key();
        match entry.value().as_u64() {
            _ if key.starts_with("gguf_shorten.") && !keeps_own => {}
            Ok(number) => taken.entries.push(EntryOut::u64(key, number)),
            Err(_) if key == "general.name" => taken.entries.push(EntryOut::string(key, "renamed")),
            Err(_) => taken.entries.push(EntryOut::keep(entry)),
        }
    }
    taken.entries.push(EntryOut::string("general.tags", "more"));
    taken.bytes()
}

#[test]
fn a_rewritten_file_has_the_weights_and_differs_else() {
    let dir = Make::new("llama", 5).dir();
    dir.run("m.gguf --blocks 1,3 -o out.gguf").succeeds();
    for (keeps_own, blocks_by) in [(true, "file"), (false, "bytes")] {
        dir.write("other.gguf", &rewritten(&dir.read("out.gguf"), keeps_own));
        assert_eq!(dir.run("verify other.gguf --parent m.gguf").output().status.code(), Some(1));
        let output = dir.run("verify other.gguf --parent m.gguf --weights --json -").succeeds();
        let result: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(result["verified"], true);
        assert_eq!(result["removed"], json!([1, 3]));
        let ignored = if keeps_own { 12 } else { 6 };
        assert_eq!(
            result["weights"],
            json!({"blocks_by": blocks_by, "metadata": 11, "other_types": 5, "metadata_ignored": ignored})
        );
        let output = dir.run("verify other.gguf --parent m.gguf --weights").succeeds();
        output.check(
            output.stdout.contains("metadata 11 of the computation compared by value, 5 of another type"),
            "counts",
        );
    }
    // What the program wrote itself, and the parent, which has lost nothing.
    dir.run("verify out.gguf --parent m.gguf --weights").succeeds();
    dir.run("verify m.gguf --parent m.gguf --weights").succeeds();
    let result = dir.run("verify out.gguf --parent m.gguf --json -").succeeds();
    assert_eq!(serde_json::from_str::<Value>(&result.stdout).unwrap()["weights"], Value::Null);
}

#[test]
fn several_cuts_are_compared_with_the_first_parent() {
    let dir = Make::new("llama", 7).dir();
    dir.run("m.gguf --blocks 1,4 -o mid.gguf").succeeds();
    dir.run("mid.gguf --blocks 0,2 -o out.gguf").succeeds();
    dir.run("out.gguf --blocks 2 -o last.gguf").succeeds();
    for (name, expected) in [("mid", vec![1, 4]), ("out", vec![0, 1, 3, 4]), ("last", vec![0, 1, 3, 4, 6])] {
        let found = check(&dir.read("m.gguf"), &dir.read(&format!("{name}.gguf"))).unwrap();
        assert_eq!(found.differences.first(), [], "{name}");
        assert_eq!(removed(&found), expected, "{name}");
        let by = if name == "mid" { BlocksBy::File } else { BlocksBy::Bytes };
        assert_eq!(found.weights.unwrap().blocks_by, by, "{name}");
    }
    // Not the other way round, and not of another parent with as many blocks.
    assert!(
        check(&dir.read("out.gguf"), &dir.read("m.gguf")).unwrap_err().contains("has 7 blocks, more than")
    );
    let other = Make::new("llama", 7).tensor("blk.6.ffn_up.weight", &[4], F32).bytes();
    assert_eq!(differences(&other, &dir.read("mid.gguf")), ["tensor 'blk.4.ffn_up.weight' is missing"]);
}

#[test]
fn an_attention_that_a_second_cut_left_out_is_known_by_the_first_parents_numbers() {
    let make = crate::attention::dense(6);
    let dir = make.dir();
    dir.run("m.gguf --blocks 1 -o mid.gguf").succeeds();
    dir.run("mid.gguf --blocks 0 --attention-blocks 3 -o out.gguf").succeeds();
    let found = check(&dir.read("m.gguf"), &dir.read("out.gguf")).unwrap();
    assert_eq!(found.differences.first(), []);
    assert_eq!(removed(&found), [0, 1]);
    let attention: Vec<usize> = found.attention_removed.iter().map(|block| block.index()).collect();
    assert_eq!(attention, [4]);
}

#[test]
fn every_flipped_byte_of_a_tensor_is_found() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1 -o mid.gguf").succeeds();
    dir.run("mid.gguf --blocks 1 -o out.gguf").succeeds();
    let parent = dir.read("m.gguf");
    for out in [dir.read("mid.gguf"), rewritten(&dir.read("out.gguf"), false)] {
        let file = File::parse(&out).unwrap();
        for tensor in file.tensors() {
            for byte in 0..tensor.n_bytes() {
                let mut flipped = out.clone();
                flipped[(tensor.position().0 + byte) as usize] ^= 0x10;
                let found = differences(&parent, &flipped);
                assert_eq!(found.len(), 1, "{found:?}");
                let place = format!("tensor '{}' differs from the parent's ", tensor.name());
                let end = format!("at byte {byte} of {}", tensor.n_bytes());
                assert!(found[0].starts_with(&place) && found[0].ends_with(&end), "{found:?}");
            }
        }
    }
}

#[test]
fn other_metadata_tensors_and_blocks_are_named() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    let with = |key: &'static str, value: ValueOut| differences(&parent, &Taken::apart(&out).set(key, value));
    assert_eq!(
        with("llama.context_length", ValueOut::u64(64)),
        ["metadata 'llama.context_length' is u64 64, expected u32 128"]
    );
    assert_eq!(
        with("tokenizer.ggml.scores", ValueOut::f32s(&[0.0, -1.0, -2.5, 4.5])),
        ["metadata 'tokenizer.ggml.scores' has other values, as f32[4]"]
    );
    assert_eq!(
        with("llama.rope.freq_base", ValueOut::f32(1e6)),
        ["metadata 'llama.rope.freq_base' is one too many"]
    );
    assert_eq!(with("llama.attention.head_count", ValueOut::f32(4.0)).len(), 1, "a float is no integer");
    assert_eq!(with("tokenizer.chat_template", ValueOut::string("x")), [""; 0]);
    let of = |change: &dyn Fn(&mut Taken<'_>)| {
        let mut taken = Taken::apart(&out);
        change(&mut taken);
        differences(&parent, &taken.bytes())
    };
    let lost = of(&|taken| drop(taken.tensors.pop()));
    assert_eq!(lost, ["tensor 'output_norm.weight' is missing"]);
    let swapped = of(&|taken| {
        for name in ["attn_norm.weight", "attn_q.weight", "ffn_down.weight"] {
            let [a, b] = [1, 2].map(|block| format!("blk.{block}.{name}"));
            let bytes = taken.tensor(&a).bytes.clone();
            taken.tensor(&a).bytes = std::mem::replace(&mut taken.tensor(&b).bytes, bytes);
        }
    });
    assert_eq!(swapped.len(), 6, "{swapped:?}");
    dir.run("verify m.gguf --parent out.gguf --weights")
        .fails(1, "m.gguf: has 4 blocks, more than the parent's 3");
}

#[test]
fn parts_and_whole_files_have_the_same_weights() {
    let dir = Dir::new();
    let make = Make::new("llama", 6);
    write_parts(&dir, &make.split(3));
    dir.write("m.gguf", &make.bytes());
    dir.run("m.gguf --blocks 2 -o out.gguf --split-max-size 600").succeeds();
    assert!(dir.names().iter().filter(|name| name.starts_with("out-")).count() > 1);
    let first = dir.names().into_iter().find(|name| name.starts_with("out-")).unwrap();
    dir.run(&format!("verify {first} --parent {} --weights", part_name(1, 3))).succeeds();
    dir.run(&format!("verify {} --parent m.gguf --weights", part_name(0, 3))).succeeds();
}
