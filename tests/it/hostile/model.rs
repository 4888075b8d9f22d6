//! Well-formed files that are no model, or none fit for the request.

use super::refused;
use crate::make::{I8, Make, Raw, array, string};
use crate::util::Dir;

#[test]
fn a_model_needs_an_architecture_and_a_number_of_blocks() {
    let tensors = |raw: Raw| raw.tensor("blk.0.a", &[1], I8, &[1]).bytes();
    let llama = || Raw::new().string("general.architecture", b"llama");
    refused(&tensors(Raw::new()), "metadata 'general.architecture' is missing", None);
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
    refused(&tensors(llama()), "metadata 'llama.block_count' is missing", None);
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
    let raw = Raw::new().string("general.architecture", b"llama").u32("llama.block_count", 32).entry(
        b"tokenizer.ggml.tokens",
        9,
        &array(8, 2, &[string(b"a"), string(b"b")].concat()),
    );
    refused(&raw.bytes(), "has no tensors: a vocabulary, not a model", None);
}

#[test]
fn hostile_names_stay_one_short_line() {
    let long = "x".repeat(100_000);
    let names = ["a\nb".to_owned(), "\u{1b}[31mred".to_owned(), "a\u{202e}b".to_owned(), long];
    for name in names {
        let files = [
            // A missing, a mistyped and a too large number of blocks.
            Raw::new().string("general.architecture", name.as_bytes()).tensor("blk.0.a", &[1], I8, &[1]),
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
            output.check(output.status.code() == Some(1), &format!("status 1 of file {i}"));
            // `show` prints what is there, but nothing that moves the cursor.
            let shown = dir.run("show m.gguf").output();
            let text = shown.stdout.clone() + &shown.stderr;
            shown.check(!text.contains(['\u{1b}', '\r']), "no control characters");
        }
    }
}

#[test]
fn block_numbers_out_of_range_are_refused() {
    let dir = Make::new("llama", 4).dir();
    for (blocks, outside) in [
        ("4", "4".to_owned()),
        ("0,4", "4".to_owned()),
        ("2-5", "5".to_owned()),
        ("99999999999999999", "99999999999999999".to_owned()),
    ] {
        dir.run(&format!("m.gguf --blocks {blocks} -o out.gguf"))
            .fails(1, &format!("m.gguf: cannot remove block {outside}: the model has 4 blocks, 0 to 3"));
    }
}

#[test]
fn removing_all_blocks_is_refused() {
    let dir = Make::new("llama", 4).dir();
    let error = "m.gguf: cannot remove 4 blocks: the model has 4, and at least one must stay";
    dir.run("m.gguf --blocks 0-3 -o out.gguf").fails(1, error);
    for method in ["bi", "relative-magnitude", "sequential", "reverse"] {
        dir.run(&format!("m.gguf --drop 4 --method {method} -o out.gguf")).fails(1, error);
    }
    dir.run("m.gguf --drop 5 -o out.gguf")
        .fails(1, "m.gguf: cannot remove 5 blocks: the model has 4, and at least one must stay");
}
