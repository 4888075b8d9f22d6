//! Blocks that lose only their attention. A dense llama model is written as deci, or the request is refused with the reason.

use gguf_shorten::gguf::{File, TensorInfo, ValueOut};
use serde_json::Value;

use crate::make::{F32, I8, Make, Q4_1};
use crate::util::Dir;

/// A model with all tensors that a dense block may have.
pub fn dense(n_blocks: u32) -> Make {
    let mut make = Make::new("llama", n_blocks);
    for block in 0..n_blocks {
        for (rest, id) in [
            ("attn_q.bias", F32),
            ("attn_k.weight", Q4_1),
            ("attn_v.weight", Q4_1),
            ("attn_output.weight", Q4_1),
            ("attn_output.bias", F32),
            ("ffn_norm.weight", F32),
            ("ffn_gate.weight", I8),
            ("ffn_up.weight", I8),
            ("ffn_down.bias", F32),
        ] {
            make = make.tensor(&format!("blk.{block}.{rest}"), &[32, 2], id);
        }
    }
    make.tensor("rope_freqs.weight", &[4], F32).tensor("output.weight", &[256, 4], Q4_1)
}

fn dir(make: &Make) -> Dir {
    make.dir()
}

fn numbers(file: &File<'_>, key: &str) -> Vec<i64> {
    let entry = file.metadata().get(key).unwrap_or_else(|| panic!("{key}"));
    let numbers = entry.value().as_array().unwrap().i64s();
    numbers.map(|number| number.unwrap()).collect()
}

fn number(file: &File<'_>, key: &str) -> u64 {
    let entry = file.metadata().get(key).unwrap_or_else(|| panic!("{key}"));
    entry.value().as_u64().unwrap()
}

#[test]
fn attention_goes_and_all_else_stays_byte_for_byte() {
    let dir = dir(&dense(6));
    dir.run("m.gguf --blocks 1 --attention-blocks 2,4-5 -o out.gguf").succeeds();
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    let (parent, out) = (File::parse(&parent).unwrap(), File::parse(&out).unwrap());

    // Tensors, found without the project's plan.
    let new_number = |block: usize| match block {
        0 => Some(0),
        1 => None,
        block => Some(block - 1),
    };
    let mut expected: Vec<(String, &TensorInfo<'_>)> = Vec::new();
    for tensor in parent.tensors() {
        let mut parts: Vec<String> = tensor.name().split('.').map(str::to_owned).collect();
        if parts[0] == "blk" {
            let block: usize = parts[1].parse().unwrap();
            let loses_it = [2, 4, 5].contains(&block) && parts[2].starts_with("attn_");
            match new_number(block) {
                Some(number) if !loses_it => parts[1] = number.to_string(),
                _ => continue,
            }
        }
        expected.push((parts.join("."), tensor));
    }
    assert_eq!(expected.len(), 1 + 5 * 12 - 3 * 7 + 3);
    assert_eq!(out.tensors().len(), expected.len());
    for (found, (name, tensor)) in out.tensors().iter().zip(&expected) {
        assert_eq!(found.name(), name);
        assert_eq!(found.dims(), tensor.dims());
        assert!(found.bytes() == tensor.bytes(), "{name}");
    }

    // Metadata: every key of the model is there under the other prefix, and nothing of the tokenizer changes.
    for entry in parent.metadata() {
        let key = entry.key();
        if let Some(name) = key.strip_prefix("llama.") {
            assert!(out.metadata().get(key).is_none(), "{key}");
            let found = out.metadata().get(&format!("deci.{name}")).unwrap();
            if name.contains("layer_norm") || name == "context_length" || name == "embedding_length" {
                assert_eq!(found.value().raw(), entry.value().raw(), "{key}");
            }
        } else if key.starts_with("tokenizer.") {
            assert_eq!(out.metadata().get(key).unwrap().raw(), entry.raw());
        }
    }
    let text = |key: &str| out.metadata().get(key).unwrap().value().as_str().unwrap();
    assert_eq!(text("general.architecture"), "deci");
    assert_eq!(text("general.name"), "Tiny (5 of 6 blocks, 3 without attention)");
    assert_eq!(number(&out, "deci.block_count"), 5);
    assert_eq!(numbers(&out, "deci.attention.head_count"), [4, 0, 4, 0, 0]);
    assert_eq!(numbers(&out, "deci.attention.head_count_kv"), [4, 0, 4, 0, 0]);
    assert_eq!(numbers(&out, "deci.feed_forward_length"), [64; 5]);
    assert_eq!(number(&out, "deci.attention.key_length"), 8);
    assert_eq!(number(&out, "deci.attention.value_length"), 8);
    assert_eq!(number(&out, "deci.rope.dimension_count"), 8);
    assert_eq!(numbers(&out, "gguf_shorten.blocks"), [0, 2, 3, 4, 5]);
    assert_eq!(numbers(&out, "gguf_shorten.attention_removed"), [2, 4, 5]);
    assert_eq!(text("gguf_shorten.attention_method"), "blocks");
    assert_eq!(text("gguf_shorten.method"), "blocks");

    let shown = dir.run("show out.gguf").succeeds().stdout;
    let lines: Vec<&str> = shown.lines().filter(|l| l.contains("no attention")).collect();
    let blocks: Vec<&str> = lines.iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(blocks, ["1", "3", "4"]);
}

#[test]
fn sizes_that_the_file_says_stay() {
    let make = dense(3)
        .set("llama.attention.head_count_kv", ValueOut::u32s(&[2, 2, 2]))
        .set("llama.attention.key_length", ValueOut::u32(16))
        .set("llama.attention.value_length", ValueOut::u32(16))
        .set("llama.rope.dimension_count", ValueOut::u32(16));
    let dir = dir(&make);
    dir.run("m.gguf --attention-blocks 1 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    let out = File::parse(&out).unwrap();
    assert_eq!(numbers(&out, "deci.attention.head_count"), [4, 0, 4]);
    assert_eq!(numbers(&out, "deci.attention.head_count_kv"), [2, 0, 2]);
    assert_eq!(number(&out, "deci.attention.key_length"), 16);
    assert_eq!(number(&out, "deci.attention.value_length"), 16);
    assert_eq!(number(&out, "deci.rope.dimension_count"), 16);
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn what_is_chosen_by_number_is_told() {
    let dir = dir(&dense(8));
    let output = dir
        .run("m.gguf --drop 2 --drop-attention 25% --method sequential --keep 5 -o out.gguf --json -")
        .succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["removed"], serde_json::json!([6, 7]));
    assert_eq!(json["attention_removed"], serde_json::json!([3, 4]));
    assert_eq!(json["method"], "sequential");
    assert_eq!(json["attention_method"], "sequential");
    assert_eq!(json["model"]["architecture"], "llama");
    assert_eq!(json["output"]["architecture"], "deci");
    for (i, block) in json["blocks"].as_array().unwrap().iter().enumerate() {
        assert_eq!(block["removed"], i >= 6);
        assert_eq!(block["attention_removed"], i == 3 || i == 4);
        for half in ["attention", "ffn"] {
            for score in ["bi", "bi_stderr", "relative_magnitude", "relative_magnitude_stderr"] {
                assert_eq!(block.get(format!("{half}_{score}")), Some(&Value::Null));
            }
        }
    }
    assert!(output.stderr.contains("architecture 'deci'"), "{}", output.stderr);
    let table = dir.run("m.gguf --drop-attention 3 --method reverse --dry-run").succeeds().stdout;
    assert!(table.contains("removed  no whole block\n"), "{table}");
    // The first block of the output keeps its attention.
    assert!(table.contains("attention of 1-3 (3 of 8 blocks, by reverse), as architecture deci"), "{table}");
    let json = dir.run("m.gguf --blocks 0 --drop-attention 2 --dry-run --method bi --json -").output();
    // Whole blocks were listed, so a method is a mistake.
    assert_eq!(json.status.code(), Some(2));
}

#[test]
fn what_loses_attention_is_verified() {
    let dir = dir(&dense(5));
    dir.run("m.gguf --attention-blocks 1,3 -o out.gguf").succeeds();
    let output = dir.run("verify out.gguf --parent m.gguf --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["verified"], true);
    assert_eq!(json["removed"], serde_json::json!([]));
    assert_eq!(json["attention_removed"], serde_json::json!([1, 3]));

    let out = dir.read("out.gguf");
    let position = |needle: &[u8]| {
        let mut windows = out.windows(needle.len());
        windows.position(|window| window == needle).unwrap() + needle.len()
    };
    let change = |at: usize, byte: u8, message: &str| {
        let mut wrong = out.clone();
        wrong[at] = byte;
        dir.write("wrong.gguf", &wrong);
        let found = dir.run("verify wrong.gguf --parent m.gguf").output();
        assert_eq!(found.status.code(), Some(1));
        assert!(found.stderr.contains(message), "{}", found.stderr);
    };
    // Behind the key stand type, type of elements and their number: 4 + 4 + 8 bytes.
    let list = position(b"gguf_shorten.attention_removed") + 16;
    change(list, 2, "differ");
    change(list, 0, "cannot remove the attention of block 0: it is the first of the output");
    change(list, 9, "expected block numbers in rising order");
    change(list + 4, 7, "cannot remove the attention of block 7: the model has 5 blocks");
    let heads = position(b"deci.attention.head_count_kv") + 16;
    change(heads + 4, 1, "deci.attention.head_count_kv");
    let method = position(b"gguf_shorten.attention_method") + 12;
    change(method, b'x', "gguf_shorten.attention_method");
    let method = position(b"gguf_shorten.method") + 12;
    change(method, b'b', "gguf_shorten.method");
    let file = File::parse(&out).unwrap();
    let tensor = file.tensors().get("blk.3.ffn_up.weight").unwrap();
    let at = usize::try_from(tensor.position().0).unwrap();
    change(at, out[at] ^ 1, "blk.3.ffn_up.weight");
}

#[test]
fn what_cannot_lose_attention_is_refused_with_the_reason() {
    let refused = |make: &Make, arguments: &str, phrase: &str| {
        let dir = dir(make);
        dir.run(&format!("m.gguf {arguments} -o out.gguf")).fails(1, phrase);
        assert_eq!(dir.names(), ["m.gguf"]);
    };
    let some = "--attention-blocks 1";
    refused(
        &Make::new("gemma3", 4).set("gemma3.attention.sliding_window", ValueOut::u32(8)),
        some,
        "cannot remove the attention of blocks from architecture 'gemma3'",
    );
    refused(&dense(3).set("llama.expert_count", ValueOut::u32(8)), some, "llama.cpp has no experts");
    refused(&dense(3).predicting("llama", 2..3), some, "llama.cpp has no prediction blocks");
    for name in ["blk.0.ffn_gate.scale", "blk.2.attn_q_norm.weight", "v.blk.0.ln1.weight"] {
        refused(&dense(3).tensor(name, &[1], F32), some, &format!("does not read tensor '{name}'"));
    }
    refused(
        &dense(3).set("llama.attention.head_count", ValueOut::u32s(&[4, 4, 2])),
        some,
        "metadata 'llama.attention.head_count' has 4 and 2",
    );
    refused(
        &dense(3).set("llama.attention.head_count", ValueOut::u32(0)),
        some,
        "metadata 'llama.attention.head_count' is missing or 0",
    );
    refused(
        &dense(3).set("llama.feed_forward_length", ValueOut::u64(1 << 40)),
        some,
        "metadata 'llama.feed_forward_length' is 1099511627776, which is too large",
    );
    let first =
        |block: usize| format!("cannot remove the attention of block {block}: it is the first of the output");
    refused(&dense(3), "--attention-blocks 0", &first(0));
    refused(&dense(3), "--blocks 0 --attention-blocks 1-2", &first(1));
    refused(
        &dense(3),
        "--blocks 1 --attention-blocks 1",
        "cannot remove the attention of block 1: all of the block is to go",
    );
    refused(
        &dense(3),
        "--attention-blocks 1,7",
        "cannot remove the attention of block 7: the model has 3 blocks, 0 to 2",
    );
    refused(
        &dense(4),
        "--blocks 1 --drop-attention 3",
        "cannot remove the attention of 3 blocks: 2 may lose it, the first of the output not",
    );
    refused(
        &dense(4),
        "--drop-attention 2 --method sequential --keep 1,2",
        "cannot remove the attention of 2 blocks: 1 may lose it, the first of the output not",
    );
    let dir = dir(&dense(3));
    for arguments in
        ["--drop-attention 1 --attention-blocks 1", "--drop-attention 0", "--attention-blocks x", "--keep 1"]
    {
        let output = dir.run(&format!("m.gguf {arguments} -o out.gguf")).output();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
    }
}

#[test]
fn blocks_without_halves_are_not_scored_apart() {
    let scored = |make: &Make| {
        let dir = dir(make);
        let output = dir.run("score m.gguf --sub-blocks").refused();
        output.error().to_owned()
    };
    for architecture in ["falcon", "command-r", "phi2"] {
        let error = scored(&Make::new(architecture, 3));
        assert!(error.contains(&format!("'{architecture}' both read what enters the block")), "{error}");
    }
    let parallel = Make::new("gptneox", 3).set("gptneox.use_parallel_residual", ValueOut::bool(true));
    assert!(scored(&parallel).contains("'gptneox' both read"));
    assert!(scored(&Make::new("mamba", 3)).contains("a block of 'mamba' is a mixer alone"));
}
