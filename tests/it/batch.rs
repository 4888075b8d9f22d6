//! Many models in one run. What is done, what is not done again, and what a failure costs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use gguf_shorten::gguf::ValueOut;
use serde_json::Value;

use crate::make::{F32, Make, write_parts};
use crate::util::{Dir, Output, Said};

/// What all runs here have in common: no calibration.
pub const DROP: &str = "--drop 25% --method sequential --out-dir out";

/// A model like others, but not the same.
pub fn named(name: &str) -> Make {
    Make::new("llama", 8).set("general.name", ValueOut::string(name))
}

/// A folder with models of these names in `zoo`.
pub fn zoo(names: &[&str]) -> Dir {
    let dir = Dir::new();
    fs::create_dir(dir.path("zoo")).unwrap();
    for name in names {
        named(name).write(&dir, &format!("zoo/{name}.gguf"));
    }
    dir
}

/// The lines of a results file.
pub fn lines(dir: &Dir, name: &str) -> Vec<Value> {
    let text = String::from_utf8(dir.read(name)).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a batch that must end with this status and these counts. They are in its last line but one.
#[track_caller]
pub fn batch<'d>(dir: &'d Dir, arguments: &str, status: i32, counts: &str) -> Output<'d> {
    let output = dir.run(&format!("batch {arguments}")).output();
    output.check(output.status.code() == Some(status), &format!("status {status}"));
    let line = output.stdout.lines().find(|l| l.starts_with("batch "));
    let ends = line.is_some_and(|line| line.ends_with(&format!(": {counts}")));
    output.check(ends, &format!("the counts {counts}"));
    output
}

/// The error of the model whose output has this name.
pub fn error_of(lines: &[Value], output: &str) -> String {
    let line = lines.iter().find(|l| l["batch"]["output"] == output);
    let line = line.unwrap_or_else(|| panic!("no line for {output}"));
    line["error"].as_str().unwrap_or("none").to_owned()
}

#[test]
fn every_model_gets_what_the_main_job_gives_it_alone() {
    let dir = zoo(&["a", "b"]);
    write_parts(&dir, &named("c").split(3));
    batch(&dir, &format!("zoo m-00002-of-00003.gguf {DROP}"), 0, "3 done");
    let all = lines(&dir, "out/results.jsonl");
    assert_eq!(all.len(), 3);
    for (line, (model, output)) in all.iter().zip([
        ("zoo/a.gguf", "a-drop25pct.gguf"),
        ("zoo/b.gguf", "b-drop25pct.gguf"),
        ("m-00001-of-00003.gguf", "m-drop25pct.gguf"),
    ]) {
        let alone = format!("{model} --drop 25% --method sequential -o alone.gguf --force --json -");
        let alone = dir.run(&alone).succeeds();
        let mut alone: Value = serde_json::from_str(&alone.stdout).unwrap();
        let out = format!("out/{output}");
        assert!(dir.read(&out) == dir.read("alone.gguf"), "{model}");
        // The same fields and values, but for command line, place and duration.
        let mut line = line.clone();
        assert_eq!(line["output"]["path"], out);
        for result in [&mut line, &mut alone] {
            for field in ["path", "seconds", "parts"] {
                result["output"][field].take();
            }
            assert!(!result["arguments"].take().as_array().unwrap().is_empty());
        }
        let line = line.as_object_mut().unwrap();
        assert_eq!(line.remove("error"), Some(Value::Null));
        let run = line.remove("batch").unwrap();
        assert_eq!(run["state"], "done");
        assert_eq!(run["output"], output);
        assert_eq!(Value::Object(line.clone()), alone);
    }
}

#[test]
fn a_second_run_does_nothing_and_redo_does_it_again() {
    let dir = zoo(&["a", "b"]);
    batch(&dir, &format!("zoo {DROP}"), 0, "2 done");
    let inode = || fs::metadata(dir.path("out/a-drop25pct.gguf")).unwrap().ino();
    let (first, bytes) = (inode(), dir.read("out/a-drop25pct.gguf"));
    // Also with more threads, and under another name of the folder.
    batch(&dir, &format!("./zoo/ {DROP} --threads 2"), 0, "2 done before");
    assert_eq!(inode(), first);
    batch(&dir, &format!("zoo {DROP} --redo"), 0, "2 done");
    assert_ne!(inode(), first);
    assert!(dir.read("out/a-drop25pct.gguf") == bytes);
    assert_eq!(lines(&dir, "out/results.jsonl").len(), 2);
    // The whole folder can be moved.
    fs::create_dir(dir.path("elsewhere")).unwrap();
    fs::rename(dir.path("out"), dir.path("elsewhere/out")).unwrap();
    let moved = DROP.replace("--out-dir out", "--out-dir elsewhere/out");
    batch(&dir, &format!("zoo {moved}"), 0, "2 done before");
}

#[test]
fn what_has_changed_is_done_again_and_nothing_else() {
    let dir = zoo(&["a", "b", "c"]);
    let all = format!("zoo {DROP}");
    batch(&dir, &all, 0, "3 done");
    // Another time is no other content.
    let times = dir.sh("touch -d 2001-01-01 zoo/a.gguf");
    times.succeeds();
    batch(&dir, &all, 0, "3 done before");
    // Other content of the same size, with the time put back.
    dir.sh("cp -p zoo/a.gguf time").succeeds();
    let mut bytes = dir.read("zoo/a.gguf");
    *bytes.last_mut().unwrap() ^= 1;
    dir.write("zoo/a.gguf", &bytes);
    dir.sh("touch -r time zoo/a.gguf").succeeds();
    fs::remove_file(dir.path("out/b-drop25pct.gguf")).unwrap();
    batch(&dir, &all, 0, "2 done, 1 done before");
    let alone = dir.run("zoo/a.gguf --drop 25% --method sequential -o alone.gguf");
    alone.succeeds();
    assert!(dir.read("out/a-drop25pct.gguf") == dir.read("alone.gguf"));
    // Other options, under the same name; another version.
    let other = all.replace("sequential", "reverse");
    batch(&dir, &other, 0, "3 done");
    batch(&dir, &other, 0, "3 done before");
    let text = String::from_utf8(dir.read("out/results.jsonl")).unwrap();
    let version = format!("\"gguf_shorten\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let older = text.replacen(&version, "\"gguf_shorten\":\"0.0.1\"", 1);
    assert_ne!(older, text);
    dir.write("out/results.jsonl", older.as_bytes());
    batch(&dir, &other, 0, "1 done, 2 done before");
}

#[test]
fn an_output_that_is_not_the_batchs_own_is_not_replaced() {
    let dir = zoo(&["a", "b"]);
    fs::create_dir(dir.path("out")).unwrap();
    dir.write("out/a-drop25pct.gguf", b"precious");
    let all = format!("zoo {DROP}");
    batch(&dir, &all, 1, "1 done, 1 failed");
    let found = lines(&dir, "out/results.jsonl");
    assert_eq!(error_of(&found, "a-drop25pct.gguf"), "out/a-drop25pct.gguf: exists already");
    assert_eq!(dir.read("out/a-drop25pct.gguf"), b"precious");
    // A file that somebody changed or put there is not the batch's.
    let mut bytes = dir.read("out/b-drop25pct.gguf");
    *bytes.last_mut().unwrap() ^= 1;
    dir.write("out/b-drop25pct.gguf", &bytes);
    batch(&dir, &format!("{all} --redo"), 1, "2 failed");
    assert!(dir.read("out/b-drop25pct.gguf") == bytes);
    batch(&dir, &format!("{all} --force"), 0, "2 done");
}

#[test]
fn a_failure_costs_one_model_and_is_tried_again() {
    let dir = zoo(&["a", "b", "c", "d"]);
    let whole = dir.read("zoo/b.gguf");
    dir.write("zoo/b.gguf", &whole[..500]);
    dir.write("zoo/c.gguf", b"Dear reader");
    std::os::unix::fs::symlink("nowhere", dir.path("zoo/e.gguf")).unwrap();
    Make::new("unheard-of", 4).write(&dir, "zoo/f.gguf");
    let all = format!("zoo {DROP} --jobs 3");
    let output = batch(&dir, &all, 1, "2 done, 4 failed");
    output.check(
        output.stderr.ends_with("gguf-shorten: 4 of 6 models failed\n"),
        "the number of those that failed",
    );
    let found = lines(&dir, "out/results.jsonl");
    let error = |name: &str| error_of(&found, &format!("{name}-drop25pct.gguf"));
    assert!(error("b").contains("file ends at byte 500"), "{}", error("b"));
    assert_eq!(error("c"), "zoo/c.gguf: not a GGUF file: starts with 'Dear', expected 'GGUF'");
    assert!(error("e").starts_with("zoo/e.gguf: No such file"), "{}", error("e"));
    assert!(error("f").contains("unheard-of"), "{}", error("f"));
    for name in ["b", "c", "e", "f"] {
        let why = error(name).replacen(&format!("zoo/{name}.gguf: "), "", 1);
        let said = format!("failed   zoo/{name}.gguf: {why}\n");
        output.check(output.stdout.contains(&said), "the reason in the table");
        output.check(!dir.exists(&format!("out/{name}-drop25pct.gguf")), "no output");
    }
    // A failed line has all fields of the others; one has a hint.
    let done = found.iter().find(|line| line["error"].is_null()).unwrap();
    let keys = |line: &Value| -> Vec<String> { line.as_object().unwrap().keys().cloned().collect() };
    for line in &found {
        assert_eq!(keys(line), keys(done));
        assert_eq!(keys(&line["model"]), keys(&done["model"]));
        assert_eq!(keys(&line["batch"]), keys(&done["batch"]));
    }
    let hints = found.iter().filter(|line| !line["batch"]["hint"].is_null());
    assert!(hints.count() >= 1);
    dir.write("zoo/b.gguf", &whole);
    fs::remove_file(dir.path("zoo/c.gguf")).unwrap();
    batch(&dir, &all, 1, "1 done, 2 done before, 2 failed");
}

#[test]
fn tables_give_single_models_other_options() {
    let dir = zoo(&["a", "b", "c"]);
    dir.write(
        "zoo.toml",
        b"['a.gguf']\nblocks = [1, 3]\n['zoo/b*']\ndrop = 3\nmethod = 'reverse'\noutput = 'other.gguf'\n['x']\ndrop = 1\n",
    );
    let output = batch(&dir, &format!("zoo {DROP} --config zoo.toml"), 0, "3 done");
    output.check(
        output.stderr.contains("note: zoo.toml:7: 'x' is for none of the models\n"),
        "a note of the table for no model",
    );
    let removed: Vec<String> = lines(&dir, "out/results.jsonl")
        .iter()
        .map(|line| format!("{} {}", line["batch"]["output"], line["removed"]))
        .collect();
    assert_eq!(removed, ["\"a-short.gguf\" [1,3]", "\"other.gguf\" [0,1,2]", "\"c-drop25pct.gguf\" [6,7]"]);
    // A path in the file counts from the file's folder; a table that changes is done again.
    dir.write("zoo.toml", b"['*.gguf']\ndrop = 2\nmethod = 'sequential'\n");
    let drop = DROP.replace("--drop 25% --method sequential", "--config zoo.toml");
    batch(&dir, &format!("zoo {drop}"), 0, "3 done");
    for (text, message) in [
        ("['*']\n\ndorp = 1\n", "zoo.toml:3: 'dorp' is not a flag of the main job"),
        ("['*']\ndrop = true\n", "zoo.toml:2: 'drop' needs a value"),
        (
            "['a*']\ndrop = 1\n",
            "zoo/b.gguf: the following required arguments were not provided: --drop <N|P%>",
        ),
    ] {
        dir.write("zoo.toml", text.as_bytes());
        let arguments = "batch zoo --method sequential --config zoo.toml --out-dir new";
        dir.run(arguments).fails(2, message);
    }
}

#[test]
fn outputs_in_parts_and_importance_matrices_go_the_same_way() {
    let dir = zoo(&["a"]);
    let arguments = format!("zoo {DROP} --split-max-size 500");
    batch(&dir, &arguments, 0, "1 done");
    let found = lines(&dir, "out/results.jsonl");
    let parts = found[0]["output"]["parts"].as_array().unwrap();
    assert!(parts.len() > 1);
    batch(&dir, &arguments, 0, "1 done before");
    let last = parts.last().unwrap()["path"].as_str().unwrap();
    fs::remove_file(dir.path(last)).unwrap();
    batch(&dir, &arguments, 0, "1 done");
    assert!(dir.exists(last));
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = zoo(&["a", "b"]);
    let output = batch(&dir, &format!("zoo {DROP} --dry-run"), 0, "2 done");
    output.check_untouched();
    output.check(output.stdout.contains("8 -> 6"), "what would be done");
}

#[test]
fn json_is_a_line_for_each_model_of_the_run() {
    let dir = zoo(&["a", "b"]);
    dir.write("zoo/b.gguf", b"");
    for _ in 0..2 {
        let output = dir.run(&format!("batch zoo {DROP} -q --json -")).output();
        output.check(output.status.code() == Some(1), "status 1");
        assert_eq!(output.stderr, "gguf-shorten: 1 of 2 models failed\n");
        let found: Vec<Value> =
            output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found, lines(&dir, "out/results.jsonl"));
    }
    batch(&dir, &format!("zoo {DROP} --json j.jsonl"), 1, "1 done before, 1 failed");
    assert_eq!(lines(&dir, "j.jsonl"), lines(&dir, "out/results.jsonl"));
}

#[test]
fn every_model_is_one_tasks() {
    let names: Vec<String> = (0..14).map(|i| format!("m{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let dir = zoo(&names);
    dir.write("zoo/bad.gguf", b"not a model");
    let children: Vec<_> =
        (1..=3).map(|i| dir.run(&format!("batch zoo {DROP} --task {i}/3")).spawn()).collect();
    let n_failed = children
        .into_iter()
        .filter(|_| true)
        .map(|child| child.wait_with_output().unwrap())
        .filter(|output| !output.status.success())
        .count();
    assert_eq!(n_failed, 1, "one task has the file that is no model");
    let shares: Vec<BTreeSet<String>> = (1..=3)
        .map(|i| {
            let lines = lines(&dir, &format!("out/results-{i}-of-3.jsonl"));
            let path = |line: &Value| line["model"]["path"].as_str().unwrap().to_owned();
            lines.iter().map(path).collect()
        })
        .collect();
    let total: usize = shares.iter().map(BTreeSet::len).sum();
    assert_eq!(total, 15);
    assert_eq!(shares.iter().flatten().collect::<BTreeSet<_>>().len(), 15);
    assert!(shares.iter().all(|share| !share.is_empty()));
    // By content: in another folder, under other names, beside others.
    fs::create_dir(dir.path("other")).unwrap();
    for path in &shares[0] {
        let name = path.replace("zoo/", "other/z");
        fs::copy(dir.path(path), dir.path(&name)).unwrap();
    }
    named("new").write(&dir, "other/new.gguf");
    let variables =
        "SLURM_ARRAY_TASK_ID=4 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=4 SLURM_ARRAY_TASK_MAX=6";
    let drop = DROP.replace("--out-dir out", "--out-dir copy");
    let output = dir.sh(&format!("{variables} $PROGRAM batch other {drop} --json -")).output();
    let found = output.stdout.lines().count();
    let n = shares[0].len();
    output.check(found == n || found == n + 1, "the same share");
    assert!(dir.exists("copy/results-1-of-3.jsonl"));
    // What tasks have done is done.
    fs::remove_file(dir.path("zoo/bad.gguf")).unwrap();
    batch(&dir, &format!("zoo {DROP}"), 0, "14 done before");
}

#[test]
fn arguments_that_do_not_fit_are_refused_before_the_work() {
    let dir = zoo(&["a"]);
    let mut said = Said::default();
    for (code, arguments) in [
        (2, "zoo --out-dir out"),
        (2, "zoo --drop 1 --out-dir out --jobs 0"),
        (2, "zoo --drop 1 --out-dir out --tokens 0"),
        (2, "zoo --drop 1 --out-dir out --task 3/2"),
        (2, "zoo --drop 1 --out-dir out --suffix /../x"),
        (1, "zoo --drop 1 --out-dir zoo/a.gguf"),
        (1, "zoo --drop 1 --out-dir out --results zoo/a.gguf"),
        (1, "zoo --drop 1 --out-dir out --json zoo/a.gguf"),
        (1, "zoo --drop 1 --out-dir zoo --suffix="),
    ] {
        said.refused(arguments, dir.run(&format!("batch {arguments}")), code);
    }
    said.compare("batch-arguments.txt");
}

#[test]
fn a_results_file_with_other_lines_is_refused_and_kept() {
    let dir = zoo(&["a"]);
    for (text, message) in [
        ("notes\n", "notes.txt:1: is no JSON object"),
        ("{}\n", "notes.txt:1: is no result of a batch: it has no 'batch'"),
    ] {
        dir.write("notes.txt", text.as_bytes());
        fs::create_dir_all(dir.path("out")).unwrap();
        dir.run(&format!("batch zoo {DROP} -q --results notes.txt")).fails(1, message);
    }
}

#[test]
fn room_on_the_disk_is_left_as_asked() {
    let dir = zoo(&["a"]);
    let output = dir.run("zoo/a.gguf --blocks 1 -o out.gguf --min-free 90000T");
    let output = output.refused();
    output.check(
        output.error().starts_with("out.gguf: nothing was written: No space left on device: "),
        "the reason",
    );
    batch(&dir, &format!("zoo {DROP} --min-free 90000T"), 1, "1 failed");
    dir.run("zoo/a.gguf --blocks 1 -o out.gguf --min-free 1").succeeds();
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_half_way_costs_those_that_do_not_fit() {
    let dir = Dir::new();
    fs::create_dir(dir.path("zoo")).unwrap();
    fs::create_dir(dir.path("out")).unwrap();
    for i in 0..6 {
        let name = format!("m{i}");
        (0..8)
            .fold(named(&name), |make, block| {
                make.tensor(&format!("blk.{block}.large.weight"), &[1 << 15], F32)
            })
            .write(&dir, &format!("zoo/{name}.gguf"));
    }
    // Only a new name space may allow a mount without rights.
    let mount = "unshare --user --map-root-user --mount";
    let small = "mount -t tmpfs -o size=3m none out";
    if !dir.sh(&format!("{mount} sh -c '{small}'")).output().status.success() {
        return;
    }
    let run = format!("$PROGRAM batch zoo {DROP} --min-free 256KiB -q");
    let script = format!(
        "{small}; {run} >first; echo status $?; ls -A out; cat out/results.jsonl >results; \
         mount -o remount,size=20m out; {run} >second; echo status $?; ls -A out"
    );
    let output = dir.sh(&format!("exec {mount} sh -c '{script}'")).output();
    let (first, second) = output.stdout.split_at(output.stdout.rfind("status").unwrap());
    let n = |text: &str| text.matches("-drop25pct.gguf\n").count();
    let n_first = n(first);
    output.check(n_first == 3 && first.starts_with("status 1\n"), "three of six at first");
    output.check(n(second) == 6 && second.starts_with("status 0\n"), "all of them then");
    output.check(!output.stdout.contains(".tmp"), "nothing half done");
    let found = lines(&dir, "results");
    assert_eq!(found.len(), 6, "no result is lost");
    let full = |line: &&Value| line["error"].as_str().is_some_and(|e| e.contains("No space left"));
    assert_eq!(found.iter().filter(full).count(), 3);
    let second = String::from_utf8(dir.read("second")).unwrap();
    assert!(second.contains(": 3 done, 3 done before\n"), "{second}");
}
