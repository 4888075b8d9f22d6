//! `verify --run`: a shortened file and the parent with silenced blocks give the same logits, a wrong file does not.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::ValueOut;
use gguf_shorten::measure::oracle::{self, Run, ZeroedBlocks};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::ChangedTensors;

use crate::random_model::{N_VOCAB, Spec};
use crate::support::shorten;

/// Compares the file at `out` with the model at `parent` without `blocks`.
fn run(parent: &Path, blocks: &[usize], out: &Path) -> anyhow::Result<Run> {
    let input = Input::open(parent)?;
    let model = Model::new(input.parse()?)?;
    let removed = blocks.iter().copied().map(BlockId::new).collect();
    let zeroed = ZeroedBlocks::of(&model, &removed)?;
    oracle::run(&zeroed, &model, &input, &ChangedTensors::new(), out, 1)
}

#[test]
fn a_shortened_model_computes_the_silenced_parent_and_a_wrong_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, right, wrong] = ["parent", "right", "wrong"].map(|name| dir.path().join(name));
    for (architecture, n_blocks) in [("llama", 4), ("gemma3", 14), ("mamba2", 4)] {
        let mut spec = Spec::new(architecture, n_blocks);
        spec.extra.push((".context_length", ValueOut::u32(96)));
        spec.save(Backend::init(), &parent).unwrap();
        shorten(&parent, &[1, 2], &right).unwrap();
        let same = run(&parent, &[1, 2], &right).unwrap();
        assert_eq!(same.tokens, 96, "the context is shorter than the default");
        assert_eq!(same.floats, 96 * N_VOCAB as u64);
        assert_eq!(same.floats_different, 0, "{architecture}");
        // One block of the same number, and one too many.
        for blocks in [&[1, 3][..], &[1]] {
            shorten(&parent, blocks, &wrong).unwrap();
            let other = run(&parent, &[1, 2], &wrong).unwrap();
            assert!(
                other.floats_different > other.floats / 2,
                "{architecture} without {blocks:?}: {} of {} differ",
                other.floats_different,
                other.floats
            );
        }
    }
}

#[test]
fn what_a_run_takes_is_said_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    Spec::new("llama", 4).save(Backend::init(), &parent).unwrap();
    let input = Input::open(&parent).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let zeroed = ZeroedBlocks::of(&model, &BlockSet::from([BlockId::new(1)])).unwrap();
    let error = oracle::check_memory(&zeroed, &model, Some(1_000_000)).unwrap_err().to_string();
    assert!(error.starts_with("evaluating the whole model takes about"), "{error}");
    assert!(error.ends_with("1.0 MB may be taken, and each of the two is run as a whole"), "{error}");
    oracle::check_memory(&zeroed, &model, Some(1 << 30)).unwrap();
}

#[test]
fn one_flipped_bit_of_a_kept_tensor_shows() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out] = ["parent", "out"].map(|name| dir.path().join(name));
    Spec::new("llama", 3).save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[1], &out).unwrap();
    let mut bytes = std::fs::read(&out).unwrap();
    let file = gguf_shorten::gguf::File::parse(&bytes).unwrap();
    let tensor = file.tensors().get("blk.1.ffn_down.weight").unwrap();
    // The highest bit of a fraction.
    let byte = tensor.position().0 as usize + 2;
    bytes[byte] ^= 0x40;
    std::fs::write(&out, bytes).unwrap();
    assert!(run(&parent, &[1], &out).unwrap().floats_different > 0);
}

#[test]
fn the_sequence_is_longer_than_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out] = ["parent", "out"].map(|name| dir.path().join(name));
    let mut spec = Spec::new("gemma3", 12);
    spec.extra.push((".attention.sliding_window", ValueOut::u32(640)));
    spec.save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[1], &out).unwrap();
    let run = run(&parent, &[1], &out).unwrap();
    assert_eq!((run.tokens, run.sliding_window), (768, Some(640)));
    assert_eq!(run.floats_different, 0);
}

#[test]
fn what_zeros_cannot_silence_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    Spec::new("bert", 3).save(Backend::init(), &parent).unwrap();
    let error = run(&parent, &[1], &parent).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "cannot be compared by a run: in 'bert' the stream passes more than what blocks add to it, so a zeroed block is \
         not the same as none"
    );
    // An encoder that is pre-norm, but has no output head.
    let out = dir.path().join("out");
    Spec::new("neo-bert", 3).save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[1], &out).unwrap();
    let error = format!("{:#}", run(&parent, &[1], &out).unwrap_err());
    assert!(error.contains("no logits"), "{error}");
}

#[test]
fn a_zeroed_block_that_still_halves_the_stream_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out] = ["parent", "out"].map(|name| dir.path().join(name));
    let mut spec = Spec::new("rwkv6", 5);
    spec.extra.push((".rescale_every_n_layers", ValueOut::u32(2)));
    spec.save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[3, 4], &out).unwrap();
    let error = run(&parent, &[3, 4], &out).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "cannot be compared by a run: block 3 has the stream halved after it, and a zeroed block still has"
    );
    shorten(&parent, &[4], &out).unwrap();
    assert_eq!(run(&parent, &[4], &out).unwrap().floats_different, 0);
}
