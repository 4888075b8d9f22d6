//! Trailing blocks for multi-token prediction: kept, dropped, or only counted, the rest computes the same.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, write};
use gguf_shorten::plan::Constraints;

use crate::random_model::Spec;
use crate::support::{n_different, outputs, shorten, shorten_under, zero};

/// Architectures that load a file that counts prediction blocks but does not hold them.
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
const STRICT: &[&str] = &[
    "bailingmoe2",
    "exaone4",
    "exaone-moe",
    "glm4",
    "qwen3next",
    "qwen35",
    "qwen35moe",
];

/// The last block attends and has no window in every architecture, as a prediction block must.
const N_BLOCKS: u32 = 8;

/// Copies a model without the tensors of its last `n` blocks.
fn without_tensors(path: &Path, n_kept: usize, out: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let tensors: Vec<_> = file
        .tensors()
        .iter()
        .filter(|tensor| {
            let number = tensor.name().strip_prefix("blk.");
            let number = number.and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
            number.is_none_or(|number| number < n_kept)
        })
        .collect();
    let entries = file.metadata().iter().map(EntryOut::keep).collect();
    let outs = tensors.iter().map(|tensor| TensorOut::keep(tensor));
    let layout = Layout::new(3, 32, entries, outs.collect(), true).unwrap();
    let mut copy = std::io::BufWriter::new(std::fs::File::create(out).unwrap());
    write(&layout, &mut copy, |i, writer| {
        writer.write_all(tensors[i].bytes())
    })
    .unwrap();
}

fn check(
    architecture: &str,
    n_prediction: u32,
    is_strict: bool,
    dir: &Path,
) -> Result<usize, String> {
    let [parent, counted, short, zeroed] =
        ["parent", "counted", "short", "zeroed"].map(|name| dir.join(name));
    Spec::with_prediction(architecture, N_BLOCKS, n_prediction).save(Backend::init(), &parent)?;
    let n_trunk = (N_BLOCKS - n_prediction) as usize;
    without_tensors(&parent, n_trunk, &counted);
    if outputs(&counted).is_ok() == is_strict {
        return Err(format!("a file without the blocks loads: {}", !is_strict));
    }
    let mut n_floats = 0;
    for set in [&[][..], &[1], &[0, 2, n_trunk - 1]] {
        match set {
            [] => std::fs::copy(&parent, &zeroed).map(|_| ()).unwrap(),
            set => zero(&parent, set, &zeroed),
        }
        let expected = outputs(&zeroed)?;
        let mut compare = |what: &str, blocks: usize, shortened: Result<(), String>| {
            shortened.map_err(|error| format!("{what}, without {set:?}: {error}"))?;
            let bytes = std::fs::read(&short).unwrap();
            let file = File::parse(&bytes).unwrap();
            let key = format!("{architecture}.block_count");
            let found = file.metadata().get(&key).unwrap().value().as_u64().unwrap();
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
        assert_eq!(
            check(architecture, 2, is_strict, dir.path()).map(|n| n > 0),
            Ok(true),
            "{architecture}"
        );
    }
}
