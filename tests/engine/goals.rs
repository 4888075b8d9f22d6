//! Measured goals, and searches that were interrupted. What is reported is what `eval` says of the written file, and going on
//! gives what an uninterrupted search gives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ggml::Backend;
use serde_json::Value;

use crate::eval::{byte_model, close};
use crate::program::{command, failure, parsed, program};

/// How every model here is measured.
const TEXT: &str = "--tokens 160 --window 32 -t 1";

/// A folder with a model of `n_blocks`.
fn dir(architecture: &str, n_blocks: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    byte_model(architecture, n_blocks).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    dir
}

/// The program's result as JSON, and what it says on stderr.
fn result(dir: &Path, arguments: &str) -> (Value, String) {
    let output = program(dir, &format!("{arguments} {TEXT} --json -"));
    (parsed(&output), String::from_utf8(output.stderr).unwrap())
}

fn number(json: &Value, pointer: &str) -> f64 {
    let value = json.pointer(pointer).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("{pointer}: {json:#}"))
}

fn n_removed(json: &Value) -> usize {
    json["removed"].as_array().unwrap().len()
}

/// What `eval` says of `out.gguf` beside its parent.
fn eval(dir: &Path) -> Value {
    result(dir, "eval out.gguf --parent m.gguf").0
}

#[test]
fn what_a_goal_reports_is_what_eval_says_of_the_file() {
    let dir = dir("llama", 5);
    let dir = dir.path();
    for method in ["search", "bi", "safe", "ablate", "run", "sequential"] {
        for (flag, figure, of_eval) in [
            ("max-kl", "/search/kl_divergence", "/kl_divergence/mean"),
            ("max-ppl", "/search/perplexity", "/perplexity"),
        ] {
            let run = |limit: f64| {
                let command =
                    format!("m.gguf --{flag} {limit} --method {method} -o out.gguf --force --scratch s");
                result(dir, &command).0
            };
            // All but one block go where everything is allowed. The figure of the second step then allows two or more; where
            // the first costs more than that, it is out of reach.
            let all = run(1e9);
            assert_eq!(n_removed(&all), 4);
            let steps = all["goal"]["steps"].as_array().unwrap();
            let (first, second) = (number(&steps[0], "/value"), number(&steps[1], "/value"));
            let json = run(first.max(second));
            assert!(n_removed(&json) >= 2, "{method} {flag}");
            let goal = &json["goal"];
            assert_eq!(goal["goal"], *flag);
            let found = eval(dir);
            close(number(&json, figure), number(&found, of_eval));
            close(number(goal, "/value"), number(&found, of_eval));
            assert!(number(goal, "/value") <= number(goal, "/limit"));
            for (own, others) in [
                ("/search/perplexity", "/perplexity"),
                ("/search/parent_perplexity", "/parent_perplexity"),
                ("/search/kl_divergence", "/kl_divergence/mean"),
                ("/search/same_top", "/same_top"),
            ] {
                close(number(&json, own), number(&found, others));
            }
            let objective = match (method, flag) {
                ("search" | "ablate", "max-ppl") => Value::from("ppl"),
                ("search" | "ablate", _) => Value::from("kl"),
                _ => Value::Null,
            };
            assert_eq!(json["search"]["objective"], objective);
        }
    }
    // The journals are gone with what they were for.
    assert_eq!(fs::read_dir(dir.join("s")).unwrap().count(), 0);
}

#[test]
fn a_goal_out_of_reach_names_the_nearest_and_writes_nothing() {
    let dir = dir("llama", 4);
    let dir = dir.path();
    fs::create_dir(dir.join("s")).unwrap();
    let (all, _) = result(dir, "m.gguf --max-kl 1000000 --method sequential --dry-run --scratch s");
    let first = number(&all, "/goal/steps/0/value");
    let error =
        failure(dir, &format!("m.gguf --max-kl 0 --method sequential -o out.gguf --scratch s {TEXT}"));
    assert_eq!(
        error,
        format!(
            "gguf-shorten: m.gguf: --max-kl cannot be reached: KL divergence may be 0.0000 at most, and the nearest that \
             was found has {first:.4}, without block 3\n"
        )
    );
    let error = failure(dir, &format!("m.gguf --max-ppl 1 --method search -o out.gguf --scratch s {TEXT}"));
    let start =
        "gguf-shorten: m.gguf: --max-ppl cannot be reached: perplexity may be 1.0000 at most (whole model ";
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains(", without block "), "{error}");
    assert_eq!(fs::read_dir(dir.join("s")).unwrap().count(), 0);
}

#[test]
fn a_size_is_reached_by_every_method_to_the_byte() {
    let dir = dir("llama", 5);
    let dir = dir.path();
    for method in ["bi", "run", "ablate", "search"] {
        let size = |n: usize| {
            let command = format!("m.gguf --drop {n} --method {method} --dry-run --scratch s");
            number(&result(dir, &command).0, "/output/bytes")
        };
        let two = size(2);
        for (target, n) in [(two, 2), (two - 1.0, 3)] {
            let command =
                format!("m.gguf --target-size {target} --method {method} -o out.gguf --force --scratch s");
            let (json, _) = result(dir, &command);
            assert_eq!(n_removed(&json), n, "{method}");
            let on_disk = fs::metadata(dir.join("out.gguf")).unwrap().len();
            assert_eq!(json["goal"]["value"], on_disk);
        }
    }
}

/// A journal of all that a search measures. The search is done, but its result cannot be written.
fn journal(dir: &Path, command: &str) -> PathBuf {
    let output = program(dir, &format!("{command} {TEXT} --scratch j --dry-run --json /dev/full"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let mut names = fs::read_dir(dir.join("j")).unwrap();
    let path = names.next().unwrap().unwrap().path();
    assert!(names.next().is_none());
    path
}

/// The JSON without what an interrupt changes.
fn without_counts(mut json: Value) -> Value {
    for pointer in ["/calibration/seconds", "/search/seconds"] {
        *json.pointer_mut(pointer).unwrap() = Value::Null;
    }
    for name in ["block_evaluations", "resumed_losses"] {
        json["search"][name] = Value::Null;
    }
    json["arguments"] = Value::Null;
    json
}

#[test]
fn an_interrupted_search_goes_on_where_it_was() {
    for (architecture, command) in [
        ("llama", "m.gguf --drop 3 --method search"),
        ("llama", "m.gguf --drop 2 --method ablate --objective ppl"),
        ("mamba2", "m.gguf --max-kl 1000000 --method search"),
    ] {
        let dir = dir(architecture, 6);
        let dir = dir.path();
        let again = format!("{command} --dry-run --scratch j");
        let (whole, stderr) = result(dir, &again);
        assert!(stderr.is_empty(), "{stderr}");
        assert_eq!(whole["search"]["resumed_losses"], 0);
        let path = journal(dir, command);
        let lines = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = lines.split_inclusive('\n').collect();
        let n = lines.len() / 2;
        assert!(n > 10);
        // As an interrupt leaves it: the last line is torn.
        let torn = lines[..n].concat() + &lines[n][..20];
        fs::write(&path, &torn).unwrap();
        let (resumed, stderr) = result(dir, &again);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(&format!("{n} losses are known")), "{stderr}");
        assert_eq!(resumed["search"]["resumed_losses"], n);
        let count = |json: &Value| number(json, "/search/block_evaluations");
        assert!(count(&resumed) < count(&whole));
        assert_eq!(without_counts(resumed), without_counts(whole.clone()));
        assert!(!path.exists());

        // Damaged, it is not used, which is said once.
        let damaged = lines.concat().replacen("[1", "[2", 1);
        assert_ne!(damaged, lines.concat());
        fs::write(&path, damaged).unwrap();
        let (anew, stderr) = result(dir, &again);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("is damaged, or of another search"), "{stderr}");
        assert_eq!(count(&anew), count(&whole));
        assert_eq!(without_counts(anew), without_counts(whole.clone()));

        // Another process has it: this one does without.
        let path = journal(dir, command);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.lock().unwrap();
        let before = fs::read(&path).unwrap();
        let (beside, stderr) = result(dir, &again);
        assert!(stderr.contains("another search writes to it"), "{stderr}");
        assert_eq!(without_counts(beside), without_counts(whole.clone()));
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(file);

        // Nowhere to keep it.
        let nowhere = format!("{command} --dry-run --scratch m.gguf/x");
        let (json, stderr) = result(dir, &nowhere);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("note: the search will not be resumable: "), "{stderr}");
        assert_eq!(without_counts(json), without_counts(whole));
    }
}

#[test]
fn an_interrupt_leaves_the_journal_and_nothing_else() {
    let dir = dir("llama", 8);
    let dir = dir.path();
    let arguments = "m.gguf --drop 4 --method search -o out.gguf --tokens 8192 --window 128 -t 1 --scratch s";
    let mut child = command(dir, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let has_lines = || {
        let entries = fs::read_dir(dir.join("s")).into_iter().flatten();
        let lengths = entries.map(|entry| entry.unwrap().metadata().unwrap().len());
        lengths.sum::<u64>() > 2000
    };
    while !has_lines() {
        assert_eq!(child.try_wait().unwrap(), None, "done before it measured");
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(has_lines());
    assert!(!dir.join("out.gguf").exists());
}

#[test]
fn tasks_are_those_that_eval_does() {
    let dir = dir("llama", 5);
    let dir = dir.path();
    let task = |i: usize| {
        format!(
            "{{\"question\": \"Which of {i}?\", \"choices\": [\"one\", \"a {i}\", \"none\"], \"answer\": {}}}\n",
            i % 3
        )
    };
    fs::write(dir.join("t.jsonl"), (0..9).map(task).collect::<String>()).unwrap();
    for method in ["search", "ablate"] {
        let command = format!(
            "m.gguf --drop 2 --method {method} --objective task --task-file t.jsonl --tasks 7 -o out.gguf --force --scratch s"
        );
        let (json, _) = result(dir, &command);
        let task = &json["search"]["task"];
        assert_eq!(task["tasks"], 7);
        assert_eq!(task["source"], "t.jsonl");
        let of = |model: &str| {
            let command = format!("eval {model} --multiple-choice t.jsonl --tasks 7");
            result(dir, &command).0["multiple_choice"].clone()
        };
        let (short, parent) = (of("out.gguf"), of("m.gguf"));
        assert_eq!(task["accuracy"], short["accuracy"], "{method}");
        assert_eq!(task["accuracy_stderr"], short["accuracy_stderr"]);
        assert_eq!(task["chance"], short["chance"]);
        assert_eq!(task["parent_accuracy"], parent["accuracy"]);
        assert!(number(task, "/cross_entropy") > 0.0);
        assert!(number(task, "/models") > 2.0);
        assert_eq!(json["search"]["objective"], "task");
    }
}

#[test]
fn a_draft_model_has_the_number_of_blocks_that_makes_it_fastest() {
    let dir = dir("llama", 6);
    let dir = dir.path();
    for (command, most) in [
        ("m.gguf --objective draft --method search", 5),
        ("m.gguf --objective draft --method search --drop 2", 2),
        ("m.gguf --objective draft --method reverse --drop 50%", 3),
    ] {
        let (json, _) = result(dir, &format!("{command} -o out.gguf --force --scratch s"));
        let draft = &json["search"]["draft"];
        let found = eval(dir);
        close(number(draft, "/acceptance"), number(&found, "/same_top"));
        let (a, c) = (number(draft, "/acceptance"), number(draft, "/cost_ratio"));
        assert!(c > 0.0 && c < 1.0);
        let g = number(draft, "/tokens");
        assert!((1.0..=16.0).contains(&g));
        let speed_up = (1.0 - a.powf(g + 1.0)) / ((1.0 - a) * (g * c + 1.0));
        close(number(draft, "/speed_up"), speed_up);
        let goal = &json["goal"];
        assert_eq!((&goal["goal"], &goal["limit"]), (&"draft".into(), &Value::Null));
        let steps = goal["steps"].as_array().unwrap();
        let all = steps.iter().map(|step| number(step, "/value"));
        let best = all.fold(f64::NEG_INFINITY, f64::max);
        assert!(number(goal, "/value") >= best);
        assert!(n_removed(&json) <= most);
        assert!(steps.len() <= most);
    }
}
