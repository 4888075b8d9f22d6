//! How sure a choice is: what does not fit together is refused before anything is measured.

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 4).dir()
}

#[test]
fn what_cannot_stop_early_says_so() {
    let dir = dir();
    for method in ["run", "ablate", "search", "sequential", "reverse"] {
        dir.run(&format!(
            "m.gguf --drop 1 --method {method} --confidence 0.99 -o out.gguf"
        ))
        .fails(
            2,
            &format!(
                "--confidence cannot end method '{method}' early: it goes by no scores, expected bi, relative-magnitude or \
                 safe"
            ),
        );
    }
    for arguments in ["--blocks 1", "--attention-blocks 1", "--drop-mtp", "--drop-attention 1"] {
        dir.run(&format!("m.gguf {arguments} --confidence 0.99 -o out.gguf"))
            .fails(2, "--confidence needs --drop: without it nothing is chosen by scores of whole blocks");
    }
    dir.run("m.gguf --drop 1 --drop-attention 1 --confidence 0.99 -o out.gguf")
        .fails(2, "--confidence is about whole blocks alone, so it does not go with --drop-attention");
    for (goal, flag) in
        [("--target-size 1M", "--target-size"), ("--max-ppl +10%", "--max-ppl"), ("--max-kl 0.5", "--max-kl")]
    {
        dir.run(&format!("m.gguf {goal} --confidence 0.99 -o out.gguf"))
            .fails(2, &format!("--confidence needs a number of blocks, so it does not go with {flag}"));
    }
    dir.run("m.gguf --drop 2 --objective draft --confidence 0.99 -o out.gguf")
        .fails(2, "--confidence needs a number of blocks, and --objective draft says itself how many go");
    dir.run("score m.gguf --drop 1 --pairs --confidence 0.99")
        .fails(2, "--pairs is about all of the text, so it does not go with --confidence");
    dir.run("score m.gguf --confidence 0.99")
        .fails(2, "--confidence needs --drop: it says how sure it must be which blocks go");
}

#[test]
fn a_confidence_is_a_probability() {
    let dir = dir();
    for (text, message) in [
        ("1", "a confidence is at least 0.5 and less than 1"),
        ("0.3", "a confidence is at least 0.5 and less than 1"),
        ("NaN", "a confidence is at least 0.5 and less than 1"),
        ("99%", "expected a confidence such as 0.99"),
    ] {
        let message = format!("invalid value '{text}' for '--confidence <P>': {message}");
        for command in ["m.gguf --drop 1 -o out.gguf", "score m.gguf --drop 1"] {
            dir.run(&format!("{command} --confidence {text}")).fails(2, &message);
        }
    }
}

#[test]
fn score_refuses_before_it_measures() {
    let dir = dir();
    for method in ["run", "ablate", "search", "sequential", "reverse"] {
        dir.run(&format!("score m.gguf --method {method}")).fails(
            2,
            &format!("method '{method}' goes by no scores, expected bi, relative-magnitude, safe or lorp"),
        );
    }
    dir.run("score m.gguf --keep 1").refused();
    dir.run("score m.gguf --drop 4")
        .fails(1, "m.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay");
    dir.run("score m.gguf --drop 1 --keep 4")
        .fails(1, "m.gguf: cannot keep block 4: the model has 4 blocks, 0 to 3");
    dir.run("score m.gguf --ablate --window 2")
        .fails(2, "--window 2 leaves no token to score, expected 3 or more");
    dir.run("score m.gguf --against-calibration none.txt")
        .fails(1, "none.txt: No such file or directory (os error 2)");
    dir.write("empty.txt", b"");
    dir.run("score m.gguf --against-calibration empty.txt").fails(1, "empty.txt: is empty, expected text");
}
