//! Mutants of small models, read and planned by the library. Each gives an error, or a plan that can be written, and never a
//! panic.

use std::collections::BTreeSet;

use gguf_shorten::error::message;
use gguf_shorten::gguf::{self, File};
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{Constraints, Cut, Plan};

use crate::make::{Make, Random, Raw};
use crate::util::is_message;

/// What the library says of a file. It is an error, or that blocks can be removed, and then the output is well-formed.
fn examine(bytes: &[u8]) -> Result<(), String> {
    let file = File::parse(bytes).map_err(|error| error.to_string())?;
    let said = |error: anyhow::Error| message(&error);
    let model = Model::new(vec![file]).map_err(said)?;
    let constraints = Constraints::of(&model).map_err(said)?;
    let sets = [vec![0, 1, 2], vec![1], vec![model.n_blocks() - 1], vec![0]];
    let mut results = Vec::new();
    for set in sets {
        let removed: BTreeSet<_> = set.into_iter().map(BlockId::new).collect();
        let planned = Plan::new(&model, &constraints, &Cut::new(removed, "blocks"), blake3::hash(b""));
        results.push(planned.map_err(said).map(|plan| {
            // An alignment of megabytes makes a long file of a short one.
            if plan.layout.file_len() > 1 << 22 {
                return;
            }
            let mut out = Vec::new();
            gguf::write(&plan.layout, &mut out, |i, out| plan.data[i].write(&model, out))
                .unwrap_or_else(|error| panic!("accepted and not written: {error}"));
            File::parse(&out).unwrap_or_else(|error| panic!("accepted and not readable: {error}"));
        }));
    }
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        check_text(error);
    }
    // Of a model that can be shortened, some block may go alone.
    results.into_iter().find(Result::is_ok).unwrap_or_else(|| Err("nothing may go".to_owned()))
}

#[track_caller]
fn check_text(error: &str) {
    assert!(is_message(error), "{error:?}");
}

/// Small models with something of everything.
pub fn seeds() -> Vec<Vec<u8>> {
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
        // Only the padding after the last tensor may be missing.
        for len in end..bytes.len() {
            examine(&bytes[..len]).unwrap();
        }
    }
}

/// Where the tensor data starts: only the bytes before mean anything to the reader.
pub fn head_len(bytes: &[u8]) -> usize {
    File::parse(bytes).unwrap().data_start().0 as usize
}

#[test]
fn no_number_near_the_limits_causes_a_panic() {
    let numbers = [u64::MAX, u64::MAX - 31, 1 << 63, (1 << 63) - 1, u64::from(u32::MAX), 1 << 32, 0];
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
pub fn mutant(bytes: &[u8], random: &mut Random) -> Vec<u8> {
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
    // The mutants reach both the checks and what follows them.
    assert!(n_refused > 1000 && n_accepted > 1000, "{n_refused} {n_accepted}");
}
