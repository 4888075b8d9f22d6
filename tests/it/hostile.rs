//! Files and arguments that are wrong: each gives the error that it is due, and never a panic.

use std::collections::BTreeSet;
use std::fs;

use gguf_shorten::error::message;
use gguf_shorten::gguf::{self, File};
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{Constraints, Plan, Provenance};

use crate::make::{F32, I8, Make, Q4_1, Random, Raw, array, string};
use crate::util::{Dir, is_message, unprivileged};

/// Tries the bytes in every command that needs no engine: each must give this error, and write nothing.
#[track_caller]
fn refused(bytes: &[u8], error: &str, hint: Option<&str>) {
    let dir = Dir::new();
    dir.write("m.gguf", bytes);
    for arguments in [
        "m.gguf --blocks 0 -o out.gguf",
        "m.gguf --drop 1 -o out.gguf",
        "m.gguf --drop 1 --method reverse --dry-run --json -",
        "score m.gguf --json result.json",
    ] {
        let output = dir.run(arguments).fails(1, &format!("m.gguf: {error}"));
        output.check(output.hint() == hint, &format!("hint {hint:?}"));
    }
}

const INCOMPLETE: Option<&str> = Some("the download may be incomplete");

#[test]
fn a_file_of_another_kind_is_not_gguf() {
    refused(
        b"Dear reader,\n",
        "not a GGUF file: starts with 'Dear', expected 'GGUF'",
        None,
    );
    refused(
        b"version https://git-lfs.github.com/spec/v1\n",
        "not a GGUF file: starts with 'vers', expected 'GGUF'",
        Some("this may be a Git LFS pointer; 'git lfs pull' fetches the file itself"),
    );
    refused(
        b"PK\x03\x04rest",
        "not a GGUF file: starts with bytes 50 4b 03 04, expected 'GGUF'",
        Some("this may be a PyTorch checkpoint; convert it to GGUF first"),
    );
    refused(
        b"\0",
        "not a GGUF file: starts with bytes 00, expected 'GGUF'",
        None,
    );
}

#[test]
fn an_empty_file_says_so() {
    refused(b"", "file is empty, expected 'GGUF'", INCOMPLETE);
}

#[test]
fn other_versions_and_byte_orders_are_refused_by_name() {
    let version = |version| {
        let mut raw = Raw::model();
        raw.version = version;
        raw.bytes()
    };
    refused(
        &version(1),
        "GGUF version 1 is not supported, expected version 2 or 3",
        Some("convert or quantize the model again with a current llama.cpp"),
    );
    refused(
        &version(4),
        "GGUF version 4 is not supported, expected version 2 or 3",
        None,
    );
    refused(
        &version(3u32.swap_bytes()),
        "big-endian GGUF (version 3) is not supported",
        Some("gguf_convert_endian.py of llama.cpp changes the byte order"),
    );
}

#[test]
fn a_file_that_ends_early_says_where() {
    let bytes = Raw::model().bytes();
    for (len, place) in [
        (3, "the header"),
        (20, "the header"),
        (60, "metadata entry 1 of 2"),
        (90, "metadata entry 2 of 2"),
        (150, "tensor info 1 of 2"),
    ] {
        refused(
            &bytes[..len],
            &format!("file ends at byte {len}, inside {place}"),
            INCOMPLETE,
        );
    }
    let len = bytes.len();
    refused(
        &bytes[..len - 1],
        &format!(
            "tensor 'blk.1.ffn_down.weight' ends at byte {len}, but the file has {} bytes",
            len - 1
        ),
        INCOMPLETE,
    );
}

#[test]
fn counts_that_cannot_be_true_are_refused() {
    for count in [u64::MAX, u64::MAX / 24 + 1, 1 << 63, 1 << 32, 1000] {
        let mut raw = Raw::model();
        raw.n_tensors = Some(count);
        let bytes = raw.bytes();
        let left = bytes.len() - 24 - (8 + 20 + 4 + 8 + 5) - (8 + 17 + 4 + 4);
        refused(
            &bytes,
            &format!(
                "the header counts {count} tensors, but only {left} bytes of the file are left"
            ),
            INCOMPLETE,
        );
        let mut raw = Raw::model();
        raw.n_entries = Some(count);
        let bytes = raw.bytes();
        let left = bytes.len() - 24;
        refused(
            &bytes,
            &format!(
                "the header counts {count} metadata entries, but only {left} bytes of the file are left"
            ),
            INCOMPLETE,
        );
    }
}

#[test]
fn lengths_that_cannot_be_true_are_refused() {
    for len in [u64::MAX, u64::MAX - 8, 1 << 63, 1 << 40] {
        let values = [
            (8, len.to_le_bytes().to_vec()),
            (9, array(8, len, b"")),
            (9, array(9, len, b"")),
            (9, array(0, len, b"")),
            (9, array(12, len, b"")),
        ];
        for (type_id, value) in values {
            let bytes = Raw::model().entry(b"k", type_id, &value).bytes();
            let error = format!(
                "file ends at byte {}, inside metadata entry 3 of 3",
                bytes.len()
            );
            refused(&bytes, &error, INCOMPLETE);
        }
        let mut key = len.to_le_bytes().to_vec();
        key.extend(b"rest");
        let mut bytes = Raw::model().entry(b"last", 0, &[1]).bytes();
        let at = bytes.windows(4).position(|w| w == b"last").unwrap() - 8;
        bytes[at..at + 8].copy_from_slice(&len.to_le_bytes());
        let error = format!(
            "file ends at byte {}, inside metadata entry 3 of 3",
            bytes.len()
        );
        refused(&bytes, &error, INCOMPLETE);
    }
}

#[test]
fn shapes_that_cannot_be_true_are_refused() {
    for (dims, n_dims, error) in [
        (
            vec![u64::MAX, u64::MAX],
            2,
            "tensor 'x' has dimensions 18446744073709551615 x 18446744073709551615 x 1 x 1, more than fit in 63 bits"
                .to_owned(),
        ),
        (
            vec![1 << 32, 1 << 32],
            2,
            "tensor 'x' has dimensions 4294967296 x 4294967296 x 1 x 1, more than fit in 63 bits"
                .to_owned(),
        ),
        (
            vec![1; 5],
            5,
            "tensor 'x' has 5 dimensions, expected at most 4".to_owned(),
        ),
        (
            vec![],
            u32::MAX,
            "tensor 'x' has 4294967295 dimensions, expected at most 4".to_owned(),
        ),
    ] {
        refused(
            &Raw::model().info(b"x", n_dims, &dims, F32, 64).bytes(),
            &error,
            None,
        );
    }
    refused(
        &Raw::model().info(b"x", 1, &[33], Q4_1, 64).bytes(),
        "tensor 'x' has 33 elements per row, expected a multiple of 32, the block size of Q4_1",
        None,
    );
}

#[test]
fn offsets_past_the_end_are_refused() {
    for offset in [64, 1 << 20, 1 << 63, u64::MAX - 31] {
        let bytes = Raw::model().info(b"x", 1, &[32], I8, offset).bytes();
        let start = bytes.len() as u128 - 64;
        refused(
            &bytes,
            &format!(
                "tensor 'x' ends at byte {}, but the file has {} bytes",
                start + u128::from(offset) + 32,
                bytes.len()
            ),
            INCOMPLETE,
        );
    }
}

#[test]
fn offsets_that_overlap_are_refused() {
    let bytes = Raw::model().info(b"x", 1, &[40], I8, 0).bytes();
    let start = bytes.len() - 64;
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(error.contains("inside tensor"), "{error}");
    refused(&bytes, &error, None);
    let bytes = Raw::model().info(b"x", 1, &[1], I8, 32).bytes();
    refused(
        &bytes,
        &format!(
            "tensor 'x' starts at byte {}, inside tensor 'blk.1.ffn_down.weight', which ends at byte {}",
            start + 32,
            start + 64
        ),
        None,
    );
}

#[test]
fn offsets_that_are_not_aligned_are_refused() {
    refused(
        &Raw::model().info(b"x", 1, &[1], I8, 33).bytes(),
        "tensor 'x' has data offset 33, expected a multiple of the alignment 32",
        None,
    );
}

#[test]
fn alignments_that_are_none_are_refused() {
    for alignment in [0, 3, 33, u32::MAX] {
        refused(
            &Raw::model().u32("general.alignment", alignment).bytes(),
            &format!(
                "metadata 'general.alignment' is {alignment}, expected a power of two below 2^32"
            ),
            None,
        );
    }
    refused(
        &Raw::model().string("general.alignment", b"32").bytes(),
        "metadata 'general.alignment' is a string, expected a u32",
        None,
    );
}

#[test]
fn a_huge_alignment_is_refused_without_being_filled() {
    let mut raw = Raw::model().u32("general.alignment", 1 << 31);
    raw.alignment = 32;
    let bytes = raw.bytes();
    refused(
        &bytes,
        &format!(
            "file ends at byte {}, inside the padding before the tensor data",
            bytes.len()
        ),
        INCOMPLETE,
    );
}

#[test]
fn names_and_keys_that_appear_twice_are_refused() {
    refused(
        &Raw::model().u32("llama.block_count", 3).bytes(),
        "metadata 'llama.block_count' appears twice, as number 2 and number 3",
        None,
    );
    refused(
        &Raw::model()
            .tensor("blk.0.ffn_down.weight", &[1], I8, &[1])
            .bytes(),
        "tensor 'blk.0.ffn_down.weight' appears twice, as number 1 and number 3",
        None,
    );
}

#[test]
fn empty_and_unreadable_keys_and_names_are_refused() {
    refused(
        &Raw::model().u32("", 3).bytes(),
        "metadata entry 3 of 3 has an empty key",
        None,
    );
    let bytes = Raw::model().entry(b"\xff\xfe", 0, &[1]).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(
        error.starts_with("the key of metadata entry 3 of 3 is not UTF-8, at byte "),
        "{error}"
    );
    refused(&bytes, &error, None);
    let bytes = Raw::model().info(b"\xff", 1, &[1], I8, 0).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(
        error.starts_with("the name of tensor info 3 of 3 is not UTF-8, at byte "),
        "{error}"
    );
    refused(&bytes, &error, None);
}

#[test]
fn types_that_are_not_known_are_refused_by_number() {
    for id in [43, 200, u32::MAX] {
        refused(
            &Raw::model().info(b"x", 1, &[32], id, 0).bytes(),
            &format!("tensor 'x' has unknown tensor type {id}"),
            None,
        );
    }
    refused(
        &Raw::model().info(b"x", 1, &[32], 31, 0).bytes(),
        "tensor 'x' has tensor type 31, 'Q4_0_4_4', which llama.cpp no longer supports",
        Some("convert or quantize the model again with a current llama.cpp"),
    );
    let bytes = Raw::model().entry(b"k", 13, &[0; 8]).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(
        error.starts_with("metadata entry 3 of 3 has unknown value type 13, at byte "),
        "{error}"
    );
    refused(&bytes, &error, None);
}

#[test]
fn arrays_nested_without_end_are_refused() {
    let value = (0..20_000).fold(array(0, 1, &[1]), |inner, _| array(9, 1, &inner));
    let bytes = Raw::model().entry(b"k", 9, &value).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(
        error.starts_with("metadata entry 3 of 3 nests arrays more than 8 deep"),
        "{error}"
    );
    refused(&bytes, &error, None);
}

#[test]
fn a_model_needs_an_architecture_and_a_number_of_blocks() {
    let tensors = |raw: Raw| raw.tensor("blk.0.a", &[1], I8, &[1]).bytes();
    let llama = || Raw::new().string("general.architecture", b"llama");
    refused(
        &tensors(Raw::new()),
        "metadata 'general.architecture' is missing",
        None,
    );
    refused(
        &tensors(Raw::new().u32("general.architecture", 1)),
        "metadata 'general.architecture' is a u32, expected a string",
        None,
    );
    refused(
        &tensors(Raw::new().string("general.architecture", b"\xff")),
        "the value of metadata 'general.architecture' is not UTF-8",
        None,
    );
    refused(
        &tensors(llama()),
        "metadata 'llama.block_count' is missing",
        None,
    );
    refused(
        &tensors(llama().string("llama.block_count", b"2")),
        "metadata 'llama.block_count' is a string, expected an unsigned integer",
        None,
    );
    refused(
        &tensors(llama().entry(b"llama.block_count", 9, &array(4, 1, &[2, 0, 0, 0]))),
        "metadata 'llama.block_count' is an array, expected an unsigned integer",
        None,
    );
    refused(
        &tensors(llama().entry(b"llama.block_count", 5, &(-1i32).to_le_bytes())),
        "metadata 'llama.block_count' is -1, expected 0 to 18446744073709551615",
        None,
    );
    for count in [0, 513, u64::MAX] {
        refused(
            &tensors(llama().entry(b"llama.block_count", 10, &count.to_le_bytes())),
            &format!("metadata 'llama.block_count' is {count}, expected 1 to 512"),
            None,
        );
    }
}

#[test]
fn a_vocabulary_is_not_a_model() {
    let raw = Raw::new()
        .string("general.architecture", b"llama")
        .u32("llama.block_count", 32)
        .entry(
            b"tokenizer.ggml.tokens",
            9,
            &array(8, 2, &[string(b"a"), string(b"b")].concat()),
        );
    refused(
        &raw.bytes(),
        "has no tensors: a vocabulary, not a model",
        None,
    );
}

#[test]
fn hostile_names_stay_one_short_line() {
    let long = "x".repeat(100_000);
    let names = [
        "a\nb".to_owned(),
        "\u{1b}[31mred".to_owned(),
        "a\u{202e}b".to_owned(),
        long,
    ];
    for name in names {
        let files = [
            // No number of blocks, one of the wrong type, one that is too large.
            Raw::new()
                .string("general.architecture", name.as_bytes())
                .tensor("blk.0.a", &[1], I8, &[1]),
            Raw::new()
                .string("general.architecture", name.as_bytes())
                .string(&format!("{name}.block_count"), b"2"),
            Raw::new()
                .string("general.architecture", name.as_bytes())
                .u32(&format!("{name}.block_count"), 1000),
            Raw::new()
                .string("general.architecture", name.as_bytes())
                .u32(&format!("{name}.block_count"), 2)
                .u32(&format!("{name}.nextn_predict_layers"), 2),
            Raw::new()
                .string("general.architecture", name.as_bytes())
                .u32(&format!("{name}.block_count"), 2)
                .tensor("blk.0.a", &[1], I8, &[1]),
            Raw::model().string("general.type", name.as_bytes()),
            Raw::model().entry(format!("llama.{name}").as_bytes(), 9, &array(0, 2, &[1, 2])),
            Raw::model().u32(&name, 1).u32(&name, 1),
            Raw::model().info(name.as_bytes(), 1, &[1], I8, 0),
            Raw::model().info(format!("blk.7.{name}").as_bytes(), 1, &[1], I8, 64),
        ];
        for (i, raw) in files.into_iter().enumerate() {
            let dir = Dir::new();
            dir.write("m.gguf", &raw.bytes());
            let output = dir.run("m.gguf --blocks 0 -o out.gguf").refused();
            output.check(
                output.status.code() == Some(1),
                &format!("status 1 of file {i}"),
            );
            // `show` prints what is there, but nothing that moves the cursor.
            let shown = dir.run("show m.gguf").output();
            let text = shown.stdout.clone() + &shown.stderr;
            shown.check(!text.contains(['\u{1b}', '\r']), "no control characters");
        }
    }
}

#[test]
fn block_numbers_out_of_range_are_refused() {
    let dir = Dir::new();
    Make::new("llama", 4).write(&dir, "m.gguf");
    for (blocks, outside) in [
        ("4", "4".to_owned()),
        ("0,4", "4".to_owned()),
        ("2-5", "5".to_owned()),
        ("99999999999999999999999999", usize::MAX.to_string()),
    ] {
        dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf"))
            .fails(
                1,
                &format!("m.gguf: cannot remove block {outside}: the model has 4 blocks, 0 to 3"),
            );
    }
}

#[test]
fn removing_all_blocks_is_refused() {
    let dir = Dir::new();
    Make::new("llama", 4).write(&dir, "m.gguf");
    let error = "m.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay";
    dir.run("m.gguf --blocks 0-3 -o out.gguf").fails(1, error);
    for method in ["bi", "relative-magnitude", "sequential", "reverse"] {
        dir.run(&format!("m.gguf --drop 4 --method {method} -o out.gguf"))
            .fails(1, error);
    }
    dir.run("m.gguf --drop 5 -o out.gguf").fails(
        1,
        "m.gguf: cannot remove 5 blocks: the model has 4, and at least one must stay",
    );
}

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
            dir.run(&format!("{arguments} {input}"))
                .fails(1, &format!("{input}: {error}"));
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
    let dir = Dir::new();
    Make::new("llama", 4).write(&dir, "m.gguf");
    fs::set_permissions(dir.path("m.gguf"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root without its rights; where they cannot be given up, the test above has a path that root cannot read either.
    if let Some(wrapper) = unprivileged(&dir) {
        dir.sh(&format!(
            "exec {wrapper} $PROGRAM m.gguf --blocks 1 -o out.gguf"
        ))
        .fails(1, "m.gguf: Permission denied (os error 13)");
    }
}

/// What the library says of a file: an error, or that blocks can be removed, and then the output is well-formed.
fn examine(bytes: &[u8]) -> Result<(), String> {
    let file = File::parse(bytes).map_err(|error| error.to_string())?;
    let said = |error: anyhow::Error| message(&error);
    let model = Model::new(vec![file]).map_err(said)?;
    let constraints = Constraints::of(&model).map_err(said)?;
    let provenance = Provenance {
        parent_blake3: blake3::hash(b""),
        method: "blocks".to_owned(),
        heal: "none".to_owned(),
    };
    let sets = [vec![0, 1, 2], vec![1], vec![model.n_blocks() - 1], vec![0]];
    let mut results = Vec::new();
    for set in sets {
        let removed: BTreeSet<_> = set.into_iter().map(BlockId::new).collect();
        let planned = Plan::new(&model, &constraints, removed, &provenance);
        results.push(planned.map_err(said).map(|plan| {
            // An alignment of megabytes makes a long file of a short one.
            if plan.layout.file_len() > 1 << 22 {
                return;
            }
            let mut out = Vec::new();
            gguf::write(&plan.layout, &mut out, |i, out| {
                plan.data[i].write(&model, out)
            })
            .unwrap_or_else(|error| panic!("accepted and not written: {error}"));
            File::parse(&out).unwrap_or_else(|error| panic!("accepted and not readable: {error}"));
        }));
    }
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        check_text(error);
    }
    // Of a model that can be shortened, some block may go alone.
    results
        .into_iter()
        .find(Result::is_ok)
        .unwrap_or_else(|| Err("nothing may go".to_owned()))
}

#[track_caller]
fn check_text(error: &str) {
    assert!(is_message(error), "{error:?}");
}

/// Small models with something of everything.
fn seeds() -> Vec<Vec<u8>> {
    use gguf_shorten::gguf::ValueOut;
    vec![
        Raw::model().bytes(),
        Make::new("llama", 3)
            .set("llama.feed_forward_length", ValueOut::u32s(&[1, 2, 3]))
            .without_end_padding()
            .bytes(),
        Make::new("gemma3", 7)
            .set("gemma3.attention.sliding_window", ValueOut::u32(8))
            .set(
                "gemma3.attention.sliding_window_pattern",
                ValueOut::bools(&[true, false, true, true, true, true, false]),
            )
            .set("gemma3.nextn_predict_layers", ValueOut::u32(1))
            .alignment(8)
            .bytes(),
        Make::new("granite", 3)
            .set("granite.deepstack_mapping", ValueOut::i32s(&[0, -1, 1]))
            .version(2)
            .bytes(),
    ]
}

#[test]
fn a_model_cut_off_at_any_byte_is_refused() {
    for bytes in seeds() {
        let end = {
            let file = File::parse(&bytes).unwrap();
            let tensors = file.tensors();
            tensors.iter().map(|tensor| tensor.end().0).max().unwrap() as usize
        };
        examine(&bytes).unwrap();
        for len in 0..end {
            let error = examine(&bytes[..len]).unwrap_err();
            check_text(&error);
            let says = error.contains("file ends at")
                || error.contains("ends at byte")
                || error.contains("bytes of the file are left")
                || len == 0;
            assert!(says, "cut at {len}: {error}");
        }
        // Only the padding behind the last tensor may be missing.
        for len in end..bytes.len() {
            examine(&bytes[..len]).unwrap();
        }
    }
}

#[test]
fn the_program_refuses_a_model_cut_off_anywhere() {
    let bytes = Make::new("llama", 2).bytes();
    let dir = Dir::new();
    for len in (0..bytes.len() - 32).step_by(97) {
        dir.write("m.gguf", &bytes[..len]);
        let output = dir.run("m.gguf --blocks 0 -o out.gguf").refused();
        output.check(
            output.status.code() == Some(1) && output.hint() == INCOMPLETE,
            "status 1 and the hint",
        );
    }
}

/// Where the tensor data starts: only the bytes before mean anything to the reader.
fn head_len(bytes: &[u8]) -> usize {
    File::parse(bytes).unwrap().data_start().0 as usize
}

#[test]
fn no_number_near_the_limits_causes_a_panic() {
    let numbers = [
        u64::MAX,
        u64::MAX - 31,
        1 << 63,
        (1 << 63) - 1,
        u64::from(u32::MAX),
        1 << 32,
        0,
    ];
    for bytes in seeds() {
        for at in 0..head_len(&bytes) - 8 {
            for number in numbers {
                let mut mutant = bytes.clone();
                mutant[at..at + 8].copy_from_slice(&number.to_le_bytes());
                if let Err(error) = examine(&mutant) {
                    check_text(&error);
                }
                let mut mutant = bytes.clone();
                mutant[at..at + 4].copy_from_slice(&(number as u32).to_le_bytes());
                if let Err(error) = examine(&mutant) {
                    check_text(&error);
                }
            }
        }
    }
}

/// A mutant: some bytes of the head are others, or some are gone, or some are there twice.
fn mutant(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut mutant = bytes.to_vec();
    let head = head_len(bytes);
    for _ in 0..1 + random.below(4) {
        let at = random.below(head);
        match random.below(8) {
            0..=4 => {
                let values = [0, 1, 2, 3, 8, 9, 13, 0x7f, 0x80, 0xff];
                mutant[at] = match random.below(3) {
                    0 => values[random.below(values.len())],
                    1 => mutant[at] ^ (1 << random.below(8)),
                    _ => random.next() as u8,
                };
            }
            5 => {
                let n = 1 + random.below(16);
                mutant.drain(at..at + n);
            }
            6 => {
                let copy = mutant[at..at + 1 + random.below(16)].to_vec();
                mutant.splice(at..at, copy);
            }
            _ => {
                let from = random.below(head);
                let copy = mutant[from..from + 8].to_vec();
                mutant[at..at + 8].copy_from_slice(&copy);
            }
        }
    }
    mutant
}

#[test]
fn no_mutant_causes_a_panic() {
    let mut random = Random::new(1);
    let (mut n_refused, mut n_accepted) = (0, 0);
    for bytes in seeds() {
        for _ in 0..6000 {
            match examine(&mutant(&bytes, &mut random)) {
                Ok(()) => n_accepted += 1,
                Err(error) => {
                    check_text(&error);
                    n_refused += 1;
                }
            }
        }
    }
    // The mutants reach both the checks and what lies behind them.
    assert!(
        n_refused > 1000 && n_accepted > 1000,
        "{n_refused} {n_accepted}"
    );
}

#[test]
fn the_program_needs_little_memory_for_a_mutant() {
    let dir = Dir::new();
    let mut random = Random::new(7);
    for bytes in seeds() {
        for _ in 0..12 {
            let mutant = mutant(&bytes, &mut random);
            dir.write("m.gguf", &mutant);
            // In KiB: the file and 256 MiB.
            let limit = (mutant.len() >> 10) + (256 << 10);
            let output = dir
                .sh(&format!(
                    "ulimit -v {limit}; exec $PROGRAM m.gguf --blocks 0 --dry-run -q"
                ))
                .output();
            if output.status.success() {
                output.check(output.stderr.is_empty(), "nothing on stderr");
            } else {
                output.check_refused();
            }
            let output = dir
                .sh(&format!("ulimit -v {limit}; exec $PROGRAM show m.gguf"))
                .output();
            if !output.status.success() {
                output.check_refused();
            }
        }
    }
}

#[test]
fn hostile_counts_in_a_large_file_need_little_memory() {
    let dir = Dir::new();
    // 32 MB of zeros behind the head, into which counts and lengths can lead.
    let n = 32 << 20;
    let pad = |raw: Raw| {
        let mut bytes = raw.bytes();
        bytes.resize(bytes.len() + n, 0);
        bytes
    };
    let mut tensors = Raw::model();
    tensors.n_tensors = Some(1 << 20);
    let mut entries = Raw::model();
    entries.n_entries = Some(1 << 21);
    let strings = Raw::model().entry(b"k", 9, &array(8, 1 << 21, b""));
    let arrays = Raw::model().entry(b"k", 9, &array(9, 1 << 21, b""));
    for raw in [tensors, entries, strings, arrays] {
        dir.write("m.gguf", &pad(raw));
        let limit = (n >> 10) + (256 << 10);
        dir.sh(&format!(
            "ulimit -v {limit}; exec $PROGRAM m.gguf --blocks 0 -o out.gguf"
        ))
        .refused();
    }
}

#[test]
fn a_hostile_file_name_stays_on_its_line() {
    let dir = Dir::new();
    for name in ["a\nb.gguf", "a\u{1b}[31mb.gguf", "a\rb.gguf"] {
        dir.write(name, b"Dear");
        dir.run_with(["show", name]).refused();
        dir.run_with([name, "--blocks", "1", "-o", "out.gguf"])
            .refused();
    }
}
