//! Heads of files that are wrong: the header, metadata, the tensor table.

use super::{INCOMPLETE, refused};
use crate::make::{F32, I8, Q4_1, Raw, array};
use crate::util::{Dir, Said};

#[test]
fn what_is_wrong_is_said_in_these_words() {
    let raw = Raw::model;
    let len = raw().bytes().len();
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::model();
        change(&mut raw);
        raw.bytes()
    };
    let of_type = |id| raw().info(b"x", 1, &[32], id, 0).bytes();
    let dir = Dir::new();
    let mut said = Said::default();
    for (title, bytes) in [
        ("a text", b"Dear reader,\n".to_vec()),
        ("nothing", Vec::new()),
        ("a version", with(&|raw| raw.version = 1)),
        ("another byte order", with(&|raw| raw.version = 3u32.swap_bytes())),
        ("half a header", raw().bytes()[..20].to_vec()),
        ("half of the metadata", raw().bytes()[..60].to_vec()),
        ("half a tensor info", raw().bytes()[..150].to_vec()),
        ("all but a byte", raw().bytes()[..len - 1].to_vec()),
        ("many tensors", with(&|raw| raw.n_tensors = Some(1 << 32))),
        ("many entries", with(&|raw| raw.n_entries = Some(1 << 32))),
        ("large dimensions", raw().info(b"x", 2, &[1 << 32, 1 << 32], F32, 64).bytes()),
        ("many dimensions", raw().info(b"x", 5, &[1; 5], F32, 64).bytes()),
        ("half a block", raw().info(b"x", 1, &[33], Q4_1, 64).bytes()),
        ("a tensor inside another", raw().info(b"x", 1, &[1], I8, 32).bytes()),
        ("an offset that is not aligned", raw().info(b"x", 1, &[1], I8, 33).bytes()),
        ("an alignment", raw().u32("general.alignment", 3).bytes()),
        ("an alignment in words", raw().string("general.alignment", b"32").bytes()),
        ("a key twice", raw().u32("llama.block_count", 3).bytes()),
        ("a name twice", raw().tensor("blk.0.ffn_down.weight", &[1], I8, &[1]).bytes()),
        ("an empty key", raw().u32("", 3).bytes()),
        ("a key that is no text", raw().entry(b"\xff\xfe", 0, &[1]).bytes()),
        ("a name that is no text", raw().info(b"\xff", 1, &[1], I8, 0).bytes()),
        ("an unknown type", of_type(200)),
        ("an unknown type of a value", raw().entry(b"k", 13, &[0; 8]).bytes()),
    ] {
        dir.write("m.gguf", &bytes);
        said.refused(title, dir.run("m.gguf --blocks 0 -o out.gguf"), 1);
    }
    said.compare("heads.txt");
}

#[test]
fn a_file_of_another_kind_is_not_gguf() {
    refused(b"Dear reader,\n", "not a GGUF file: starts with 'Dear'", None);
    refused(
        b"version https://git-lfs.github.com/spec/v1\n",
        "not a GGUF file: starts with 'vers'",
        Some("this may be a Git LFS pointer; 'git lfs pull' fetches the file itself"),
    );
    refused(
        b"PK\x03\x04rest",
        "not a GGUF file: starts with bytes 50 4b 03 04",
        Some("this may be a PyTorch checkpoint; convert it to GGUF first"),
    );
    refused(b"\0", "not a GGUF file: starts with bytes 00", None);
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
        "GGUF version 1 is not supported",
        Some("convert or quantize the model again with a current llama.cpp"),
    );
    refused(&version(4), "GGUF version 4 is not supported", None);
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
        refused(&bytes[..len], &format!("file ends at byte {len}, inside {place}"), INCOMPLETE);
    }
    let len = bytes.len();
    refused(&bytes[..len - 1], &format!("tensor 'blk.1.ffn_down.weight' ends at byte {len}"), INCOMPLETE);
}

#[test]
fn counts_that_cannot_be_true_are_refused() {
    for count in [u64::MAX, u64::MAX / 24 + 1, 1 << 63, 1 << 32, 1000] {
        let mut raw = Raw::model();
        raw.n_tensors = Some(count);
        let bytes = raw.bytes();
        let left = bytes.len() - 24 - (8 + 20 + 4 + 8 + 5) - (8 + 17 + 4 + 4);
        refused(&bytes, &format!("the header counts {count} tensors, but only {left} bytes"), INCOMPLETE);
        let mut raw = Raw::model();
        raw.n_entries = Some(count);
        let bytes = raw.bytes();
        let left = bytes.len() - 24;
        refused(
            &bytes,
            &format!("the header counts {count} metadata entries, but only {left} bytes"),
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
            let error = format!("file ends at byte {}, inside metadata entry 3 of 3", bytes.len());
            refused(&bytes, &error, INCOMPLETE);
        }
        let mut key = len.to_le_bytes().to_vec();
        key.extend(b"rest");
        let mut bytes = Raw::model().entry(b"last", 0, &[1]).bytes();
        let at = bytes.windows(4).position(|w| w == b"last").unwrap() - 8;
        bytes[at..at + 8].copy_from_slice(&len.to_le_bytes());
        let error = format!("file ends at byte {}, inside metadata entry 3 of 3", bytes.len());
        refused(&bytes, &error, INCOMPLETE);
    }
}

#[test]
fn shapes_that_cannot_be_true_are_refused() {
    for (dims, n_dims, phrase) in [
        (vec![u64::MAX, u64::MAX], 2, "tensor 'x' has dimensions 18446744073709551615 x"),
        (vec![1 << 32, 1 << 32], 2, "tensor 'x' has dimensions 4294967296 x 4294967296 x"),
        (vec![], u32::MAX, "tensor 'x' has 4294967295 dimensions"),
    ] {
        refused(&Raw::model().info(b"x", n_dims, &dims, F32, 64).bytes(), phrase, None);
    }
    refused(
        &Raw::model().info(b"x", 5, &[1; 5], F32, 64).bytes(),
        "tensor 'x' has 5 dimensions",
        Some("image and video models have such tensors; language models have not"),
    );
    refused(&Raw::model().info(b"x", 1, &[33], Q4_1, 64).bytes(), "tensor 'x' has 33 elements per row", None);
}

#[test]
fn offsets_past_the_end_are_refused() {
    for offset in [64, 1 << 20, 1 << 63, u64::MAX - 31] {
        let bytes = Raw::model().info(b"x", 1, &[32], I8, offset).bytes();
        let start = bytes.len() as u128 - 64;
        refused(&bytes, &format!("tensor 'x' ends at byte {}", start + u128::from(offset) + 32), INCOMPLETE);
    }
}

#[test]
fn offsets_that_overlap_are_refused() {
    let bytes = Raw::model().info(b"x", 1, &[40], I8, 0).bytes();
    let start = bytes.len() - 64;
    refused(&bytes, "tensor 'x' starts at byte ", None);
    let bytes = Raw::model().info(b"x", 1, &[1], I8, 32).bytes();
    refused(
        &bytes,
        &format!("tensor 'x' starts at byte {}, inside tensor 'blk.1.ffn_down.weight'", start + 32),
        None,
    );
}

#[test]
fn offsets_that_are_not_aligned_are_refused() {
    refused(&Raw::model().info(b"x", 1, &[1], I8, 33).bytes(), "tensor 'x' has data offset 33", None);
}

#[test]
fn alignments_that_are_none_are_refused() {
    for alignment in [0, 3, 33, u32::MAX] {
        refused(
            &Raw::model().u32("general.alignment", alignment).bytes(),
            &format!("metadata 'general.alignment' is {alignment}"),
            None,
        );
    }
    refused(
        &Raw::model().string("general.alignment", b"32").bytes(),
        "metadata 'general.alignment' is a string",
        None,
    );
}

#[test]
fn a_huge_alignment_is_refused_without_being_filled() {
    let mut raw = Raw::model().u32("general.alignment", 1 << 31);
    raw.alignment = 32;
    let bytes = raw.bytes();
    refused(&bytes, &format!("file ends at byte {}, inside the padding", bytes.len()), INCOMPLETE);
}

#[test]
fn names_and_keys_that_appear_twice_are_refused() {
    refused(
        &Raw::model().u32("llama.block_count", 3).bytes(),
        "metadata 'llama.block_count' appears twice",
        None,
    );
    refused(
        &Raw::model().tensor("blk.0.ffn_down.weight", &[1], I8, &[1]).bytes(),
        "tensor 'blk.0.ffn_down.weight' appears twice",
        None,
    );
}

#[test]
fn empty_and_unreadable_keys_and_names_are_refused() {
    refused(&Raw::model().u32("", 3).bytes(), "metadata entry 3 of 3 has an empty key", None);
    let bytes = Raw::model().entry(b"\xff\xfe", 0, &[1]).bytes();
    refused(&bytes, "the key of metadata entry 3 of 3 is not UTF-8", None);
    let bytes = Raw::model().info(b"\xff", 1, &[1], I8, 0).bytes();
    refused(&bytes, "the name of tensor info 3 of 3 is not UTF-8", None);
}

#[test]
fn types_that_are_not_known_are_refused_by_number() {
    let of_type = |id| Raw::model().info(b"x", 1, &[32], id, 0).bytes();
    for id in [43, 200, u32::MAX] {
        refused(
            &of_type(id),
            &format!("tensor 'x' has unknown tensor type {id}"),
            Some("a newer llama.cpp than the bundled one, or a fork of it, may have written it"),
        );
    }
    let bytes = Raw::model().entry(b"k", 13, &[0; 8]).bytes();
    refused(&bytes, "metadata entry 3 of 3 has unknown value type 13", None);
}

#[test]
fn types_of_other_programs_are_refused_by_name_with_what_to_do() {
    let dir = Dir::new();
    let mut said = Said::default();
    for id in [4, 31, 36, 142] {
        dir.write("m.gguf", &Raw::model().info(b"x", 1, &[32], id, 0).bytes());
        said.refused(&format!("type {id}"), dir.run("m.gguf --blocks 0 -o out.gguf"), 1);
    }
    said.compare("foreign-types.txt");
}

#[test]
fn arrays_nested_without_end_are_refused() {
    let value = (0..20_000).fold(array(0, 1, &[1]), |inner, _| array(9, 1, &inner));
    let bytes = Raw::model().entry(b"k", 9, &value).bytes();
    refused(&bytes, "metadata entry 3 of 3 nests arrays more than 8 deep", None);
}
