//! Outputs in parts. Where they are cut, what each part says, and that all parts appear or none.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use gguf_shorten::gguf::{File, ValueOut, ValueType};
use serde_json::Value;

use crate::make::{F32, I8, Make, part_name, write_parts};
use crate::shorten::{check_tensors, value};
use crate::util::{Dir, Output, finish, is_ignored, signal};

/// A model whose tensors have 32 to 576 bytes.
fn model() -> Make {
    Make::new("llama", 6).tensor("rope_freqs.weight", &[100], F32)
}

fn out_name(i: usize, n_parts: usize) -> String {
    format!("out-{:05}-of-{n_parts:05}.gguf", i + 1)
}

/// The parts of `out` in the folder, in order.
fn out_parts(dir: &Dir) -> Vec<Vec<u8>> {
    let names: Vec<_> = dir.names().into_iter().filter(|n| n.starts_with("out-")).collect();
    for (i, name) in names.iter().enumerate() {
        assert_eq!(*name, out_name(i, names.len()));
    }
    names.iter().map(|name| dir.read(name)).collect()
}

/// Names and bytes of the tensors of each part.
type Tensors = Vec<(String, Vec<u8>)>;

fn tensors(bytes: &[u8]) -> Tensors {
    let file = File::parse(bytes).unwrap();
    let tensors = file.tensors().iter();
    tensors.map(|t| (t.name().to_owned(), t.bytes().to_vec())).collect()
}

/// Checks what is so of any cut of the output `whole`. The parts have its tensors in order, the first has its metadata, and
/// every part has the three keys in the types that llama.cpp reads.
#[track_caller]
fn check_parts(parts: &[Vec<u8>], whole: &[u8]) {
    let all: Tensors = parts.iter().flat_map(|part| tensors(part)).collect();
    assert!(all == tensors(whole));
    let whole = File::parse(whole).unwrap();
    for (i, bytes) in parts.iter().enumerate() {
        let file = File::parse(bytes).unwrap();
        assert_eq!(value(bytes, "split.no"), format!("u16 {i}"));
        assert_eq!(value(bytes, "split.count"), format!("u16 {}", parts.len()));
        assert_eq!(value(bytes, "split.tensors.count"), format!("i32 {}", all.len()));
        let own = file.metadata().iter().filter(|entry| !entry.key().starts_with("split."));
        let own: Vec<_> = own.map(|entry| entry.raw()).collect();
        if i == 0 {
            let expected: Vec<_> = whole.metadata().iter().map(|entry| entry.raw()).collect();
            assert!(own == expected);
        } else {
            assert!(own.is_empty());
        }
        assert!(file.ends_padded() && file.trailing_bytes().is_empty());
    }
}

/// Number of tensors per part, as `llama-gguf-split --split-max-size` counts. Source: `split_strategy` of
/// `tools/gguf-split/gguf-split.cpp`.
fn cut_of_llama_cpp(n_bytes: &[usize], max: usize) -> Vec<usize> {
    let mut parts = vec![0];
    let mut curr_tensors_size = 0;
    for n_bytes in n_bytes {
        let n_bytes = n_bytes.next_multiple_of(32);
        let next_tensors_size = curr_tensors_size + n_bytes;
        if next_tensors_size > max {
            parts.push(0);
            curr_tensors_size = n_bytes;
        } else {
            curr_tensors_size = next_tensors_size;
        }
        *parts.last_mut().unwrap() += 1;
    }
    parts
}

#[test]
fn parts_are_cut_where_llama_cpp_cuts_them() {
    for max in [576, 577, 700, 1024, 1500, 3000, 100_000] {
        let dir = model().dir();
        dir.run("m.gguf --blocks 1,4 -o whole.gguf").succeeds();
        dir.run(&format!("m.gguf --blocks 1,4 -o out.gguf --split-max-size {max}")).succeeds();
        let whole = dir.read("whole.gguf");
        let parts = out_parts(&dir);
        check_parts(&parts, &whole);
        let n_bytes: Vec<_> = tensors(&whole).iter().map(|(_, bytes)| bytes.len()).collect();
        let n_tensors: Vec<_> = parts.iter().map(|part| tensors(part).len()).collect();
        assert_eq!(n_tensors, cut_of_llama_cpp(&n_bytes, max), "{max}");
        check_tensors(&dir.read("m.gguf"), &whole, &[1, 4]);
    }
}

#[test]
fn every_part_has_the_alignment_of_the_model() {
    let dir = model().alignment(64).dir();
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k").succeeds();
    let parts = out_parts(&dir);
    assert!(parts.len() > 2);
    for part in &parts {
        assert_eq!(value(part, "general.alignment"), "u32 64");
        assert_eq!(File::parse(part).unwrap().alignment(), 64);
    }
    dir.run(&format!("verify {} --parent m.gguf", out_name(1, parts.len()))).succeeds();
}

#[test]
fn the_output_is_named_by_prefix_file_or_part() {
    for out in ["out", "out.gguf", "out-00001-of-00007.gguf", "./out.gguf"] {
        let dir = model().dir();
        dir.run(&format!("m.gguf --blocks 1 -o {out} --split-max-size 2k")).succeeds();
        assert_eq!(out_parts(&dir).len(), 2, "{out}");
    }
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o new/ --split-max-size 2k").fails(1, "new/: is not the name of a file");
    dir.run("m.gguf --blocks 1 -o none/new --split-max-size 2k")
        .fails(1, "none/new-00001-of-00001.gguf: folder 'none': No such file or directory (os error 2)");
}

#[test]
fn a_tensor_that_is_too_large_has_a_part_of_its_own() {
    let dir = Dir::new();
    let large = model().tensor("blk.2.large.weight", &[1000], I8);
    large.write(&dir, "m.gguf");
    let run = |arguments: &str| dir.run(&format!("m.gguf {arguments}")).succeeds();
    let note = "gguf-shorten: note: tensor 'blk.1.large.weight' alone has 1024 bytes, so its part is larger than \
                --split-max-size\n";
    run("--blocks 1 -o whole.gguf");
    assert_eq!(run("--blocks 1 -o out --split-max-size 600").stderr, note);
    let parts = out_parts(&dir);
    check_parts(&parts, &dir.read("whole.gguf"));
    let large = parts.iter().map(|part| tensors(part)).find(|part| part[0].0 == "blk.1.large.weight");
    assert_eq!(large.unwrap().len(), 1);
    // No note if it is removed, or if no size is given.
    assert_eq!(run("--blocks 2 -o out --split-max-size 600 --dry-run").stderr, "");
    assert_eq!(run("--blocks 1 -o out --keep-split").stderr, "");
    // The first one too.
    let note = "gguf-shorten: note: tensor 'token_embd.weight' alone has 576 bytes, so its part is larger than \
                --split-max-size\n";
    assert_eq!(run("--blocks 2 -o first --split-max-size 200").stderr, note);
    let n = dir.names().iter().filter(|name| name.starts_with("first-")).count();
    let first = dir.read(&format!("first-00001-of-{n:05}.gguf"));
    assert_eq!(tensors(&first).len(), 1);

    for size in ["0", "x", "1.5", "-1"] {
        let arguments = format!("m.gguf --blocks 1 -o new --split-max-size={size}");
        assert_eq!(dir.run(&arguments).refused().status.code(), Some(2));
    }
    let both = dir.run("m.gguf --blocks 1 -o new --split-max-size 1k --keep-split").refused();
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn kept_tensors_stay_in_their_parts_and_empty_parts_go() {
    let dir = Dir::new();
    // A tensor a part.
    let n = 21;
    write_parts(&dir, &model().split(n));
    dir.run(&format!("{} --blocks 1,4 -o whole.gguf", part_name(3, n))).succeeds();
    dir.run(&format!("{} --blocks 1,4 -o out.gguf --keep-split", part_name(3, n))).succeeds();
    let parts = out_parts(&dir);
    assert_eq!(parts.len(), n - 6);
    check_parts(&parts, &dir.read("whole.gguf"));

    let dir = Dir::new();
    let split = model().split(3);
    write_parts(&dir, &split);
    dir.run(&format!("{} --blocks 2 -o whole.gguf", part_name(0, 3))).succeeds();
    dir.run(&format!("{} --blocks 2 -o out --keep-split", part_name(0, 3))).succeeds();
    let parts = out_parts(&dir);
    check_parts(&parts, &dir.read("whole.gguf"));
    // Of 7 tensors each: block 2 lies in the second part.
    let n_tensors: Vec<_> = parts.iter().map(|part| tensors(part).len()).collect();
    assert_eq!(n_tensors, [7, 4, 7]);
    assert_eq!(tensors(&parts[1])[0].0, "blk.2.attn_norm.weight");
}

#[test]
fn a_first_part_that_loses_all_tensors_leaves_its_metadata_to_the_next() {
    let dir = Dir::new();
    let make = Make::new("llama", 2).without_tensors();
    let make = (0..2).fold(make, |make, i| make.tensor(&format!("blk.{i}.ffn_down.weight"), &[40], I8));
    write_parts(&dir, &make.split(2));
    dir.run(&format!("{} --blocks 0 -o whole.gguf", part_name(0, 2))).succeeds();
    dir.run(&format!("{} --blocks 0 -o out --keep-split", part_name(0, 2))).succeeds();
    let parts = out_parts(&dir);
    assert_eq!(parts.len(), 1);
    check_parts(&parts, &dir.read("whole.gguf"));
    dir.run(&format!("verify {} --parent {}", out_name(0, 1), part_name(0, 2))).succeeds();
}

#[test]
fn a_first_part_of_metadata_alone_stays() {
    let dir = Dir::new();
    let of_two = model().split(2);
    let number = |make: &Make, no: u64| {
        let u16 = |n| ValueOut::integer(ValueType::U16, n).unwrap();
        make.clone().set("split.no", u16(no)).set("split.count", u16(3))
    };
    write_parts(
        &dir,
        &[number(&of_two[0].clone().without_tensors(), 0), number(&of_two[0], 1), number(&of_two[1], 2)],
    );
    dir.run(&format!("{} --blocks 2 -o whole.gguf", part_name(1, 3))).succeeds();
    dir.run(&format!("{} --blocks 2 -o out --keep-split", part_name(1, 3))).succeeds();
    let parts = out_parts(&dir);
    assert_eq!(parts.len(), 3);
    assert!(tensors(&parts[0]).is_empty());
    check_parts(&parts, &dir.read("whole.gguf"));
    dir.run(&format!("verify {} --parent {}", out_name(2, 3), part_name(1, 3))).succeeds();
}

#[test]
fn what_is_one_file_stays_one_file() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o whole.gguf").succeeds();
    dir.run("m.gguf --blocks 1 -o kept.gguf --keep-split").succeeds();
    assert!(dir.read("whole.gguf") == dir.read("kept.gguf"));
    // Without a word, parts become one file.
    write_parts(&dir, &model().split(2));
    dir.run(&format!("{} --blocks 1 -o one.gguf", part_name(0, 2))).succeeds();
    assert_eq!(value(&dir.read("one.gguf"), "split.count"), "none");
    // A size that all fit into gives one part, as in llama.cpp.
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1G").succeeds();
    let parts = out_parts(&dir);
    assert_eq!(parts.len(), 1);
    check_parts(&parts, &dir.read("whole.gguf"));
}

#[test]
fn a_split_output_is_read_from_any_part() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o whole.gguf").succeeds();
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k").succeeds();
    let n = out_parts(&dir).len();
    assert!(n > 2);
    dir.run("whole.gguf --blocks 0,2 -o twice.gguf").succeeds();
    let twice = tensors(&dir.read("twice.gguf"));
    for i in 0..n {
        let name = out_name(i, n);
        dir.run(&format!("{name} --blocks 0,2 -o again.gguf --force")).succeeds();
        assert!(tensors(&dir.read("again.gguf")) == twice);
        let shown = dir.run(&format!("show {name}")).succeeds().stdout;
        assert!(shown.contains("llama, 5 blocks"), "{shown}");
        let json = dir.run(&format!("verify {name} --parent m.gguf --json -")).succeeds().stdout;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["verified"], true);
        assert_eq!(json["output"]["path"], out_name(0, n));
        let n_bytes: usize = out_parts(&dir).iter().map(Vec::len).sum();
        assert_eq!(json["output"]["bytes"], n_bytes);
        assert_eq!(json["tensors"], 18);
    }
}

#[test]
fn verify_finds_any_changed_byte_of_any_part() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k").succeeds();
    let parts = out_parts(&dir);
    let n = parts.len();
    assert!(n > 2);
    let parent_bytes = dir.read("m.gguf");
    let parent = gguf_shorten::model::Model::new(vec![File::parse(&parent_bytes).unwrap()]).unwrap();
    let constraints = gguf_shorten::plan::Constraints::of(&parent).unwrap();
    let verified = |parts: &[Vec<u8>]| -> Result<usize, String> {
        let files: Result<Vec<_>, _> = parts.iter().map(|part| File::parse(part)).collect();
        let files = files.map_err(|error| error.to_string())?;
        gguf_shorten::output::verify::verify(&parent, &constraints, &files, &|_| {})
            .map(|verification| verification.differences.len())
            .map_err(|error| format!("{error:#}"))
    };
    assert_eq!(verified(&parts), Ok(0));
    // The release that wrote a file may be another.
    let version = |bytes: &[u8], at: usize| {
        let file = File::parse(bytes).unwrap();
        let entry = file.metadata().get("gguf_shorten.version").map(|entry| entry.raw());
        entry.is_some_and(|raw| {
            let start = raw.as_ptr() as usize - bytes.as_ptr() as usize;
            (start..start + raw.len()).contains(&at)
        })
    };
    for i in 0..n {
        // All of the small parts, and every third byte of the first.
        let step = if i == 0 { 3 } else { 1 };
        for at in (0..parts[i].len()).step_by(step).filter(|&at| !version(&parts[i], at)) {
            let mut changed = parts.clone();
            changed[i][at] ^= 1;
            assert_ne!(verified(&changed), Ok(0), "byte {at} of part {i}");
        }
    }
}

#[test]
fn verify_says_which_part_is_not_as_planned() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1500").succeeds();
    let n = out_parts(&dir).len();
    let second = out_name(1, n);
    let bytes = dir.read(&second);
    let fails = |changed: &[u8], error: &str| {
        dir.write(&second, changed);
        let output = dir.run(&format!("verify {} --parent m.gguf", out_name(0, n))).output();
        dir.write(&second, &bytes);
        output.check(output.status.code() == Some(1), "status 1");
        output.check(output.error().contains(error), error);
    };
    fails(&[&bytes[..], b"tail"].concat(), &format!("part 2 of {n}: the file has {} bytes", bytes.len() + 4));
    // Also in what the three keys say.
    let at = |key: &str| {
        let file = File::parse(&bytes).unwrap();
        let raw = file.metadata().get(key).unwrap().raw();
        raw.as_ptr() as usize - bytes.as_ptr() as usize + raw.len()
    };
    let mut changed = bytes.clone();
    changed[at("split.no") - 2] = 7;
    fails(&changed, &format!("{second}: metadata 'split.no' is 7, expected 1"));
    let mut changed = bytes.clone();
    changed[at("split.count") - 2] = 9;
    fails(&changed, &format!("{second}: metadata 'split.count' is 9, expected {n}"));
    let mut changed = bytes.clone();
    changed[at("split.tensors.count") - 4] ^= 1;
    fails(&changed, &format!("part 2 of {n}: metadata 'split.tensors.count' differs from the plan's"));
}

#[test]
fn the_result_lists_the_parts() {
    let dir = model().dir();
    let json = |arguments: &str| -> Value {
        let output = dir.run(&format!("m.gguf --blocks 1 {arguments} --json -")).succeeds();
        serde_json::from_str(&output.stdout).unwrap()
    };
    let planned = json("-o out --split-max-size 1k --dry-run");
    let written = json("-o out --split-max-size 1k");
    let parts = out_parts(&dir);
    for (i, bytes) in parts.iter().enumerate() {
        let part = &written["output"]["parts"][i];
        assert_eq!(part["path"], out_name(i, parts.len()));
        assert_eq!(part["bytes"], bytes.len());
    }
    let n_bytes: usize = parts.iter().map(Vec::len).sum();
    assert_eq!(written["output"]["path"], out_name(0, parts.len()));
    assert_eq!(written["output"]["bytes"], n_bytes);
    let hash = blake3::hash(&parts.concat()).to_hex().to_string();
    assert_eq!(written["output"]["blake3"], hash);
    assert_eq!(planned["output"]["parts"], written["output"]["parts"]);
    assert_eq!(planned["output"]["blake3"], Value::Null);
    let whole = json("-o whole.gguf");
    assert_eq!(whole["output"]["parts"].as_array().unwrap().len(), 1);
    assert_eq!(whole["output"]["parts"][0]["path"], "whole.gguf");
    let nowhere = json("--dry-run --split-max-size 1k");
    assert_eq!(nowhere["output"]["path"], Value::Null);
    assert_eq!(nowhere["output"]["bytes"], n_bytes);
    let shown = dir.run("m.gguf --blocks 1 -o table --split-max-size 1k").succeeds();
    let expected = format!("table-00001-of-{:05}.gguf: {} parts, 5 blocks", parts.len(), parts.len());
    assert!(shown.stdout.contains(&expected), "{}", shown.stdout);
}

#[test]
fn nothing_that_exists_is_overwritten_without_force() {
    let dir = model().dir();
    // Parts of another count would be mixed up with the new ones.
    for name in [out_name(1, 9), out_name(0, 3)] {
        dir.write(&name, b"precious");
        let output = dir
            .run("m.gguf --blocks 1 -o out --split-max-size 1k")
            .fails(1, &format!("{name}: exists already"));
        assert_eq!(output.hint(), Some("--force overwrites it"));
        fs::remove_file(dir.path(&name)).unwrap();
    }
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k").succeeds();
    let parts = out_parts(&dir);
    dir.write(&out_name(1, parts.len()), b"old");
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k --force").succeeds();
    assert!(out_parts(&dir) == parts);
    // Nor the input, nor one result by another.
    for force in ["", "--force"] {
        write_parts(&dir, &model().split(3));
        for out in ["m", "./m.gguf", "m-00002-of-00003.gguf"] {
            let output =
                dir.run(&format!("{} --blocks 1 --keep-split {force} -o {out}", part_name(0, 3))).refused();
            output.check(output.error().ends_with("is the input itself"), "the reason");
        }
    }
    dir.run(&format!(
        "m.gguf --blocks 1 -o new --split-max-size 1k --json new-00002-of-{:05}.gguf",
        parts.len()
    ))
    .fails(1, &format!("new-00002-of-{:05}.gguf: is the output itself", parts.len()));
}

#[test]
fn a_part_that_cannot_be_replaced_leaves_all_as_they_were() {
    let dir = model().dir();
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k").succeeds();
    let n = out_parts(&dir).len();
    for i in 0..n {
        let name = out_name(i, n);
        let bytes = dir.read(&name);
        fs::remove_file(dir.path(&name)).unwrap();
        fs::create_dir(dir.path(&name)).unwrap();
        dir.run("m.gguf --blocks 2 -o out --split-max-size 1k --force")
            .fails(1, &format!("{name}: is a folder, expected the name of a file"));
        fs::remove_dir(dir.path(&name)).unwrap();
        dir.write(&name, &bytes);
    }
}

#[test]
fn a_signal_at_any_moment_leaves_all_parts_or_none() {
    let dir = Dir::new();
    let make = (0..3).fold(Make::new("llama", 3), |make, block| {
        make.tensor(&format!("blk.{block}.large.weight"), &[1 << 18], I8)
    });
    make.write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 1 -o whole --split-max-size 300k").succeeds();
    let n = dir.names().len() - 1;
    assert!(n > 1);
    let whole: Vec<_> = (0..n).map(|i| dir.read(&format!("whole-{:05}-of-{n:05}.gguf", i + 1))).collect();
    let before = dir.names();
    for i in 0..80u64 {
        let child = dir.run("m.gguf --blocks 1 -o out --split-max-size 300k").spawn();
        std::thread::sleep(Duration::from_micros(i * 500));
        signal(child.id(), "TERM");
        let output = finish(&dir, Default::default(), "m.gguf".to_owned(), child);
        if dir.exists(&out_name(0, n)) {
            assert!(out_parts(&dir) == whole, "all parts");
            output.check(dir.names().len() == before.len() + n, "nothing else");
            output.check(!output.stderr.contains("nothing was written"), "no word that nothing was written");
            (0..n).for_each(|i| fs::remove_file(dir.path(&out_name(i, n))).unwrap());
        } else {
            output.check(!output.status.success(), "no success without an output");
            output.check(dir.names() == before, "nothing left");
        }
    }
}

/// Runs a line until a part stands in `folder` beside its place. That is so only while others are renamed; then a shell has to
/// `kill` it.
fn run_and_kill<'d>(dir: &'d Dir, line: &str, folder: &str, kill: &str) -> Output<'d> {
    let mut child = dir.run(line).spawn();
    // Faster than a program that begins only then.
    let kill = format!("read _; process={}; {kill}", child.id());
    let shell = Command::new("sh").args(["-c", &kill]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut shell = shell.unwrap();
    let is_renaming = || {
        let mut names = fs::read_dir(dir.path(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.as_encoded_bytes().ends_with(b".old"))
    };
    while child.try_wait().unwrap().is_none() && !is_renaming() {}
    let _ = shell.stdin.take().unwrap().write_all(b"\n");
    let output = finish(dir, Default::default(), line.to_owned(), child);
    shell.wait().unwrap();
    output
}

#[test]
fn a_signal_while_parts_are_renamed_leaves_the_old_or_the_new() {
    let dir = Make::new("llama", 160).dir();
    let line = |block: usize| format!("m.gguf --blocks {block} -o out --split-max-size 300 --force -q");
    let models = [0, 159].map(|block| {
        dir.run(&line(block)).succeeds();
        out_parts(&dir)
    });
    assert!(models[0].len() > 100 && models[0].len() == models[1].len());
    let before = dir.names();
    for name in ["TERM", "HUP", "QUIT", "USR1", "ALRM", "XCPU"] {
        if is_ignored(name) {
            continue;
        }
        // Now and then all is renamed before this looks.
        let is_caught = (0..20).any(|i| {
            let block = 159 * (i % 2);
            let output = run_and_kill(&dir, &line(block), ".", &format!("kill -{name} $process"));
            output.check(dir.names() == before, "the parts, and nothing else");
            output.check(models.contains(&out_parts(&dir)), "all parts of one model");
            if output.status.success() {
                return false;
            }
            output.check(output.status.code() == Some(130), "status 130");
            output.check(
                output.stderr == "gguf-shorten: interrupted; the output is complete\n",
                "one line that says so",
            );
            true
        });
        assert!(is_caught, "twenty runs ended before the signal {name}");
    }
}

#[test]
fn two_interrupts_of_a_batch_leave_the_old_or_the_new() {
    let dir = Make::new("llama", 160).dir();
    let line = |block: usize| {
        format!("batch m.gguf --blocks {block} --split-max-size 300 --out-dir out --force --redo -q")
    };
    let files = || -> Vec<_> {
        let is_output = |name: &String| name.starts_with("out/") && !name.contains("results");
        let names = dir.names().into_iter().filter(is_output);
        names.map(|name| (dir.read(&name), name)).collect()
    };
    let models = [0, 159].map(|block| {
        dir.run(&line(block)).succeeds();
        files()
    });
    assert!(models[0].len() > 100 && models[0].len() == models[1].len());
    for i in 0..8 {
        let kill = "kill -INT $process; kill -INT $process";
        let output = run_and_kill(&dir, &line(159 * (i % 2)), "out", kill);
        output.check(models.contains(&files()), "all parts of one model, and nothing else");
    }
}
