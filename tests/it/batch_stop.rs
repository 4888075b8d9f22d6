//! Many models in one run that is stopped, or whose model is. Nothing is half done, and nothing is lost.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::batch::{DROP, batch, error_of, lines, named};
use crate::make::F32;
use crate::util::{Dir, finish, is_ignored, signal};

/// `a` and `c` are small. `b` takes long to write, though nothing of it is on disk.
fn zoo() -> Dir {
    let dir = Dir::new();
    fs::create_dir(dir.path("zoo")).unwrap();
    for name in ["a", "c"] {
        named(name).write(&dir, &format!("zoo/{name}.gguf"));
    }
    (0..8)
        .fold(named("b"), |make, block| make.tensor(&format!("blk.{block}.large.weight"), &[1 << 23], F32))
        .write_sparse(&dir, "zoo/b.gguf");
    dir
}

/// Waits until `holds` gives something.
#[track_caller]
fn wait_for<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The files that are being written.
fn unfinished(dir: &Dir) -> Vec<String> {
    let entries = fs::read_dir(dir.path("out")).into_iter().flatten();
    let names = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let large = entry.metadata().ok()?.len() > 1 << 20;
        let name = entry.file_name().into_string().ok()?;
        (large && name.starts_with(".gguf-shorten-")).then_some(name)
    });
    names.collect()
}

fn hidden(dir: &Dir) -> Vec<String> {
    let names = dir.names().into_iter();
    names.filter(|name| name.contains(".gguf-shorten-")).collect()
}

/// Starts a batch and waits until the large model is being written.
fn start(dir: &Dir) -> Child {
    let child = dir.run(&format!("batch zoo {DROP}")).spawn();
    wait_for("the large model is written", || (!unfinished(dir).is_empty()).then_some(()));
    child
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything: the state, and the parent.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1) == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

fn is_running(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_model_whose_process_is_killed_is_the_only_one_that_fails() {
    let dir = zoo();
    let child = start(&dir);
    let [process] = children(child.id())[..] else {
        panic!("one process for one model");
    };
    signal(process, "KILL");
    let output = finish(&dir, Default::default(), "batch".to_owned(), child);
    output.check(output.status.code() == Some(1), "status 1");
    output.check(hidden(&dir).is_empty(), "nothing half done");
    let found = lines(&dir, "out/results.jsonl");
    assert_eq!(
        error_of(&found, "b-drop25pct.gguf"),
        "its process was ended by signal 9 (SIGKILL), without a word"
    );
    assert_eq!(error_of(&found, "a-drop25pct.gguf"), "none");
    assert_eq!(error_of(&found, "c-drop25pct.gguf"), "none");
    output.check(output.stdout.contains("hint: a system that runs out of memory"), "a hint");
    batch(&dir, &format!("zoo {DROP}"), 0, "1 done, 2 done before");
}

#[test]
fn an_interrupt_leaves_what_is_done_and_nothing_half() {
    for name in ["INT", "TERM", "HUP"] {
        if is_ignored(name) {
            continue;
        }
        let dir = zoo();
        let child = start(&dir);
        let processes = children(child.id());
        signal(child.id(), name);
        let output = finish(&dir, Default::default(), "batch".to_owned(), child);
        output.check(output.status.code() == Some(130), "status 130");
        let last = output.stderr.lines().last();
        output.check(last == Some("gguf-shorten: interrupted; 1 done, 2 not done"), "what is done");
        output.check(hidden(&dir).is_empty(), "nothing half done");
        output.check(!processes.iter().any(|id| is_running(*id)), "no process left");
        output.check(!dir.exists("out/b-drop25pct.gguf"), "no output of b");
        let found = lines(&dir, "out/results.jsonl");
        assert_eq!(found.len(), 1);
        batch(&dir, &format!("zoo {DROP}"), 0, "2 done, 1 done before");
    }
}

#[test]
fn an_interrupt_while_something_is_done_again_keeps_what_was_done() {
    let dir = zoo();
    batch(&dir, &format!("zoo {DROP}"), 0, "3 done");
    let before = dir.read("out/results.jsonl");
    let mut child = dir.run(&format!("batch zoo/b.gguf {DROP} --redo")).spawn();
    wait_for("the large model is written", || {
        (!unfinished(&dir).is_empty() || child.try_wait().unwrap().is_some()).then_some(())
    });
    signal(child.id(), "INT");
    let output = finish(&dir, Default::default(), "batch".to_owned(), child);
    output.check(output.status.code() == Some(130), "status 130");
    assert!(dir.read("out/results.jsonl") == before);
    batch(&dir, &format!("zoo {DROP}"), 0, "3 done before");
}

#[test]
fn a_batch_that_is_killed_leaves_no_process_and_can_be_gone_on_with() {
    let dir = zoo();
    let mut child = start(&dir);
    let processes = children(child.id());
    assert_eq!(processes.len(), 1);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    wait_for("the process of the model ends", || (!processes.iter().any(|id| is_running(*id))).then_some(()));
    assert_eq!(hidden(&dir), [""; 0]);
    assert!(!dir.exists("out/b-drop25pct.gguf"));
    let found = lines(&dir, "out/results.jsonl");
    assert_eq!(error_of(&found, "b-drop25pct.gguf"), "not finished: the run ended before this model did");
    // As if its process had just written the output.
    fs::copy(dir.path("out/a-drop25pct.gguf"), dir.path("out/b-drop25pct.gguf")).unwrap();
    batch(&dir, &format!("zoo {DROP}"), 0, "2 done, 1 done before");
}

#[test]
fn a_model_that_changes_or_vanishes_while_it_is_read_fails() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("was changed while it was read", |path| {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(b"x", 1 << 20).unwrap();
        }),
        ("vanished while it was read", |path| {
            fs::remove_file(path).unwrap();
        }),
        ("was replaced by another file while it was read", |path| {
            let other = path.with_extension("other");
            fs::write(&other, "x").unwrap();
            fs::rename(&other, path).unwrap();
        }),
    ];
    for (reason, change) in changes {
        let dir = zoo();
        let child = start(&dir);
        change(&dir.path("zoo/b.gguf"));
        let output = finish(&dir, Default::default(), "batch".to_owned(), child);
        output.check(output.status.code() == Some(1), "status 1");
        let found = lines(&dir, "out/results.jsonl");
        assert_eq!(
            error_of(&found, "b-drop25pct.gguf"),
            format!("out/b-drop25pct.gguf: nothing was written: zoo/b.gguf: {reason}")
        );
        output.check(!dir.exists("out/b-drop25pct.gguf"), "no output");
        output.check(hidden(&dir).is_empty(), "nothing half done");
        output.check(output.stdout.contains(": 2 done, 1 failed\n"), "the others");
    }
}

#[test]
fn a_model_that_is_made_shorter_while_it_is_read_costs_itself_alone() {
    let dir = zoo();
    let child = start(&dir);
    let path = dir.path("zoo/b.gguf");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(4096).unwrap();
    let output = finish(&dir, Default::default(), "batch".to_owned(), child);
    let found = lines(&dir, "out/results.jsonl");
    let error = error_of(&found, "b-drop25pct.gguf");
    // A bus error, or an unexpected end of the file.
    output.check(
        error.contains("changed") && output.stdout.contains(": 2 done, 1 failed\n"),
        "one failure, with the reason",
    );
    output.check(hidden(&dir).is_empty(), "nothing half done");
}

#[test]
fn two_runs_do_not_write_to_one_results_file() {
    let dir = zoo();
    let child = start(&dir);
    let output = dir.run(&format!("batch zoo {DROP} -q")).output();
    output.check(
        output.status.code() == Some(1)
            && output.error() == "out/results.jsonl: another run is writing to it",
        "a refusal",
    );
    let output = finish(&dir, Default::default(), "batch".to_owned(), child);
    output.check(output.status.success(), "the first goes on");
}
