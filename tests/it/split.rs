//! Split models, read from any of their parts.

use gguf_shorten::gguf::{File, ValueOut};

use crate::make::{Make, part_name, write_parts};
use crate::shorten::{check_tensors, value};
use crate::util::Dir;

fn model() -> Make {
    Make::new("llama", 6).set("llama.feed_forward_length", ValueOut::u32s(&[1, 2, 3, 4, 5, 6]))
}

#[test]
fn any_part_stands_for_the_model() {
    let dir = Dir::new();
    let whole = model().bytes();
    let parts = model().split(3);
    write_parts(&dir, &parts);
    let all: Vec<u8> = parts.iter().flat_map(Make::bytes).collect();
    for i in 0..3 {
        dir.run(&format!("{} --blocks 1,4 -o out{i}.gguf", part_name(i, 3))).succeeds();
        let out = dir.read(&format!("out{i}.gguf"));
        check_tensors(&whole, &out, &[1, 4]);
        let file = File::parse(&out).unwrap();
        for entry in file.metadata() {
            assert!(!entry.key().starts_with("split."), "{}", entry.key());
        }
        assert_eq!(value(&out, "llama.block_count"), "u32 4");
        assert_eq!(value(&out, "llama.feed_forward_length"), "u32[] 1 3 4 6");
        assert_eq!(value(&out, "gguf_shorten.parent.blake3"), format!("str {}", blake3::hash(&all).to_hex()));
    }
    assert!(dir.read("out0.gguf") == dir.read("out2.gguf"));
}

#[test]
fn the_output_has_all_that_the_whole_model_gives() {
    let dir = Dir::new();
    write_parts(&dir, &model().split(4));
    model().write(&dir, "whole.gguf");
    dir.run(&format!("{} --blocks 0 -o a.gguf", part_name(1, 4))).succeeds();
    dir.run("whole.gguf --blocks 0 -o b.gguf").succeeds();
    let (a, b) = (dir.read("a.gguf"), dir.read("b.gguf"));
    let (a, b) = (File::parse(&a).unwrap(), File::parse(&b).unwrap());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (a, b) in a.tensors().iter().zip(b.tensors().iter()) {
        assert_eq!((a.name(), a.offset()), (b.name(), b.offset()));
        assert!(a.bytes() == b.bytes());
    }
    for (a, b) in a.metadata().iter().zip(b.metadata().iter()) {
        // The two parents are two different sequences of bytes.
        assert!(a.raw() == b.raw() || a.key() == "gguf_shorten.parent.blake3", "{}", a.key());
    }
}

#[test]
fn parts_are_found_beside_the_given_one() {
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path("deep/er")).unwrap();
    for (i, part) in model().split(2).iter().enumerate() {
        part.write(&dir, &format!("deep/er/{}", part_name(i, 2)));
    }
    dir.run(&format!("deep/er/{} --blocks 0 -o deep/out.gguf", part_name(1, 2))).succeeds();
    check_tensors(&model().bytes(), &dir.read("deep/out.gguf"), &[0]);
}

#[test]
fn a_missing_part_is_named() {
    for missing in [0, 1, 2] {
        let dir = Dir::new();
        write_parts(&dir, &model().split(3));
        std::fs::remove_file(dir.path(&part_name(missing, 3))).unwrap();
        for given in (0..3).filter(|&i| i != missing) {
            let output = dir
                .run(&format!("{} --blocks 0 -o out.gguf", part_name(given, 3)))
                .fails(1, &format!("{}: No such file or directory (os error 2)", part_name(missing, 3)));
            assert_eq!(output.hint(), Some("all 3 parts must lie in one folder"));
        }
    }
}

#[test]
fn a_part_with_another_number_than_its_name_says_is_refused() {
    let dir = Dir::new();
    let parts = model().split(3);
    write_parts(&dir, &[parts[0].clone(), parts[2].clone(), parts[1].clone()]);
    dir.run(&format!("{} --blocks 0 -o out.gguf", part_name(0, 3)))
        .fails(1, &format!("{}: metadata 'split.no' is 2, expected 1", part_name(1, 3)));
}

#[test]
fn a_part_of_another_split_is_refused() {
    let dir = Dir::new();
    write_parts(&dir, &model().split(3));
    model().split(4)[1].write(&dir, &part_name(1, 3));
    dir.run(&format!("{} --blocks 0 -o out.gguf", part_name(0, 3)))
        .fails(1, &format!("{}: metadata 'split.count' is 4, expected 3", part_name(1, 3)));
    // A file that is no part at all.
    model().write(&dir, &part_name(1, 3));
    dir.run(&format!("{} --blocks 0 -o out.gguf", part_name(0, 3)))
        .fails(1, &format!("{}: metadata 'split.count' is missing, expected 3", part_name(1, 3)));
}

#[test]
fn a_part_with_a_name_that_does_not_lead_to_the_others_is_refused() {
    for name in ["model.gguf", "m-1-of-2.gguf", "m-00001-of-00003.gguf", "m-00001-of-00002.bin"] {
        let dir = Dir::new();
        model().split(2)[0].write(&dir, name);
        dir.run(&format!("{name} --blocks 0 -o out.gguf")).fails(
            1,
            &format!(
                "{name}: is one of 2 parts of a model, but its name does not end in '-<number>-of-00002.gguf'"
            ),
        );
    }
}

#[test]
fn a_tensor_in_two_parts_is_refused() {
    let dir = Dir::new();
    let mut parts = model().split(2);
    parts[1] = parts[1].clone().tensor("token_embd.weight", &[256, 4], crate::make::Q4_K);
    let n = ValueOut::i32(21);
    let parts: Vec<Make> = parts.into_iter().map(|part| part.set("split.tensors.count", n.clone())).collect();
    write_parts(&dir, &parts);
    dir.run(&format!("{} --blocks 0 -o out.gguf", part_name(0, 2)))
        .fails(1, &format!("{}: tensor 'token_embd.weight' is in two parts of the model", part_name(0, 2)));
}

#[test]
fn parts_with_too_few_tensors_are_refused() {
    let dir = Dir::new();
    let parts: Vec<Make> =
        model().split(2).into_iter().map(|part| part.set("split.tensors.count", ValueOut::i32(21))).collect();
    write_parts(&dir, &parts);
    dir.run(&format!("{} --blocks 0 -o out.gguf", part_name(1, 2))).fails(
        1,
        &format!("{}: metadata 'split.tensors.count' is 21, but the parts have 20 tensors", part_name(0, 2)),
    );
}

#[test]
fn a_split_into_one_part_is_a_model_of_any_name() {
    let dir = model().split(1)[0].dir();
    dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
    check_tensors(&model().bytes(), &dir.read("out.gguf"), &[2]);
    assert_eq!(value(&dir.read("out.gguf"), "split.count"), "none");
}

#[test]
fn absurd_counts_of_parts_are_refused() {
    for count in [u64::MAX, 1 << 40, 70_000] {
        let dir = Dir::new();
        let name = "m-00001-of-00002.gguf";
        model().set("split.count", ValueOut::u64(count)).write(&dir, name);
        dir.run(&format!("{name} --blocks 0 -o out.gguf")).refused();
    }
}

#[test]
fn no_part_is_overwritten() {
    let dir = Dir::new();
    write_parts(&dir, &model().split(3));
    for i in 0..3 {
        let name = part_name(i, 3);
        dir.run(&format!("{} --blocks 0 --force -o ./{name}", part_name(0, 3)))
            .fails(1, &format!("./{name}: is the input itself"));
    }
}

#[test]
fn parts_joined_byte_by_byte_are_known() {
    let dir = Dir::new();
    let parts = model().split(3);
    let all: Vec<u8> = parts.iter().flat_map(Make::bytes).collect();
    // Under any name, that of a part too.
    for name in ["m.gguf", "m-00001-of-00003.gguf"] {
        dir.write(name, &all);
        let output = dir.run(&format!("{name} --blocks 0 -o out.gguf")).fails(
            1,
            &format!("{name}: several parts of a model were joined byte by byte, which makes no GGUF file"),
        );
        assert_eq!(
            output.hint(),
            Some(
                "a split model is read as it is, from any of its parts; llama-gguf-split --merge joins them"
            )
        );
    }
}

#[test]
fn a_merged_model_that_says_it_is_split_is_known() {
    let dir = Dir::new();
    let n_tensors = File::parse(&model().bytes()).unwrap().tensors().len();
    model()
        .set("split.no", ValueOut::u32(0))
        .set("split.count", ValueOut::u32(3))
        .set("split.tensors.count", ValueOut::i32(n_tensors as i32))
        .write(&dir, "m.gguf");
    let output = dir
        .run("m.gguf --blocks 0 -o out.gguf")
        .fails(1, "m.gguf: metadata 'split.count' says that it is one of 3 parts of a model");
    assert_eq!(
        output.hint(),
        Some(
            "merged without taking that back; 'gguf-set-metadata FILE split.count 0' of the Python package gguf does"
        )
    );
    // As it says, one file.
    model().set("split.count", ValueOut::u32(0)).write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 0 -o out.gguf").succeeds();
}

#[test]
fn pieces_of_a_file_are_to_be_joined_first() {
    let dir = Dir::new();
    let bytes = model().bytes();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (names, join) in [
        (["m.gguf.part1of2", "m.gguf.part2of2"], "cat m.gguf.part1of2 m.gguf.part2of2 > m.gguf"),
        (["m.gguf-split-a", "m.gguf-split-b"], "cat m.gguf-split-* > m.gguf"),
    ] {
        dir.write(names[0], first);
        dir.write(names[1], second);
        for name in names {
            let output = dir.run(&format!("{name} --blocks 0 -o out.gguf")).refused();
            let hint = format!("this is a piece of a file that was cut into some; join them first: {join}");
            output.check(output.hint() == Some(&hint), &hint);
        }
        dir.sh(join).succeeds();
        dir.run("m.gguf --blocks 0 -o out.gguf --force").succeeds();
        std::fs::remove_file(dir.path("m.gguf")).unwrap();
    }
}

#[test]
fn a_pattern_of_the_shell_stands_for_the_model() {
    let dir = Dir::new();
    write_parts(&dir, &model().split(3));
    let run = |line: &str| dir.sh(&format!("$PROGRAM {line}")).succeeds();
    run("m-*-of-*.gguf --blocks 1,4 -o out.gguf");
    check_tensors(&model().bytes(), &dir.read("out.gguf"), &[1, 4]);
    run("--blocks 1,4 -o again.gguf m-*.gguf");
    assert!(dir.read("again.gguf") == dir.read("out.gguf"));
    run("shorten m-*.gguf --blocks 1,4 --dry-run");
    run("show m-*.gguf");
    run("m-*.gguf --blocks 1 -o part --keep-split");
    run("verify part-*.gguf --parent m-*.gguf");
    run("verify --parent m-*.gguf out.gguf");
    let results = dir.sh("$PROGRAM batch m-*.gguf --drop 1 --method reverse --out-dir all").output();
    results.check(results.stdout.contains("1 done"), "one model");
    // Two models are not one.
    Make::new("llama", 2).write(&dir, "n.gguf");
    let output = dir
        .sh("exec $PROGRAM m-*.gguf n.gguf --blocks 1 -o new.gguf")
        .fails(2, "2 models are named, 'm-00001-of-00003.gguf' and 'n.gguf', expected one");
    assert!(output.hint().unwrap().starts_with("batch shortens several models: "));
    dir.sh("exec $PROGRAM show m-*.gguf n.gguf")
        .fails(2, "2 models are named, 'm-00001-of-00003.gguf' and 'n.gguf', expected one");
}
