//! Segments: a chain of single blocks computes what the shortened model computes, bit for bit, or says why it cannot.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ggml::{Backend, ThreadPool};
use gguf_shorten::choose::removal::nearest;
use gguf_shorten::engine::segment::{Chain, Subsets, Whole};
use gguf_shorten::model::arch::{Alone, Architecture};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::random_model::Spec;
use crate::support::{load, n_tokens, tokens};

/// Sets of kept blocks that may stay, of a few.
fn kept(constraints: &Constraints) -> Vec<Vec<BlockId>> {
    let n = constraints.n_trunk_blocks;
    let wanted = [vec![0], vec![1, 2], vec![n - 1], vec![n / 2], vec![0, n / 2, n - 1]];
    let allowed: BTreeSet<BlockSet> = wanted
        .into_iter()
        .filter_map(|set| {
            let set = set.into_iter().map(BlockId::new).collect();
            match constraints.check(&set) {
                Ok(()) => Some(set),
                Err(_) => nearest(constraints, &set),
            }
        })
        .collect();
    allowed
        .into_iter()
        .map(|removed| (0..n).map(BlockId::new).filter(|block| !removed.contains(block)).collect())
        .collect()
}

/// The parent's logits and those of every set, in order.
fn outcomes(subsets: &mut dyn Subsets, kept: &[Vec<BlockId>]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let mut found = vec![(Vec::new(), Vec::new()); kept.len()];
    subsets
        .visit(&[0], kept, &mut |outcome| {
            found[outcome.set] = (outcome.parent.to_vec(), outcome.logits.to_vec());
            Ok(())
        })
        .unwrap();
    found
}

/// Returns how many sets were compared, or why the chain declines.
fn check(architecture: &Architecture, path: &Path) -> Result<usize, String> {
    Spec::new(architecture.name, 9).save(Backend::init(), path)?;
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    let engine = load(path)?;
    let tokens = tokens(n_tokens(architecture.name));
    let windows: [&[_]; 1] = [&tokens];
    let threads = Arc::new(ThreadPool::new(1).unwrap());
    let mut chain = Chain::new(&model, &constraints, &engine, &windows, &threads)
        .map_err(|error| format!("{error:#}"))?;
    let kept = kept(&constraints);
    let mut whole = Whole::new(&model, &constraints, &engine, &windows, &threads);
    let expected = outcomes(&mut whole, &kept);
    let found = outcomes(&mut chain, &kept);
    for (set, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(expected.1.iter().any(|&logit| logit != 0.0));
        assert!(found == expected, "{}: {:?}", architecture.name, kept[set]);
    }
    Ok(kept.len())
}

/// Every second architecture, from the one of this number on. Shares run side by side.
fn check_share(first: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("parent.gguf");
    let only = std::env::var("ARCHITECTURE").ok();
    for architecture in Architecture::all().iter().skip(first).step_by(2) {
        let name = architecture.name;
        if architecture.alone == Alone::Unknown || only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let result = check(architecture, &path);
        assert_eq!(result.is_ok(), architecture.alone == Alone::Exact, "{name}: {result:?}");
    }
}

#[test]
fn a_chain_computes_the_shortened_model_or_says_why_not_share_1() {
    check_share(0);
}

#[test]
fn a_chain_computes_the_shortened_model_or_says_why_not_share_2() {
    check_share(1);
}
