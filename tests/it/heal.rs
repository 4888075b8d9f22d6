//! `--heal` without an engine. What cannot be healed is said before any model is loaded, and a healed file is verified to the
//! byte.

use std::collections::BTreeSet;

use gguf_shorten::gguf::{File, TensorType, ValueOut, write};
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::verify::{Verification, verify};
use gguf_shorten::plan::{ChangedTensor, ChangedTensors, Constraints, Cut, Healing, Plan};

use crate::make::{F32, Make};
use crate::util::Dir;

#[test]
fn arguments_that_do_not_fit_together_are_refused() {
    let dir = Make::new("llama", 3).dir();
    for (arguments, message) in [
        ("--heal-type Q8_0", "--heal-type and --max-memory need --heal linear, block or auto"),
        ("--max-memory 4G", "--heal-type and --max-memory need --heal linear, block or auto"),
        ("--heal scale --heal-type Q8_0", "--heal-type needs --heal linear, block or auto"),
        ("--heal linear --window 2", "--window 2 leaves no token to score, expected 3 or more"),
    ] {
        dir.run(&format!("m.gguf --blocks 1 -o out.gguf {arguments}")).fails(2, message);
    }
    for arguments in ["--heal linear --heal-type Q9", "--heal-type I8", "--max-memory 1X", "--heal best"] {
        let output = dir.run(&format!("m.gguf --blocks 1 -o out.gguf {arguments}")).refused();
        output.check(output.status.code() == Some(2), "status 2");
    }
    dir.run("m.gguf --drop-mtp --heal linear -o out.gguf").fails(2, "--heal needs blocks that are removed");
}

#[test]
fn what_cannot_be_healed_is_said_before_anything_is_measured() {
    let dir = Dir::new();
    let refused = |make: Make, arguments: &str, phrase: &str| {
        make.write(&dir, "m.gguf");
        // The text is missing, which shows as soon as it is needed.
        dir.run(&format!("m.gguf --blocks 1 --calibration none.txt -o out.gguf {arguments}"))
            .fails(1, phrase);
    };
    refused(Make::new("llama", 3), "--heal linear", "weights of type I8 cannot be made");
    refused(
        Make::new("llama", 3),
        "--heal scale",
        "residual-writing projections of 'llama' cannot be scaled: tensor 'blk.0.ffn_down.weight'",
    );
    refused(
        Make::new("olmo2", 3),
        "--heal scale",
        "residual-writing projections of 'olmo2' cannot be scaled",
    );
    let with = |rest: &str| {
        (0..3)
            .fold(Make::new("llama", 3), |make, block| make.tensor(&format!("blk.{block}.{rest}"), &[4], F32))
    };
    refused(with("ffn_down_exps.weight"), "--heal linear", "its feed-forward network has experts");
    refused(
        with("post_ffw_norm.weight"),
        "--heal auto",
        "a norm stands between its 'ffn_down' and the stream",
    );
    let no_down = Make::empty()
        .set("general.architecture", ValueOut::string("llama"))
        .set("llama.block_count", ValueOut::u32(3))
        .tensor("blk.0.attn_norm.weight", &[32], F32)
        .tensor("blk.1.attn_norm.weight", &[32], F32)
        .tensor("blk.2.attn_norm.weight", &[32], F32);
    refused(no_down.clone(), "--heal linear", "it has no 'ffn_down.weight'");
    let healable = (0..3)
        .fold(no_down, |make, block| make.tensor(&format!("blk.{block}.ffn_down.weight"), &[64, 32], F32));
    refused(
        healable,
        "--heal linear --tokens 1024 --max-memory 500K",
        "healing needs 589824 bytes beside the model",
    );
}

/// As [`pair_of`], with other weights of a matrix that healing may change.
fn pair() -> (Vec<u8>, Vec<u8>) {
    pair_of("blk.2.ffn_down.weight")
}

/// A parent, and its output without block 1, with one changed tensor. That tensor has another type and other weights.
fn pair_of(name: &str) -> (Vec<u8>, Vec<u8>) {
    let bytes = Make::new("llama", 4).bytes();
    let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
    let mut tensors = model.tensors().iter().enumerate();
    let (source, tensor) = tensors.find(|(_, tensor)| tensor.info.name() == name).unwrap();
    let bytes_of = (0..tensor.info.n_elements() * 4).map(|i| i as u8).collect();
    let changed = ChangedTensor { tensor_type: TensorType::F32, bytes: bytes_of };
    let healing = Healing { tensors: ChangedTensors::from([(source, changed)]), loss: [1.5, 0.5] };
    let constraints = Constraints::of(&model).unwrap();
    let removed = BTreeSet::from([BlockId::new(1)]);
    let cut = Cut { healing: Some(healing), heal: "linear".to_owned(), ..Cut::new(removed, "blocks") };
    let plan = Plan::new(&model, &constraints, &cut, blake3::hash(&bytes)).unwrap();
    let mut out = Vec::new();
    write(&plan.layout, &mut out, |i, out| plan.data[i].write(&model, out)).unwrap();
    drop(plan);
    (bytes, out)
}

fn check(parent: &[u8], out: &[u8]) -> Result<Verification, String> {
    let run = || -> anyhow::Result<Verification> {
        let out = File::parse(out)?;
        let parent = Model::new(vec![File::parse(parent)?])?;
        verify(&parent, &Constraints::of(&parent)?, &[out], &|_| {})
    };
    run().map_err(|error| format!("{error:#}"))
}

#[test]
fn a_healed_file_is_verified_and_its_changed_tensors_are_named() {
    let (parent, out) = pair();
    let verification = check(&parent, &out).unwrap();
    assert_eq!(verification.differences.first(), []);
    let [change] = &verification.changes[..] else {
        panic!("{:?}", verification.changes);
    };
    assert_eq!(change.parent.as_deref(), Some("blk.2.ffn_down.weight"));
    assert_eq!(change.tensor.as_deref(), Some("blk.1.ffn_down.weight"));
    assert_eq!(change.why, "makes up for removed blocks (linear)");
    let claim = verification.claim.healed.unwrap();
    assert_eq!(claim.loss, [1.5, 0.5]);
}

#[test]
fn every_flipped_bit_of_a_healed_file_is_found() {
    let (parent, out) = pair();
    for byte in 0..out.len() {
        let mut bad = out.clone();
        bad[byte] ^= 1 << (byte % 8);
        let found = check(&parent, &bad);
        assert!(
            found.is_err()
                || found.is_ok_and(|found| {
                    // Another number of a release is said, and no more.
                    !found.differences.is_empty() || found.claim.other_release().is_some()
                }),
            "byte {byte} of {}",
            out.len()
        );
    }
}

#[test]
fn a_tensor_that_no_healing_changes_is_not_taken_for_healed() {
    for name in ["token_embd.weight", "blk.2.attn_q.weight", "output_norm.weight"] {
        let (parent, out) = pair_of(name);
        let found = check(&parent, &out).unwrap();
        let line = format!("tensor '{name}' is said to have healed weights, which no healing gives it");
        assert_eq!(found.differences.first().iter().map(ToString::to_string).collect::<Vec<_>>(), [line]);
    }
}
