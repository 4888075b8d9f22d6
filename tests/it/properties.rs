//! Properties of every model and set of blocks, tried on random ones. A failure names the case, whose number is its seed.

use std::collections::BTreeSet;

use gguf_shorten::gguf::{self, File, ValueType};
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::verify::verify;
use gguf_shorten::plan::{Constraints, Cut, Plan};

use crate::make::{Make, Random};
use crate::random;

const N_CASES: u64 = 2500;

const VERSION_KEY: &[u8] = b"gguf_shorten.version";

/// Runs a property on random models. It says whether it applied, which it must to many.
fn for_each_model(property: impl Fn(u64, Make, &mut Random) -> bool) {
    let n_applied = (1..=N_CASES)
        .filter(|&case| {
            let mut random = Random::new(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let make = random::model(&mut random);
            property(case, make, &mut random)
        })
        .count();
    assert!(n_applied > N_CASES as usize / 6, "only {n_applied} cases");
}

/// A model of these parts without `removed` blocks, as written.
fn shorten<B: AsRef<[u8]>>(parts: &[B], removed: &[usize]) -> Result<Vec<u8>, String> {
    let files = parts.iter().map(|part| File::parse(part.as_ref()).unwrap());
    let mut parent = blake3::Hasher::new();
    for part in parts {
        parent.update(part.as_ref());
    }
    let model = Model::new(files.collect()).map_err(|error| error.to_string())?;
    let constraints = Constraints::of(&model).map_err(|error| error.to_string())?;
    let removed: BTreeSet<_> = removed.iter().copied().map(BlockId::new).collect();
    let plan = Plan::new(&model, &constraints, &Cut::new(removed, "blocks"), parent.finalize());
    let plan = plan.map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    gguf::write(&plan.layout, &mut out, |i, out| plan.data[i].write(&model, out)).unwrap();
    Ok(out)
}

/// Every entry but those about provenance, as key, type and bytes.
fn entries<'a>(file: &File<'a>) -> Vec<(&'a str, ValueType, &'a [u8])> {
    let all = file.metadata().iter();
    all.filter(|entry| !is_provenance(entry.key()))
        .map(|entry| (entry.key(), entry.value().value_type(), entry.value().raw()))
        .collect()
}

fn is_provenance(key: &str) -> bool {
    key == "general.name"
        || key.starts_with("general.base_model.")
        || key.starts_with("gguf_shorten.")
        || key.starts_with("split.")
}

/// Every tensor, as name, dimensions, type and bytes.
fn tensors<'a>(file: &File<'a>) -> Vec<(&'a str, Vec<u64>, u32, &'a [u8])> {
    let all = file.tensors().iter();
    all.map(|t| {
        let dims = t.dims()[..t.n_dims()].to_vec();
        (t.name(), dims, t.tensor_type().id(), t.bytes())
    })
    .collect()
}

/// A random set of some of `n` blocks.
fn some_of(n: usize, random: &mut Random) -> Vec<usize> {
    let one_in = 2 + random.below(4);
    (0..n).filter(|_| random.below(one_in) == 0).collect()
}

fn n_blocks(bytes: &[u8]) -> usize {
    let model = Model::new(vec![File::parse(bytes).unwrap()]).unwrap();
    model.n_blocks()
}

#[test]
fn removing_nothing_changes_nothing() {
    for_each_model(|case, make, _| {
        let bytes = make.bytes();
        // A model may break a rule itself, as by its first block.
        let Ok(out) = shorten(&[&bytes], &[]) else {
            return false;
        };
        let (file, written) = (File::parse(&bytes).unwrap(), File::parse(&out).unwrap());
        let data = |file: &File<'_>| file.bytes()[file.data_start().0 as usize..].to_vec();
        let is_raised = file.alignment() < 32;
        assert_eq!(written.alignment(), file.alignment().max(32));
        if !is_raised {
            assert_eq!(data(&file), data(&written), "case {case}: tensor data");
        }
        assert_eq!(tensors(&file), tensors(&written), "case {case}: tensors");
        // Values that llama.cpp would derive from a block's number are written out. A count of more blocks than there are is
        // set to what it means. All other entries are as they were, in their order.
        let written_out = |key: &str| {
            let name = key.split_once('.').map(|(_, name)| name);
            matches!(
                name,
                Some(
                    "attention.sliding_window_pattern"
                        | "attention.recurrent_layers"
                        | "attention.key_length"
                        | "attention.value_length"
                        | "rope.dimension_count"
                        | "residual_scale"
                        | "attention.q_lora_rank"
                        | "expert_gating_func"
                        | "leading_dense_block_count"
                        | "nextn_predict_layers"
                )
            )
        };
        let others = |file| -> Vec<_> {
            let mut entries = entries(file);
            entries.retain(|(key, ..)| !(written_out(key) || is_raised && *key == "general.alignment"));
            entries
        };
        assert_eq!(others(&file), others(&written), "case {case}: metadata");
        // What is written out stays as it is.
        let again = shorten(&[&out], &[]).unwrap();
        let again = File::parse(&again).unwrap();
        assert_eq!(entries(&written), entries(&again), "case {case}: again");
        true
    });
}

#[test]
fn removing_in_two_steps_is_removing_at_once() {
    for_each_model(|case, make, random| {
        let bytes = make.bytes();
        let all = some_of(n_blocks(&bytes), random);
        let (first, second): (Vec<_>, Vec<_>) = all.iter().partition(|_| random.below(2) == 0);
        let (Ok(at_once), Ok(step)) = (shorten(&[&bytes], &all), shorten(&[&bytes], &first)) else {
            return false;
        };
        // The numbers of what is left to remove, after the first step.
        let renumbered: Vec<usize> = second
            .iter()
            .map(|&block: &usize| block - first.iter().filter(|&&gone: &&usize| gone < block).count())
            .collect();
        // Where both sets are allowed, so is the second step.
        let twice = shorten(&[&step], &renumbered)
            .unwrap_or_else(|error| panic!("case {case}: {first:?}, then {renumbered:?}: {error}"));
        let (at_once, twice) = (File::parse(&at_once).unwrap(), File::parse(&twice).unwrap());
        assert_eq!(tensors(&at_once), tensors(&twice), "case {case}");
        assert_eq!(entries(&at_once), entries(&twice), "case {case}");
        assert_eq!(
            at_once.bytes().len() - at_once.data_start().0 as usize,
            twice.bytes().len() - twice.data_start().0 as usize,
            "case {case}"
        );
        !first.is_empty() && !second.is_empty()
    });
}

#[test]
fn a_split_model_is_shortened_as_the_whole_one() {
    for_each_model(|case, make, random| {
        let whole = make.bytes();
        let parts = make.split(2 + random.below(3));
        let parts: Vec<_> = parts.iter().map(Make::bytes).collect();
        let removed = some_of(n_blocks(&whole), random);
        let (of_whole, of_parts) = (shorten(&[&whole], &removed), shorten(&parts, &removed));
        let (Ok(of_whole), Ok(of_parts)) = (&of_whole, &of_parts) else {
            assert_eq!(of_whole.err(), of_parts.err(), "case {case}");
            return false;
        };
        let (of_whole, of_parts) = (File::parse(of_whole).unwrap(), File::parse(of_parts).unwrap());
        assert_eq!(tensors(&of_whole), tensors(&of_parts), "case {case}");
        assert_eq!(entries(&of_whole), entries(&of_parts), "case {case}");
        true
    });
}

#[test]
fn what_was_written_verifies() {
    for_each_model(|case, make, random| {
        let bytes = make.bytes();
        let removed = some_of(n_blocks(&bytes), random);
        let Ok(out) = shorten(&[&bytes], &removed) else {
            return false;
        };
        let differences = |out: &[u8]| -> Result<usize, String> {
            let parent = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
            let constraints = Constraints::of(&parent).unwrap();
            let out = File::parse(out).map_err(|error| error.to_string())?;
            verify(&parent, &constraints, &[out], &|_| {})
                .map(|verification| verification.differences.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(differences(&out), Ok(0), "case {case}");
        // Any flipped bit shows, but for the release number of the writer.
        let version = out.windows(VERSION_KEY.len()).position(|window| window == VERSION_KEY).unwrap();
        // Behind the key its type and length.
        let start = version + VERSION_KEY.len() + 4 + 8;
        let release = start..start + env!("CARGO_PKG_VERSION").len();
        let mut flipped = out;
        let at = random.below(flipped.len());
        flipped[at] ^= 1 << random.below(8);
        let shows = differences(&flipped) != Ok(0);
        assert!(shows || release.contains(&at), "case {case}: byte {at}");
        true
    });
}
