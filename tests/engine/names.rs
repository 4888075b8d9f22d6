//! Names of files that are not UTF-8, where llama.cpp opens them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use ggml::Backend;

use crate::eval::byte_model;
use crate::program::command;

#[test]
fn every_command_takes_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Latin 1.
    let odd = OsString::from_vec(b"mod\xe8le".to_vec());
    let path = |end: &str| {
        let mut name = odd.clone();
        name.push(end);
        dir.join(name)
    };
    byte_model("llama", 4).save(Backend::init(), &path(".gguf")).unwrap();
    std::fs::write(path(".txt"), "Not much of a text, but a text. ".repeat(20)).unwrap();
    std::fs::create_dir(path(".dir")).unwrap();
    for line in [
        "score #.gguf --json #.json",
        "#.gguf --drop 1 -o #-1.gguf --card #.md",
        "verify #-1.gguf --parent #.gguf --run -t 1",
        "eval #-1.gguf --parent #.gguf",
        "compare #.gguf #-1.gguf --requantize Q8_0 --scratch #.dir",
        "#.gguf --drop 1 --method search --scratch #.dir -o #-2.gguf",
        "#.gguf --drop 1 --heal scale -o #-3.gguf",
        "#.gguf --max-kl 5 -o #-4.gguf",
    ] {
        let with_name = |word: &str| match word.split_once('#') {
            Some((_, end)) => path(end).into_os_string(),
            None => word.into(),
        };
        let mut arguments: Vec<OsString> = line.split_whitespace().map(with_name).collect();
        if !line.starts_with("verify") {
            arguments.extend(["--calibration".into(), path(".txt").into_os_string()]);
            arguments.extend(["--tokens", "96", "--window", "32", "-t", "1"].map(OsString::from));
        }
        let output = command(dir, "").args(&arguments).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }
    for end in [".json", "-1.gguf", ".md", "-2.gguf", "-3.gguf", "-4.gguf"] {
        assert!(path(end).exists(), "{end}");
    }
}
