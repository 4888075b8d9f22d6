//! Metadata that names tensors or blocks. The names follow their tensors, go with them, or keep the model from being cut.

use gguf_shorten::gguf::{File, ValueOut, ValueType};

use crate::make::{F32, Make, array, string};
use crate::shorten::{check_metadata, check_tensors, removes, value};
use crate::util::Dir;

const NAMES: &str = "general.tensor_extra.name";
const FLAGS: &str = "general.tensor_extra.prec_a4";

/// Six blocks, with lists of tensors and flags, as in llama.cpp.
fn listed(names: &[&str], flags: &[bool]) -> Make {
    Make::new("llama", 6).set(NAMES, ValueOut::strings(names)).set(FLAGS, ValueOut::bools(flags))
}

/// An array of integers as [`Make::set`] takes it.
fn integers(numbers: &[u32]) -> ValueOut {
    ValueOut::u32s(numbers)
}

#[test]
fn a_list_of_tensors_and_the_list_beside_it_lose_the_same_elements() {
    let make = listed(
        &[
            "blk.0.ffn_down.weight",
            "output_norm.weight",
            "blk.2.attn_q.weight",
            "blk.4.ffn_down",
            "blk.2",
            "blk.5.none.bias",
            "blk.99.attn_q.weight",
        ],
        &[true, false, true, true, false, false, true],
    );
    let out = removes(&make, &[2], &[NAMES, FLAGS]);
    assert_eq!(
        value(&out, NAMES),
        "str[] blk.0.ffn_down.weight output_norm.weight blk.3.ffn_down blk.4.none.bias blk.99.attn_q.weight"
    );
    assert_eq!(value(&out, FLAGS), "bool[] true false true false true");
    // Nothing but the numbers.
    let out = removes(&make, &[3], &[NAMES]);
    assert_eq!(
        value(&out, NAMES),
        "str[] blk.0.ffn_down.weight output_norm.weight blk.2.attn_q.weight blk.3.ffn_down blk.2 blk.4.none.bias \
         blk.99.attn_q.weight"
    );
    // Blocks that keep their numbers.
    let make = listed(&["blk.0.ffn_down.weight", "blk.1"], &[true, false]);
    removes(&make, &[5], &[]);
    // Nothing is left, so the lists are not.
    let out = removes(&make, &[0, 1], &[NAMES, FLAGS]);
    assert_eq!((value(&out, NAMES), value(&out, FLAGS)).0, "none");
}

#[test]
fn keys_that_name_tensors_or_blocks_are_renumbered_or_go() {
    let shape = || integers(&[32, 3]);
    let make = Make::new("llama", 6)
        .tensor("v.blk.4.attn_q.weight", &[4], F32)
        .set("comfy.gguf.orig_shape.blk.1.attn_q.weight", shape())
        .set("comfy.gguf.orig_shape.blk.2.attn_q.weight", shape())
        .set("comfy.gguf.orig_shape.blk.4.attn_q.weight", shape())
        .set("comfy.gguf.orig_shape.output_norm.weight", shape())
        .set("comfy.gguf.orig_shape.v.blk.4.attn_q.weight", shape())
        .set("v.blk.2.scale", ValueOut::f32(0.5))
        .set("blk.3.scale", ValueOut::f32(3.0))
        .set("some.blk.2.scale", ValueOut::f32(2.0))
        .set("some.blk.5", ValueOut::f32(5.0))
        .set("some.blk.05.scale", ValueOut::f32(5.0))
        .set("some.blk.6.scale", ValueOut::f32(6.0))
        .set("some..blk.5..", ValueOut::f32(7.0));
    let dir = make.dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    check_tensors(&dir.read("m.gguf"), &out, &[2]);
    let file = File::parse(&out).unwrap();
    let keys: Vec<&str> = file.metadata().iter().map(|entry| entry.key()).collect();
    let ours: Vec<&str> =
        keys.iter().copied().filter(|key| key.contains("blk") || key.contains("comfy")).collect();
    assert_eq!(
        ours,
        [
            "comfy.gguf.orig_shape.blk.1.attn_q.weight",
            "comfy.gguf.orig_shape.blk.3.attn_q.weight",
            "comfy.gguf.orig_shape.output_norm.weight",
            "comfy.gguf.orig_shape.v.blk.4.attn_q.weight",
            "v.blk.2.scale",
            "blk.2.scale",
            "some.blk.4",
            "some.blk.05.scale",
            "some.blk.6.scale",
            "some..blk.4..",
        ]
    );
    assert_eq!(value(&out, "blk.2.scale"), "f32 3");
    assert_eq!(value(&out, "comfy.gguf.orig_shape.blk.3.attn_q.weight"), "u32[] 32 3");
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn whole_values_are_renumbered_or_go_with_their_entry() {
    let make = Make::new("llama", 6)
        .set("a.tied", ValueOut::string("blk.4.attn_q.weight"))
        .set("a.gone", ValueOut::string("blk.2.attn_q.weight"))
        .set("a.block", ValueOut::string("blk.5"))
        .set("a.first", ValueOut::string("blk.0.attn_q"))
        .set("a.word", ValueOut::string("output_norm"))
        .set("a.bytes", ValueOut::string(b"blk.4.\xff"));
    let out = removes(&make, &[2], &["a.tied", "a.gone", "a.block"]);
    assert_eq!(value(&out, "a.tied"), "str blk.3.attn_q.weight");
    assert_eq!(value(&out, "a.gone"), "none");
    assert_eq!(value(&out, "a.block"), "str blk.4");
}

#[test]
fn tokens_are_no_names() {
    let tokens = ["blk.4.attn_q.weight", "blk.2", "a", "b"];
    let make = Make::new("llama", 6)
        .set("tokenizer.ggml.tokens", ValueOut::strings(&tokens))
        .set("tokenizer.ggml.pre", ValueOut::string("blk.4.attn_q.weight"))
        .set("tokenizer.blk.4.x", ValueOut::u32(1));
    removes(&make, &[2], &[]);
}

#[test]
fn text_that_speaks_of_blocks_stays_and_is_told() {
    let text = "attention of blk.4 was trained; see blk.0.";
    let make = Make::new("llama", 6)
        .set("general.description", ValueOut::string(text))
        .set("general.tags", ValueOut::strings(&["x", "blk.(4|5)=q8_0"]))
        .set("a.list", ValueOut::strings(&["blk.5.*=q8_0"]))
        .set("tokenizer.chat_template", ValueOut::string("{{ 'blk.3.' }}"))
        .set("a.other", ValueOut::string("v.blk.4 and blk.9 and blk.0"));
    let dir = make.dir();
    let output = dir.run("m.gguf --blocks 2 -o out.gguf --json out.json").succeeds();
    check_metadata(&dir.read("m.gguf"), &dir.read("out.gguf"), &[]);
    let says = |key: &str| {
        format!(
            "metadata '{key}' speaks of blocks by the numbers that they have in the input; it is left as it is"
        )
    };
    let keys = ["general.description", "a.list", "tokenizer.chat_template"];
    let mut expected: Vec<String> = keys.iter().map(|key| says(key)).collect();
    expected.sort();
    let mut found: Vec<String> = output
        .stderr
        .lines()
        .map(|line| line.strip_prefix("gguf-shorten: note: ").unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, expected);
    let json: serde_json::Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
    assert_eq!(json["output"]["notes"].as_array().unwrap().len(), 3);
    // Of blocks that keep their numbers there is nothing to say.
    let quiet = dir.run("m.gguf --blocks 5 -o other.gguf").succeeds();
    assert!(!quiet.stderr.contains("description"), "{}", quiet.stderr);
}

#[test]
fn what_is_not_known_to_be_right_is_refused_before_anything_is_measured() {
    let nested = {
        let inner = array(8, 1, &string(b"blk.3.attn_q.weight"));
        ValueOut::array("a.nested", ValueType::Array, 1, &inner).unwrap()
    };
    for (key, entry, message) in [
        (
            "general.tensor_extra.bits",
            integers(&[0, 4]),
            "metadata 'general.tensor_extra.bits' runs beside 'general.tensor_extra.name'",
        ),
        ("a.nested", nested, "metadata 'a.nested' is an array of arrays with names of tensors or blocks"),
    ] {
        let dir =
            listed(&["blk.0.ffn_down.weight", "blk.4.ffn_down.weight"], &[true, true]).set(key, entry).dir();
        let output = dir.run("m.gguf --drop 1 -o out.gguf").fails(1, &format!("m.gguf: {message}"));
        assert!(output.hint().unwrap().contains("--trust-any-cut"));
        dir.run("m.gguf --blocks 1 --trust-any-cut -o out.gguf").succeeds();
        let out = dir.read("out.gguf");
        assert_eq!(value(&out, NAMES), "str[] blk.0.ffn_down.weight blk.3.ffn_down.weight");
    }
}

#[test]
fn a_name_of_a_tensor_that_loses_a_part_is_refused() {
    let dir = Dir::new();
    let make = Make::new("gemma3n", 24)
        .set("gemma3n.attention.sliding_window", ValueOut::u32(8))
        .tensor("per_layer_token_embd.weight", &[24 * 32, 4], F32)
        .set("comfy.gguf.orig_shape.per_layer_token_embd.weight", integers(&[24 * 32, 4]));
    make.write(&dir, "m.gguf");
    let message = "'comfy.gguf.orig_shape.per_layer_token_embd.weight' has a name in its key that stands";
    dir.run("m.gguf --blocks 23 -o out.gguf").fails(1, message);
}

#[test]
fn lists_of_names_lose_their_own_elements_alone() {
    let lists = |other: &[&str]| {
        Make::new("llama", 6)
            .set("q.f16", ValueOut::strings(&["blk.2.attn_q.weight", "blk.3.attn_q.weight"]))
            .set("q.f32", ValueOut::strings(other))
    };
    let make = lists(&["blk.4.attn_q.weight", "blk.5.attn_q.weight"]);
    let out = removes(&make, &[2], &["q.f16", "q.f32"]);
    assert_eq!(value(&out, "q.f16"), "str[] blk.2.attn_q.weight");
    assert_eq!(value(&out, "q.f32"), "str[] blk.3.attn_q.weight blk.4.attn_q.weight");
    // Which of the two the flags run beside cannot be known; of texts beside names not whether they do at all.
    let flags = lists(&["blk.4.attn_q.weight", "blk.5.attn_q.weight"])
        .set("q.flags", ValueOut::bools(&[true, false]));
    let texts =
        lists(&["blk.2.attn_k.weight", "blk.3.attn_k.weight"]).set("q.who", ValueOut::strings(&["A", "B"]));
    for (make, why) in [(flags, "another list of them"), (texts, "whether its elements are of tensors")] {
        let dir = make.dir();
        let output = dir.run("m.gguf --blocks 2 -o out.gguf").output();
        output.check(output.status.code() == Some(1) && output.stderr.contains(why), why);
    }
}

#[test]
fn names_after_that_of_the_language_model_follow_and_those_of_towers_stay() {
    let list = |names: &[&str]| ValueOut::strings(names);
    let make = Make::new("llama", 6)
        .set(
            "q.name",
            list(&[
                "language_model.blk.2.attn_q.weight",
                "v.blk.3.attn_q.weight",
                "language_model.blk.4.x",
                "lm_head",
            ]),
        )
        .set("q.flag", ValueOut::bools(&[true, false, true, false]))
        .set("q.tied", ValueOut::string("text_model.blk.5.attn_q.weight"))
        .set("q.gone", ValueOut::string("model.language_model.blk.2"))
        .set("q.vision", ValueOut::string("vision_tower.encoder.layers.3.mlp"))
        .set("q.language_model.blk.4.bits", ValueOut::u32(4))
        .set("q.a.blk.4.bits", ValueOut::u32(4))
        .set("q.visual.blocks.4.bits", ValueOut::u32(4));
    let dir = make.dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, "q.name"), "str[] v.blk.3.attn_q.weight language_model.blk.3.x lm_head");
    assert_eq!(value(&out, "q.flag"), "bool[] false true false");
    assert_eq!(value(&out, "q.tied"), "str text_model.blk.4.attn_q.weight");
    assert_eq!(value(&out, "q.gone"), "none");
    assert_eq!(value(&out, "q.language_model.blk.3.bits"), "u32 4");
    for key in ["q.vision", "q.a.blk.4.bits", "q.visual.blocks.4.bits"] {
        assert_eq!(value(&out, key), value(&dir.read("m.gguf"), key));
    }
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn blocks_in_the_words_of_other_formats_and_by_number_are_refused() {
    let list = |names: &[&str]| ValueOut::strings(names);
    let six = ["full", "sliding", "full", "sliding", "full", "sliding"];
    for (key, entry, message) in [
        ("q.tied", ValueOut::string("model.layers.4.mlp"), "has a value that may be that of a block"),
        ("q.tied", ValueOut::string("other.blk.4.x"), "has a value that may be that of a block"),
        ("q.h", ValueOut::string("transformer.h.3"), "has a value that may be that of a block"),
        (
            "q.skip",
            list(&["lm_head", "model.layers.4.mlp"]),
            "has an element, 'model.layers.4.mlp', that may be that of a block",
        ),
        ("q.model.layers.4.bits", ValueOut::u32(4), "has a name in its key that may be that of a block"),
        ("q.skip_layers", integers(&[0, 4]), "may be of blocks by their numbers"),
        ("llama.skip_layers", ValueOut::i32s(&[-1, 4]), "may be of blocks by their numbers"),
        ("q.layer_types", list(&six), "may be of blocks by their numbers"),
        ("q.block.scale", ValueOut::f32s(&[0.5; 6]), "may be of blocks by their numbers"),
    ] {
        let dir = Make::new("llama", 6).set(key, entry).dir();
        let output =
            dir.run("m.gguf --drop 1 -o out.gguf").fails(1, &format!("m.gguf: metadata '{key}' {message}"));
        assert_eq!(output.hint(), Some("--trust-any-cut keeps it as it is, on your word"));
        dir.run("m.gguf --blocks 2 --trust-any-cut -o out.gguf").succeeds();
        assert_eq!(value(&dir.read("out.gguf"), key), value(&dir.read("m.gguf"), key));
    }
    // Of no block of this model, or no number of one.
    let make = Make::new("llama", 6)
        .set("q.far", ValueOut::string("model.layers.6.mlp"))
        .set("q.version", ValueOut::string("h.3"))
        .set("q.text", ValueOut::string("see model.layers.4.mlp"))
        .set("q.layers.6.bits", ValueOut::u32(4))
        .set("q.block_size", integers(&[2, 2]))
        .set("q.blk.0.attn_q.shape_in_layers", integers(&[2, 3]))
        .set("q.layer_ids", integers(&[6, 99]))
        .set("q.ids", integers(&[0, 4]))
        .set("clip.vision.feature_layer", integers(&[2, 3]))
        .set("general.tags", list(&six));
    removes(&make, &[2], &[]);
}

#[test]
fn the_count_of_names_follows_and_several_values_for_each_are_refused() {
    let names = ["blk.2.attn_q.weight", "blk.3.attn_q.weight", "blk.4.attn_q.weight"];
    let make = Make::new("llama", 6)
        .set("q.name", ValueOut::strings(&names))
        .set("q.count", ValueOut::u64(3))
        .set("q.n", ValueOut::u32(4))
        .set("q.bits", ValueOut::u32(3))
        .set("count", ValueOut::u32(3))
        .set("q.other", integers(&[1, 2, 3, 4]));
    let out = removes(&make, &[2, 3], &["q.name", "q.count"]);
    assert_eq!(
        (value(&out, "q.name"), value(&out, "q.count")),
        ("str[] blk.2.attn_q.weight".into(), "u64 1".into())
    );
    // Where no name goes, neither does the count change.
    removes(&make, &[5], &[]);
    let out = removes(&make, &[2, 3, 4], &["q.name", "q.count"]);
    assert_eq!(value(&out, "q.count"), "none");
    for shapes in [integers(&[1, 2, 3, 4, 5, 6]), ValueOut::f32s(&[0.5; 9])] {
        let dir = make.clone().set("q.shape", shapes).dir();
        let output = dir
            .run("m.gguf --drop 1 -o out.gguf")
            .fails(1, "m.gguf: metadata 'q.shape' runs beside 'q.name'");
        assert_eq!(output.hint(), Some("--trust-any-cut keeps it as it is, on your word"));
        dir.run("m.gguf --blocks 2 --trust-any-cut -o out.gguf").succeeds();
    }
}

#[test]
fn a_list_of_names_that_all_stay_is_still_one_of_names() {
    let make = Make::new("llama", 6)
        .set("q.f16", ValueOut::strings(&["blk.2.attn_q.weight", "blk.3.attn_q.weight"]))
        .set("q.f32", ValueOut::strings(&["blk.0.attn_q.weight", "blk.1.attn_q.weight"]));
    let out = removes(&make, &[2], &["q.f16"]);
    assert_eq!(value(&out, "q.f16"), "str[] blk.2.attn_q.weight");
    removes(&make, &[5], &[]);
}

#[test]
fn what_names_two_blocks_is_a_text_and_a_key_that_hides_one_is_refused() {
    let text = "blk.4.ffn_down.weight-blk.5.ffn_down.weight";
    let dir = Make::new("llama", 6)
        .set("q.list", ValueOut::strings(&[text]))
        .set("q.text", ValueOut::string("blk.2.attn_q.weight-blk.3.attn_q.weight"))
        .dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, "q.list"), format!("str[] {text}"));
    assert_eq!(value(&out, "q.text"), "str blk.2.attn_q.weight-blk.3.attn_q.weight");
    for key in ["blk.4.x/blk.5.y", "q/blk.4.y", "blk.4-blk.5.q", "q_blk.4.z"] {
        let dir = Make::new("llama", 6).set(key, ValueOut::u32(1)).dir();
        dir.run("m.gguf --blocks 2 -o out.gguf")
            .fails(1, &format!("m.gguf: metadata '{key}' has a name in its key that may be that of a block"));
    }
}

#[test]
fn two_entries_do_not_get_one_key() {
    let dir = Dir::new();
    let make = Make::new("t5encoder", 3).without_tensors();
    let make =
        (0..3).fold(make, |make, block| make.tensor(&format!("enc.blk.{block}.attn_q.weight"), &[32], F32));
    // Block 1 inherits the tensor of block 0, and becomes block 0.
    make.tensor("enc.blk.0.attn_rel_b.weight", &[32], F32)
        .set("a.enc.blk.0.attn_rel_b.weight", ValueOut::u32(1))
        .set("a.enc.blk.1.attn_rel_b.weight", ValueOut::u32(2))
        .write(&dir, "m.gguf");
    let message = "would both become 'a.enc.blk.0.attn_rel_b.weight'";
    dir.run("m.gguf --blocks 0 -o out.gguf").fails(1, message);
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
}

#[test]
fn names_of_left_out_attention_go_with_it() {
    let dir = Dir::new();
    let mut make = Make::new("llama", 3).without_tensors();
    for block in 0..3 {
        for name in [
            "attn_norm",
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_norm",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ] {
            make = make.tensor(&format!("blk.{block}.{name}.weight"), &[32], F32);
        }
    }
    make.tensor("token_embd.weight", &[32, 4], F32)
        .set(NAMES, ValueOut::strings(&["blk.2.attn_q.weight", "blk.2.ffn_up.weight", "blk.1.attn_q.weight"]))
        .set(FLAGS, ValueOut::bools(&[true, false, true]))
        .set("llama.tied", ValueOut::string("blk.2.ffn_up.weight"))
        .set("llama.blk.2.attn_k.x", ValueOut::u32(1))
        .write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 1 --attention-blocks 2 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, NAMES), "str[] blk.1.ffn_up.weight");
    assert_eq!(value(&out, FLAGS), "bool[] false");
    assert_eq!(value(&out, "deci.tied"), "str blk.1.ffn_up.weight");
    assert_eq!(value(&out, "deci.blk.1.attn_k.x"), "none");
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn other_prefixes_of_blocks_and_split_models_are_known() {
    let dir = Dir::new();
    let make = Make::new("t5encoder", 4).without_tensors();
    let make = (0..4).fold(make, |make, block| {
        make.tensor(&format!("enc.blk.{block}.attn_q.weight"), &[32], F32).tensor(
            &format!("enc.blk.{block}.attn_rel_b.weight"),
            &[32],
            F32,
        )
    });
    make.set("a.tied", ValueOut::string("enc.blk.3.attn_q.weight"))
        .set("x.enc.blk.3.scale", ValueOut::u32(3))
        .set("x.blk.3.scale", ValueOut::u32(4))
        .write(&dir, "t5.gguf");
    dir.run("t5.gguf --blocks 1 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, "a.tied"), "str enc.blk.2.attn_q.weight");
    assert_eq!(value(&out, "x.enc.blk.2.scale"), "u32 3");
    assert_eq!(value(&out, "x.blk.3.scale"), "u32 4");

    let make = listed(&["blk.5.ffn_down.weight", "blk.1"], &[true, false]);
    crate::make::write_parts(&dir, &make.split(3));
    dir.run("m-00001-of-00003.gguf --blocks 1 -o joined.gguf").succeeds();
    let out = dir.read("joined.gguf");
    assert_eq!(value(&out, NAMES), "str[] blk.4.ffn_down.weight");
    assert_eq!(value(&out, FLAGS), "bool[] true");
}

#[test]
fn prediction_blocks_that_go_take_their_names_along() {
    let dir = Make::new("glm4moe", 4)
        .set("glm4moe.nextn_predict_layers", ValueOut::u32(1))
        .tensor("blk.3.nextn.eh_proj.weight", &[32], F32)
        .set(NAMES, ValueOut::strings(&["blk.3.nextn.eh_proj.weight", "blk.2.attn_q.weight"]))
        .set(FLAGS, ValueOut::bools(&[true, false]))
        .dir();
    dir.run("m.gguf --drop-mtp -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, NAMES), "str[] blk.2.attn_q.weight");
    assert_eq!(value(&out, FLAGS), "bool[] false");
}

#[test]
fn names_in_a_layout_of_ollamas_are_those_of_the_stock_file() {
    let dir = Dir::new();
    let make = Make::new("gptoss", 6).without_tensors();
    let make = (0..6).fold(make, |make, block| {
        make.tensor(&format!("blk.{block}.attn_out.weight"), &[32], F32).tensor(
            &format!("blk.{block}.ffn_gate_exps.weight"),
            &[32, 3],
            F32,
        )
    });
    make.tensor("token_embd.weight", &[32, 4], F32)
        .set("gptoss.attention.sliding_window", ValueOut::u32(8))
        .set(NAMES, ValueOut::strings(&["blk.4.attn_out.weight", "blk.5.attn_out"]))
        .set(FLAGS, ValueOut::bools(&[true, false]))
        .write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 0,1 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    assert_eq!(value(&out, NAMES), "str[] blk.2.attn_output.weight blk.3.attn_output");
}

#[test]
fn names_in_an_importance_matrix_are_renumbered_too() {
    let dir = Make::new("llama", 3).dir();
    let matrix = Make::empty()
        .set("general.type", ValueOut::string("imatrix"))
        .set("imatrix.datasets", ValueOut::strings(&["a.txt"]))
        .set("imatrix.chunk_count", ValueOut::u32(5))
        .set("imatrix.chunk_size", ValueOut::u32(512))
        .set("a.names", ValueOut::strings(&["blk.1.attn_q.weight", "blk.2.attn_q.weight"]))
        .set("a.flags", ValueOut::bools(&[false, true]));
    let matrix = (0..3).fold(matrix, |make, block| {
        let name = format!("blk.{block}.attn_q.weight");
        make.tensor(&format!("{name}.in_sum2"), &[32, 1], F32).tensor(&format!("{name}.counts"), &[1, 1], F32)
    });
    matrix.write(&dir, "i.gguf");
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix i.gguf j.gguf").succeeds();
    let out = dir.read("j.gguf");
    assert_eq!(value(&out, "a.names"), "str[] blk.1.attn_q.weight");
    assert_eq!(value(&out, "a.flags"), "bool[] true");
}

/// Notes of a removal of block 2 from six, given this entry.
fn notes_of(key: &str, value: ValueOut) -> String {
    let dir = Make::new("llama", 6).set(key, value).dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds().stderr
}

#[test]
fn blocks_in_the_words_of_any_format_are_noticed_in_texts_and_keys() {
    let is_told = |key: &str, text: &str| notes_of(key, ValueOut::string(text)).contains("speaks of blocks");
    for text in [
        "from blk.4",
        "BLK.4.attn_q",
        r"^blk\.4\..*=q8_0",
        "model.layers[4].mlp",
        "a model/layers/4",
        "of layer_4,",
        "layer4",
        "language_model.blk.3.attn_q and others",
    ] {
        assert!(is_told("q.text", text), "{text}");
    }
    for text in
        ["blk.1 stays", "layers[99]", "vision.layers.4", "v.blk.4 of it", "player4", "a 4, h_4", "24 layers"]
    {
        assert!(!is_told("q.text", text), "{text}");
    }
    for key in ["q.layer4.x", "q.layer_4.x", "q.blk.04"] {
        assert!(is_told(key, "x"), "{key}");
    }
    assert!(!is_told("q.layer_1.x", "x"));
}

#[test]
fn hostile_metadata_takes_no_longer_than_it_is_long() {
    let start = std::time::Instant::now();
    notes_of("general.description", ValueOut::string(&"1".repeat(200_000)));
    notes_of("general.description", ValueOut::string(&"blk.1 layer".repeat(50_000)));
    notes_of(&format!("k0{}", ".a".repeat(32_700)), ValueOut::u32(1));
    let lists = (0..20_000).fold(Make::new("llama", 6), |make, i| {
        make.set(&format!("p{i}.names"), ValueOut::strings(&["blk.2.attn_q.weight"]))
            .set(&format!("p{i}.flags"), ValueOut::bools(&[true, false]))
    });
    let dir = lists.dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").refused();
    // Each took from ten seconds to minutes.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
