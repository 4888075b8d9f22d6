//! `compare`: every row against `eval` of the same model as a file.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::{Backend, FileType};
use gguf_shorten::gguf::ValueOut;
use serde_json::Value;

use crate::eval::{byte_model, models};
use crate::heal::prepare;
use crate::program::{failure, program};
use crate::scaled::strengthen;

/// What both commands score.
const TEXT: &str = "--tokens 96 --window 32 -t 1 --json -";

/// What a command gives as JSON, with this status.
fn json(dir: &Path, arguments: &str, status: i32) -> Value {
    let output = program(dir, arguments);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn row<'j>(json: &'j Value, name: &str) -> &'j Value {
    let rows = json["rows"].as_array().unwrap();
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no row {name}: {json:#}"))
}

/// Checks a row against `eval` of the file `name` and `parent.gguf`.
#[track_caller]
fn equals_eval(row: &Value, dir: &Path, name: &str) {
    let eval = json(dir, &format!("eval {name} --parent parent.gguf {TEXT}"), 0);
    for key in ["perplexity", "perplexity_stderr", "kl_divergence", "same_top", "same_top_stderr"] {
        assert_ne!(row[key], Value::Null, "{name}: {key}");
        // As text with all digits, so bit for bit.
        assert_eq!(row[key], eval[key], "{name}: {key}");
    }
    for key in ["bytes", "block_count", "parameters"] {
        assert_eq!(row[key], eval["model"][key], "{name}: {key}");
    }
    assert_eq!(row["error"], Value::Null);
}

#[test]
fn every_row_is_what_eval_says_of_the_file() {
    for architecture in ["llama", "gemma3", "mamba2"] {
        let (dir, [parent, _]) = models(architecture);
        let dir = dir.path();
        std::fs::create_dir(dir.join("scratch")).unwrap();
        let types = ["Q8_0", "Q4_K_M", "Q2_K"];
        let arguments = format!(
            "compare parent.gguf short.gguf --drop 1..2 --method sequential --requantize {} --scratch scratch {TEXT}",
            types.join(",")
        );
        let json = json(dir, &arguments, 0);
        let names: Vec<&str> =
            json["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["parent.gguf", "short.gguf", "1 block fewer", "2 blocks fewer", "Q8_0", "Q4_K_M", "Q2_K"]
        );
        equals_eval(row(&json, "parent.gguf"), dir, "parent.gguf");
        equals_eval(row(&json, "short.gguf"), dir, "short.gguf");
        for (n, name) in [(1, "1 block fewer"), (2, "2 blocks fewer")] {
            let file = format!("short{n}.gguf");
            let written = program(dir, &format!("parent.gguf --drop {n} --method sequential -o {file}"));
            assert!(written.status.success(), "{written:?}");
            equals_eval(row(&json, name), dir, &file);
        }
        for name in types {
            let file_type: FileType = name.parse().unwrap();
            let file = format!("{name}.gguf");
            ggml::testing::quantize(Backend::init(), &parent, &dir.join(&file), file_type.number()).unwrap();
            equals_eval(row(&json, name), dir, &file);
            assert_eq!(row(&json, name)["type"], name);
        }
        assert_eq!(std::fs::read_dir(dir.join("scratch")).unwrap().count(), 0);
    }
}

#[test]
fn blocks_are_those_that_the_main_job_chooses() {
    let (dir, _) = models("llama");
    let dir = dir.path();
    for method in ["auto", "bi", "relative-magnitude", "safe", "run", "ablate", "search", "reverse"] {
        let compared = json(
            dir,
            &format!("compare parent.gguf --drop 1..2 --method {method} --choose-tokens 96 {TEXT}"),
            0,
        );
        for (n, name) in [(1, "1 block fewer"), (2, "2 blocks fewer")] {
            let alone = json(
                dir,
                &format!("parent.gguf --drop {n} --method {method} --tokens 96 -t 1 --dry-run --json -"),
                0,
            );
            assert_eq!(row(&compared, name)["removed"], alone["removed"], "{method}");
            assert_eq!(row(&compared, name)["bytes"], alone["output"]["bytes"], "{method}");
            assert_eq!(row(&compared, name)["method"], alone["method"]);
        }
        let choice = &compared["choice"];
        assert_eq!(choice["method"], method);
        assert_eq!(choice["calibration"].is_null(), method == "reverse");
        // Both texts are the built-in one, but for tokens ending windows.
        let seen = choice["seen_share"].as_f64().unwrap();
        assert_eq!(seen > 0.9, method != "reverse", "{method}: {seen}");
    }
}

#[test]
fn rows_may_be_healed_and_quantized_and_are_what_eval_says_of_such_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    strengthen(&dir.join("parent.gguf"));
    // Blocks 2 and 3.
    let drop = "--drop 2 --keep 0-1,4-5";
    let mut n_healed = 0;
    for how in ["linear", "scale"] {
        let found = json(
            dir,
            &format!(
                "compare parent.gguf {drop} --heal {how} --choose-tokens 4096 \
                 --requantize Q8_0,Q4_K_M --mixed {TEXT}"
            ),
            0,
        );
        let made = json(
            dir,
            &format!(
                "parent.gguf {drop} --heal {how} --tokens 4096 -t 1 \
                 -o healed.gguf --force --json -"
            ),
            0,
        );
        let heal = &made["heal"]["method"];
        let is_healed = heal != "none";
        n_healed += usize::from(is_healed);
        let name = if is_healed { "2 blocks fewer, healed" } else { "2 blocks fewer" };
        let names: Vec<&Value> = found["rows"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
        let mixed = ["Q8_0", "Q4_K_M"].map(|to| format!("{name}, {to}"));
        assert_eq!(names, ["parent.gguf", name, &mixed[0], &mixed[1], "Q8_0", "Q4_K_M"], "{how}");
        equals_eval(row(&found, name), dir, "healed.gguf");
        assert_eq!((&row(&found, name)["heal"], &row(&found, name)["removed"]), (heal, &made["removed"]));
        assert_eq!(row(&found, name)["bytes"], made["output"]["bytes"]);
        for (name, to) in mixed.iter().zip(["Q8_0", "Q4_K_M"]) {
            let file_type: FileType = to.parse().unwrap();
            let file = format!("{to}.gguf");
            let [from, out] = ["healed.gguf", &file].map(|name| dir.join(name));
            ggml::testing::quantize(Backend::init(), &from, &out, file_type.number()).unwrap();
            equals_eval(row(&found, name), dir, &file);
            let row = row(&found, name);
            assert_eq!((&row["kind"], &row["type"]), (&"mixed".into(), &to.into()));
            assert_eq!((&row["heal"], &row["removed"]), (heal, &made["removed"]));
        }
        // What healing was fitted to is text that the rows have seen.
        assert!(found["choice"]["seen_share"].as_f64().unwrap() > 0.9);
    }
    assert!(n_healed > 0);
}

#[test]
fn a_text_that_chose_is_told_from_one_that_did_not() {
    let (dir, _) = models("llama");
    let dir = dir.path();
    let text = |n: usize| -> String { (0..400).map(|i| char::from(b'a' + (i * i * n % 26) as u8)).collect() };
    for (name, n) in [("a.txt", 3), ("b.txt", 7)] {
        std::fs::write(dir.join(name), text(n)).unwrap();
    }
    let table = |scored: &str| {
        let arguments = format!(
            "compare parent.gguf --drop 1 --choose-on a.txt --choose-tokens 96 --calibration {scored} --tokens 96 --window 32 -t 1"
        );
        let output = program(dir, &arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table_a = table("a.txt");
    assert!(
        table_a.contains("of the scored tokens are of that text, so fewer blocks look better"),
        "{table_a}"
    );
    let table_b = table("b.txt");
    assert!(table_b.contains("96 tokens of a.txt text, none of which is scored"), "{table_b}");
    assert!(
        table_b.contains("\nverdict  no verdict: only rows with fewer blocks were measured"),
        "{table_b}"
    );
}

/// A copy of the model at `path` whose logits are not numbers.
fn spoil(path: &Path, out: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = gguf_shorten::gguf::File::parse(&bytes).unwrap();
    let tensor = file.tensors().get("output_norm.weight").unwrap();
    let at = tensor.position().0 as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(out, bytes).unwrap();
}

/// A folder with a parent, and models not comparable with it.
fn with_bad_models() -> tempfile::TempDir {
    let (dir, [parent, _]) = models("llama");
    spoil(&parent, &dir.path().join("nan.gguf"));
    let mut other = byte_model("llama", 2);
    other.extra.push(("tokenizer.ggml.bos_token_id", ValueOut::u32(3)));
    other.save(Backend::init(), &dir.path().join("other.gguf")).unwrap();
    dir
}

#[test]
fn what_fails_is_a_row_and_the_others_are_measured() {
    let dir = with_bad_models();
    let dir = dir.path();
    let arguments = format!(
        "compare parent.gguf nan.gguf none.gguf other.gguf short.gguf --drop 1,4 --requantize IQ1_S,Q8_0 {TEXT}"
    );
    let output = program(dir, &arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, error) in [
        ("nan.gguf", "nan.gguf: after token 16 of window 0: the logit of vocabulary entry 0 is NaN"),
        ("none.gguf", "none.gguf: No such file or directory (os error 2)"),
        (
            "other.gguf",
            "other.gguf: the vocabulary differs from that of parent.gguf: token 3 begins every text, token 1 in the parent",
        ),
        (
            "4 blocks fewer",
            "parent.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay",
        ),
        (
            "IQ1_S",
            "parent.gguf as IQ1_S: llama.cpp could not quantize: this quantization requires an imatrix!",
        ),
    ] {
        let row = row(&json, name);
        assert_eq!(row["error"], error);
        assert_eq!(row["perplexity"], Value::Null);
        assert_eq!(row["kl_divergence"], Value::Null);
        assert_eq!(row["tokens_per_second"], Value::Null);
        assert_eq!(row["pareto"], false);
    }
    equals_eval(row(&json, "short.gguf"), dir, "short.gguf");
    for name in ["parent.gguf", "1 block fewer", "Q8_0"] {
        assert!(row(&json, name)["perplexity"].as_f64().unwrap() > 0.0);
    }
    let stderr = String::from_utf8(output.stderr).unwrap();
    // In the order in which they failed: what cannot even be opened first.
    assert!(
        stderr.starts_with("gguf-shorten: 5 of 9 rows failed, the first: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    // One alone is said as `eval` says it, after the table.
    let output = program(dir, "compare parent.gguf other.gguf --tokens 96 --window 32 -t 1");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("failed   other.gguf: "));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "gguf-shorten: other.gguf: the vocabulary differs from that of parent.gguf: token 3 begins every text, token 1 in \
         the parent\n"
    );
}

#[test]
fn without_a_parent_nothing_is_compared() {
    let dir = with_bad_models();
    let dir = dir.path();
    let text = "--tokens 96 --window 32 -t 1";
    assert_eq!(
        failure(dir, &format!("compare nan.gguf parent.gguf --drop 1 --method bi {text}")),
        "gguf-shorten: nan.gguf: after token 16 of window 0: the logit of vocabulary entry 0 is NaN\n"
    );
    std::fs::write(dir.join("short.txt"), "Not much").unwrap();
    assert_eq!(
        failure(dir, "compare parent.gguf short.gguf --calibration short.txt --window 32"),
        "gguf-shorten: parent.gguf: the text has 14 tokens, less than one window of 32\n"
    );
}

#[test]
fn the_json_is_the_contract() {
    let (dir, _) = models("llama");
    let dir = dir.path();
    let found = json(dir, &format!("compare short.gguf --parent parent.gguf {TEXT}"), 0);
    let keys = |json: &Value| -> BTreeSet<String> { json.as_object().unwrap().keys().cloned().collect() };
    let listed = |names: &str| -> BTreeSet<String> { names.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(
        keys(&found),
        listed("gguf_shorten llama_cpp arguments command text parent choice threads rows verdict")
    );
    let expected = listed(
        "name kind path type removed attention_removed method heal bytes block_count parameters perplexity perplexity_stderr kl_divergence same_top \
         same_top_stderr tokens_per_second pareto error experts experts_auto",
    );
    for row in found["rows"].as_array().unwrap() {
        assert_eq!(keys(row), expected);
        assert!(row["tokens_per_second"]["prompt"].as_f64().unwrap() > 0.0);
        assert!(row["tokens_per_second"]["decode"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(found["command"], "compare");
    assert_eq!(found["choice"], Value::Null);
    assert_eq!(found["text"]["windows"], 3);
    assert_eq!(found["parent"]["path"], "parent.gguf");
    assert_eq!(found["parent"]["block_count"], 4);
    let (parent, short) = (row(&found, "parent.gguf"), row(&found, "short.gguf"));
    assert_eq!((&parent["kind"], &short["kind"]), (&"parent".into(), &"file".into()));
    assert_eq!(short["path"], "short.gguf");
    assert_eq!(parent["kl_divergence"]["mean"], 0.0);
    assert_eq!((&parent["pareto"], &short["pareto"]), (&true.into(), &true.into()));
    assert!(found["verdict"].as_str().unwrap().contains("short.gguf ("));
}
