//! `--calibration self`: what cannot be meant by it is said before any model is loaded.

use crate::make::Make;
use crate::util::Dir;

fn dir() -> Dir {
    Make::new("llama", 4).dir()
}

#[test]
fn wrong_amounts_of_own_text_are_refused() {
    let dir = dir();
    for (arguments, message) in [
        ("--calibration self:0", "--calibration self:0 is no text"),
        (
            "--calibration self:",
            "--calibration self:: '' is not a number of tokens; a file of that name is ./self:",
        ),
        (
            "--calibration self:x",
            "--calibration self:x: 'x' is not a number of tokens; a file of that name is ./self:x",
        ),
        (
            "--calibration self:+5",
            "--calibration self:+5: '+5' is not a number of tokens; a file of that name is ./self:+5",
        ),
        (
            "--calibration self:99999999999999999999999",
            "--calibration self:99999999999999999999999 is more than a model can write, at most 1073741824 tokens",
        ),
        ("--calibration self:100 --window 200", "--calibration self of 100 is less than one window of 200"),
        (
            "--calibration self --calibration other.txt --calibration self:5",
            "--calibration self is given twice; a file of that name is ./self",
        ),
        ("--seed 3", "--seed needs --calibration self"),
        ("--seed 3 --calibration ./self", "--seed needs --calibration self"),
    ] {
        for command in ["score m.gguf", "eval m.gguf", "m.gguf --drop 1 -o o.gguf"] {
            dir.run(&format!("{command} {arguments}")).fails(2, message);
        }
    }
}

#[test]
fn a_file_of_that_name_is_reached_by_its_path() {
    let dir = dir();
    for name in ["./self", "./self:5", "self.txt", "selfish"] {
        dir.run(&format!("score m.gguf --calibration {name}"))
            .fails(1, &format!("{name}: No such file or directory (os error 2)"));
    }
}
