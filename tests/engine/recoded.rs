//! Recoded weights are the same numbers. What such a model computes differs by the order of sums alone.

use std::path::Path;

use ggml::{Backend, ContextOptions, ModelOptions};
use gguf_shorten::engine::hidden_state::{Recorded, Token};
use gguf_shorten::engine::llama::{LlamaHiddenStates, StreamGraph};
use gguf_shorten::engine::load::load_for_scores;
use gguf_shorten::engine::recoded::Recoded;
use gguf_shorten::model::Model;
use gguf_shorten::model::input::Input;

use crate::random_model::Spec;
use crate::support::load;

/// Numbers of llama.cpp's file types (`llama.h: llama_ftype`), and how many tensors of such a model of two blocks are recoded.
const FILE_TYPES: [(&str, u32, usize); 3] = [("Q5_0", 8, 14), ("IQ4_NL", 25, 14), ("Q8_0", 7, 0)];

fn record(engine: &ggml::Model, model: &Model<'_>, tokens: &[Token]) -> Recorded {
    let options = ContextOptions { window: tokens.len(), threads: 1 };
    let stream = model.rules().unwrap().stream;
    let graph = StreamGraph::of(model, engine, stream).unwrap();
    let mut states = LlamaHiddenStates::new(engine, options, graph).unwrap();
    Recorded::record(&mut states, std::iter::once(tokens)).unwrap()
}

fn check(name: &str, path: &Path, n_recoded: usize) {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let is_recoded = |recoded: &Recoded<'_>| {
        let planned = recoded.layout.tensors().iter();
        let pairs = planned.zip(model.tensors());
        pairs
            .filter(|(planned, tensor)| {
                planned.tensor().n_bytes() != tensor.info.n_bytes()
                    && tensor.info.tensor_type().name() == name
            })
            .count()
    };
    let recoded = Recoded::of(&model).unwrap();
    assert_eq!(recoded.as_ref().map_or(0, is_recoded), n_recoded, "{name}");
    let tokens: Vec<Token> = (0..64).map(|i| (i * 37 + 11) % 200).collect();
    let expected = record(&load(path).unwrap(), &model, &tokens);
    let (engine, _) = load_for_scores(&model, path, ModelOptions::default()).unwrap();
    let found = record(&engine, &model, &tokens);
    assert_eq!(found.windows[0].len(), expected.windows[0].len());
    for ((position, found), (_, expected)) in found.windows[0].iter().zip(&expected.windows[0]) {
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        // A weight off by one step of its type exceeds this hundredfold.
        assert!(
            norm(&difference) <= 1e-5 * norm(expected),
            "{name}, {position:?}: {} of {}",
            norm(&difference),
            norm(expected)
        );
    }
}

#[test]
fn recoded_weights_are_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let [full, path] = ["full.gguf", "quantized.gguf"].map(|name| dir.path().join(name));
    Spec::new("llama", 2).save(Backend::init(), &full).unwrap();
    for (name, file_type, n_recoded) in FILE_TYPES {
        ggml::testing::quantize(Backend::init(), &full, &path, file_type).unwrap();
        check(name, &path, n_recoded);
    }
}
