//! The seeds of the fuzz targets in `tests/fuzz`, and what those targets check, on these seeds and on what they have
//! found. With `GGUF_SHORTEN_CORPUS=FOLDER` the seeds are written there, one folder for each target.

use crate::make::{Make, Random, Raw};
use crate::random;

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
            part_len: parts
                .split_last()
                .map_or(0, |(_, rest)| rest.concat().len()) as u32,
            flags: (random.next() & random.next() & 7) as u32,
        };
        [parts.concat(), request.bytes()].concat()
    });
    vec![
        ("plan", plans.collect()),
        ("reader", models.iter().flatten().cloned().collect()),
    ]
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
            _ => plan::check,
        };
        seeds.iter().for_each(|seed| check(seed));
    }
}

#[test]
fn what_the_targets_found_passes() {
    // Of two blocks the last, which predicts: its count has to go with it.
    let model = Raw::model().u32("llama.nextn_predict_layers", 1);
    let request = Request {
        blocks: 0b10,
        part_len: 0,
        flags: 1,
    };
    plan::check(&[model.bytes(), request.bytes()].concat());
}
