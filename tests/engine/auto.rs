//! `--method auto`: its sets are those of the methods, its losses those that `eval` finds, and without losses `bi` chooses.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::Backend;
use gguf_shorten::engine::blockwise::need::Size;
use gguf_shorten::engine::segment::Chain;
use gguf_shorten::model::Model;
use gguf_shorten::model::input::Input;
use serde_json::{Value, json as value};

use crate::blockwise::{SHORT, memory, need};
use crate::byte_text::{self, WINDOW, text};
use crate::eval::byte_model;
use crate::program::{json, on_one_thread};

/// Windows that are scored, and those that there are after them.
const N_SCORED: usize = 12;
const N_AFTER: usize = 9;

const METHODS: [&str; 5] = ["bi", "relative-magnitude", "safe", "run", "lorp"];

/// A model of so many blocks and a text, in a folder.
fn folder(architecture: &str, n_blocks: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    byte_model(architecture, n_blocks).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    byte_text::write(dir.path(), N_SCORED + N_AFTER);
    dir
}

/// The sum of KL divergences and the number of scored tokens. Both are over the first windows of the text.
fn sum_of_kl(dir: &Path, removed: &Value, n_windows: usize) -> (f64, f64) {
    let blocks: Vec<String> = removed.as_array().unwrap().iter().map(ToString::to_string).collect();
    json(dir, &format!("m.gguf --blocks {} -o one.gguf --force", blocks.join(",")));
    byte_text::sum_of_kl(dir, "one.gguf", n_windows)
}

/// The Block Influence of every block.
fn influence(result: &Value) -> Vec<&Value> {
    result["blocks"].as_array().unwrap().iter().map(|block| &block["bi"]).collect()
}

#[test]
fn the_best_of_the_sets_of_all_methods_is_that_which_eval_names() {
    let mut n_rivals = 0;
    for (architecture, n_blocks, n) in [("llama", 8, 3), ("gemma3", 9, 2), ("mamba2", 6, 2)] {
        let folder = folder(architecture, n_blocks);
        let dir = folder.path();
        let drop = format!("m.gguf --drop {n} --dry-run {}", text(N_SCORED));
        let found = json(dir, &drop);
        assert_eq!((&found["chosen_by"], &found["auto"]["fallback"]), (&value!("auto"), &Value::Null));
        let auto = &found["auto"];
        let candidates = auto["candidates"].as_array().unwrap();
        let sets: BTreeSet<String> = candidates.iter().map(|one| one["removed"].to_string()).collect();
        assert_eq!(sets.len(), candidates.len());
        // Every method has its own set. The first of a set's methods is that of the result.
        for method in METHODS {
            let alone = json(dir, &format!("{drop} --method {method}"));
            assert_eq!((&alone["chosen_by"], &alone["auto"]), (&Value::Null, &Value::Null));
            let of: Vec<&Value> = candidates
                .iter()
                .filter(|one| one["methods"].as_array().unwrap().contains(&value!(method)))
                .collect();
            assert_eq!(of.len(), 1, "{architecture} {method}");
            assert_eq!(of[0]["removed"], alone["removed"], "{architecture} {method}");
            if found["method"] == method {
                assert_eq!(found["output"]["bytes"], alone["output"]["bytes"]);
            }
            if method == "bi" {
                assert_eq!(influence(&found), influence(&alone), "{architecture}");
            }
        }
        let chosen: Vec<&Value> = candidates.iter().filter(|one| one["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(found["removed"], chosen[0]["removed"]);
        assert_eq!(found["method"], chosen[0]["methods"][0]);
        if candidates.len() < 2 {
            assert_eq!((&auto["windows"], &chosen[0]["kl_divergence"]), (&value!(0), &Value::Null));
            continue;
        }
        n_rivals += 1;
        let n_windows = auto["windows"].as_u64().unwrap() as usize;
        assert!((1..=N_AFTER).contains(&n_windows));
        let n_evaluations = auto["block_evaluations"].as_u64().unwrap();
        assert!(n_evaluations as usize * 2 <= 3 * N_SCORED * n_blocks as usize, "{n_evaluations}");
        let kl = |one: &Value| one["kl_divergence"].as_f64().unwrap();
        let lowest = candidates.iter().map(kl).fold(f64::MAX, f64::min);
        assert_eq!(kl(chosen[0]), lowest);
        if n_windows == N_AFTER {
            for one in candidates {
                let (scored, n_scored) = sum_of_kl(dir, &one["removed"], N_SCORED);
                let (all, n_all) = sum_of_kl(dir, &one["removed"], N_SCORED + N_AFTER);
                let expected = (all - scored) / (n_all - n_scored);
                assert!((kl(one) / expected - 1.0).abs() < 1e-6, "{architecture}: {one} {expected}");
            }
        }
    }
    assert!(n_rivals >= 2, "{n_rivals}");
}

#[test]
fn a_text_that_ends_is_measured_on_once_more() {
    let folder = folder("llama", 8);
    let dir = folder.path();
    let all = N_SCORED + N_AFTER;
    for n_scored in [all - 1, all] {
        let output =
            on_one_thread(dir, &format!("m.gguf --drop 3 --dry-run --json x.json {}", text(n_scored)));
        let shown = String::from_utf8_lossy(&output.stdout);
        let found: Value = serde_json::from_slice(&std::fs::read(dir.join("x.json")).unwrap()).unwrap();
        let auto = &found["auto"];
        let [n, n_seen] = ["windows", "seen_windows"].map(|key| auto[key].as_u64().unwrap() as usize);
        assert!(n > 1 && n_seen == n - (all - n_scored), "{auto}");
        assert!(shown.contains(&format!("{n} windows, {n_seen} of them scored before")), "{shown}");
        assert!(auto["candidates"].as_array().unwrap().len() > 1);
    }
    // All there is, so that the order does not matter.
    let few = "abcdefghijklmnopqrstuvwxyz".repeat(10);
    std::fs::write(dir.join("text"), &few[..WINDOW * 2 - 1]).unwrap();
    let found = json(dir, &format!("m.gguf --drop 3 --dry-run {}", text(N_SCORED)));
    let n = found["auto"]["windows"].as_u64().unwrap() as usize;
    assert_eq!((&found["auto"]["seen_windows"], &found["calibration"]["windows"]), (&value!(n), &value!(n)));
    for one in found["auto"]["candidates"].as_array().unwrap() {
        let (sum, n_tokens) = sum_of_kl(dir, &one["removed"], n);
        let kl = one["kl_divergence"].as_f64().unwrap();
        assert!((kl * n_tokens / sum - 1.0).abs() < 1e-6, "{kl} {sum} {n_tokens}");
    }
}

#[test]
fn where_nothing_can_be_measured_bi_chooses_and_that_is_said() {
    let folder = folder("llama", 8);
    let dir = folder.path();
    for (arguments, why) in [
        (
            "--drop 3 --calibration text --window 2 --tokens 256".to_owned(),
            "2 tokens, but 3 or more are needed",
        ),
        (
            format!("--drop 3 --confidence 0.9 {}", text(N_SCORED)),
            "--confidence is about the scores of one method",
        ),
        (
            format!("--max-kl 1000 {}", text(N_SCORED)),
            "the goal says by the losses of one method how many blocks go",
        ),
    ] {
        let output = on_one_thread(dir, &format!("m.gguf --dry-run --no-cache --json x.json {arguments}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("m.gguf: blocks are chosen by bi alone, since ") && said.contains(why),
            "{said}"
        );
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("compared nothing: ") && shown.contains(why), "{shown}");
        let found: Value = serde_json::from_slice(&std::fs::read(dir.join("x.json")).unwrap()).unwrap();
        assert_eq!((&found["method"], &found["chosen_by"]), (&value!("bi"), &value!("auto")));
        assert!(found["auto"]["fallback"].as_str().unwrap().contains(why), "{found}");
        let by_bi = json(dir, &format!("m.gguf --dry-run {arguments} --method bi"));
        assert_eq!(found["removed"], by_bi["removed"], "{arguments}");
    }
}

#[test]
fn a_model_that_does_not_fit_twice_is_chosen_of_by_bi() {
    let folder = folder("llama", 12);
    let dir = folder.path();
    let drop = format!("m.gguf --drop 3 --dry-run {}", text(4));
    let by_bi = json(dir, &format!("{drop} --method bi"));
    let input = Input::open(&dir.join("m.gguf")).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let whole = need(dir, Size { n_logits: WINDOW / 2 - 1, ..SHORT }).whole;
    let twice = |n_windows| whole + Chain::n_bytes(&model, WINDOW, n_windows * WINDOW);
    // Block by block, and as a whole.
    for limit in [memory(dir, SHORT), twice(4) - 1] {
        let arguments = format!("{drop} --no-cache --json x.json --memory {limit}");
        let output = on_one_thread(dir, &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let why = "there is no memory for the whole model and each of its blocks";
        assert!(said.contains(&format!("m.gguf: blocks are chosen by bi alone, since {why}")), "{said}");
        let found: Value = serde_json::from_slice(&std::fs::read(dir.join("x.json")).unwrap()).unwrap();
        assert!(found["auto"]["fallback"].as_str().unwrap().starts_with(why), "{found}");
        for key in ["method", "removed", "blocks"] {
            assert_eq!(found[key], by_bi[key], "{limit}");
        }
    }
    let found = json(dir, &format!("{drop} --no-cache --memory {}", twice(64)));
    assert_eq!((&found["auto"]["fallback"], influence(&found)), (&Value::Null, influence(&by_bi)));
    assert_ne!(found["auto"]["candidates"], value!([]));
}

#[test]
fn efforts_are_bi_auto_and_a_healed_search() {
    let folder = folder("llama", 6);
    let dir = folder.path();
    let run = |more: &str| json(dir, &format!("m.gguf --drop 2 --dry-run {} {more}", text(N_SCORED)));
    let same = |a: &str, b: &str| {
        let [a, b] = [a, b].map(run);
        for key in ["method", "chosen_by", "removed", "blocks"] {
            assert_eq!(a[key], b[key]);
        }
    };
    same("--effort quick", "--method bi");
    same("--effort normal", "--method auto");
    let thorough = run("--effort thorough");
    assert_eq!((&thorough["method"], &thorough["heal"]["requested"]), (&value!("search"), &value!("auto")));
    let unhealed = run("--effort thorough --heal none");
    assert_eq!((&unhealed["method"], &unhealed["heal"]), (&value!("search"), &Value::Null));
    let output = on_one_thread(dir, "m.gguf --drop 2 --effort quick --method run -o out.gguf");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_size_is_reached_by_the_best_of_the_sets_that_reach_it() {
    let folder = folder("llama", 8);
    let dir = folder.path();
    let whole = std::fs::metadata(dir.join("m.gguf")).unwrap().len();
    let limit = whole * 2 / 3;
    let run = |more: &str| {
        json(dir, &format!("m.gguf --target-size {limit} -o out.gguf --force {} {more}", text(N_SCORED)))
    };
    let found = run("");
    assert!(std::fs::metadata(dir.join("out.gguf")).unwrap().len() <= limit);
    let method = found["method"].as_str().unwrap().to_owned();
    let alone = run(&format!("--method {method}"));
    for key in ["removed", "goal"] {
        assert_eq!(found[key], alone[key]);
    }
    assert_eq!(found["output"]["bytes"], alone["output"]["bytes"]);
}
