//! Blocks without their attention. A dense llama model is written as deci, and computes the parent in which that attention
//! writes zeros, bit for bit.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::Backend;
use gguf_shorten::engine::hidden_state::Position;
use gguf_shorten::gguf::{File, ValueOut};
use gguf_shorten::measure::oracle::{self, ZeroedBlocks};
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::ChangedTensors;

use crate::random_model::Spec;
use crate::support::{
    FFN_WRITERS, MIXER_WRITERS, hidden_states, hidden_states_with_middles, n_different, outputs,
    shorten_and_cut_attention, zero_halves,
};

const N_BLOCKS: u32 = 6;

/// Whole blocks that go, and blocks that lose their attention.
const SETS: &[(&[usize], &[usize])] = &[
    (&[], &[1]),
    (&[], &[N_BLOCKS as usize - 1]),
    (&[], &[1, 2, 3, 4, 5]),
    (&[0], &[2, 5]),
    (&[1, 5], &[2, 4]),
    (&[0, 1, 2, 3], &[5]),
];

/// A kind of model to test, and how it is made.
struct Variant {
    name: &'static str,
    extra: Vec<(&'static str, ValueOut)>,
    omitted: fn(&str) -> bool,
    fused_qkv: bool,
    /// llama.cpp's number of the file type that it is quantized to.
    ftype: Option<u32>,
}

/// No real model has scales for weights that are not NVFP4.
fn is_scale(name: &str) -> bool {
    name.ends_with("scale")
}

fn variants() -> Vec<Variant> {
    let grouped = || (".attention.head_count_kv", ValueOut::u32(2));
    vec![
        Variant {
            name: "fused, with biases, untied, with factors of rotary embedding",
            extra: Vec::new(),
            omitted: is_scale,
            fused_qkv: true,
            ftype: None,
        },
        Variant {
            name: "apart, with biases, tied, grouped queries",
            extra: vec![grouped()],
            omitted: |name| is_scale(name) || name == "output.weight" || name == "rope_freqs.weight",
            fused_qkv: false,
            ftype: None,
        },
        Variant {
            name: "apart, without biases, long rotary embedding",
            extra: vec![
                (".rope.scaling.type", ValueOut::string("longrope")),
                (".rope.scaling.factor", ValueOut::f32(4.0)),
                (".rope.scaling.original_context_length", ValueOut::u32(32)),
            ],
            omitted: |name| is_scale(name) || name.ends_with(".bias"),
            fused_qkv: false,
            ftype: None,
        },
        Variant { name: "Q4_0", extra: vec![grouped()], omitted: is_scale, fused_qkv: false, ftype: Some(2) },
        Variant {
            name: "Q4_K_M, with heads of an explicit size and lists of equal counts",
            extra: vec![
                (".attention.key_length", ValueOut::u32(64)),
                (".attention.value_length", ValueOut::u32(64)),
                (".attention.head_count_kv", ValueOut::u32s(&[4; N_BLOCKS as usize])),
            ],
            omitted: |name| is_scale(name) || name.ends_with(".bias"),
            fused_qkv: false,
            ftype: Some(15),
        },
    ]
}

impl Variant {
    fn save(&self, path: &Path) {
        let mut spec = Spec::new("llama", N_BLOCKS);
        spec.extra.extend(self.extra.iter().cloned());
        spec.omitted = self.omitted;
        spec.fused_qkv = self.fused_qkv;
        let backend = Backend::init();
        let Some(ftype) = self.ftype else {
            return spec.save(backend, path).unwrap();
        };
        let full = path.with_extension("full");
        spec.save(backend, &full).unwrap();
        ggml::testing::quantize(backend, &full, path, ftype).unwrap();
    }
}

fn tensor_names(path: &Path) -> BTreeSet<String> {
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    file.tensors().iter().map(|t| t.name().to_owned()).collect()
}

#[test]
fn a_model_without_attention_of_some_blocks_computes_the_parent_in_which_it_writes_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out, zeroed] = ["parent", "out", "zeroed"].map(|name| dir.path().join(name));
    for variant in variants() {
        variant.save(&parent);
        let names = tensor_names(&parent);
        // The variants are what they say.
        assert_eq!(names.contains("blk.0.attn_qkv.weight"), variant.fused_qkv);
        assert_eq!(names.contains("blk.0.attn_q.weight"), !variant.fused_qkv);
        let is_longrope = variant.name.contains("long");
        assert_eq!(names.contains("rope_factors_long.weight"), is_longrope);
        let of_parent = outputs(&parent).unwrap();
        for (blocks, attention) in SETS {
            shorten_and_cut_attention(&parent, blocks, attention, &out).unwrap();
            zero_halves(
                &parent,
                &[(blocks, MIXER_WRITERS), (blocks, FFN_WRITERS), (attention, MIXER_WRITERS)],
                &zeroed,
            );
            let found = outputs(&out).unwrap();
            let expected = outputs(&zeroed).unwrap();
            let set = format!("{}: {blocks:?} and attention of {attention:?}", variant.name);
            assert_eq!(n_different(&found, &expected), 0, "{set}");
            assert!(n_different(&found, &of_parent) > found.len() / 2, "{set}");
        }
    }
}

#[test]
fn only_the_attention_that_is_said_to_be_gone_is_silenced() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out] = ["parent", "out"].map(|name| dir.path().join(name));
    variants()[1].save(&parent);
    let input = Input::open(&parent).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    shorten_and_cut_attention(&parent, &[1], &[2, 5], &out).unwrap();
    let run = |blocks: &[usize], attention: &[usize]| {
        let ids = |blocks: &[usize]| blocks.iter().copied().map(BlockId::new).collect();
        let zeroed = ZeroedBlocks::with_attention(&model, &ids(blocks), &ids(attention)).unwrap();
        oracle::run(&zeroed, &model, &input, &ChangedTensors::new(), &out, 1).unwrap()
    };
    assert_eq!(run(&[1], &[2, 5]).floats_different, 0);
    for (blocks, attention) in [(&[1][..], &[2, 4][..]), (&[1], &[2]), (&[1, 2, 5], &[])] {
        let other = run(blocks, attention);
        assert!(
            other.floats_different > other.floats / 2,
            "{blocks:?} and attention of {attention:?}: {other:?}"
        );
    }
}

#[test]
fn the_middle_of_a_block_without_attention_is_what_enters_it() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, out, zeroed] = ["parent", "out", "zeroed"].map(|name| dir.path().join(name));
    variants()[1].save(&parent);
    shorten_and_cut_attention(&parent, &[], &[3, 5], &out).unwrap();
    zero_halves(&parent, &[(&[3, 5], MIXER_WRITERS)], &zeroed);
    let found = hidden_states_with_middles(&out).unwrap().windows.remove(0);
    let expected = hidden_states_with_middles(&zeroed).unwrap().windows.remove(0);
    assert_eq!(found.len(), 1 + 2 * N_BLOCKS as usize);
    for ((place, state), (expected_place, expected)) in found.iter().zip(&expected) {
        assert_eq!(place, expected_place);
        assert_eq!(n_different(state, expected), 0, "{place:?}");
    }
    for pair in found.windows(2) {
        if let Position::Middle(block) = pair[1].0 {
            let is_same = pair[0].1 == pair[1].1;
            assert_eq!(is_same, [3, 5].contains(&block.index()), "block {block}");
        }
    }
    // Nobody asked for middles.
    let whole = hidden_states(&out).unwrap().windows.remove(0);
    assert_eq!(whole.len(), 1 + N_BLOCKS as usize);
}
