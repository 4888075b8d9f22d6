//! Inputs that are no files, are unreadable, or have hostile names.

use std::fs;

use crate::make::Make;
use crate::util::{Dir, unprivileged};

#[test]
fn an_input_that_is_no_file_is_refused_without_waiting() {
    let dir = Dir::new();
    fs::create_dir(dir.path("folder")).unwrap();
    dir.sh("mkfifo pipe").succeeds();
    std::os::unix::fs::symlink("pipe", dir.path("link")).unwrap();
    dir.write("file", b"x");
    for (input, error) in [
        ("folder", "is a folder, expected a file"),
        ("pipe", "is not a regular file"),
        ("link", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("missing.gguf", "No such file or directory (os error 2)"),
        ("file/m.gguf", "Not a directory (os error 20)"),
    ] {
        for arguments in ["show", "score", "shorten --blocks 1 -o out.gguf"] {
            dir.run(&format!("{arguments} {input}")).fails(1, &format!("{input}: {error}"));
        }
    }
}

#[test]
fn a_part_that_is_no_file_is_refused_without_waiting() {
    let dir = Dir::new();
    let parts = Make::new("llama", 4).split(2);
    parts[0].write(&dir, "m-00001-of-00002.gguf");
    dir.sh("mkfifo m-00002-of-00002.gguf").succeeds();
    dir.run("m-00001-of-00002.gguf --blocks 0 -o out.gguf")
        .fails(1, "m-00002-of-00002.gguf: is not a regular file");
}

#[test]
fn an_input_that_may_not_be_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Make::new("llama", 4).dir();
    fs::set_permissions(dir.path("m.gguf"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root without its rights; where they cannot be given up, the test above has a path that root cannot read either.
    if let Some(wrapper) = unprivileged(&dir) {
        dir.sh(&format!("exec {wrapper} $PROGRAM m.gguf --blocks 1 -o out.gguf"))
            .fails(1, "m.gguf: Permission denied (os error 13)");
    }
}

#[test]
fn a_hostile_file_name_stays_on_its_line() {
    let dir = Dir::new();
    for name in ["a\nb.gguf", "a\u{1b}[31mb.gguf", "a\rb.gguf"] {
        dir.write(name, b"Dear");
        dir.run_with(["show", name]).refused();
        dir.run_with([name, "--blocks", "1", "-o", "out.gguf"]).refused();
    }
}
