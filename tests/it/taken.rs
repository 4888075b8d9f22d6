//! Places that are taken: nothing is written over what a run reads, nor a text over a model.

use crate::make::Make;
use crate::util::Dir;

/// A model, another, and texts of all kinds.
fn dir() -> Dir {
    let dir = Make::new("llama", 4).dir();
    Make::new("llama", 2).write(&dir, "other.gguf");
    for name in ["a.txt", "b.txt", "tasks.jsonl", "list.txt", "c.toml"] {
        dir.write(name, name.as_bytes());
    }
    dir
}

#[test]
fn nothing_is_written_over_what_is_read() {
    let dir = dir();
    let drop = "m.gguf --drop 1 --method bi --calibration a.txt --calibration b.txt --force";
    let task = "m.gguf --drop 1 --method search --objective task --task-file tasks.jsonl";
    let choices = "eval m.gguf --multiple-choice tasks.jsonl --hellaswag b.txt";
    let compare = "compare m.gguf --drop 1 --calibration a.txt --choose-on b.txt";
    for (command, path) in [
        (format!("{drop} -o out --json b.txt"), "b.txt"),
        (format!("{drop} -o out --card ./a.txt"), "./a.txt"),
        (format!("{drop} -o out --imatrix-out a.txt"), "a.txt"),
        (format!("{drop} --dry-run --json a.txt"), "a.txt"),
        (format!("{task} -o out --json tasks.jsonl"), "tasks.jsonl"),
        ("score m.gguf --calibration a.txt --json a.txt".to_owned(), "a.txt"),
        ("score m.gguf --against-calibration b.txt --json b.txt".to_owned(), "b.txt"),
        ("score m.gguf --against-calibration b.txt --imatrix-out b.txt --force".to_owned(), "b.txt"),
        ("eval m.gguf --calibration a.txt --json a.txt".to_owned(), "a.txt"),
        (format!("{choices} --json tasks.jsonl"), "tasks.jsonl"),
        (format!("{choices} --json b.txt"), "b.txt"),
        (format!("{compare} --json a.txt"), "a.txt"),
        (format!("{compare} --json b.txt"), "b.txt"),
    ] {
        dir.run(&command).fails(1, &format!("{path}: is read by this run"));
    }
    let place = "is read by this run, and the output would take its place";
    dir.run(&format!("{drop} -o a.txt")).fails(1, &format!("a.txt: {place}"));
    dir.write("imx.gguf", b"GGUF");
    dir.run("m.gguf --blocks 1 -o ./imx.gguf --force --imatrix imx.gguf out2")
        .fails(1, &format!("imx.gguf: {place}"));
}

#[test]
fn a_batch_writes_over_nothing_that_it_reads() {
    let dir = dir();
    dir.write("c.toml", b"[\"m.gguf\"]\ncalibration = \"b.txt\"\n");
    dir.write("list.txt", b"m.gguf\n");
    let batch =
        "batch @list.txt --drop 1 --method bi --calibration a.txt --out-dir . --config c.toml --suffix -s";
    for (place, path) in [
        ("--json c.toml", "c.toml"),
        ("--json list.txt", "list.txt"),
        ("--results list.txt", "list.txt"),
        ("--results c.toml", "c.toml"),
    ] {
        dir.run(&format!("{batch} {place}")).fails(1, &format!("{path}: is read by this run"));
    }
    dir.run("batch m.gguf --drop 1 --calibration a.txt --out-dir . --suffix -s --json a.txt")
        .fails(1, "a.txt: is read by this run");
    dir.run("batch m.gguf --drop 1 --out-dir . --suffix -s --json other.gguf")
        .fails(1, "other.gguf: is a model");
    dir.run("report a.txt @list.txt -o list.txt").refused();
}

#[test]
fn no_text_takes_the_place_of_a_model() {
    let dir = dir();
    for command in [
        "m.gguf --blocks 1 -o out --json",
        "m.gguf --blocks 1 --dry-run --json",
        "m.gguf --blocks 1 -o out --force --card",
        "score m.gguf --json",
        "eval m.gguf --json",
        "compare m.gguf --requantize Q8_0 --json",
        "verify m.gguf --parent m.gguf --json",
    ] {
        dir.run(&format!("{command} other.gguf")).fails(1, "other.gguf: is a model");
    }
}

#[test]
fn a_model_does_not_go_to_stdout() {
    let dir = dir();
    for (flag, command) in [
        ("output", "m.gguf --blocks 1 -o -"),
        ("card", "m.gguf --blocks 1 -o out --card -"),
        ("imatrix", "m.gguf --blocks 1 -o out --imatrix imx -"),
        ("imatrix-out", "score m.gguf --imatrix-out -"),
    ] {
        let message = format!("--{flag} cannot go to stdout, only --json can; a file of that name is ./-");
        dir.run(command).fails(2, &message);
    }
    dir.run("m.gguf --blocks 1 -o ./-").succeeds();
}

#[test]
fn a_file_that_does_not_end_is_refused() {
    let dir = dir();
    let text = "/dev/zero: has more than 1073741824 bytes, expected text";
    dir.run("m.gguf --drop 1 --method bi --calibration /dev/zero -o out").fails(1, text);
    let tasks = "/dev/zero: has more than 1073741824 bytes, expected tasks";
    dir.run("eval m.gguf --hellaswag /dev/zero").fails(1, tasks);
    for (arguments, message) in [
        ("m.gguf --config /dev/zero", "/dev/zero: has more than 16777216 bytes, expected options of models"),
        ("@/dev/zero", "/dev/zero: has more than 67108864 bytes, expected a list of models"),
        ("m.gguf --results /dev/zero", "/dev/zero: is not a regular file"),
    ] {
        dir.run(&format!("batch --drop 1 --out-dir . --suffix -s {arguments}")).fails(1, message);
    }
}

#[test]
fn a_pipe_beside_the_model_is_not_opened() {
    let dir = dir();
    dir.sh("mkfifo pipe.gguf").succeeds();
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix-out pipe.gguf")
        .fails(1, "pipe.gguf: is not a regular file");
    dir.write("imx.dat", b"x");
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix imx.dat pipe.gguf --force")
        .fails(1, "pipe.gguf: is not a regular file");
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
}

#[test]
fn what_is_not_one_model_is_refused_or_said() {
    let dir = dir();
    let (whole, other) = (dir.read("m.gguf"), dir.read("other.gguf"));
    dir.write("joined.gguf", &[whole, other.clone()].concat());
    let note = format!(
        "joined.gguf: {} bytes after the last tensor belong to nothing and are not carried over",
        other.len()
    );
    let output = dir.run("joined.gguf --blocks 1 -o out.gguf").succeeds();
    output.check(output.stderr.contains(&note), &note);
    for n in [0, 1] {
        use gguf_shorten::gguf::ValueOut;
        let make = Make::new("llama", 2).set("split.count", ValueOut::u32(n));
        make.set("split.tensors.count", ValueOut::u32(99)).write(&dir, "part.gguf");
        let error = dir.run("part.gguf --blocks 1 -o out2.gguf").refused();
        let line = "part.gguf: metadata 'split.tensors.count' is 99, but the file has";
        error.check(error.error().starts_with(line), line);
    }
}

#[test]
fn words_say_what_is_meant() {
    let dir = dir();
    let output = dir.run("m.gguf show").refused();
    output.check(
        output.hint() == Some("the command comes first: gguf-shorten show m.gguf"),
        "a hint on the order of words",
    );
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix other.gguf x").fails(
        1,
        "other.gguf: is no importance matrix: metadata 'general.type' is 'model', expected 'imatrix'",
    );
    let output = dir.run("m.gguf --blocks 0-2 -o out.gguf").succeeds();
    output.check(output.stdout.contains(": 1 block, "), "1 block");
    let output = dir.run("batch m.gguf --blocks 1 --out-dir . --suffix -s --dry-run").output();
    output.check(output.stdout.contains("written  nothing: this was a dry run"), "that nothing was written");
    let output = dir.run("verify out.gguf --parent m.gguf --threads 4096").succeeds();
    output.check(output.stderr.contains("--threads 4096 is more than the"), "a note on threads");
}
