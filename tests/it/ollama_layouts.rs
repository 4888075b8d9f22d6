//! Files of Ollama's own layouts: read as their stock twins, or refused by name.

use gguf_shorten::gguf::ValueOut;
use serde_json::{Value, json};

use crate::make::{F32, Make, Q4_1};
use crate::util::Dir;

/// A `gemma3` as Ollama has it. It has keys of its own, no epsilon, a vision tower and a projector, and more tokens than the
/// embedding has rows. And the same as llama.cpp reads it.
fn gemma3() -> (Make, Make) {
    let tokens: Vec<String> = (0..9).map(|i| format!("t{i}")).collect();
    let tensors = |mut make: Make| {
        make = make.tensor("token_embd.weight", &[32, 4], F32);
        for block in 0..8 {
            make = make.tensor(&format!("blk.{block}.attn_q.weight"), &[32, 3], Q4_1).tensor(
                &format!("blk.{block}.ffn_down.weight"),
                &[32],
                F32,
            );
        }
        make.tensor("output_norm.weight", &[32], F32)
    };
    let common = |make: Make| {
        make.without_tensors()
            .unset("gemma3.attention.layer_norm_rms_epsilon")
            .set("gemma3.attention.sliding_window", ValueOut::u32(512))
            .set("gemma3.context_length", ValueOut::u32(131_072))
    };
    let own = common(Make::new("gemma3", 8))
        .set("gemma3.rope.global.freq_base", ValueOut::f32(5e5))
        .set("gemma3.rope.local.freq_base", ValueOut::f32(2e4))
        .set("gemma3.mm.tokens_per_image", ValueOut::u32(256))
        .set("gemma3.vision.block_count", ValueOut::u32(8))
        .set("tokenizer.ggml.tokens", ValueOut::strings(&tokens))
        .set("tokenizer.ggml.scores", ValueOut::f32s(&[0.5; 9]));
    let own = tensors(own.tensor("v.patch_embedding.weight", &[32, 2], F32));
    let own =
        (0..8).fold(own, |make, block| make.tensor(&format!("v.blk.{block}.attn_q.weight"), &[32, 2], F32));
    let own = own.tensor("mm.mm_input_projection.weight", &[32], F32);
    let stock = common(Make::new("gemma3", 8))
        .set("gemma3.rope.freq_base", ValueOut::f32(5e5))
        .set("gemma3.rope.freq_base_swa", ValueOut::f32(2e4))
        .set("tokenizer.ggml.tokens", ValueOut::strings(&tokens[..4]))
        .set("tokenizer.ggml.scores", ValueOut::f32s(&[0.5; 4]))
        .set("gemma3.attention.layer_norm_rms_epsilon", ValueOut::f32(1e-6))
        .set("gemma3.rope.scaling.type", ValueOut::string("linear"))
        .set("gemma3.rope.scaling.factor", ValueOut::f32(8.0));
    (own, tensors(stock))
}

#[test]
fn a_file_of_ollamas_layout_is_shown_and_shortened_as_its_stock_twin() {
    let dir = Dir::new();
    let (own, stock) = gemma3();
    own.write(&dir, "own.gguf");
    stock.write(&dir, "stock.gguf");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let show = |name: &str| dir.run(&format!("show {name} --diffable")).succeeds();
    assert_eq!(sorted(&show("own.gguf").stdout), sorted(&show("stock.gguf").stdout));
    assert!(show("stock.gguf").stderr.is_empty());
    let note = "gguf-shorten: note: own.gguf is in Ollama's own layout 'gemma3' and is read as 'gemma3'; 10 tensors of \
                2.43 kB are left out: they are not of the text part, which alone llama.cpp reads\n";
    assert_eq!(show("own.gguf").stderr, note);

    dir.run("own.gguf --blocks 1,3 -o out.gguf --json out.json").succeeds();
    dir.run("stock.gguf --blocks 1,3 -o twin.gguf").succeeds();
    // Only the parent is another.
    let without_hash = |name: &str| {
        let lines = sorted(&show(name).stdout).into_iter();
        lines.filter(|line| !line.contains("parent.blake3")).collect::<Vec<_>>()
    };
    assert_eq!(without_hash("out.gguf"), without_hash("twin.gguf"));
    let data = |name: &str| {
        let bytes = dir.read(name);
        let file = gguf_shorten::gguf::File::parse(&bytes).unwrap();
        let tensors = file.tensors().iter();
        tensors.map(|t| (t.name().to_owned(), t.bytes().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(data("out.gguf"), data("twin.gguf"));
    // The proof holds only for the file as it is.
    let output = dir.run("verify out.gguf --parent own.gguf").succeeds();
    assert!(output.stderr.starts_with("gguf-shorten: note: own.gguf is in Ollama's own layout"));
    let output = dir.run("verify out.gguf --parent stock.gguf").output();
    assert_eq!(output.status.code(), Some(1));
    // What a vision tower numbers is not the model's.
    let json: Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
    assert_eq!(
        json["model"]["layout"],
        json!({"found": "gemma3", "read_as": "gemma3", "tensors_left_out": 10, "bytes_left_out": 2432})
    );
    let changes = json["output"]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 10);
    assert!(changes.iter().all(|change| change["change"] == "left_out" && change["tensor"].is_null()));
    assert!(changes.iter().any(|change| change["parent"] == "v.blk.1.attn_q.weight"));
    let written = dir.read("out.json");
    dir.run("stock.gguf --blocks 1 --dry-run --json out.json").succeeds();
    assert_ne!(written, dir.read("out.json"));
    let json: Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
    assert!(json["model"]["layout"].is_null());
}

#[test]
fn layouts_that_cannot_be_read_are_refused_by_name_and_shown_as_they_are() {
    let dir = Dir::new();
    for (make, message) in [
        (Make::new("glmocr", 4), "'glmocr', which stock llama.cpp does not read: gate and up projections"),
        (
            Make::new("mllama", 4),
            "'mllama', which stock llama.cpp does not read: some of its blocks attend to an image",
        ),
        (
            Make::new("gptoss", 4).tensor("blk.0.ffn_gate_up_exps.weight", &[32], F32),
            "'gptoss', which stock llama.cpp does not read: gate and up projections of its experts",
        ),
        (
            Make::new("qwen35", 4).set("qwen35.ssm.v_head_reordered", ValueOut::bool(false)),
            "'qwen35', which stock llama.cpp does not read: its value heads",
        ),
    ] {
        make.write(&dir, "m.gguf");
        let output = dir.run("m.gguf --blocks 1 -o out.gguf").fails(1, message);
        assert!(output.hint().unwrap().starts_with("a GGUF of the same model that llama.cpp's"));
        let output = dir.run("show m.gguf").succeeds();
        assert!(output.stdout.contains("blk.1.") || output.stdout.contains("Ollama's own layout"));
        dir.run("show m.gguf --json x.json").refused();
    }
}

#[test]
fn malformed_files_of_ollamas_layouts_are_errors() {
    let dir = Dir::new();
    let sections = |value| Make::new("qwen25vl", 4).set("qwen25vl.rope.mrope_section", value);
    for (make, message) in [
        (sections(ValueOut::u32(3)), "is a u32"),
        (sections(ValueOut::strings(&["a", "b", "c"])), "is a string"),
        (
            Make::new("gptoss", 2).tensor("blk.0.post_attention_norm.weight", &[32], F32).tensor(
                "blk.0.ffn_norm.weight",
                &[32],
                F32,
            ),
            "appears twice",
        ),
        (Make::new("glm4moelite", 2), "metadata 'deepseek2.attention.kv_lora_rank' is missing"),
        (
            Make::new("qwen3vl", 2).tensor("v.norm.weight", &[4], F32),
            "'qwen3vl.attention.key_length' is missing, expected 128",
        ),
        (
            Make::new("qwen3next", 2)
                .tensor("blk.0.ssm_dt", &[1], F32)
                .set("qwen3next.attention.head_count_kv", ValueOut::u32s(&[1, 2])),
            "metadata 'qwen3next.attention.head_count_kv' has 1 and 2",
        ),
    ] {
        make.write(&dir, "m.gguf");
        let output = dir.run("m.gguf --blocks 1 -o out.gguf").refused();
        assert!(output.error().contains(message), "{}", output.error());
    }
}
