//! Cuts taken on trust: what `verify` proves of them, and what it does not.

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::Value;

use crate::make::Make;

/// A cut that the rules refuse, and what they do not know. That is an architecture, and a list.
fn refused() -> [(Make, &'static str, &'static str); 3] {
    [
        (
            Make::new("smollm3", 8),
            "1",
            "cannot remove these blocks: block 3, which has no rotary embedding, would become block 2, which does not have \
             it: llama.cpp decides that by the block's number",
        ),
        (
            Make::new("llama-next", 4),
            "1-2",
            "what llama.cpp derives from a block's number is not known for architecture 'llama-next', so its blocks cannot be \
             removed",
        ),
        (
            Make::new("llama", 3).set("llama.some_list", ValueOut::u32s(&[7, 8, 9])),
            "0",
            "metadata 'llama.some_list' has as many entries as the model has blocks, and how to shorten it is not known",
        ),
    ]
}

#[test]
fn a_cut_on_trust_is_compared_on_trust_alone() {
    for (make, blocks, why) in refused() {
        let dir = make.dir();
        dir.run(&format!("m.gguf --blocks {blocks} --trust-any-cut -o out.gguf")).succeeds();
        let output = dir.run("verify out.gguf --parent m.gguf").refused();
        output.check(output.error().ends_with(why), "the reason");
        output.check(
            output.hint().is_some_and(|hint| hint.starts_with("--trust-any-cut ")),
            "a hint at the flag",
        );
        let output = dir.run("verify out.gguf --parent m.gguf --trust-any-cut").succeeds();
        output.check(output.stdout.contains("\nverified "), "verified");
        output.check(
            output.stdout.contains(&format!(
                "\non trust that the model computes the parent without those blocks was not checked; the rules refuse this \
                 cut: {why}\n"
            )),
            "what is not proven",
        );
        let output = dir.run("verify out.gguf --parent m.gguf --trust-any-cut --json -").succeeds();
        let json: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(json["verified"], true);
        assert_eq!(json["on_trust"], why);
    }
}

#[test]
fn a_changed_byte_is_found_on_trust_too() {
    for (make, blocks, _) in refused() {
        let dir = make.dir();
        dir.run(&format!("m.gguf --blocks {blocks} --trust-any-cut -o out.gguf")).succeeds();
        let bytes = dir.read("out.gguf");
        let file = File::parse(&bytes).unwrap();
        let tensor = file.tensors().get("blk.0.ffn_down.weight").unwrap();
        let mut changed = bytes.clone();
        changed[tensor.position().0 as usize + 3] ^= 1;
        dir.write("out.gguf", &changed);
        let output = dir.run("verify out.gguf --parent m.gguf --trust-any-cut").output();
        output.check(output.status.code() == Some(1), "status 1");
        output.check(output.error().contains("'blk.0.ffn_down.weight' differs"), "the tensor");
    }
}

#[test]
fn a_cut_that_the_rules_allow_needs_no_trust() {
    let dir = Make::new("llama", 4).dir();
    for trust in ["", "--trust-any-cut"] {
        dir.run(&format!("m.gguf --blocks 1 {trust} -o out.gguf --force")).succeeds();
        for trust in ["", "--trust-any-cut"] {
            let output = dir.run(&format!("verify out.gguf --parent m.gguf {trust}")).succeeds();
            output.check(!output.stdout.contains("on trust"), "no word of trust");
        }
    }
}

#[test]
fn part_of_the_prediction_blocks_is_compared_on_trust() {
    let dir = Make::new("glm4", 5).predicting("glm4", 3..5).dir();
    dir.run("m.gguf --blocks 0,3 --trust-any-cut -o out.gguf").succeeds();
    dir.run("verify out.gguf --parent m.gguf --trust-any-cut").succeeds();
    let output = dir.run("verify out.gguf --parent m.gguf").output();
    output.check(output.status.code() == Some(1), "status 1");
}
