//! `eval`: what is wrong with arguments and task files is said before any model is loaded.

use gguf_shorten::gguf::ValueOut;

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 2).dir()
}

#[test]
fn arguments_that_do_not_fit_together_are_refused() {
    let dir = dir();
    for (arguments, message) in [
        ("--window 2", "--window 2 leaves no token to score, expected 3 or more"),
        ("--tokens 2", "--window 2 leaves no token to score, expected 3 or more"),
        ("--tokens 100 --window 200", "--tokens 100 is less than one window of 200"),
        ("--tasks 5", "--tasks needs --hellaswag or --multiple-choice"),
        ("--hellaswag h.txt --tasks 0", "--tasks is at least 1"),
        ("--threads 0", "--tokens, --window and --threads are at least 1"),
    ] {
        dir.run(&format!("eval m.gguf {arguments}")).fails(2, message);
    }
    dir.run("eval").refused();
    dir.run("eval m.gguf --drop 1").refused();
}

#[test]
fn files_that_are_not_there_are_named() {
    let dir = dir();
    let missing = "No such file or directory (os error 2)";
    dir.run("eval none.gguf").fails(1, &format!("none.gguf: {missing}"));
    dir.run("eval m.gguf --parent none.gguf").fails(1, &format!("none.gguf: {missing}"));
    for flag in ["hellaswag", "multiple-choice", "calibration"] {
        dir.run(&format!("eval m.gguf --{flag} none.txt")).fails(1, &format!("none.txt: {missing}"));
    }
}

#[test]
fn malformed_tasks_are_named_by_line() {
    let dir = dir();
    let task = "A man. He\n0\na\nb\nc\nd\n";
    dir.write("h.txt", (task.to_owned() + "A man. He\nb\n").as_bytes());
    dir.run("eval m.gguf --hellaswag h.txt")
        .fails(1, "h.txt: ends at line 8, after 2 of the 6 lines of a task");
    // Also after the tasks that would be done.
    dir.write("h.txt", (task.to_owned() + &task.replace('0', "4")).as_bytes());
    dir.run("eval m.gguf --hellaswag h.txt --tasks 1")
        .fails(1, "h.txt: line 8 is '4', expected the number of the right ending, 0 to 3");
    dir.write("h.txt", b"A man\n0\na\xff\nb\nc\nd\n");
    dir.run("eval m.gguf --hellaswag h.txt").fails(1, "h.txt: line 3 is not UTF-8 text");
    dir.write("empty", b"");
    dir.run("eval m.gguf --hellaswag empty").fails(1, "empty: has no task");
    dir.run("eval m.gguf --multiple-choice empty").fails(1, "empty: has no task");
    dir.write("c.jsonl", b"\n{\"question\": \"Why?\", \"choices\": [\"a\", \"b\"], \"answer\": 7}\n");
    dir.run("eval m.gguf --multiple-choice c.jsonl")
        .fails(1, "c.jsonl: line 2: 'answer' is '7', expected a number from 0 to 1");
    dir.write("c.jsonl", &[b'{'; 1000]);
    dir.run("eval m.gguf --multiple-choice c.jsonl").fails(1, "c.jsonl: line 1: is not a JSON object");
}

#[test]
fn a_model_whose_tokens_see_those_after_them_is_refused() {
    let dir = Make::new("llama", 2).set("llama.attention.causal", ValueOut::bool(false)).dir();
    dir.run("eval m.gguf").fails(1, "m.gguf: metadata 'llama.attention.causal' is false");
}

#[test]
fn json_never_takes_the_place_of_a_model() {
    let dir = dir();
    Make::new("llama", 2).write(&dir, "p.gguf");
    dir.run("eval m.gguf --parent p.gguf --json m.gguf").refused();
    dir.run("eval m.gguf --parent p.gguf --json p.gguf").refused();
}
