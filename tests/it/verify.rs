//! `verify`: what is the parent without some blocks is found to be, and nothing else is.

use std::collections::BTreeMap;

use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, TensorType, ValueOut, write};
use gguf_shorten::model::Model;
use gguf_shorten::output::verify::{MetadataCounts, Verification, verify};
use gguf_shorten::plan::Constraints;
use serde_json::Value;

use crate::make::{F32, I8, Make, part_name, write_parts};
use crate::util::{Dir, Said};

/// A small parent, and the program's output of it without block 1.
fn pair(parent: &Make) -> (Vec<u8>, Vec<u8>) {
    let dir = parent.dir();
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    (dir.read("m.gguf"), dir.read("out.gguf"))
}

/// Verifies in this process. Errors are what the file does not even say.
fn check(parent: &[u8], out: &[u8]) -> Result<Verification, String> {
    let run = || -> anyhow::Result<Verification> {
        let out = File::parse(out)?;
        let parent = Model::new(vec![File::parse(parent)?])?;
        verify(&parent, &Constraints::of(&parent)?, &[out], &|_| {})
    };
    run().map_err(|error| format!("{error:#}"))
}

/// The differences of a file that says what it is.
#[track_caller]
fn differences(parent: &[u8], out: &[u8]) -> Vec<String> {
    let differences = check(parent, out).unwrap().differences;
    assert_eq!(differences.len(), differences.first().len());
    differences.first().iter().map(ToString::to_string).collect()
}

/// A file taken apart, to be put together otherwise.
pub struct Taken<'a> {
    pub entries: Vec<EntryOut<'a>>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    dims: Vec<u64>,
    tensor_type: TensorType,
    pub bytes: Vec<u8>,
}

impl<'a> Taken<'a> {
    pub fn apart(bytes: &'a [u8]) -> Self {
        let file = File::parse(bytes).unwrap();
        let tensors = file.tensors().iter().map(|tensor| Tensor {
            name: tensor.name().to_owned(),
            dims: tensor.dims()[..tensor.n_dims()].to_vec(),
            tensor_type: tensor.tensor_type(),
            bytes: tensor.bytes().to_vec(),
        });
        Self { entries: file.metadata().iter().map(EntryOut::keep).collect(), tensors: tensors.collect() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let tensors = self
            .tensors
            .iter()
            .map(|tensor| TensorOut::new(tensor.name.as_str(), &tensor.dims, tensor.tensor_type).unwrap());
        let layout = Layout::new(3, 32, self.entries.clone(), tensors.collect(), true).unwrap();
        let mut bytes = Vec::new();
        write(&layout, &mut bytes, |i, out| out.write_all(&self.tensors[i].bytes)).unwrap();
        bytes
    }

    pub fn set(mut self, key: &'static str, value: ValueOut) -> Vec<u8> {
        let new = EntryOut::new(key, value);
        match self.entries.iter_mut().find(|entry| entry.key() == key) {
            Some(entry) => *entry = new,
            None => self.entries.push(new),
        }
        self.bytes()
    }

    fn unset(mut self, key: &str) -> Vec<u8> {
        self.entries.retain(|entry| entry.key() != key);
        self.bytes()
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        let mut tensors = self.tensors.iter_mut();
        tensors.find(|tensor| tensor.name == name).unwrap()
    }
}

#[test]
fn what_the_program_writes_is_verified() {
    for make in [
        Make::new("llama", 4),
        Make::new("llama", 4).without_end_padding(),
        Make::new("llama", 4).alignment(64).version(2),
        Make::new("llama", 4)
            .set("llama.feed_forward_length", ValueOut::u32s(&[1, 2, 3, 4]))
            .tensor("blk.0.none", &[0, 3], F32)
            .tensor("blk.2.none", &[0, 3], F32)
            .tensor("v.blk.1.scalar", &[], F32),
    ] {
        let (parent, out) = pair(&make);
        let verification = check(&parent, &out).unwrap();
        assert_eq!(verification.differences.first(), []);
        assert_eq!(verification.parent_blake3, blake3::hash(&parent));
        assert_eq!(verification.n_tensors, File::parse(&out).unwrap().tensors().len());
        let removed: Vec<usize> = verification.removed.iter().map(|b| b.index()).collect();
        assert_eq!(removed, [1]);
    }
    let (parent, out) = pair(&Make::new("llama", 4));
    let counts = MetadataCounts { kept: 12, changed: 2, added: 8, left_out: 0 };
    assert_eq!(check(&parent, &out).unwrap().metadata, counts);
}

#[test]
fn every_flipped_byte_is_found() {
    // With padding of every kind: before the data, between tensors, at the end.
    let (parent, out) = pair(&Make::new("llama", 3).tensor("last", &[3], I8));
    let version = File::parse(&out).unwrap().metadata().get("gguf_shorten.version").unwrap().raw().to_vec();
    let version_at = out.windows(version.len()).position(|window| window == version).unwrap();
    let version = version_at..version_at + version.len();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for byte in 0..out.len() {
        for bits in [0x01, 0x20, 0x80, 0xff] {
            let mut flipped = out.clone();
            flipped[byte] ^= bits;
            let kind = match check(&parent, &flipped) {
                Err(error) => {
                    assert_eq!(error.lines().count(), 1);
                    "refused"
                }
                Ok(verification) if !verification.differences.is_empty() => "differs",
                // Another number of a release is said, and no more.
                Ok(verification) if verification.claim.other_release().is_some() => {
                    assert!(version.contains(&byte), "byte {byte} ^ {bits:#x} is not found");
                    "release"
                }
                Ok(_) => panic!("byte {byte} ^ {bits:#x} is not found"),
            };
            *kinds.entry(kind).or_default() += 1;
        }
    }
    assert!(kinds["differs"] > kinds["refused"], "{kinds:?}");
    assert_eq!(kinds["release"], 3, "the lowest bit of the digits of 0.2.0");
}

#[test]
fn every_flipped_byte_of_the_parent_is_found() {
    let (parent, out) = pair(&Make::new("llama", 2));
    for byte in 0..parent.len() {
        let mut flipped = parent.clone();
        flipped[byte] ^= 0xff;
        if let Ok(verification) = check(&flipped, &out) {
            assert!(!verification.differences.is_empty(), "byte {byte}");
        }
    }
}

#[test]
fn a_changed_tensor_is_named_with_the_parents() {
    let (parent, out) = pair(&Make::new("llama", 4));
    let mut taken = Taken::apart(&out);
    assert!(taken.bytes() == out, "put together as it was");
    taken.tensor("blk.1.ffn_down.weight").bytes[7] ^= 1;
    taken.tensor("output_norm.weight").bytes[127] ^= 1;
    assert_eq!(
        differences(&parent, &taken.bytes()),
        [
            "tensor 'blk.1.ffn_down.weight' differs from the parent's 'blk.2.ffn_down.weight' at byte 7 of 15",
            "tensor 'output_norm.weight' differs from the parent's at byte 127 of 128",
        ]
    );
}

#[test]
fn changed_metadata_is_named() {
    let (parent, out) = pair(&Make::new("llama", 4));
    let taken = || Taken::apart(&out);
    let mut swapped = taken();
    swapped.entries.swap(2, 4);
    let mut said = Said::default();
    for (title, bytes) in [
        ("another count", taken().set("llama.block_count", ValueOut::u32(4))),
        ("another text", taken().set("general.license", ValueOut::string("cc1-1.0"))),
        ("one more", taken().set("more", ValueOut::bool(true))),
        ("one less", taken().unset("llama.context_length")),
        ("a method that is not known", taken().set("gguf_shorten.method", ValueOut::string("guess"))),
        ("healed by a number", taken().set("gguf_shorten.heal", ValueOut::u32(1))),
        ("two that changed places", swapped.bytes()),
    ] {
        said.add(title, &differences(&parent, &bytes).join("\n"));
    }
    said.compare("differences-of-metadata.txt");
}

#[test]
fn missing_added_renamed_and_swapped_tensors_are_named() {
    let (parent, out) = pair(&Make::new("llama", 3).tensor("a", &[32], I8).tensor("b", &[32], I8));
    let of = |change: &dyn Fn(&mut Taken)| {
        let mut taken = Taken::apart(&out);
        change(&mut taken);
        differences(&parent, &taken.bytes())
    };
    let mut said = Said::default();
    let missing = of(&|taken| {
        taken.tensors.pop();
    });
    let added = of(&|taken| {
        let mut more = taken.tensors[9].clone();
        more.name = "c".to_owned();
        taken.tensors.push(more);
    });
    let renamed = of(&|taken| taken.tensor("b").name = "c".to_owned());
    // Each has the other's bytes.
    let names = of(&|taken| {
        taken.tensor("a").name = "?".to_owned();
        taken.tensor("b").name = "a".to_owned();
        taken.tensor("?").name = "b".to_owned();
    });
    // The right names and bytes in another order.
    let order = of(&|taken| taken.tensors.swap(8, 9));
    // Every name is there, with the bytes of another.
    let blocks = of(&|taken| {
        for name in ["attn_norm.weight", "attn_q.weight", "ffn_down.weight"] {
            let [a, b] = [0, 1].map(|block| format!("blk.{block}.{name}"));
            let bytes = taken.tensor(&a).bytes.clone();
            taken.tensor(&a).bytes = std::mem::replace(&mut taken.tensor(&b).bytes, bytes);
        }
    });
    let typed = of(&|taken| {
        let tensor = taken.tensor("b");
        (tensor.dims, tensor.tensor_type) = (vec![8], TensorType::F32);
    });
    for (title, differences) in [
        ("missing", missing),
        ("added", added),
        ("renamed", renamed),
        ("names exchanged", names),
        ("places exchanged", order),
        ("blocks exchanged", blocks),
        ("another type", typed),
    ] {
        said.add(title, &differences.join("\n"));
    }
    said.compare("differences-of-tensors.txt");
}

#[test]
fn a_file_of_another_length_is_found() {
    let (parent, out) = pair(&Make::new("llama", 3));
    let with_tail = [&out[..], b"tail"].concat();
    let n = out.len();
    assert_eq!(differences(&parent, &with_tail), [format!("the file has {} bytes, expected {n}", n + 4)]);
    for len in 0..n {
        match check(&parent, &out[..len]) {
            Ok(verification) => assert!(!verification.differences.is_empty(), "{len} bytes"),
            Err(error) => assert_eq!(error.lines().count(), 1, "{len} bytes"),
        }
    }
    // A parent without padding at its end gives an output without.
    let (parent, out) = pair(&Make::new("llama", 3).tensor("last", &[3], I8).without_end_padding());
    let padded = [&out[..], &[0; 29]].concat();
    assert_eq!(
        differences(&parent, &padded),
        [format!("the file has {} bytes, expected {}", padded.len(), out.len())]
    );
}

#[test]
fn another_release_is_no_difference() {
    let (parent, out) = pair(&Make::new("llama", 3));
    // A longer version moves all that stands after it.
    for version in ["0.0.9", "12.345.6789-release-candidate.1"] {
        let other = Taken::apart(&out).set("gguf_shorten.version", ValueOut::string(version));
        let verification = check(&parent, &other).unwrap();
        assert_eq!(verification.differences.first(), []);
        assert_eq!(verification.claim.other_release(), Some(version));
    }
    let wrong = Taken::apart(&out).set("gguf_shorten.version", ValueOut::string("0.2.x"));
    assert_eq!(
        differences(&parent, &wrong),
        ["metadata 'gguf_shorten.version' differs from the plan's at byte 44 of 45"]
    );
}

#[test]
fn a_wrong_parent_is_found_by_its_hash_first() {
    let (parent, out) = pair(&Make::new("llama", 3));
    let mut other = parent.clone();
    // A byte of the block that is gone.
    let file = File::parse(&parent).unwrap();
    let removed = file.tensors().get("blk.1.ffn_down.weight").unwrap();
    other[removed.position().0 as usize] ^= 1;
    assert_eq!(
        differences(&other, &out),
        [format!(
            "the recorded parent has blake3 {}, but this one has {}",
            blake3::hash(&parent),
            blake3::hash(&other)
        )]
    );
    // Another number of blocks, or another model altogether.
    let fewer = Make::new("llama", 2).bytes();
    assert_eq!(
        check(&fewer, &out).unwrap_err(),
        "metadata 'gguf_shorten.blocks' names block 2, but the parent has 2 blocks, 0 to 1"
    );
    let qwen = Make::new("qwen3", 3).bytes();
    assert!(check(&qwen, &out).unwrap().differences.len() > 8);
}

#[test]
fn a_list_of_blocks_that_cannot_be_is_refused() {
    let (parent, out) = pair(&Make::new("llama", 3));
    let of = |blocks: &[i32]| {
        let out = Taken::apart(&out).set("gguf_shorten.blocks", ValueOut::i32s(blocks));
        check(&parent, &out).unwrap_err()
    };
    assert!(of(&[2, 0]).contains("metadata 'gguf_shorten.blocks' has 0 at position 1"));
    assert!(of(&[0, -1]).contains("metadata 'gguf_shorten.blocks' has -1 at position 1"));
    assert!(of(&[]).starts_with("names a cut that is refused: "));
}

#[test]
fn the_command_shows_what_it_compared() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1,3 -o out.gguf").succeeds();
    for threads in ["", "--threads 1", "-t 3"] {
        let output = dir.run(&format!("verify out.gguf --parent m.gguf {threads}")).succeeds();
        for line in [
            "output   out.gguf: 2 blocks, 1,342 parameters",
            "as recorded",
            "removed  1,3 (2 of 4 blocks, by 'blocks')",
            "metadata 12 kept, 2 changed, 8 added, 0 left out",
            "tensors  8 compared",
            "verified ",
        ] {
            output.check(output.stdout.contains(line), line);
        }
    }
    let json = |arguments: &str| -> Value {
        let output = dir.run(arguments).output();
        serde_json::from_str(&output.stdout).unwrap()
    };
    let result = json("verify out.gguf --parent m.gguf --json -");
    assert_eq!(result["verified"], true);
    assert_eq!(result["difference_count"], 0);
    assert_eq!(result["differences"], serde_json::json!([]));
    assert_eq!(result["removed"], serde_json::json!([1, 3]));
    assert_eq!(result["run"], Value::Null);
    let parent = blake3::hash(&dir.read("m.gguf")).to_hex().to_string();
    assert_eq!(result["parent"]["blake3"], parent);
    assert_eq!(result["recorded_blake3"], parent);
    assert_eq!(result["output"]["method"], "blocks");
    dir.run("verify out.gguf --parent m.gguf --json out.gguf").fails(1, "out.gguf: is the input itself");
    dir.run("verify out.gguf --parent m.gguf --json result.json").succeeds();
    assert!(dir.exists("result.json"));
}

#[test]
fn the_command_fails_on_a_difference_and_still_shows_it() {
    let dir = Make::new("llama", 4).dir();
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    let mut bytes = dir.read("out.gguf");
    let file = File::parse(&bytes).unwrap();
    let byte = file.tensors().get("blk.2.ffn_down.weight").unwrap().position().0 as usize;
    bytes[byte] ^= 4;
    dir.write("out.gguf", &bytes);
    let difference =
        "tensor 'blk.2.ffn_down.weight' differs from the parent's 'blk.3.ffn_down.weight' at byte 0 of 15";
    for run in ["", "--run"] {
        let output = dir.run(&format!("verify out.gguf --parent m.gguf {run}")).output();
        output.check(output.status.code() == Some(1), "status 1");
        output.check(
            output.error() == format!("out.gguf: is not what gguf-shorten makes of m.gguf: {difference}"),
            "an error that names it",
        );
        output.check_error_lines();
        output.check(output.stdout.contains(&format!("\n  {difference}\n")), "the difference");
        output.check(output.stdout.contains("\nDIFFERS  "), "the verdict");
        output.check_untouched();
    }
    let output = dir.run("verify out.gguf --parent m.gguf --json -").output();
    let result: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(result["verified"], false);
    assert_eq!(result["differences"], serde_json::json!([difference]));
    // More than a handful.
    let data_start = File::parse(&bytes).unwrap().data_start().0 as usize;
    bytes[data_start..].fill(0x55);
    dir.write("out.gguf", &bytes);
    let output = dir.run("verify out.gguf --parent m.gguf").output();
    output.check(output.stdout.contains(" more\n"), "a count of the rest");
    output.check_error_lines();
}

#[test]
fn what_cannot_be_verified_is_refused_by_the_command() {
    let dir = Make::new("llama", 4).dir();
    let output = dir
        .run("verify m.gguf --parent m.gguf")
        .fails(1, "m.gguf: metadata 'gguf_shorten.blocks' is missing");
    assert_eq!(output.hint(), Some("--weights finds the blocks by their bytes"));
    dir.run("m.gguf --blocks 1 -o out.gguf").succeeds();
    dir.run("verify out.gguf --parent none.gguf").refused();
    dir.run("verify out.gguf --parent m.gguf --threads 0").fails(2, "--threads is at least 1");
    assert_eq!(dir.run("verify out.gguf").refused().status.code(), Some(2));
    write_parts(&dir, &Make::new("llama", 4).split(2));
    let part = part_name(0, 2);
    dir.run(&format!("verify {part} --parent m.gguf"))
        .fails(1, &format!("{part}: metadata 'gguf_shorten.blocks' is missing"));
    Make::new("bert", 4).write(&dir, "bert.gguf");
    dir.run("bert.gguf --blocks 1 -o short.gguf").succeeds();
    dir.run("verify short.gguf --parent bert.gguf").succeeds();
    dir.run("verify short.gguf --parent bert.gguf --run")
        .fails(1, "bert.gguf: cannot be compared by a run: ");
}

#[test]
fn a_split_parent_is_verified_by_any_of_its_parts() {
    let dir = Dir::new();
    // More than one chunk of bytes, and a tensor that crosses chunks.
    let large = |make: Make, name: &str| make.tensor(name, &[3 << 20], I8);
    let make = large(large(Make::new("llama", 4), "blk.3.large.weight"), "blk.0.large.weight");
    write_parts(&dir, &make.split(3));
    dir.run(&format!("{} --blocks 2 -o out.gguf", part_name(2, 3))).succeeds();
    for part in 0..3 {
        dir.run(&format!("verify out.gguf --parent {}", part_name(part, 3))).succeeds();
    }
    let mut bytes = dir.read("out.gguf");
    for byte in [2_345_678, 3 << 20, (3 << 20) - 1] {
        let file = File::parse(&bytes).unwrap();
        let at = file.tensors().get("blk.0.large.weight").unwrap().position().0 as usize + byte % (3 << 20);
        bytes[at] ^= 1;
        dir.write("out.gguf", &bytes);
        let output = dir.run("verify out.gguf --parent m-00001-of-00003.gguf").output();
        bytes[at] ^= 1;
        output.check(
            output.error().ends_with(&format!("at byte {} of {}", byte % (3 << 20), 3 << 20)),
            "the position in the tensor",
        );
    }
}
