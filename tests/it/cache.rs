//! `cache`: an empty one, a damaged one, and what is not its own.

use std::fs;

use serde_json::{Value, json};

use crate::util::Dir;

#[test]
fn an_empty_cache_is_listed_and_cleared() {
    let dir = Dir::new();
    let cache = dir.path("c");
    let run = |arguments: &str| dir.run(arguments).env("GGUF_SHORTEN_CACHE", &cache);
    let output = run("cache list").succeeds();
    assert_eq!(output.stdout, format!("cache    {}: 0 entries, 0 B\n", cache.display()));
    run("cache list --json l.json").succeeds();
    let json: Value = serde_json::from_slice(&dir.read("l.json")).unwrap();
    assert_eq!(json["entries"], json!([]));
    let output = run("cache clear").succeeds();
    assert_eq!(output.stdout, format!("removed  0 entries of {}, 0 B\n", cache.display()));
    assert!(!dir.exists("c"));
    // Where the platform keeps caches.
    let output =
        dir.run("cache list").env("GGUF_SHORTEN_CACHE", "".as_ref()).env("XDG_CACHE_HOME", &cache).succeeds();
    let folder = cache.join("gguf-shorten");
    assert_eq!(output.stdout, format!("cache    {}: 0 entries, 0 B\n", folder.display()));
}

#[test]
fn damaged_entries_are_listed_as_such_and_cleared_and_other_files_stay() {
    let dir = Dir::new();
    let cache = dir.path("c");
    fs::create_dir_all(cache.join("scores")).unwrap();
    let name = format!("c/scores/{}.json", "a".repeat(64));
    dir.write(&name, b"no entry");
    dir.write("c/scores/notes.json", b"mine");
    let run = |arguments: &str| dir.run(arguments).env("GGUF_SHORTEN_CACHE", &cache);
    let output = run("cache list").succeeds();
    assert!(output.stdout.contains("(damaged)"), "{}", output.stdout);
    run("cache list --json l.json").succeeds();
    let json: Value = serde_json::from_slice(&dir.read("l.json")).unwrap();
    assert_eq!(json["entries"].as_array().unwrap().len(), 1);
    assert_eq!(json["entries"][0]["damaged"], true);
    assert!(json["entries"][0]["model"].is_null());
    run("cache clear --json c.json").succeeds();
    let json: Value = serde_json::from_slice(&dir.read("c.json")).unwrap();
    assert_eq!((&json["removed"], &json["bytes"]), (&json!(1), &json!(8)));
    assert!(!dir.exists(&name) && dir.exists("c/scores/notes.json"));
    assert_eq!(run("cache").output().status.code(), Some(2));
}
