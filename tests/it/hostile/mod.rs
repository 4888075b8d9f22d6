//! Files and arguments that are wrong. Each gives the error that it is due, and never a panic.

use crate::util::Dir;

mod head;

mod model;

mod path;

mod mutant;

mod program;

/// Tries the bytes in every command that needs no engine. Each must give an error with this phrase, and write nothing.
#[track_caller]
fn refused(bytes: &[u8], phrase: &str, hint: Option<&str>) {
    let dir = Dir::new();
    dir.write("m.gguf", bytes);
    for arguments in [
        "m.gguf --blocks 0 -o out.gguf",
        "m.gguf --drop 1 -o out.gguf",
        "m.gguf --drop 1 --method reverse --dry-run --json -",
        "score m.gguf --json result.json",
    ] {
        let output = dir.run(arguments).fails(1, &format!("m.gguf: {phrase}"));
        output.check(output.hint() == hint, &format!("hint {hint:?}"));
    }
}

const INCOMPLETE: Option<&str> = Some("the download may be incomplete");
