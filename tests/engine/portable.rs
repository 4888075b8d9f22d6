//! Portable outputs: without lists of windows or recurrent blocks, and still the parent without those blocks.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::Backend;
use gguf_shorten::choose::removal::nearest;
use gguf_shorten::gguf::{File, ValueOut, ValueType};
use gguf_shorten::model::arch::{Architecture, Recurrent};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::random_model::Spec;
use crate::support::{n_different, outputs, shorten_under, zero};

/// Two periods of plamo3, the longest, and more.
const N_BLOCKS: usize = 18;

/// The period and the key that may say it, or the list.
fn period(architecture: &Architecture) -> Option<(usize, &'static str, &'static str)> {
    let window = architecture.window().and_then(|pattern| pattern.period);
    let list = "attention.sliding_window_pattern";
    match (window, architecture.recurrent()) {
        (Some(period), _) => Some((period as usize, list, list)),
        (None, Some(Recurrent::Interval { key, default })) => {
            Some((default as usize, key, "attention.recurrent_layers"))
        }
        _ => None,
    }
}

/// Of gemma3n the first 20 stay.
fn n_blocks(architecture: &str) -> usize {
    match architecture {
        "gemma3n" => 27,
        _ => N_BLOCKS,
    }
}

/// Sets that the pattern allows: the nearest to some, and a whole period.
fn portable_sets(parent: &Path, period: usize) -> BTreeSet<Vec<usize>> {
    let input = Input::open(parent).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap().portable();
    let n_blocks = constraints.n_trunk_blocks;
    let wanted = [
        vec![0],
        vec![n_blocks - 1],
        vec![1, 2],
        (2..2 + period).collect(),
        (0..n_blocks).step_by(n_blocks / period).take(period).collect(),
        (1..=2 * period).collect(),
    ];
    let blocks = |set: Vec<usize>| -> BlockSet { set.into_iter().map(BlockId::new).collect() };
    wanted
        .into_iter()
        .filter_map(|set| nearest(&constraints, &blocks(set)))
        .map(|set| {
            constraints.check(&set).unwrap();
            set.iter().map(|block| block.index()).collect()
        })
        .collect()
}

fn check(spec: &Spec<'_>, period: usize, list: &str, dir: &Path) -> Result<(usize, usize), String> {
    let [parent, short, zeroed] = ["parent", "short", "zeroed"].map(|name| dir.join(name));
    spec.save(Backend::init(), &parent)?;
    let sets = portable_sets(&parent, period);
    // A whole period can always go, so not only the last blocks.
    assert!(
        sets.iter().any(|set| set[0] + period < n_blocks(spec.architecture)),
        "{}: {sets:?}",
        spec.architecture
    );
    let mut n_floats = 0;
    for set in &sets {
        shorten_under(&parent, set, &short, |constraints| Ok(constraints.portable()))?;
        let bytes = std::fs::read(&short).unwrap();
        let file = File::parse(&bytes).unwrap();
        let key = format!("{}.{list}", spec.architecture);
        if file.metadata().get(&key).is_some_and(|entry| entry.value().value_type() == ValueType::Array) {
            return Err(format!("{set:?}: '{key}' is a list"));
        }
        zero(&parent, set, &zeroed);
        let found = outputs(&short)?;
        n_floats += found.len();
        match n_different(&found, &outputs(&zeroed)?) {
            0 => {}
            n => return Err(format!("{set:?}: {n} floats differ")),
        }
    }
    Ok((sets.len(), n_floats))
}

#[test]
fn a_portable_output_computes_the_parent_without_those_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let mut failed = Vec::new();
    let mut n = 0;
    for architecture in Architecture::all() {
        let Some((built_in, _, list)) = period(architecture) else {
            continue;
        };
        if only.as_deref().is_some_and(|only| only != architecture.name) {
            continue;
        }
        n += 1;
        let spec = Spec::new(architecture.name, n_blocks(architecture.name) as u32);
        match check(&spec, built_in, list, dir.path()) {
            Ok((sets, floats)) => println!("{:<16}{sets} sets, {floats} floats, 0 differ", architecture.name),
            Err(error) => failed.push(format!("{}: {error}", architecture.name)),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(only.is_some() || n > 15, "{n} architectures");
}

/// A file's own period, and a list of the built-in one.
#[test]
fn a_period_of_the_files_own_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gemma3", "cohere2", "qwen3next"] {
        let architecture = Architecture::find(name).unwrap();
        let (built_in, key, list) = period(architecture).unwrap();
        let mut spec = Spec::new(name, N_BLOCKS as u32);
        let key: &'static str = match key {
            "full_attention_interval" => ".full_attention_interval",
            _ => ".attention.sliding_window_pattern",
        };
        spec.extra.push((key, ValueOut::u32(3)));
        check(&spec, 3, list, dir.path()).unwrap();
        let mut spec = Spec::new(name, N_BLOCKS as u32);
        let flags: Vec<bool> = (0..N_BLOCKS).map(|i| (i + 1) % built_in != 0).collect();
        let list_key: &'static str = match list {
            "attention.recurrent_layers" => ".attention.recurrent_layers",
            _ => ".attention.sliding_window_pattern",
        };
        spec.extra.push((list_key, ValueOut::bools(&flags)));
        check(&spec, built_in, list, dir.path()).unwrap();
    }
}
