//! Many models in one run: which ones paths stand for.

use std::fs;
use std::os::unix::fs::symlink;

use gguf_shorten::gguf::ValueOut;

use crate::batch::{DROP, batch, lines, named, zoo};
use crate::make::{Make, write_parts};
use crate::util::{Dir, Said};

/// The models of a run, by the paths in its results.
fn models(dir: &Dir, arguments: &str) -> Vec<String> {
    let output = dir.run(&format!("batch {arguments} {DROP} --dry-run -q --json -")).output();
    output.check(output.status.success(), "success");
    let path = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["model"]["path"].as_str().unwrap().to_owned()
    };
    output.stdout.lines().map(path).collect()
}

#[test]
fn files_folders_patterns_and_lists_name_models() {
    let dir = zoo(&["b", "a"]);
    fs::create_dir_all(dir.path("zoo/deep/er")).unwrap();
    named("c").write(&dir, "zoo/deep/er/c.GGUF");
    named("d").write(&dir, "d.bin");
    dir.write("zoo/README.md", b"no model");
    let whole = ["zoo/a.gguf", "zoo/b.gguf", "zoo/deep/er/c.GGUF"];
    assert_eq!(models(&dir, "zoo"), whole);
    assert_eq!(models(&dir, "d.bin zoo/b.gguf"), ["d.bin", "zoo/b.gguf"]);
    assert_eq!(models(&dir, "zoo/**/*"), whole);
    assert_eq!(models(&dir, "z*/[a-b].gguf"), &whole[..2]);
    dir.write("list.txt", b"# a comment\n\n  zoo/b.gguf  \nzoo/deep\nzoo/a*\nzoo/b.gguf\n");
    assert_eq!(models(&dir, "@list.txt"), ["zoo/b.gguf", "zoo/deep/er/c.GGUF", "zoo/a.gguf"]);
    // A file named like a pattern or a list is that file.
    named("e").write(&dir, "e[1].gguf");
    named("f").write(&dir, "@f.gguf");
    assert_eq!(models(&dir, "e[1].gguf ./@f.gguf"), ["e[1].gguf", "./@f.gguf"]);
}

#[test]
fn a_model_is_taken_once_however_often_it_is_found() {
    let dir = zoo(&["a"]);
    let parts = named("m").split(3);
    write_parts(&dir, &parts);
    for i in 1..=3 {
        let name = format!("m-0000{i}-of-00003.gguf");
        fs::rename(dir.path(&name), dir.path(&format!("zoo/{name}"))).unwrap();
    }
    symlink("a.gguf", dir.path("zoo/link.gguf")).unwrap();
    symlink("../zoo", dir.path("zoo/loop")).unwrap();
    let once = ["zoo/a.gguf", "zoo/m-00001-of-00003.gguf"];
    assert_eq!(models(&dir, "zoo"), once);
    assert_eq!(
        models(&dir, "zoo/m-00003-of-00003.gguf zoo/m-00002-of-00003.gguf zoo ./zoo/a.gguf"),
        [once[1], once[0]]
    );
}

#[test]
fn what_is_no_model_is_left_out_of_folders_and_said() {
    let dir = zoo(&["a"]);
    let of_type = |kind: &str| Make::empty().set("general.type", ValueOut::string(kind));
    of_type("mmproj").write(&dir, "zoo/mmproj.gguf");
    of_type("imatrix").write(&dir, "zoo/imatrix.gguf");
    of_type("adapter").write(&dir, "zoo/lora.gguf");
    Make::empty().set("general.architecture", ValueOut::string("flux")).write(&dir, "zoo/flux.gguf");
    named("v").without_tensors().write(&dir, "zoo/vocab.gguf");
    // Behind more than is read at first.
    let long = vec![0u32; 1 << 19];
    named("l").set("long", ValueOut::u32s(&long)).write(&dir, "zoo/long.gguf");
    let output = batch(&dir, &format!("zoo {DROP}"), 0, "2 done");
    for note in [
        "zoo/mmproj.gguf is a projector for images or sound, not a model; left out",
        "zoo/imatrix.gguf is an importance matrix, not a model; left out",
        "zoo/lora.gguf is a LoRA adapter, not a model; left out",
        "zoo/flux.gguf is an image or video model (flux), not a language model; left out",
        "zoo/vocab.gguf has no tensors, as a vocabulary alone; left out",
    ] {
        let note = format!("gguf-shorten: note: {note}\n");
        output.check(output.stderr.contains(&note), &note);
    }
    // A file that is named is tried all the same.
    batch(&dir, &format!("zoo/vocab.gguf {DROP}"), 1, "1 failed");
}

#[test]
fn a_folder_of_outputs_among_the_models_holds_no_models() {
    let dir = zoo(&["a", "b"]);
    let drop = DROP.replace("--out-dir out", "--out-dir zoo/out");
    batch(&dir, &format!("zoo {drop}"), 0, "2 done");
    let output = batch(&dir, &format!("zoo {drop}"), 0, "2 done before");
    output.check(
        output.stderr.contains("note: 2 files in zoo/out were written by this program; left out\n"),
        "a note",
    );
    // The same folder for both.
    let same = DROP.replace("--out-dir out", "--out-dir zoo/out/..");
    let both = format!("zoo {same} --suffix -short");
    batch(&dir, &both, 0, "2 done");
    batch(&dir, &both, 0, "2 done before");
    assert_eq!(lines(&dir, "zoo/results.jsonl").len(), 2);
    // From elsewhere, what was shortened can be shortened again.
    assert_eq!(models(&dir, "zoo/out").len(), 2);
    let output = dir.run(&format!("batch zoo/out {drop}")).refused();
    assert_eq!(output.error(), "zoo/out: no model is there (2 outputs of this program are left out)");
}

#[test]
fn two_models_with_one_output_are_refused_before_the_work() {
    let dir = zoo(&["a"]);
    fs::create_dir(dir.path("zoo/sub")).unwrap();
    named("other").write(&dir, "zoo/sub/a.gguf");
    let output = dir
        .run(&format!("batch zoo {DROP}"))
        .fails(1, "zoo/a.gguf and zoo/sub/a.gguf would have the same output, out/a-drop25pct.gguf");
    assert!(output.hint().unwrap().contains("output = "));
    dir.write("zoo.toml", b"['sub/a.gguf']\noutput = 'sub-a.gguf'\n");
    batch(&dir, &format!("zoo {DROP} --config zoo.toml"), 0, "2 done");
    assert!(dir.exists("out/sub-a.gguf"));
}

#[test]
fn paths_without_a_model_are_refused() {
    let dir = zoo(&["a"]);
    fs::create_dir(dir.path("empty")).unwrap();
    dir.write("empty/notes.txt", b"");
    dir.write("empty.txt", b"# nothing\n");
    dir.write("wrong.txt", b"zoo\nzoo/nope.gguf\n");
    dir.write("nested.txt", b"@empty.txt\n");
    let mut said = Said::default();
    for paths in [
        "empty",
        "zoo empty",
        "nope.gguf",
        "x*.gguf",
        "empty/*",
        "@nope.txt",
        "@empty.txt",
        "@wrong.txt",
        "@nested.txt",
    ] {
        said.refused(paths, dir.run(&format!("batch {paths} {DROP}")), 1);
    }
    said.compare("batch-paths.txt");
}
