//! Trailing blocks for multi-token prediction: kept, dropped, or only counted, the rest computes the same.

use std::path::Path;

use ggml::{Backend, ModelOptions};
use gguf_shorten::engine::load;
use gguf_shorten::gguf::{EntryOut, File, Layout, TensorInfo, TensorOut, write};
use gguf_shorten::model::input::Input;
use gguf_shorten::plan::Constraints;

use crate::random_model::Spec;
use crate::support::{n_different, outputs, outputs_of, shorten, shorten_under, zero};

/// Architectures that load a file with counted but missing prediction blocks.
const TOLERANT: &[&str] = &[
    "bailingmoe3",
    "cohere2moe",
    "deepseek2",
    "mistral4",
    "deepseek32",
    "glm4moe",
    "hy_v3",
    "mimo2",
    "step35",
];

/// Architectures that do not.
const STRICT: &[&str] = &["bailingmoe2", "exaone4", "exaone-moe", "glm4", "qwen3next", "qwen35", "qwen35moe"];

/// With so many, the last block attends and has no window. That holds in every architecture, as a prediction block needs it.
const N_BLOCKS: u32 = 8;

/// Copies a model with more entries, and the first `n_kept` blocks.
fn copy(path: &Path, more: &[(String, u32)], n_kept: usize, out: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let is_kept = |tensor: &&TensorInfo<'_>| {
        let number = tensor.name().strip_prefix("blk.");
        let number = number.and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        number.is_none_or(|number| number < n_kept)
    };
    let tensors: Vec<_> = file.tensors().iter().filter(is_kept).collect();
    let mut entries: Vec<_> = file.metadata().iter().map(EntryOut::keep).collect();
    entries.extend(more.iter().map(|(key, value)| EntryOut::u32(key.clone(), *value)));
    let outs = tensors.iter().map(|tensor| TensorOut::keep(tensor));
    let layout = Layout::new(3, 32, entries, outs.collect(), true).unwrap();
    let mut copy = std::io::BufWriter::new(std::fs::File::create(out).unwrap());
    write(&layout, &mut copy, |i, writer| writer.write_all(tensors[i].bytes())).unwrap();
}

/// The number under a key of the model at `path`.
fn number(path: &Path, key: &str) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    file.metadata().get(key).unwrap().value().as_u64().unwrap()
}

/// What the model at `path` computes as the program loads it.
fn outputs_as_loaded(path: &Path) -> Result<Vec<f32>, String> {
    let error = |error: anyhow::Error| gguf_shorten::error::message(&error);
    let input = Input::open(path).map_err(error)?;
    let engine = load::load(&input, ModelOptions::default()).map_err(error)?;
    outputs_of(&engine, path)
}

fn check(architecture: &str, n_prediction: u32, is_strict: bool, dir: &Path) -> Result<usize, String> {
    let [parent, counted, short, zeroed] =
        ["parent", "counted", "short", "zeroed"].map(|name| dir.join(name));
    Spec::with_prediction(architecture, N_BLOCKS, n_prediction).save(Backend::init(), &parent)?;
    let n_trunk = (N_BLOCKS - n_prediction) as usize;
    copy(&parent, &[], n_trunk, &counted);
    if outputs(&counted).is_ok() == is_strict {
        return Err(format!("a file without the blocks loads: {}", !is_strict));
    }
    let mut n_floats = 0;
    // Counted blocks that are missing need not keep it from being measured.
    match outputs_as_loaded(&counted) {
        Ok(found) if n_different(&found, &outputs(&parent)?) == 0 => {}
        Ok(_) => return Err("only counted, it computes something else".to_owned()),
        Err(error) => return Err(format!("only counted: {error}")),
    }
    for set in [&[][..], &[1], &[0, 2, n_trunk - 1]] {
        match set {
            [] => std::fs::copy(&parent, &zeroed).map(|_| ()).unwrap(),
            set => zero(&parent, set, &zeroed),
        }
        let expected = outputs(&zeroed)?;
        let mut compare = |what: &str, blocks: usize, shortened: Result<(), String>| {
            shortened.map_err(|error| format!("{what}, without {set:?}: {error}"))?;
            let found = number(&short, &format!("{architecture}.block_count"));
            assert_eq!(found, blocks as u64, "{architecture}, {what}");
            let found = outputs(&short).map_err(|error| format!("{what}: {error}"))?;
            n_floats += found.len();
            match n_different(&found, &expected) {
                0 => Ok(()),
                n => Err(format!("{what}, without {set:?}: {n} floats differ")),
            }
        };
        let (n_kept, drop) = (n_trunk - set.len(), Constraints::dropping_prediction_blocks);
        let all = N_BLOCKS as usize - set.len();
        compare("kept", all, shorten(&parent, set, &short))?;
        compare("dropped", n_kept, shorten_under(&parent, set, &short, drop))?;
        compare("only counted", n_kept, shorten(&counted, set, &short))?;
    }
    Ok(n_floats)
}

fn check_all(architectures: &[&str], is_strict: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut failed = Vec::new();
    for architecture in architectures {
        match check(architecture, 1, is_strict, dir.path()) {
            Ok(n_floats) => println!("{architecture:<16}{n_floats} floats, 0 differ"),
            Err(error) => failed.push(format!("{architecture}: {error}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn prediction_blocks_may_stay_or_go_where_llama_cpp_can_do_without() {
    check_all(TOLERANT, false);
}

#[test]
fn prediction_blocks_may_stay_or_go_where_llama_cpp_wants_what_is_counted() {
    check_all(STRICT, true);
}

#[test]
fn several_prediction_blocks_may_stay_or_go() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, is_strict) in [("hy_v3", false), ("glm4", true)] {
        assert_eq!(check(architecture, 2, is_strict, dir.path()).map(|n| n > 0), Ok(true), "{architecture}");
    }
}

/// A model whose last block is wrongly counted as for prediction. As it is, llama.cpp makes something else of it. As the
/// program loads it, and as any cut writes it, it is the model that it was before it was counted so.
fn check_ordinary(architecture: &str, dir: &Path) -> Result<Option<bool>, String> {
    let [model, counted, short, expected] =
        ["model", "counted", "short", "expected"].map(|name| dir.join(name));
    let backend = Backend::init();
    let mut spec = Spec::new(architecture, N_BLOCKS);
    // Of what it leaves out llama.cpp does not know the scales.
    spec.omitted = |name| name.ends_with("scale");
    spec.save(backend, &model)?;
    let (count, all) =
        (format!("{architecture}.nextn_predict_layers"), format!("{architecture}.block_count"));
    copy(&model, &[(count.clone(), 1)], usize::MAX, &counted);
    let whole = outputs(&model)?;
    let by_itself = match outputs(&counted) {
        Ok(found) if n_different(&found, &whole) == 0 => Some(true),
        Ok(_) => Some(false),
        Err(_) => None,
    };
    let same = |what: &str, found: &[f32], expected: &[f32]| match n_different(found, expected) {
        0 => Ok(()),
        n => Err(format!("{what}: {n} floats differ")),
    };
    same("as loaded", &outputs_as_loaded(&counted)?, &whole)?;
    let drop = Constraints::dropping_prediction_blocks;
    for (set, blocks) in [(&[][..], N_BLOCKS), (&[1], N_BLOCKS - 1)] {
        match set {
            [] => std::fs::copy(&model, &expected).map(|_| ()).unwrap(),
            set => shorten(&model, set, &expected)?,
        }
        let expected = outputs(&expected)?;
        for dropping in [Ok as fn(_) -> _, drop] {
            shorten_under(&counted, set, &short, dropping)?;
            assert_eq!(number(&short, &all), u64::from(blocks), "{architecture}");
            assert_eq!(number(&short, &count), 0, "{architecture}");
            same(&format!("without {set:?}"), &outputs(&short)?, &expected)?;
        }
    }
    Ok(by_itself)
}

#[test]
fn a_block_that_is_counted_for_prediction_and_is_none_stays_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let mut failed = Vec::new();
    let others = ["deepseek4", "dots3note", "nemotron_h_moe", "llama"];
    for architecture in TOLERANT.iter().chain(STRICT).chain(&others) {
        match check_ordinary(architecture, dir.path()) {
            Ok(by_itself) => {
                let what = match by_itself {
                    Some(true) => "runs it",
                    Some(false) => "leaves it out",
                    None => "does not load the file",
                };
                println!("{architecture:<16}llama.cpp by itself {what}");
                let is_expected = match *architecture {
                    "deepseek4" => by_itself == Some(true),
                    name if TOLERANT.contains(&name) => by_itself == Some(false),
                    _ => by_itself.is_none(),
                };
                if !is_expected {
                    failed.push(format!("{architecture}: llama.cpp by itself {what}"));
                }
            }
            Err(error) => failed.push(format!("{architecture}: {error}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_file_with_lists_of_blocks_that_are_not_there_gets_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, counted, mended] = ["parent", "counted", "mended"].map(|name| dir.path().join(name));
    let mut spec = Spec::with_prediction("qwen35", N_BLOCKS, 1);
    let flags: Vec<bool> = (1..=N_BLOCKS).map(|number| number % 4 != 0).collect();
    let recurrent = gguf_shorten::gguf::ValueOut::bools(&flags);
    spec.extra.push((".attention.recurrent_layers", recurrent));
    spec.save(Backend::init(), &parent).unwrap();
    copy(&parent, &[], N_BLOCKS as usize - 1, &counted);
    let input = Input::open(&counted).unwrap();
    let error = load::load(&input, ModelOptions::default()).err().unwrap();
    let hint = gguf_shorten::error::hint(&error).unwrap();
    assert!(hint.contains("--drop-mtp alone writes it without them"), "{hint}");
    let drop = Constraints::dropping_prediction_blocks;
    shorten_under(&counted, &[], &mended, drop).unwrap();
    let expected = outputs(&parent).unwrap();
    assert_eq!(n_different(&outputs(&mended).unwrap(), &expected), 0);
}
