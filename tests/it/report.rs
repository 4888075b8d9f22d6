//! What the program says of its work: tables, JSON, status, help.

use std::collections::BTreeSet;

use gguf_shorten::gguf::ValueOut;
use serde_json::Value;

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 4).dir()
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The keys of the contract, all there and no less.
#[track_caller]
fn check_shape(json: &Value) {
    let has = |object: &Value, names: &[&str]| {
        let missing: Vec<_> = names.iter().filter(|name| !keys(object).contains(*name)).collect();
        assert!(missing.is_empty(), "{missing:?} not in {object}");
    };
    has(
        json,
        &["gguf_shorten", "llama_cpp", "model", "calibration", "method", "blocks", "removed", "output"],
    );
    has(&json["model"], &["path", "architecture", "block_count", "bytes", "parameters", "blake3"]);
    for block in json["blocks"].as_array().unwrap() {
        has(block, &["block", "bi", "bi_stderr", "relative_magnitude", "removed"]);
    }
    has(&json["output"], &["path", "block_count", "bytes", "parameters", "blake3", "seconds"]);
}

#[test]
fn the_json_is_the_contract() {
    let dir = dir();
    let output = dir.run("m.gguf --blocks 1,3 -o out.gguf --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    check_shape(&json);
    assert_eq!(json["gguf_shorten"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["llama_cpp"], ggml::backend::llama_cpp_version());
    assert_eq!(json["calibration"], Value::Null);
    assert_eq!(json["method"], "blocks");
    assert_eq!(json["removed"], serde_json::json!([1, 3]));

    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    let model = &json["model"];
    assert_eq!(model["path"], "m.gguf");
    assert_eq!(model["architecture"], "llama");
    assert_eq!(model["block_count"], 4);
    assert_eq!(model["bytes"], parent.len());
    assert_eq!(model["parameters"], 1024 + 4 * (32 + 96 + 15) + 32);
    assert_eq!(model["blake3"], blake3::hash(&parent).to_hex().as_str());
    let output = &json["output"];
    assert_eq!(output["path"], "out.gguf");
    assert_eq!(output["block_count"], 2);
    assert_eq!(output["bytes"], out.len());
    assert_eq!(output["parameters"], 1024 + 2 * (32 + 96 + 15) + 32);
    assert_eq!(output["blake3"], blake3::hash(&out).to_hex().as_str());
    assert!(output["seconds"].as_f64().unwrap() >= 0.0);

    let blocks = json["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 4);
    for (i, block) in blocks.iter().enumerate() {
        assert_eq!(block["block"], i);
        assert_eq!(block["bi"], Value::Null);
        assert_eq!(block["relative_magnitude"], Value::Null);
        assert_eq!(block["removed"], i % 2 == 1);
    }
}

#[test]
fn json_goes_to_a_file_beside_the_table() {
    let dir = dir();
    let output = dir.run("m.gguf --blocks 1 -o out.gguf --json result.json").succeeds();
    assert!(output.stdout.contains("removed  1 (1 of 4 blocks, as listed)"));
    assert_eq!(dir.names(), ["m.gguf", "out.gguf", "result.json"]);
    let json: Value = serde_json::from_slice(&dir.read("result.json")).unwrap();
    check_shape(&json);
    // A result is replaced, not appended to.
    dir.run("m.gguf --blocks 1,2 --dry-run --json result.json").succeeds();
    let json: Value = serde_json::from_slice(&dir.read("result.json")).unwrap();
    assert_eq!(json["removed"], serde_json::json!([1, 2]));
}

#[test]
fn a_dry_run_says_all_and_writes_nothing() {
    let dir = dir();
    let before = dir.names();
    for arguments in [
        "m.gguf --blocks 1 --dry-run",
        "m.gguf --blocks 1 --dry-run -o out.gguf",
        "m.gguf --drop 50% --method reverse --dry-run -o missing/out.gguf",
        // An obstacle does not matter to a run that writes nothing.
        "m.gguf --blocks 1 --dry-run -o m.gguf",
    ] {
        let output = dir.run(arguments).succeeds();
        assert!(output.stdout.contains("removed  "), "{}", output.stdout);
        output.check_untouched();
        assert_eq!(dir.names(), before);
    }
    let output = dir.run("m.gguf --blocks 1 --dry-run --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    check_shape(&json);
    for key in ["path", "blake3", "seconds"] {
        assert_eq!(json["output"][key], Value::Null, "{key}");
    }
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    assert_eq!(json["output"]["bytes"], dir.read("out.gguf").len());
}

#[test]
fn quiet_and_plain_runs_say_nothing_on_stderr() {
    let dir = dir();
    let plain = dir.run("m.gguf --blocks 1 -o a.gguf").succeeds();
    let quiet = dir.run("m.gguf --blocks 1 -o b.gguf -q").succeeds();
    // Without a terminal there is no colour.
    assert!(!plain.stdout.contains('\u{1b}'));
    assert_eq!(plain.stdout.lines().next(), quiet.stdout.lines().next());
    dir.run("m.gguf --blocks 1 -o c.gguf -v").succeeds();
}

#[test]
fn the_table_names_input_removed_blocks_and_output() {
    let dir = Make::new("llama", 9).dir();
    let output = dir.run("m.gguf --blocks 1-3,5,7,8 -o out.gguf").succeeds();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", output.stdout);
    assert!(lines[0].starts_with("model    m.gguf: llama, 9 blocks, 2,343 parameters, "));
    assert_eq!(lines[1], "removed  1-3,5,7-8 (6 of 9 blocks, as listed)");
    assert!(lines[2].starts_with("output   out.gguf: 3 blocks, 1,485 parameters, "));
}

#[test]
fn a_closed_pipe_ends_the_main_job_quietly() {
    let dir = dir();
    let output =
        dir.sh("{ sleep 0.2; $PROGRAM m.gguf --blocks 1 -o out.gguf; echo status $? >&2; } | true").output();
    assert_eq!(output.stderr, "status 0\n");
    assert!(dir.exists("out.gguf"));
}

#[test]
fn arguments_that_do_not_fit_are_status_2() {
    let dir = dir();
    for arguments in [
        "m.gguf -o out.gguf",
        "m.gguf --drop 1",
        "--drop 1 -o out.gguf",
        "m.gguf --drop 0 -o out.gguf",
        "m.gguf --drop -1 -o out.gguf",
        "m.gguf --drop nine -o out.gguf",
        "m.gguf --drop 1.5 -o out.gguf",
        "m.gguf --drop 0% -o out.gguf",
        "m.gguf --drop 100% -o out.gguf",
        "m.gguf --drop 18446744073709551616 -o out.gguf",
        "m.gguf --drop 1 --blocks 1 -o out.gguf",
        "m.gguf --blocks 1 --keep 2 -o out.gguf",
        "m.gguf --blocks 1 --method reverse -o out.gguf",
        "m.gguf --blocks 3-1 -o out.gguf",
        "m.gguf --blocks one -o out.gguf",
        "m.gguf --blocks 1, -o out.gguf",
        "m.gguf --drop 1 --keep x -o out.gguf",
        "m.gguf --drop 1 --method best -o out.gguf",
        "m.gguf --drop 1 --heal magic -o out.gguf",
        "m.gguf --drop 1 --tokens 10 --window 20 -o out.gguf",
        "m.gguf --drop 1 --window 0 -o out.gguf",
        "m.gguf --drop 1 --threads 0 -o out.gguf",
        "m.gguf --blocks 1 -q -v -o out.gguf",
        "m.gguf other.gguf --blocks 1 -o out.gguf",
        "m.gguf --blocks 1 --unknown -o out.gguf",
        "show",
        "score",
        "completions klingon",
    ] {
        let output = dir.run(arguments).refused();
        output.check(output.status.code() == Some(2), "status 2");
    }
    let output = dir.run_with(["m.gguf", "--blocks", "", "-o", "out.gguf"]).refused();
    output.check(output.status.code() == Some(2), "status 2");
}

#[test]
fn a_wrong_number_says_what_is_expected() {
    let dir = dir();
    dir.run("m.gguf --drop nine -o out.gguf")
        .fails(2, "invalid value 'nine' for '--drop <N|P%>': expected a number of blocks");
    dir.run("m.gguf --drop 0 -o out.gguf")
        .fails(2, "invalid value '0' for '--drop <N|P%>': at least one block has to go");
}

#[test]
fn no_arguments_show_the_help_as_an_error() {
    let dir = Dir::new();
    let output = dir.run("").output();
    output.check(output.status.code() == Some(2), "status 2");
    output.check(output.stdout.is_empty(), "nothing on stdout");
    output.check(output.stderr.contains("Usage: gguf-shorten"), "how it is used");
}

#[test]
fn help_version_completions_and_manual_go_to_stdout() {
    let dir = Dir::new();
    for (arguments, text) in [
        ("--help", "--drop"),
        ("-h", "--blocks"),
        ("help", "completions"),
        ("show --help", "--diffable"),
        ("--version", concat!("gguf-shorten ", env!("CARGO_PKG_VERSION"))),
        ("-V", "gguf-shorten "),
        ("completions bash", "complete -F _gguf"),
        ("completions zsh", "#compdef gguf-shorten"),
        ("completions fish", "complete -c gguf-shorten"),
        ("man", concat!(".TH gguf-shorten 1  \"gguf-shorten ", env!("CARGO_PKG_VERSION"))),
    ] {
        let output = dir.run(arguments).succeeds();
        output.check(output.stdout.contains(text), text);
    }
}

#[test]
fn the_bash_completion_knows_the_options_of_every_command() {
    let script = Dir::new().run("completions bash").succeeds().stdout;
    let states: BTreeSet<&str> = script
        .lines()
        .filter_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix('"'))
        .filter(|state| !state.is_empty())
        .collect();
    assert!(states.len() > 5, "{states:?}");
    for state in states {
        assert!(script.contains(&format!("\n        {state})\n")), "{state}");
    }
}

#[test]
fn an_error_that_nobody_reads_keeps_its_status() {
    let dir = Dir::new();
    for arguments in ["show missing.gguf", "show"] {
        let output = dir
            .sh(&format!(
                "{{ {{ sleep 0.2; $PROGRAM {arguments} 2>&1; echo status $? >&3; }} | true; }} 3>&1"
            ))
            .output();
        let status = if arguments == "show" { 2 } else { 1 };
        assert_eq!(output.stdout, format!("status {status}\n"));
    }
}

#[test]
fn the_version_names_the_bundled_llama_cpp() {
    let dir = Dir::new();
    let output = dir.run("--version").succeeds();
    output.check(
        output.stdout.contains("llama.cpp") && output.stdout.contains(ggml::backend::llama_cpp_version()),
        "the version of llama.cpp",
    );
}

#[test]
fn json_never_takes_the_place_of_a_model() {
    let dir = dir();
    std::fs::hard_link(dir.path("m.gguf"), dir.path("link.gguf")).unwrap();
    for json in ["m.gguf", "./m.gguf", "link.gguf"] {
        for command in [
            format!("m.gguf --blocks 1 -o out.gguf --json {json}"),
            format!("m.gguf --blocks 1 --dry-run --json {json}"),
            format!("show m.gguf --json {json}"),
        ] {
            dir.run(&command).refused();
        }
    }
    for json in ["out.gguf", "./out.gguf"] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf --json {json}"))
            .fails(1, &format!("{json}: is the output itself"));
    }
}

#[test]
fn json_that_cannot_be_written_is_known_before_the_work() {
    let dir = dir();
    std::fs::create_dir(dir.path("folder")).unwrap();
    for json in ["missing/result.json", "folder", "m.gguf/result.json"] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf --json {json}")).refused();
    }
}

#[test]
fn a_model_with_less_than_one_share_loses_one_block() {
    let dir = Make::new("llama", 2).set("llama.block_count", ValueOut::u32(2)).dir();
    let output = dir.run("m.gguf --drop 1% --method sequential --dry-run --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["removed"], serde_json::json!([1]));
    assert_eq!(json["method"], "sequential");
}
