//! `compare`: what is wrong with arguments and files is said before any model is loaded.

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    let dir = Make::new("llama", 4).dir();
    Make::new("llama", 3).write(&dir, "p.gguf");
    dir
}

#[test]
fn arguments_that_do_not_fit_together_are_refused() {
    let dir = dir();
    for (arguments, message) in [
        ("m.gguf", "there is nothing to compare with: name another model, or give --drop or --requantize"),
        (
            "--parent m.gguf",
            "there is nothing to compare with: name another model, or give --drop or --requantize",
        ),
        ("m.gguf p.gguf --window 2", "--window 2 leaves no token to score, expected 3 or more"),
        ("m.gguf p.gguf --tokens 100 --window 200", "--tokens 100 is less than one window of 200"),
        ("m.gguf p.gguf --threads 0", "--tokens, --window and --threads are at least 1"),
        ("m.gguf --drop 1 --choose-tokens 0", "--choose-tokens is at least 1"),
        ("m.gguf --drop 0..3", "invalid value '0..3' for '--drop <LIST>': at least one block has to go"),
        ("m.gguf --drop 3..1", "invalid value '3..1' for '--drop <LIST>': the range 3..1 runs backwards"),
        (
            "m.gguf --drop 1..600",
            "invalid value '1..600' for '--drop <LIST>': no model has more than 512 blocks",
        ),
        (
            "m.gguf --drop 1..10%",
            "invalid value '1..10%' for '--drop <LIST>': a range is of numbers, such as 1..9",
        ),
        ("m.gguf --requantize Q4_K_M,Q9", "invalid value 'Q9' for '--requantize <TYPES>'"),
    ] {
        dir.run(&format!("compare {arguments}")).fails(2, message);
    }
    for alone in [
        "--method bi",
        "--objective kl",
        "--keep 1",
        "--drop-mtp",
        "--portable",
        "--trust-any-cut",
        "--choose-on t.txt",
        "--choose-tokens 9",
        "--heal auto",
        "--drop 1 --mixed",
        "--requantize Q8_0 --mixed",
    ] {
        let output = dir.run(&format!("compare m.gguf p.gguf {alone}")).refused();
        output.check(
            output.status.code() == Some(2) && output.error().contains("not provided"),
            "a flag that is missing",
        );
    }
    dir.run("compare").refused();
    dir.run("compare m.gguf --drop 1 --portable --trust-any-cut").refused();
}

#[test]
fn what_all_rows_need_is_looked_at_first() {
    let dir = dir();
    let missing = "No such file or directory (os error 2)";
    dir.run("compare none.gguf m.gguf").fails(1, &format!("none.gguf: {missing}"));
    dir.run("compare m.gguf --parent none.gguf").fails(1, &format!("none.gguf: {missing}"));
    dir.run("compare m.gguf p.gguf --calibration none.txt").fails(1, &format!("none.txt: {missing}"));
    dir.run("compare m.gguf --drop 1 --choose-on none.txt").fails(1, &format!("none.txt: {missing}"));
    let output = dir.run("compare m.gguf --requantize Q4_0 --scratch none").output();
    output.check_refused();
    output.check(
        output.error().starts_with("cannot write in folder 'none': ")
            && output.hint() == Some("--scratch names another folder"),
        "the folder, and the remedy",
    );
}

#[test]
fn json_never_takes_the_place_of_a_model() {
    let dir = dir();
    dir.write("notes.gguf", b"not a model");
    for file in ["m.gguf", "p.gguf", "notes.gguf"] {
        dir.run(&format!("compare m.gguf p.gguf notes.gguf --json ./{file}"))
            .fails(1, &format!("./{file}: is the input itself"));
    }
}
