//! Numbers of blocks at which llama.cpp computes something else. Left by writing into the output what they select.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{File, ValueOut};

use crate::random_model::Spec;
use crate::support::{n_different, outputs, shorten, zero};

/// A narrow model, since it has many blocks.
fn narrow(architecture: &'static str, n_blocks: u32) -> Spec<'static> {
    let mut spec = Spec::new(architecture, n_blocks);
    // Behind what the architecture asks for, which stays.
    let usual = std::mem::take(&mut spec.extra);
    for (key, value) in [
        (".embedding_length", 64),
        (".feed_forward_length", 96),
        (".expert_feed_forward_length", 32),
        (".attention.head_count", 4),
        (".attention.head_count_kv", 2),
        (".rope.dimension_count", 16),
    ] {
        spec.extra.push((key, ValueOut::u32(value)));
    }
    let is_ours = |key: &str| spec.extra.iter().any(|(other, _)| *other == key);
    let usual: Vec<_> = usual
        .into_iter()
        .filter(|(key, _)| !is_ours(key) || key.contains("rope") || key.contains("kv"))
        .collect();
    spec.extra.extend(usual);
    spec
}

/// The outputs of the model without `blocks`, and with them zeroed.
fn both(parent: &Path, blocks: &[usize]) -> Result<(Vec<f32>, Vec<f32>), String> {
    let dir = tempfile::tempdir().unwrap();
    let [short, zeroed] = ["short", "zeroed"].map(|name| dir.path().join(name));
    shorten(parent, blocks, &short)?;
    zero(parent, blocks, &zeroed);
    Ok((outputs(&short)?, outputs(&zeroed)?))
}

/// The largest difference, over the largest number.
fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let largest = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0f32, |m, x| m.max(x.abs()));
    largest(&mut a.iter().zip(b).map(|(a, b)| a - b)) / largest(&mut a.iter().copied())
}

/// Copies the model at `path` with changed numbers in some F32 tensors. Their names after `blk.<i>.` are `rest`, and their
/// blocks are `wanted`.
fn changed(path: &Path, rest: &str, wanted: &dyn Fn(usize) -> bool, change: &dyn Fn(f32) -> f32, out: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let mut ranges = Vec::new();
    for tensor in file.tensors() {
        let parts: Vec<&str> = tensor.name().splitn(3, '.').collect();
        if parts[0] == "blk" && parts[2] == rest && wanted(parts[1].parse().unwrap()) {
            ranges.push(tensor.position().0 as usize..tensor.end().0 as usize);
        }
    }
    assert!(!ranges.is_empty(), "{rest}");
    for range in ranges {
        for element in bytes[range].chunks_exact_mut(4) {
            let value = change(f32::from_le_bytes((&*element).try_into().unwrap()));
            element.copy_from_slice(&value.to_le_bytes());
        }
    }
    std::fs::write(out, bytes).unwrap();
}

/// The factor is not exact in floats, so outputs differ. They differ by what rounding does, which blocks magnify, and the
/// rounding of queries to F16 before they meet the cache. How much that is shows where the last bit of the parent's weights
/// is flipped. The shortened model may differ by this many times as much, and without the factor it differs by many times
/// more.
const ROUNDINGS: f32 = 2.0;

#[test]
fn queries_keep_the_scale_of_the_number_of_blocks_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, short, zeroed, other] =
        ["parent", "short", "zeroed", "other"].map(|name| dir.path().join(name));
    for (architecture, n_blocks, queries, scale) in [
        ("gemma2", 46, "attn_q.weight", "attn_q.scale"),
        ("gemma3", 62, "attn_q_norm.weight", "attn_q_norm.weight"),
    ] {
        let mut spec = narrow(architecture, n_blocks);
        // Heads of 24, where 64 / 4 is the width per head.
        for key in [".attention.key_length", ".attention.value_length", ".rope.dimension_count"] {
            spec.extra.push((key, ValueOut::u32(24)));
        }
        // An existing scale matters only where no norm comes after it.
        for with_scale in [false, true].into_iter().take(1 + usize::from(architecture == "gemma2")) {
            spec.left_out = if with_scale { &[] } else { &["attn_q.scale", "attn_q.bias"] };
            spec.save(Backend::init(), &parent).unwrap();
            // Sharper attention than that of random weights, so that its scale shows.
            changed(&parent, queries, &|_| true, &|value| 8.0 * value, &parent);
            if with_scale {
                changed(&parent, scale, &|_| true, &|value| 1.0 + value, &parent);
            }
            let sets = [&[0][..], &[5, 6, 20, 45], &[1, 2, 3, 4, 7, 8, 9, 10, 11, 30]];
            for blocks in sets {
                shorten(&parent, blocks, &short).unwrap();
                zero(&parent, blocks, &zeroed);
                let expected = outputs(&zeroed).unwrap();
                let difference = relative_difference(&expected, &outputs(&short).unwrap());
                let flip = |value: f32| f32::from_bits(value.to_bits() ^ 1);
                changed(&zeroed, queries, &|_| true, &flip, &other);
                let rounding = relative_difference(&expected, &outputs(&other).unwrap());
                let unscaled = |value: f32| value / 1.5f32.sqrt();
                changed(&short, scale, &|_| true, &unscaled, &other);
                let without = relative_difference(&expected, &outputs(&other).unwrap());
                println!(
                    "{architecture}, {blocks:?}: {difference:e}, rounding {rounding:e}, without {without:e}"
                );
                assert!(difference > 0.0 && difference < ROUNDINGS * rounding, "{difference}, {rounding}");
                assert!(without > 4.0 * ROUNDINGS * rounding, "{without}, {rounding}");
            }
        }
    }
}

#[test]
fn where_both_scales_are_the_same_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    for (architecture, n_blocks) in [("gemma2", 46), ("gemma3", 62), ("gemma3", 63)] {
        narrow(architecture, n_blocks).save(Backend::init(), &parent).unwrap();
        let (found, expected) = both(&parent, &[3]).unwrap();
        assert_eq!(n_different(&found, &expected), 0, "{architecture}");
    }
}

#[test]
fn what_deepseek2_derives_from_the_number_of_blocks_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    // `n_tokens` is as in the metadata. `rank` and `gating` are what the file says, if anything.
    for (architecture, n_blocks, n_tokens, rank, gating) in [
        ("deepseek2", 27, 102_400, None, None),
        ("deepseek2", 26, 128_256, None, Some(2)),
        ("deepseek2", 48, 128_256, None, None),
        ("deepseek2", 27, 102_400, Some(64), None),
        ("deepseek2", 47, 154_880, Some(64), None),
        ("deepseek2", 48, 154_880, Some(64), Some(0)),
        ("deepseek2", 28, 102_400, Some(64), None),
        ("deepseek2", 28, 102_400, Some(0), Some(1)),
        ("mistral4", 27, 102_400, None, None),
        ("mistral4", 36, 131_072, Some(64), None),
    ] {
        let mut spec = narrow(architecture, n_blocks);
        spec.extra.push((".vocab_size", ValueOut::u32(n_tokens)));
        spec.extra.retain(|(key, _)| *key != ".expert_gating_func");
        spec.without = &["attention.q_lora_rank"];
        if let Some(rank) = rank {
            spec.extra.push((".attention.q_lora_rank", ValueOut::u32(rank)));
        }
        if let Some(gating) = gating {
            spec.extra.push((".expert_gating_func", ValueOut::u32(gating)));
        }
        spec.save(Backend::init(), &parent).unwrap();
        for n_removed in [1, 2, 5, 20] {
            let blocks: Vec<usize> = (2..2 + n_removed).collect();
            let name = format!(
                "{architecture}, {n_blocks} blocks, {n_tokens} tokens, rank {rank:?}, {n_removed} less"
            );
            match both(&parent, &blocks) {
                Ok((found, expected)) => {
                    assert_eq!(n_different(&found, &expected), 0, "{name}");
                }
                Err(error) => {
                    assert!(error.contains("takes queries for one matrix"), "{name}: {error}");
                    assert!(matches!(n_blocks - n_removed as u32, 26 | 27), "{name}");
                    assert_eq!(rank, Some(64), "{name}");
                }
            }
        }
    }
}
