//! `score` and the main job. How sure they are, when they stop, what other texts and each block alone say.

use std::path::Path;

use ggml::Backend;
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::{json, on_one_thread};

/// A folder with a model and two texts.
fn dir(architecture: &str, n_blocks: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    byte_model(architecture, n_blocks).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    for (name, step) in [("a.txt", 7usize), ("b.txt", 11)] {
        let byte = |i: usize| char::from(b'a' + ((i * i / 3 * step + i) % 26) as u8);
        let text: String = (0..4000).map(byte).collect();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn table(dir: &Path, arguments: &str) -> String {
    let output = on_one_thread(dir, arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_calibration_that_stops_early_chooses_the_same_blocks() {
    let dir = dir("llama", 6);
    let dir = dir.path();
    let text = "--calibration a.txt --window 16 --tokens 1600";
    let mut n_stopped = 0;
    for method in ["bi", "relative-magnitude", "safe"] {
        for n in 1..6 {
            let run = format!("m.gguf --drop {n} --method {method} --dry-run {text}");
            let whole = json(dir, &run);
            let early = json(dir, &format!("{run} --confidence 0.99"));
            assert_eq!(early["removed"], whole["removed"], "{method} {n}");
            assert_eq!(whole["confidence"]["stopped"], Value::Null);
            assert_eq!(whole["confidence"]["level"], 0.99);
            assert_eq!(early["confidence"]["tokens_allowed"], 1600);
            let used = early["calibration"]["tokens"].as_u64().unwrap();
            assert_eq!(used, early["calibration"]["windows"].as_u64().unwrap() * 16);
            match early["confidence"]["stopped"].as_str().unwrap() {
                "set certain" => {
                    assert!((8 * 16..1600).contains(&used), "{used}");
                    assert_eq!(early["confidence"]["tied"], Value::Array(Vec::new()));
                    n_stopped += 1;
                }
                "text used up" => {
                    assert_eq!(used, 1600);
                    assert_eq!(early["blocks"], whole["blocks"]);
                }
                other => panic!("{other}"),
            }
            let score = json(dir, &format!("score m.gguf --drop {n} --method {method} {text}"));
            assert_eq!(score["removed"], whole["removed"]);
            assert_eq!(score["blocks"], whole["blocks"]);
            assert_eq!(score["confidence"], whole["confidence"]);
        }
    }
    assert!(n_stopped >= 3, "{n_stopped} of 15 stopped");
}

#[test]
fn too_few_windows_are_never_enough() {
    let dir = dir("llama", 4);
    let text = "--calibration a.txt --window 16";
    let run = |more: &str| json(dir.path(), &format!("score m.gguf --drop 1 {text} {more}"));
    let early = run("--tokens 144 --confidence 0.5");
    assert_eq!(early["confidence"]["stopped"], "text used up");
    let whole = run("--tokens 144");
    // Evaluated in another order, and the same in every bit.
    let of = |json: &Value, key: &str| -> Vec<Value> {
        let blocks = json["blocks"].as_array().unwrap();
        blocks.iter().map(|block| block[key].clone()).collect()
    };
    for key in ["bi", "bi_stderr", "relative_magnitude", "removed", "rank"] {
        assert_eq!(of(&early, key), of(&whole, key), "{key}");
    }
    // Of a single window nothing is known but its scores.
    let single = run("--tokens 16");
    assert_eq!(single["confidence"]["tied"], Value::Null);
    assert_eq!(of(&single, "tied"), vec![Value::Null; 4]);
    assert_eq!(of(&single, "rank_low"), vec![Value::Null; 4]);
    let mut ranks = of(&single, "rank");
    ranks.sort_by_key(Value::as_u64);
    assert_eq!(ranks, [1, 2, 3, 4]);
}

#[test]
fn ties_are_marked_in_table_and_json_alike() {
    let dir = dir("llama", 6);
    let dir = dir.path();
    let mut n_tied = 0;
    for n in 1..6 {
        // Few windows: much is not certain.
        let run = format!("score m.gguf --drop {n} --calibration a.txt --window 16 --tokens 64");
        let result = json(dir, &run);
        let text = table(dir, &run);
        let tied = result["confidence"]["tied"].as_array().unwrap();
        for (i, block) in result["blocks"].as_array().unwrap().iter().enumerate() {
            assert_eq!(block["tied"], tied.contains(&Value::from(i)), "{n} {i}");
            let row = text.lines().nth(1 + i).unwrap();
            assert_eq!(row.trim_end().ends_with('~'), block["tied"] == true, "{row}");
            assert_eq!(row.contains("goes"), block["removed"] == true, "{row}");
            let number = |key: &str| block[key].as_u64().unwrap();
            assert!(number("rank_low") <= number("rank") && number("rank") <= number("rank_high"));
        }
        // A tie has two sides.
        let is_removed = |block: &Value| result["removed"].as_array().unwrap().contains(block);
        if !tied.is_empty() {
            assert!(tied.iter().any(is_removed) && !tied.iter().all(is_removed));
            assert!(text.contains("\ntied     "), "{text}");
            n_tied += 1;
        }
    }
    assert!(n_tied > 0);
}

#[test]
fn a_text_agrees_with_itself() {
    let dir = dir("llama", 6);
    let run = |more: &str| {
        let text = "--calibration a.txt --window 16 --tokens 480";
        json(dir.path(), &format!("score m.gguf {text} {more}"))
    };
    let same = run("--against-calibration a.txt --drop 2");
    let against = &same["against"];
    for key in ["spearman", "kendall", "bi_spearman", "relative_magnitude_kendall"] {
        let value = against[key].as_f64().unwrap();
        assert!((value - 1.0).abs() < 1e-12, "{key}: {value}");
    }
    assert_eq!(against["blocks"], same["blocks"]);
    assert_eq!(against["drop"], 2);
    for key in ["removed_here", "removed_there", "removed_by_both"] {
        assert_eq!(against[key], same["removed"], "{key}");
    }
    let other = run("--against-calibration b.txt");
    let against = &other["against"];
    assert_eq!(against["calibration"]["source"], "b.txt");
    // A quarter of 6.
    assert_eq!(against["drop"], 1);
    assert_eq!(other["removed"], Value::Array(Vec::new()));
    // The other text's scores are those that it has alone.
    let alone = json(dir.path(), "score m.gguf --calibration b.txt --window 16 --tokens 480");
    assert_eq!(against["blocks"], alone["blocks"]);
    assert_ne!(against["blocks"], other["blocks"]);
    assert_eq!(alone["against"], Value::Null);
}

#[test]
fn the_loss_without_a_block_is_that_of_method_ablate() {
    const N: usize = 4;
    let dir = dir("llama", N as u32);
    let dir = dir.path();
    let text = "--calibration a.txt --window 16 --tokens 96";
    let scored = json(dir, &format!("score m.gguf --ablate --sub-blocks {text}"));
    for block in 0..N {
        let others: Vec<String> = (0..N).filter(|&b| b != block).map(|b| b.to_string()).collect();
        let alone = json(
            dir,
            &format!("m.gguf --drop 1 --method ablate --keep {} --dry-run {text}", others.join(",")),
        );
        let row = &scored["blocks"][block];
        assert_eq!(row["ablate_kl"], alone["search"]["kl_divergence"]);
        assert_eq!(row["ablate_perplexity"], alone["search"]["perplexity"]);
        assert!(row["ablate_kl"].as_f64().unwrap() > 0.0);
        assert!(row["attention_bi"].is_number() && row["ffn_bi"].is_number());
        let ablate = &scored["ablate"];
        assert_eq!(ablate["parent_perplexity"], alone["search"]["parent_perplexity"]);
    }
    assert_eq!(scored["ablate"]["refused"], Value::Array(Vec::new()));
    assert_eq!(scored["ablate"]["evaluated"], "segments");
}

#[test]
fn blocks_that_may_not_go_alone_have_a_reason_instead_of_a_loss() {
    // Every fourth block has no rotary embedding. So removing any but the last would shift that pattern.
    let dir = dir("smollm3", 8);
    let run = "score m.gguf --ablate --calibration a.txt --window 16 --tokens 48";
    let scored = json(dir.path(), run);
    let refused = scored["ablate"]["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 7, "{refused:?}");
    for block in 0..8 {
        let may_go = block == 7;
        assert_eq!(scored["blocks"][block]["ablate_kl"].is_number(), may_go);
        assert_eq!(scored["blocks"][block]["ablate_perplexity"].is_number(), may_go);
        let reason = refused.iter().find(|refused| refused["block"] == block);
        assert_eq!(reason.is_none(), may_go);
        if let Some(reason) = reason {
            let reason = reason["reason"].as_str().unwrap();
            assert!(reason.contains("rotary"), "{reason}");
        }
    }
    let text = table(dir.path(), run);
    assert!(text.contains("not      "), "{text}");
}

#[test]
fn a_card_leaves_out_all_text_from_which_windows_were_drawn() {
    let dir = dir("llama", 6);
    let dir = dir.path();
    let text = "--calibration a.txt --window 16 --tokens 1600";
    let mut n_stopped = 0;
    for n in 1..6 {
        let run = format!("m.gguf --drop {n} --method bi -o out.gguf --card card.md --force {text}");
        let whole = json(dir, &run);
        let early = json(dir, &format!("{run} --confidence 0.99"));
        n_stopped += usize::from(early["confidence"]["stopped"] == "set certain");
        for key in ["blake3", "tokens"] {
            let of = |result: &Value| result["evaluation"]["calibration"][key].clone();
            assert!(!of(&whole).is_null());
            assert_eq!(of(&early), of(&whole), "{n} {key}");
        }
    }
    assert!(n_stopped > 0);
}

#[test]
fn pairs_are_those_of_the_first_text() {
    let dir = dir("llama", 4);
    let run = |more: &str| {
        let text = "--calibration a.txt --window 16 --tokens 96 --pairs";
        json(dir.path(), &format!("score m.gguf {text} {more}"))
    };
    let alone = run("");
    let rows = alone["pairs"]["cosine"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    let both = run("--drop 2 --against-calibration b.txt --ablate");
    assert_eq!(both["pairs"], alone["pairs"]);
    assert!(both["ablate"].is_object() && both["against"].is_object());
}

#[test]
fn sets_that_scores_name_for_a_goal_have_ties_too() {
    let dir = dir("llama", 6);
    let dir = dir.path();
    let text = "--calibration a.txt --window 16 --tokens 64";
    let bytes = std::fs::metadata(dir.join("m.gguf")).unwrap().len();
    let size = format!("--target-size {}", bytes * 3 / 4);
    for goal in [size.as_str(), "--max-kl 1000", "--objective draft --drop 3"] {
        let found = json(dir, &format!("m.gguf {goal} --method bi --dry-run {text}"));
        let n = found["removed"].as_array().unwrap().len();
        assert!(n > 0, "{goal}");
        let by_number = json(dir, &format!("m.gguf --drop {n} --method bi --dry-run {text}"));
        for key in ["removed", "confidence", "blocks"] {
            assert_eq!(found[key], by_number[key], "{goal} {key}");
        }
        assert!(found["goal"].is_object());
    }
}
