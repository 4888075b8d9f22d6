//! The checks of the fuzz targets in `tests/fuzz`, on their seeds. What they have found is among those. With
//! `GGUF_SHORTEN_CORPUS=FOLDER` the seeds are written there, one folder for each target.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, Make, Random, Raw, data};
use crate::random;

#[path = "../fuzz/imatrix.rs"]
mod imatrix;

#[path = "../fuzz/plan.rs"]
mod plan;

#[path = "../fuzz/reader.rs"]
mod reader;

use plan::Request;

const N_MODELS: usize = 150;

/// Small models with something of everything, each as one file or two.
fn models() -> Vec<Vec<Vec<u8>>> {
    let mut random = Random::new(3);
    let mut models = vec![vec![Raw::model().bytes()], vec![Make::empty().bytes()]];
    for i in 0..N_MODELS {
        let make = random::model(&mut random);
        models.push(match i % 5 {
            0 => make.split(2).iter().map(Make::bytes).collect(),
            _ => vec![make.bytes()],
        });
    }
    models
}

/// The seeds of a target, under the name of the target.
fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut random = Random::new(5);
    let models = models();
    let plans = models.iter().map(|parts| {
        let request = Request {
            blocks: random.next() & random.next(),
            part_len: parts.split_last().map_or(0, |(_, rest)| rest.concat().len()) as u32,
            flags: (random.next() & random.next() & 7) as u32,
        };
        [parts.concat(), request.bytes()].concat()
    });
    vec![
        ("plan", plans.collect()),
        ("imatrix", imatrices(&mut Random::new(7))),
        ("reader", models.iter().flatten().cloned().collect()),
    ]
}

/// Importance matrices of both forms.
fn imatrices(random: &mut Random) -> Vec<Vec<u8>> {
    (0..60)
        .map(|i| {
            let n_blocks = 1 + random.below(6);
            let of_blocks = (0..n_blocks).flat_map(|block| {
                ["attn_q", "ffn_down", "ffn_up_exps"].map(|w| format!("blk.{block}.{w}.weight"))
            });
            let names: Vec<String> = of_blocks.chain(["output.weight".to_owned()]).collect();
            let bytes = match i % 2 {
                0 => gguf_imatrix(&names, random),
                _ => legacy_imatrix(&names, random),
            };
            let blocks = if i % 4 < 2 { 0 } else { random.next() & random.next() };
            let request = [&blocks.to_le_bytes()[..], &[n_blocks as u8]].concat();
            [bytes, request].concat()
        })
        .collect()
}

/// As `llama-imatrix` writes it.
fn gguf_imatrix(names: &[String], random: &mut Random) -> Vec<u8> {
    let mut make = Make::empty()
        .set("general.type", ValueOut::string("imatrix"))
        .set("imatrix.chunk_count", ValueOut::u32(10))
        .set("imatrix.chunk_size", ValueOut::u32(512));
    if random.below(3) == 0 {
        make = make.set("imatrix.n_layer_nextn", ValueOut::u32(1));
    }
    for name in names {
        let n = 1 + random.below(20) as u64;
        make = make.tensor(&format!("{name}.in_sum2"), &[n, 1], F32).tensor(
            &format!("{name}.counts"),
            &[1, 1],
            F32,
        );
    }
    make.bytes()
}

/// As older releases wrote it. The number of chunks and the name of the text may be missing.
fn legacy_imatrix(names: &[String], random: &mut Random) -> Vec<u8> {
    let i32 = |n: usize| (n as i32).to_le_bytes();
    let mut bytes = i32(names.len()).to_vec();
    for name in names {
        let n_values = 1 + random.below(9);
        bytes.extend(i32(name.len()));
        bytes.extend(name.bytes());
        bytes.extend(i32(random.below(50)));
        bytes.extend(i32(n_values));
        bytes.extend(data(name, 4 * n_values as u64));
    }
    let n_parts = random.below(3);
    if n_parts > 0 {
        bytes.extend(i32(20));
    }
    if n_parts > 1 {
        bytes.extend(i32(8));
        bytes.extend(b"text.txt");
    }
    bytes
}

impl Request {
    /// The bytes that the target reads it from.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.blocks.to_le_bytes().to_vec();
        bytes.extend(self.part_len.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes
    }
}

#[test]
fn every_seed_passes_its_target() {
    for (target, seeds) in seeds() {
        if let Some(folder) = std::env::var_os("GGUF_SHORTEN_CORPUS") {
            let folder = std::path::Path::new(&folder).join(target);
            std::fs::create_dir_all(&folder).unwrap();
            for (i, seed) in seeds.iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{i:03}")), seed).unwrap();
            }
        }
        let check = match target {
            "reader" => reader::check,
            "imatrix" => imatrix::check,
            _ => plan::check,
        };
        seeds.iter().for_each(|seed| check(seed));
    }
}

#[test]
fn what_the_targets_found_passes() {
    // Of two blocks the last, which predicts: its count has to go with it.
    let model = Raw::model().u32("llama.nextn_predict_layers", 1);
    let request = Request { blocks: 0b10, part_len: 0, flags: 1 };
    plan::check(&[model.bytes(), request.bytes()].concat());
}
