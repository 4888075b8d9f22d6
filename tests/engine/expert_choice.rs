//! Which experts go: those that scores name, by default the set that costs least, and the rows of `compare`.

use ggml::Backend;
use gguf_shorten::engine::blockwise::need::Size;
use gguf_shorten::engine::imatrix::Gathers;
use gguf_shorten::gguf::ValueOut;
use serde_json::Value;

use crate::blockwise::{SHORT, memory};
use crate::byte_text::{self, sum_of_kl, text};
use crate::eval::byte_model;
use crate::program::{failure, json, on_one_thread};
use crate::random_model::Spec;

/// A folder with a byte model of six experts, two used.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = byte_model("qwen3moe", 4);
    spec.extra.push((".expert_count", ValueOut::u32(6)));
    spec.save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    dir
}

#[test]
fn those_with_the_lowest_scores_go_beside_blocks() {
    const TEXT: &str = "--tokens 192 --window 32 --no-cache";
    let dir = folder();
    let scored = json(dir.path(), &format!("score m.gguf --experts {TEXT}"));
    let blocks = scored["expert_scores"].as_array().unwrap();
    assert_eq!(blocks.len(), 4);
    // The same windows go through blocks either way.
    let plain = json(dir.path(), &format!("score m.gguf {TEXT}"));
    assert_eq!((&plain["blocks"], &plain["expert_scores"]), (&scored["blocks"], &Value::Null));
    for (line, by) in [
        ("--drop-experts 2 --effort quick", "reap"),
        ("--drop-experts 40% --experts-by frequency", "frequency"),
        ("--drop-experts 2 --experts-by gate --blocks 1", "gate"),
        ("--drop-experts 2 --experts-by contribution", "contribution"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method bi", "reap"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method auto", "reap"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method search", "reap"),
    ] {
        let out = json(dir.path(), &format!("m.gguf {line} -o out.gguf --force {TEXT}"));
        assert_eq!(out["expert_scores"], scored["expert_scores"], "{line}");
        let experts = &out["experts"];
        assert_eq!((&experts["method"], &experts["kept_count"]), (&by.into(), &4.into()), "{line}");
        assert_eq!((&out["experts_chosen_by"], &out["experts_auto"]), (&Value::Null, &Value::Null), "{line}");
        let kept = experts["kept"].as_object().unwrap();
        let removed: Vec<u64> =
            out["removed"].as_array().unwrap().iter().map(|block| block.as_u64().unwrap()).collect();
        assert_eq!(kept.len() + removed.len(), 4, "{line}");
        for (block, kept) in kept {
            let of_block = &blocks[block.parse::<usize>().unwrap()]["experts"];
            let of = |expert: u64, by: &str| of_block[expert as usize][by].as_f64().unwrap();
            let score = |expert: u64| match by {
                "contribution" => of(expert, "reap") * of(expert, "frequency"),
                by => of(expert, by),
            };
            let kept: Vec<u64> = kept.as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect();
            let gone = (0..6).filter(|expert| !kept.contains(expert));
            let highest_gone = gone.map(score).fold(0.0, f64::max);
            assert!(kept.iter().all(|expert| score(*expert) >= highest_gone), "{line}");
        }
        let verified = json(dir.path(), "verify out.gguf --parent m.gguf");
        assert_eq!((&verified["verified"], &verified["experts"]), (&true.into(), experts), "{line}");
        // What is left can be evaluated.
        let evaluated = json(dir.path(), "eval out.gguf --tokens 64 --window 32");
        assert!(evaluated["perplexity"].as_f64().unwrap().is_finite(), "{line}");
    }
}

/// Windows that are scored, and those that there are after them.
const N_SCORED: usize = 12;
const N_AFTER: usize = 5;

/// A folder with that mixture, and a text of one-byte tokens.
fn folder_with_text() -> tempfile::TempDir {
    let dir = folder();
    byte_text::write(dir.path(), N_SCORED + N_AFTER);
    dir
}

#[test]
fn by_default_those_go_that_cost_least_on_text_that_chose_nothing() {
    let folder = folder_with_text();
    let dir = folder.path();
    let mut n_rivals = 0;
    for line in ["--drop-experts 2", "--drop-experts 50% --blocks 1"] {
        let found = json(dir, &format!("m.gguf {line} -o out.gguf --force {}", text(N_SCORED)));
        let auto = &found["experts_auto"];
        assert_eq!((&found["experts_chosen_by"], &auto["fallback"]), (&"auto".into(), &Value::Null));
        // The second run takes the scores of the first.
        assert_eq!(found["calibration"]["cached"], line != "--drop-experts 2");
        let candidates = auto["candidates"].as_array().unwrap();
        let chosen: Vec<&Value> = candidates.iter().filter(|one| one["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(found["experts"]["method"], chosen[0]["methods"][0]);
        assert_eq!(found["experts"]["kept"], without(&chosen[0]["kept"], &found["removed"]));
        for by in ["reap", "frequency", "contribution"] {
            let alone = json(dir, &format!("m.gguf {line} --experts-by {by} --dry-run {}", text(N_SCORED)));
            let of = |one: &&Value| one["methods"].as_array().unwrap().contains(&by.into());
            let of: Vec<&Value> = candidates.iter().filter(of).collect();
            assert_eq!(of.len(), 1, "{by}");
            assert_eq!(without(&of[0]["kept"], &found["removed"]), alone["experts"]["kept"], "{by}");
        }
        if candidates.len() < 2 {
            continue;
        }
        n_rivals += 1;
        let n_windows = auto["windows"].as_u64().unwrap() as usize;
        assert!(n_windows > 1 && auto["seen_windows"] == 0, "{auto}");
        let n_evaluations = auto["block_evaluations"].as_u64().unwrap() as usize;
        assert!(2 * n_evaluations <= 3 * N_SCORED * 4, "{n_evaluations}");
        let kl = |one: &Value| one["kl_divergence"].as_f64().unwrap();
        assert_eq!(kl(chosen[0]), candidates.iter().map(kl).fold(f64::MAX, f64::min));
        let blocks = if line.contains("--blocks 1") { "--blocks 1" } else { "" };
        for one in candidates {
            std::fs::write(dir.join("kept.json"), one["kept"].to_string()).unwrap();
            json(dir, &format!("m.gguf --experts kept.json {blocks} -o one.gguf --force"));
            let (scored, n_scored) = sum_of_kl(dir, "one.gguf", N_SCORED);
            let (all, n_all) = sum_of_kl(dir, "one.gguf", N_SCORED + n_windows);
            let expected = (all - scored) / (n_all - n_scored);
            assert!((kl(one) / expected - 1.0).abs() < 1e-6, "{one} {expected}");
        }
        let verified = json(dir, "verify out.gguf --parent m.gguf");
        assert_eq!((&verified["verified"], &verified["experts"]), (&true.into(), &found["experts"]));
        let table = on_one_thread(dir, &format!("m.gguf {line} --dry-run {}", text(N_SCORED)));
        let table = String::from_utf8(table.stdout).unwrap();
        let best = chosen[0]["methods"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let costs = format!(" windows that chose nothing; {} evaluations", auto["block_evaluations"]);
        let first =
            format!("block\n         by {}: KL {:.4}", best.collect::<Vec<_>>().join(", "), kl(chosen[0]));
        assert!(table.contains(&costs) && table.contains(&first), "{table}");
    }
    assert!(n_rivals > 0);
}

/// Lists of experts without those of the removed blocks.
fn without(kept: &Value, removed: &Value) -> Value {
    let mut kept = kept.as_object().unwrap().clone();
    for block in removed.as_array().unwrap() {
        kept.remove(&block.to_string());
    }
    Value::Object(kept)
}

#[test]
fn where_sets_cannot_be_compared_reap_chooses_and_that_is_said() {
    let dir = folder();
    let limit = memory(dir.path(), Size { gathers: EXPERTS, n_windows: 6, ..SHORT });
    let line = "m.gguf --drop-experts 2 --dry-run --tokens 192 --window 32 --convert none";
    let alone = json(dir.path(), &format!("{line} --experts-by reap"));
    let output = on_one_thread(dir.path(), &format!("{line} --memory {limit} --no-cache --json -"));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let why = "there is no memory for the whole model and a smaller one beside it";
    assert_eq!((&found["experts_auto"]["fallback"], &found["experts"]), (&why.into(), &alone["experts"]));
    assert_eq!(found["experts_auto"]["windows"], 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("experts are chosen by reap alone, since {why}")), "{said}");
}

#[test]
fn rows_of_fewer_experts_are_those_of_the_main_job() {
    let dir = folder();
    let dir = dir.path();
    let text = "--tokens 96 --window 32";
    let by = "--choose-tokens 96";
    let line =
        format!("compare m.gguf --drop-experts 2,50%,3,5 --drop 1 --requantize Q8_0 --mixed {by} {text}");
    let output = on_one_thread(dir, &format!("{line} --json -"));
    // One number is not possible.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let expected = [
        "m.gguf",
        "1 block fewer",
        "2 experts fewer",
        "3 experts fewer",
        "5 experts fewer",
        "1 block fewer, Q8_0",
        "2 experts fewer, Q8_0",
        "3 experts fewer, Q8_0",
        "5 experts fewer, Q8_0",
        "Q8_0",
    ];
    assert_eq!(names, expected);
    for (number, n) in [(2, 2), (3, 3)] {
        let row = &rows[number];
        let made = json(dir, &format!("m.gguf --drop-experts {n} --tokens 96 -o short.gguf --force"));
        assert_eq!((&row["kind"], &row["experts"]), (&"experts".into(), &made["experts"]));
        assert_eq!((&row["removed"], &row["method"]), (&Value::Null, &Value::Null));
        let costs = |auto: &Value| auto["candidates"].clone();
        assert_eq!(costs(&row["experts_auto"]), costs(&made["experts_auto"]));
        let eval = json(dir, &format!("eval short.gguf --parent m.gguf {text}"));
        for key in ["perplexity", "kl_divergence", "same_top"] {
            assert_eq!(row[key], eval[key], "{key}");
        }
        assert_eq!(
            (&row["bytes"], &row["parameters"]),
            (&eval["model"]["bytes"], &eval["model"]["parameters"])
        );
        let mixed = &rows[number + 4];
        assert_eq!((&mixed["kind"], &mixed["experts"]), (&"mixed".into(), &made["experts"]));
        assert!(mixed["bytes"].as_u64() < row["bytes"].as_u64());
    }
    let why = "m.gguf: cannot keep 1 of 6 experts: 2 are used at once";
    assert_eq!((&rows[4]["error"], &rows[8]["error"]), (&why.into(), &why.into()));
    assert_eq!((&found["choice"]["experts_by"], &rows[1]["experts"]), (&"auto".into(), &Value::Null));
    let shown = on_one_thread(dir, &format!("compare m.gguf --drop-experts 2 --experts-by gate {by} {text}"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "experts  2 experts fewer: 4 of 6 stay in each of 4 blocks, by gate",
        "verdict  no verdict: only rows with fewer experts were measured",
        "so fewer blocks or experts look better here",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    Spec::new("llama", 5).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let error = failure(dir, "compare m.gguf --drop-experts 2");
    assert!(error.contains("m.gguf: has no experts to remove"), "{error}");
}

#[test]
fn scores_of_experts_go_on_after_an_interrupt_and_within_a_memory() {
    let dir = folder();
    let text = "--tokens 192 --window 32 --no-cache";
    let whole = json(dir.path(), &format!("score m.gguf --experts {text} --convert none"));
    let limit = memory(dir.path(), Size { gathers: EXPERTS, n_windows: 6, ..SHORT });
    for more in ["", "--scratch s", "--imatrix-out i.gguf"] {
        let found = json(
            dir.path(),
            &format!("score m.gguf --experts {text} --convert none --memory {limit} {more}"),
        );
        assert_eq!(found["expert_scores"], whole["expert_scores"], "{more}");
    }
}

/// What is added up for scores of experts.
const EXPERTS: Gathers = Gathers { imatrix: false, experts: true };

#[test]
fn models_without_experts_to_score_are_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, line: &str, reason: &str| {
        Spec::new(name, 5).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
        let error = failure(dir.path(), line);
        assert!(error.contains(reason), "{error}");
    };
    let lines = ["score m.gguf --experts", "m.gguf --drop-experts 1 -o out.gguf"];
    for line in lines {
        refused("llama", line, "has no experts to remove");
        refused("grovemoe", line, "experts of architecture 'grovemoe' cannot be removed");
        refused("deepseek4", line, "block 0 has a table of the experts of each token");
    }
    refused(
        "qwen3moe",
        "m.gguf --drop-experts 3 -o out.gguf",
        "cannot keep 1 of 4 experts: 2 are used at once",
    );
    refused(
        "qwen3moe",
        "m.gguf --drop-experts 9 -o out.gguf",
        "cannot keep 0 of 4 experts: 2 are used at once",
    );
}
