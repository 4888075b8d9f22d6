//! Importance matrices that are renumbered with their model.

use std::fs;

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::Value;

use crate::make::{F32, Make, data};
use crate::util::Dir;

/// The model that the importance matrices below fit: rows of 32 elements in `attn_q` and `output`, of 5 in `ffn_down`.
fn dir() -> Dir {
    model().dir()
}

fn model() -> Make {
    Make::new("llama", 4).tensor("output.weight", &[32, 4], F32)
}

/// The weights of `n_blocks` blocks that are measured, with the length of their rows; in the order of `llama-imatrix`.
fn weights(n_blocks: usize) -> Vec<(String, u64)> {
    let mut weights: Vec<_> = (0..n_blocks)
        .flat_map(|i| [(format!("blk.{i}.attn_q.weight"), 32), (format!("blk.{i}.ffn_down.weight"), 5)])
        .collect();
    weights.push(("output.weight".to_owned(), 32));
    weights
}

/// As `llama-imatrix` writes it.
fn gguf(n_blocks: usize) -> Make {
    let make = Make::empty()
        .set("general.type", ValueOut::string("imatrix"))
        .set("imatrix.datasets", ValueOut::strings(&["a.txt", "b.txt"]))
        .set("imatrix.chunk_count", ValueOut::u32(5))
        .set("imatrix.chunk_size", ValueOut::u32(512));
    weights(n_blocks).into_iter().fold(make, |make, (name, row)| {
        make.tensor(&format!("{name}.in_sum2"), &[row, 1], F32)
            .tensor(&format!("{name}.counts"), &[1, 1], F32)
            .tensor(&format!("{name}.in_sum"), &[row, 1], F32)
    })
}

/// The older form; `number` gives every block the number that its name has.
fn dat(blocks: &[usize], number: impl Fn(usize) -> usize) -> Vec<u8> {
    let int = |n: usize| (n as i32).to_le_bytes();
    let mut names: Vec<(String, String)> = blocks
        .iter()
        .map(|&i| (format!("blk.{i}.attn_q.weight"), format!("blk.{}.attn_q.weight", number(i))))
        .collect();
    names.push(("output.weight".to_owned(), "output.weight".to_owned()));
    let mut bytes = int(names.len()).to_vec();
    for (seed, name) in names {
        bytes.extend(int(name.len()));
        bytes.extend(name.bytes());
        bytes.extend(int(seed.len()));
        bytes.extend(int(32));
        bytes.extend(data(&seed, 4 * 32));
    }
    bytes.extend(int(5));
    bytes.extend(int(8));
    bytes.extend(b"text.txt");
    bytes
}

#[test]
fn the_newer_form_is_renumbered_and_all_else_stays() {
    let dir = dir();
    gguf(4).write(&dir, "imatrix.gguf");
    let output = dir.run("m.gguf --blocks 1 -o out.gguf --imatrix imatrix.gguf new.gguf --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    let (before, after) = (dir.read("imatrix.gguf"), dir.read("new.gguf"));
    let imatrix = &json["output"]["imatrix"];
    assert_eq!(imatrix["path"], "new.gguf");
    assert_eq!(imatrix["bytes"], after.len());
    assert_eq!((&imatrix["entries"], &imatrix["removed"]), (&7.into(), &2.into()));
    let (before, after) = (File::parse(&before).unwrap(), File::parse(&after).unwrap());
    let entries = |file: &File<'_>| -> Vec<Vec<u8>> {
        file.metadata().iter().map(|entry| entry.raw().to_vec()).collect()
    };
    assert_eq!(entries(&before), entries(&after));
    let mut expected: Vec<(String, [u64; 4], Vec<u8>)> = Vec::new();
    for tensor in before.tensors() {
        let name = tensor.name().to_owned();
        if name.starts_with("blk.1.") {
            continue;
        }
        let name = name.replace("blk.2.", "blk.1.").replace("blk.3.", "blk.2.");
        expected.push((name, tensor.dims(), tensor.bytes().to_vec()));
    }
    let found: Vec<_> =
        after.tensors().iter().map(|t| (t.name().to_owned(), t.dims(), t.bytes().to_vec())).collect();
    assert!(found == expected);
}

#[test]
fn the_older_form_is_renumbered_and_all_else_stays() {
    let dir = dir();
    dir.write("imatrix.dat", &dat(&[0, 1, 2, 3], |i| i));
    dir.run("m.gguf --blocks 0,2 -o out.gguf --imatrix imatrix.dat new.dat").succeeds();
    assert!(dir.read("new.dat") == dat(&[1, 3], |i| i / 2));
    let shown = dir.run("m.gguf --blocks 0,2 -o out.gguf --imatrix imatrix.dat new.dat --force").succeeds();
    let expected = "imatrix  new.dat: 3 entries, 2 of removed blocks left out";
    assert!(shown.stdout.contains(expected), "{}", shown.stdout);
}

#[test]
fn a_renumbered_matrix_fits_the_shortened_model_and_no_longer_the_parent() {
    let dir = dir();
    gguf(4).write(&dir, "a.gguf");
    dir.run("m.gguf --blocks 1 -o one.gguf --imatrix a.gguf b.gguf").succeeds();
    dir.run("one.gguf --blocks 1 -o two.gguf --imatrix b.gguf c.gguf").succeeds();
    dir.run("m.gguf --blocks 1,2 -o both.gguf --imatrix a.gguf d.gguf").succeeds();
    assert!(dir.read("c.gguf") == dir.read("d.gguf"));
    dir.run("m.gguf --blocks 1 -o new.gguf --imatrix b.gguf new-b.gguf")
        .fails(1, "b.gguf: is of blocks 0 to 2, but the model has 4 blocks");
    dir.run("one.gguf --blocks 1 -o new.gguf --imatrix a.gguf new-a.gguf")
        .fails(1, "a.gguf: has an entry of block 3, but the model has 3 blocks, 0 to 2");
}

#[test]
fn a_matrix_of_another_model_is_refused() {
    let dir = dir();
    let fails = |bytes: &[u8], error: &str| {
        dir.write("imatrix.dat", bytes);
        dir.run("m.gguf --drop 1 -o out.gguf --imatrix imatrix.dat new.dat")
            .fails(1, &format!("imatrix.dat: {error}"));
    };
    let with = |name: &str, row: u64| {
        gguf(4)
            .tensor(&format!("{name}.in_sum2"), &[row, 1], F32)
            .tensor(&format!("{name}.counts"), &[1, 1], F32)
            .bytes()
    };
    // A multiple of its width is another model's.
    for n_values in [64, 48, 16] {
        let wide = Make::empty()
            .set("general.type", ValueOut::string("imatrix"))
            .tensor("blk.3.attn_q.weight.in_sum2", &[n_values, 1], F32)
            .tensor("blk.3.attn_q.weight.counts", &[1, 1], F32);
        fails(
            &wide.bytes(),
            &format!(
                "entry 'blk.3.attn_q.weight' has {n_values} values, but the rows of that tensor of the model have 32"
            ),
        );
    }
    fails(
        &with("blk.1.attn_qkv.weight", 32),
        "has an entry of tensor 'blk.1.attn_qkv.weight', which the model does not have",
    );
    fails(&dat(&[], |i| i), "has 1 entries, but none of a block");
    fails(
        &dir.read("m.gguf"),
        "is no importance matrix: metadata 'general.type' is 'model', expected 'imatrix'",
    );
    fails(&Make::empty().bytes(), "metadata 'general.type' is missing");
    fails(b"Dear reader,", "entry 1 of 1918985540: file ends at byte 12, inside the name");
    fails(b"", "file ends at byte 0, inside the number of entries");
    fails(
        &dat(&[0, 1, 2, 3], |i| 1000 * i),
        "has an entry of block 3000, but the model has 4 blocks, 0 to 3",
    );
}

#[test]
fn every_expert_has_values_of_its_own() {
    let dir = Dir::new();
    let name = "blk.0.ffn_up_exps.weight";
    model().tensor(name, &[32, 4, 3], F32).write(&dir, "m.gguf");
    let with = |n_values: u64| {
        gguf(4)
            .tensor(&format!("{name}.in_sum2"), &[32, n_values / 32], F32)
            .tensor(&format!("{name}.counts"), &[1, n_values / 32], F32)
            .write(&dir, "a.gguf");
        dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf b.gguf --force")
    };
    with(96).succeeds();
    for n_values in [32, 64, 192] {
        with(n_values).fails(
            1,
            &format!(
                "a.gguf: entry '{name}' has {n_values} values, but that tensor of the model has 3 matrices with rows of 32"
            ),
        );
    }
}

#[test]
fn both_outputs_are_written_or_none() {
    let dir = dir();
    gguf(4).write(&dir, "a.gguf");
    fs::create_dir(dir.path("folder")).unwrap();
    dir.write("taken.gguf", b"precious");
    for (imatrix, error) in [
        ("a.gguf taken.gguf", "taken.gguf: exists already"),
        ("a.gguf a.gguf", "a.gguf: is the importance matrix that is read"),
        ("a.gguf ./out.gguf", "./out.gguf: is the output itself"),
        ("a.gguf m.gguf", "m.gguf: is the input itself"),
        ("a.gguf folder", "folder: is a folder, expected the name of a file"),
        ("none.gguf new.gguf", "none.gguf: No such file or directory (os error 2)"),
        ("folder new.gguf", "folder: is a folder, expected a file"),
        ("a.gguf none/new.gguf", "none/new.gguf: folder 'none': No such file or directory (os error 2)"),
    ] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf --imatrix {imatrix}")).fails(1, error);
    }
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf same.gguf --json same.gguf")
        .fails(1, "same.gguf: is named for two results");
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf new.gguf --json a.gguf")
        .fails(1, "a.gguf: is the importance matrix that is read");
    let missing = dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf").refused();
    assert_eq!(missing.status.code(), Some(2));
    // The model is refused after the importance matrix was read.
    let before = dir.names();
    dir.write("out.gguf", b"precious");
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf new.gguf").fails(1, "out.gguf: exists already");
    fs::remove_file(dir.path("out.gguf")).unwrap();
    assert_eq!(dir.names(), before);
    dir.run("m.gguf --blocks 1 -o out.gguf --imatrix a.gguf taken.gguf --force").succeeds();
    assert!(File::parse(&dir.read("taken.gguf")).is_ok());
}

#[test]
fn a_dry_run_tells_of_the_matrix_and_writes_none() {
    let dir = dir();
    dir.write("a.dat", &dat(&[0, 1, 2, 3], |i| i));
    let before = dir.names();
    let output = dir.run("m.gguf --blocks 1 --dry-run --imatrix a.dat b.dat --json -").succeeds();
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["output"]["imatrix"]["entries"], 4);
    assert_eq!(dir.names(), before);
    let without = dir.run("m.gguf --blocks 1 --dry-run --json -").succeeds();
    let json: Value = serde_json::from_str(&without.stdout).unwrap();
    assert_eq!(json["output"]["imatrix"], Value::Null);
}

#[test]
fn a_matrix_goes_with_a_split_output() {
    let dir = dir();
    gguf(4).write(&dir, "a.gguf");
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k --imatrix a.gguf out-00001-of-00002.gguf")
        .fails(1, "out-00001-of-00002.gguf: is the output itself");
    dir.run("m.gguf --blocks 1 -o out --split-max-size 1k --imatrix a.gguf b.gguf").succeeds();
    dir.run("m.gguf --blocks 1 -o whole.gguf --imatrix a.gguf c.gguf").succeeds();
    assert!(dir.read("b.gguf") == dir.read("c.gguf"));
}

#[test]
fn the_count_of_prediction_blocks_follows() {
    let dir = dir();
    gguf(4).set("imatrix.n_layer_nextn", ValueOut::u32(2)).write(&dir, "a.gguf");
    dir.run("m.gguf --blocks 1,2 -o out.gguf --imatrix a.gguf b.gguf").succeeds();
    let bytes = dir.read("b.gguf");
    let file = File::parse(&bytes).unwrap();
    let n = file.metadata().require("imatrix.n_layer_nextn").unwrap();
    assert_eq!(n.as_u64().unwrap(), 1);
}

#[test]
fn a_place_for_a_measured_matrix_is_claimed_before_anything_is_measured() {
    let dir = dir();
    gguf(4).write(&dir, "a.gguf");
    for (arguments, error) in [
        ("score m.gguf --imatrix-out m.gguf", "m.gguf: is the input itself"),
        ("score m.gguf --imatrix-out a.gguf", "a.gguf: exists already"),
        ("score m.gguf --imatrix-out none/b.gguf", "none/b.gguf: folder 'none': No such file or directory"),
        ("score m.gguf --imatrix-out b --json ./b", "b: is named for two results"),
        ("m.gguf --blocks 1 -o b --imatrix-out ./b", "./b: is the output itself"),
        ("m.gguf --blocks 1 -o out --imatrix a.gguf b --imatrix-out b", "b: is named for two results"),
        (
            "m.gguf --blocks 1 -o out --imatrix a.gguf b --imatrix-out a.gguf --force",
            "a.gguf: is the importance matrix that is read",
        ),
    ] {
        let output = dir.run(arguments).refused();
        output.check(output.stderr.contains(error), error);
    }
    for (arguments, error) in [
        ("score m.gguf --force", "--imatrix-out"),
        (
            "score m.gguf --imatrix-out b --window 15",
            "--imatrix-out: a window of 15 tokens gives no importance matrix",
        ),
        ("m.gguf --drop 1 -o out --imatrix-out b --window 15", "--imatrix-out: a window of 15 tokens"),
        ("score m.gguf --imatrix-out b --convert f32", "--imatrix-out evaluates weights as they are"),
        ("batch m.gguf --drop 1 --out-dir . --imatrix-out b", "unexpected argument"),
    ] {
        let output = dir.run(arguments).refused();
        output.check(output.status.code() == Some(2) && output.stderr.contains(error), error);
    }
}
