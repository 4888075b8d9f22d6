//! Heads of files that are wrong: the header, metadata, the tensor table.

use gguf_shorten::gguf::File;

use super::{INCOMPLETE, refused};
use crate::make::{F32, I8, Q4_1, Raw, array};

#[test]
fn a_file_of_another_kind_is_not_gguf() {
    refused(b"Dear reader,\n", "not a GGUF file: starts with 'Dear', expected 'GGUF'", None);
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
    refused(b"\0", "not a GGUF file: starts with bytes 00, expected 'GGUF'", None);
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
    refused(&version(4), "GGUF version 4 is not supported, expected version 2 or 3", None);
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
    refused(
        &bytes[..len - 1],
        &format!("tensor 'blk.1.ffn_down.weight' ends at byte {len}, but the file has {} bytes", len - 1),
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
            &format!("the header counts {count} tensors, but only {left} bytes of the file are left"),
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
        &Raw::model().info(b"x", 5, &[1; 5], F32, 64).bytes(),
        "tensor 'x' has 5 dimensions, expected at most 4",
        Some("image and video models have such tensors; language models have not"),
    );
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
            &format!("metadata 'general.alignment' is {alignment}, expected a power of two below 2^32"),
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
        &format!("file ends at byte {}, inside the padding before the tensor data", bytes.len()),
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
        &Raw::model().tensor("blk.0.ffn_down.weight", &[1], I8, &[1]).bytes(),
        "tensor 'blk.0.ffn_down.weight' appears twice, as number 1 and number 3",
        None,
    );
}

#[test]
fn empty_and_unreadable_keys_and_names_are_refused() {
    refused(&Raw::model().u32("", 3).bytes(), "metadata entry 3 of 3 has an empty key", None);
    let bytes = Raw::model().entry(b"\xff\xfe", 0, &[1]).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("the key of metadata entry 3 of 3 is not UTF-8, at byte "), "{error}");
    refused(&bytes, &error, None);
    let bytes = Raw::model().info(b"\xff", 1, &[1], I8, 0).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("the name of tensor info 3 of 3 is not UTF-8, at byte "), "{error}");
    refused(&bytes, &error, None);
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
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("metadata entry 3 of 3 has unknown value type 13, at byte "), "{error}");
    refused(&bytes, &error, None);
}

#[test]
fn types_of_other_programs_are_refused_by_name_with_what_to_do() {
    for (id, what, hint) in [
        (
            4,
            "which early releases of Ollama wrote for 'MXFP4' and llama.cpp does not read",
            "'ollama pull' of the model fetches a file that has llama.cpp's number for MXFP4",
        ),
        (
            31,
            "'Q4_0_4_4', which llama.cpp no longer supports",
            "quantize the model again to Q4_0, which llama.cpp repacks while it loads",
        ),
        (
            36,
            "'I2_S' of bitnet.cpp (once 'IQ4_NL_4_4' of llama.cpp), which llama.cpp does not read",
            "convert the original model again with llama.cpp, to TQ2_0 or TQ1_0 where its weights are ternary",
        ),
        (
            139,
            "'IQ4_K' of ik_llama.cpp, which llama.cpp does not read",
            "quantize the model again with llama.cpp, to a type that both have",
        ),
    ] {
        refused(
            &Raw::model().info(b"x", 1, &[32], id, 0).bytes(),
            &format!("tensor 'x' has tensor type {id}, {what}"),
            Some(hint),
        );
    }
}

#[test]
fn arrays_nested_without_end_are_refused() {
    let value = (0..20_000).fold(array(0, 1, &[1]), |inner, _| array(9, 1, &inner));
    let bytes = Raw::model().entry(b"k", 9, &value).bytes();
    let error = File::parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("metadata entry 3 of 3 nests arrays more than 8 deep"), "{error}");
    refused(&bytes, &error, None);
}
