//! `score --pairs`: cosines between all positions of the stream against the same figures computed here.

use ggml::{Backend, ContextOptions, Token};
use gguf_shorten::engine::hidden_state::Recorded;
use gguf_shorten::engine::llama::{LlamaHiddenStates, StreamGraph};
use gguf_shorten::model::Model;
use gguf_shorten::model::arch::Architecture;
use gguf_shorten::model::input::Input;

use crate::eval::byte_model;
use crate::program::json;
use crate::support::load;

const WINDOW: usize = 24;
const N_WINDOWS: usize = 3;

#[test]
fn cosines_of_all_positions_equal_those_of_the_recorded_states() {
    for (architecture, n_blocks) in [("llama", 5usize), ("gemma3", 7), ("llama", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        byte_model(architecture, n_blocks as u32).save(Backend::init(), &path).unwrap();
        let text: String = (0..WINDOW * N_WINDOWS).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
        std::fs::write(dir.path().join("text"), &text).unwrap();
        let run = format!("score m.gguf --pairs --calibration text --window {WINDOW}");
        let json = json(dir.path(), &run);
        assert_eq!(json["calibration"]["windows"], N_WINDOWS);

        let engine = load(&path).unwrap();
        let mut tokens = engine.tokenize(&text).unwrap();
        let bos: Option<Token> = engine.bos();
        for window in tokens.chunks_exact_mut(WINDOW) {
            window[0] = bos.unwrap();
        }
        let input = Input::open(&path).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let stream = Architecture::find(architecture).unwrap().stream;
        let options = ContextOptions { window: WINDOW, threads: 1 };
        let graph = StreamGraph::of(&model, &engine, stream).unwrap();
        let mut states = LlamaHiddenStates::new(&engine, options, graph).unwrap();
        let windows = tokens.chunks_exact(WINDOW).take(N_WINDOWS);
        let recorded = Recorded::record(&mut states, windows).unwrap();

        let cosine = json["pairs"]["cosine"].as_array().unwrap();
        assert_eq!(cosine.len(), n_blocks + 1);
        for (i, row) in cosine.iter().enumerate() {
            let row = row.as_array().unwrap();
            assert_eq!(row.len(), n_blocks + 1);
            for (j, found) in row.iter().enumerate() {
                let expected = mean_cosine(&recorded, i, j);
                let found = found.as_f64().unwrap();
                assert!((found - expected).abs() < 1e-9, "{architecture}: {i} {j}: {found} {expected}");
            }
        }
        for (i, block) in json["blocks"].as_array().unwrap().iter().enumerate() {
            let expected = 1.0 - block["bi"].as_f64().unwrap();
            assert_eq!(cosine[i][i + 1].as_f64(), Some(expected));
            assert_eq!(cosine[i + 1][i].as_f64(), Some(expected));
        }
    }
}

/// By the textbook, position 0 being what enters block 0.
fn mean_cosine(recorded: &Recorded, i: usize, j: usize) -> f64 {
    let mut cosines = Vec::new();
    for window in &recorded.windows {
        let rows = |at: usize| window[at].1.chunks_exact(recorded.n_embd);
        for (x, y) in rows(i).zip(rows(j)) {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            cosines.push(dot(x, y) / (dot(x, x).sqrt() * dot(y, y).sqrt()));
        }
    }
    cosines.iter().sum::<f64>() / cosines.len() as f64
}
