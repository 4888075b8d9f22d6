//! `--card`: its figures are those of `eval`, on text that did not choose the blocks where there is more.

use std::path::Path;

use ggml::Backend;
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::{on_one_thread, parsed};

fn run(dir: &Path, arguments: &str) -> Value {
    let output = on_one_thread(dir, &format!("{arguments} --window 40 --json -"));
    assert!(output.stderr.is_empty(), "{output:?}");
    parsed(&output)
}

fn write_text(dir: &Path, name: &str, range: std::ops::Range<usize>) {
    let text: String = range.map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    std::fs::write(dir.join(name), text).unwrap();
}

/// The cells of a card's table row that begins with `what`.
fn row<'c>(card: &'c str, what: &str) -> Vec<&'c str> {
    let line = card.lines().find(|line| line.starts_with(&format!("| {what}")));
    line.unwrap().split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect()
}

#[test]
fn figures_of_a_card_are_those_of_eval() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    byte_model("llama", 5).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    write_text(dir, "text", 0..600);
    let text = "--calibration text --tokens 160";
    for choice in ["--blocks 1,3", "--drop 2 --method bi", "--drop 2"] {
        let result = run(dir, &format!("m.gguf {choice} -o out.gguf --card card.md --force {text}"));
        let card = std::fs::read_to_string(dir.join("card.md")).unwrap();
        let found = &result["evaluation"];
        assert_eq!(found["model"]["path"], "out.gguf");
        assert_eq!(found["model"]["blake3"], result["output"]["blake3"]);
        assert_eq!(found["calibration"]["windows"], 4);
        let shown = |value: &Value, digits: usize| format!("{:.digits$}", value.as_f64().unwrap());
        let perplexity = row(&card, "perplexity");
        assert!(perplexity[1].starts_with(&shown(&found["parent_perplexity"], 2)), "{card}");
        assert!(perplexity[2].starts_with(&shown(&found["perplexity"], 2)), "{card}");
        let kl = row(&card, "KL divergence");
        assert!(kl[2].starts_with(&shown(&found["kl_divergence"]["mean"], 4)), "{card}");
        for (what, key) in [("prompt", "prompt"), ("decoding", "decode")] {
            let speed = row(&card, what);
            assert_eq!(speed[1], shown(&found["parent_tokens_per_second"][key], 1));
            assert_eq!(speed[2], shown(&found["tokens_per_second"][key], 1));
        }
        assert!(!card.contains("chosen on the same text"), "{card}");
        let all = run(dir, &format!("eval out.gguf --parent m.gguf {text}"));
        let is_held_out = choice.starts_with("--drop");
        assert_eq!(all["perplexity"] != found["perplexity"], is_held_out);
        // What compared sets is left out, too.
        let n_chose = 4 + result["auto"]["windows"].as_u64().unwrap_or(0);
        let source = format!("text (after its first {} tokens)", n_chose * 40);
        assert_eq!(found["calibration"]["source"] == source.as_str(), is_held_out, "{found}");
        if !is_held_out {
            assert_eq!(all["kl_divergence"], found["kl_divergence"]);
            assert_eq!(all["calibration"]["blake3"], found["calibration"]["blake3"]);
        }
    }
    // A text that has no more than chose the blocks.
    write_text(dir, "short", 0..170);
    run(dir, "m.gguf --drop 2 -o out.gguf --card card.md --force --calibration short --tokens 160");
    let card = std::fs::read_to_string(dir.join("card.md")).unwrap();
    assert!(card.contains("The blocks were chosen on the same text"), "{card}");
    // A split output is measured, too, with the whole one's figures.
    let whole = run(dir, &format!("m.gguf --blocks 1,3 -o out.gguf --card card.md --force {text}"));
    let split = run(
        dir,
        &format!("m.gguf --blocks 1,3 -o s.gguf --split-max-size 4M -q --card card.md --force {text}"),
    );
    assert!(split["output"]["parts"].as_array().unwrap().len() > 1);
    assert_eq!(split["evaluation"]["perplexity"], whole["evaluation"]["perplexity"]);
}
