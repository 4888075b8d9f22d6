//! Importance matrices that are renumbered with their model.

use std::fs;

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::Value;

use crate::make::{F32, Make, data};
use crate::util::{Dir, Said};

/// The model that the importance matrices below fit. Rows of 32 elements in `attn_q` and `output`, of 5 in `ffn_down`.
fn dir() -> Dir {
    model().dir()
}

fn model() -> Make {
    Make::new("llama", 4).tensor("output.weight", &[32, 4], F32)
}

/// The measured weights of `n_blocks` blocks, with their row lengths. In the order of `llama-imatrix`.
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

/// The older form. `number` gives every block the number that its name has.
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
    let mut said = Said::default();
    let mut fails = |title: &str, bytes: &[u8]| {
        dir.write("imatrix.dat", bytes);
        said.refused(title, dir.run("m.gguf --drop 1 -o out.gguf --imatrix imatrix.dat new.dat"), 1);
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
        fails(&format!("{n_values} values"), &wide.bytes());
    }
    fails("a tensor that the model does not have", &with("blk.1.attn_qkv.weight", 32));
    fails("no block", &dat(&[], |i| i));
    fails("a model", &dir.read("m.gguf"));
    fails("a file of no kind", &Make::empty().bytes());
    fails("a text", b"Dear reader,");
    fails("nothing", b"");
    fails("a block that the model does not have", &dat(&[0, 1, 2, 3], |i| 1000 * i));
    said.compare("imatrix-of-another-model.txt");
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
            &format!("entry '{name}' has {n_values} values, but that tensor of the model has 3 matrices"),
        );
    }
}

#[test]
fn both_outputs_are_written_or_none() {
    let dir = dir();
    gguf(4).write(&dir, "a.gguf");
    fs::create_dir(dir.path("folder")).unwrap();
    dir.write("taken.gguf", b"precious");
    let mut said = Said::default();
    for imatrix in [
        "a.gguf taken.gguf",
        "a.gguf a.gguf",
        "a.gguf ./out.gguf",
        "a.gguf m.gguf",
        "a.gguf folder",
        "none.gguf new.gguf",
        "folder new.gguf",
        "a.gguf none/new.gguf",
        "a.gguf same.gguf --json same.gguf",
        "a.gguf new.gguf --json a.gguf",
    ] {
        said.refused(imatrix, dir.run(&format!("m.gguf --blocks 1 -o out.gguf --imatrix {imatrix}")), 1);
    }
    said.compare("imatrix-places.txt");
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
fn dropped_prediction_blocks_take_their_entries_with_them() {
    let dir = Make::new("glm4", 5)
        .set("glm4.nextn_predict_layers", ValueOut::u32(1))
        .tensor("blk.4.nextn.eh_proj.weight", &[3, 2], F32)
        .tensor("output.weight", &[32, 4], F32)
        .dir();
    gguf(5).set("imatrix.n_layer_nextn", ValueOut::u32(1)).write(&dir, "a.gguf");
    dir.run("m.gguf --drop-mtp -o trunk.gguf --imatrix a.gguf b.gguf").succeeds();
    dir.run("m.gguf --drop-mtp --blocks 1 -o out.gguf --imatrix a.gguf c.gguf").succeeds();
    for (name, n_blocks) in [("b.gguf", 4), ("c.gguf", 3)] {
        let bytes = dir.read(name);
        let file = File::parse(&bytes).unwrap();
        assert_eq!(file.metadata().require("imatrix.n_layer_nextn").unwrap().as_u64().unwrap(), 0);
        let sums = file.tensors().iter().filter_map(|tensor| tensor.name().strip_suffix(".in_sum2"));
        let expected = weights(n_blocks);
        assert!(sums.eq(expected.iter().map(|(name, _)| name.as_str())), "{name}");
    }
    // In two steps it is the same.
    dir.run("trunk.gguf --blocks 1 -o two.gguf --imatrix b.gguf d.gguf").succeeds();
    assert!(dir.read("c.gguf") == dir.read("d.gguf"));
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
