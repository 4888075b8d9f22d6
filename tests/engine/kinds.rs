//! Cuts that leave one kind of block alone, or none of it. Of every known architecture llama.cpp loads and evaluates what the
//! rules allow. It may end its process instead, so that it runs in another one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ggml::Backend;
use gguf_shorten::choose::removal;
use gguf_shorten::gguf::{Entry, ValueOut, ValueType};
use gguf_shorten::model::arch::Architecture;
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::architectures::{NOT_EVALUATED, n_blocks};
use crate::random_model::Spec;
use crate::support::{outputs, shorten, shorten_under};

/// The files that the other process evaluates, one a line.
const FILES: &str = "GGUF_SHORTEN_TEST_FILES";

/// Ways to tell kinds of blocks apart, by what they share.
fn partitions(model: &Model<'_>, constraints: &Constraints) -> Vec<Vec<String>> {
    let blocks = 0..constraints.n_trunk_blocks;
    let tensors = |block: usize| -> String {
        let of_block = model.tensors().iter().filter_map(|tensor| tensor.block);
        let names = of_block.filter(|(of, _)| of.index() == block);
        let names: BTreeSet<&str> = names.map(|(_, name)| name).collect();
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    let mut partitions = vec![
        blocks.clone().map(tensors).collect(),
        blocks.clone().map(|block| constraints.kinds.words(block).join(" ")).collect(),
    ];
    let lists = |entry: &Entry<'_>| -> Option<Vec<String>> {
        let value = entry.value();
        let array = (value.value_type() == ValueType::Array).then(|| value.as_array())?;
        let array = array.ok()?;
        let is_of_blocks = array.len() >= blocks.len() && array.len() <= 2 * blocks.len();
        let numbers: Option<Vec<String>> = array
            .elements()
            .map(|value| match value.value_type() {
                ValueType::Bool => value.as_bool().ok().map(|flag| flag.to_string()),
                _ => value.as_i64().ok().map(|number| number.to_string()),
            })
            .collect();
        numbers.filter(|_| is_of_blocks)
    };
    partitions.extend(model.metadata().iter().filter_map(lists));
    partitions
}

/// Sets whose removal makes a kind missing, or leaves it alone.
fn wanted(model: &Model<'_>, constraints: &Constraints) -> BTreeSet<BTreeSet<usize>> {
    let mut sets = BTreeSet::new();
    for partition in partitions(model, constraints) {
        let mut kinds: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (block, kind) in partition.into_iter().enumerate() {
            if block < constraints.n_trunk_blocks {
                kinds.entry(kind).or_default().insert(block);
            }
        }
        for kind in kinds.values() {
            let others = (0..constraints.n_trunk_blocks).filter(|block| !kind.contains(block));
            sets.insert(others.collect());
            sets.insert(kind.clone());
        }
    }
    // One block alone.
    let n = constraints.n_trunk_blocks;
    sets.insert((1..n).collect());
    sets.insert((0..n - 1).collect());
    sets.retain(|set: &BTreeSet<usize>| !set.is_empty() && set.len() < constraints.n_trunk_blocks);
    sets
}

/// The smallest allowed set of blocks with all of `wanted`.
fn allowed(constraints: &Constraints, wanted: &BTreeSet<usize>) -> Option<BlockSet> {
    let n = constraints.n_trunk_blocks;
    let scores: Vec<f64> = (0..n).map(|block| f64::from(u8::from(!wanted.contains(&block)))).collect();
    (wanted.len()..n).find_map(|n_removed| {
        let set = removal::lowest_if_any(constraints, &scores, &BTreeSet::new(), n_removed)?;
        wanted.iter().all(|&block| set.contains(&BlockId::new(block))).then_some(set)
    })
}

/// Models to test an architecture, also with other kinds of blocks.
fn variants(architecture: &Architecture) -> Vec<Spec<'static>> {
    let mut variants = Spec::variants(architecture.name, n_blocks(architecture));
    if architecture.name == "deci" {
        // Attention, one matrix in its place, neither; a feed-forward network or none.
        let list = |of: &dyn Fn(u32) -> u32| ValueOut::u32s(&(0..9).map(of).collect::<Vec<_>>());
        let mut spec = Spec::new("deci", 9);
        let heads = list(&|i| if i % 3 == 2 { 0 } else { 4 });
        let kv_heads = list(&|i| if i % 3 == 0 { 4 } else { 0 });
        let widths = list(&|i| if i == 3 || i == 4 { 0 } else { 512 });
        spec.extra.extend([
            (".attention.head_count", heads),
            (".attention.head_count_kv", kv_heads),
            (".feed_forward_length", widths),
        ]);
        variants.push(spec);
    }
    variants
}

/// Files of one architecture's cuts, with the blocks that are gone.
fn cuts(architecture: &Architecture, dir: &Path) -> Result<Vec<(PathBuf, Vec<usize>)>, String> {
    let parent = dir.join("parent.gguf");
    let mut files = Vec::new();
    for (variant, spec) in variants(architecture).into_iter().enumerate() {
        spec.save(Backend::init(), &parent)?;
        let input = Input::open(&parent).map_err(|error| format!("{error:#}"))?;
        let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
        let constraints = Constraints::of(&model).map_err(|error| format!("{error:#}"))?;
        let mut done = BTreeSet::new();
        for set in wanted(&model, &constraints) {
            let ids = set.iter().copied().map(BlockId::new).collect();
            if let Err(error) = constraints.check(&ids) {
                let error = format!("{error:#}");
                assert!(error.starts_with("cannot "), "{error}");
            }
            let Some(removed) = allowed(&constraints, &set) else {
                continue;
            };
            if !done.insert(removed.clone()) {
                continue;
            }
            let removed: Vec<usize> = removed.iter().map(|block| block.index()).collect();
            let file = dir.join(format!("{}-{variant}-{}", architecture.name, files.len()));
            shorten(&parent, &removed, &file)?;
            files.push((file, removed));
        }
    }
    Ok(files)
}

/// Evaluates files in another process. Returns how each that fails did.
fn evaluate(files: &[(PathBuf, Vec<usize>)]) -> Vec<String> {
    let mut failed = Vec::new();
    let mut rest = files;
    while !rest.is_empty() {
        let list: Vec<_> = rest.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kinds::evaluates_files_for_another_process", "--nocapture"])
            .env(FILES, list.join("\n"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut n_done = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some(said) = line.strip_prefix(SAYS) else {
                continue;
            };
            if !said.is_empty() {
                failed.push(format!("{:?}: {said}", rest[n_done]));
            }
            n_done += 1;
        }
        let status = child.wait().unwrap();
        if n_done < rest.len() {
            failed.push(format!("{:?}: {status}", rest[n_done]));
            n_done += 1;
        }
        rest = &rest[n_done..];
    }
    failed
}

/// What lines begin with that say how a file is done: nothing more if well.
const SAYS: &str = "evaluated: ";

#[test]
fn evaluates_files_for_another_process() {
    let Ok(files) = std::env::var(FILES) else {
        return;
    };
    for file in files.lines() {
        let error = outputs(Path::new(file)).err().unwrap_or_default();
        println!("\n{SAYS}{error}");
    }
}

fn check_share(share: usize) {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let mut failed = Vec::new();
    let mut n_cuts = 0;
    for architecture in Architecture::all().iter().skip(share).step_by(N_SHARES) {
        if only.as_deref().is_some_and(|only| only.split(',').all(|only| only != architecture.name))
            || NOT_EVALUATED.contains(&architecture.name)
        {
            continue;
        }
        match cuts(architecture, dir.path()) {
            Ok(files) => {
                println!("{:<16}{} cuts", architecture.name, files.len());
                failed.extend(evaluate(&files));
                n_cuts += files.len();
                for (file, _) in files {
                    std::fs::remove_file(file).unwrap();
                }
            }
            Err(error) => failed.push(format!("{}: {error}", architecture.name)),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(n_cuts > 0 || only.is_some());
}

const N_SHARES: usize = 2;

#[test]
fn a_kind_of_block_may_be_alone_or_missing_where_the_rules_allow_it_share_1() {
    check_share(0);
}

#[test]
fn a_kind_of_block_may_be_alone_or_missing_where_the_rules_allow_it_share_2() {
    check_share(1);
}

/// Without the rule each of these cuts ends llama.cpp's process.
#[test]
fn kinds_that_llama_cpp_cannot_do_without_stay() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent.gguf");
    let mut checked = Vec::new();
    for (name, variant, what) in [
        ("deepseek4", 0, "blocks with keys compressed 4:1"),
        ("minimax-m3", 0, "blocks with experts and an indexer"),
        ("granite_swa", 0, "blocks with rotary embedding"),
        ("deci", 1, "blocks with keys and values"),
    ] {
        let architecture = Architecture::find(name).unwrap();
        let specs = variants(architecture);
        specs[variant].save(Backend::init(), &parent).unwrap();
        let input = Input::open(&parent).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let group = constraints.groups.iter().find(|group| group.what == what);
        let group = group.unwrap_or_else(|| panic!("{name}: {:?}", constraints.groups));
        let error = constraints.check(&group.blocks).unwrap_err().to_string();
        let n = group.blocks.len();
        assert_eq!(error, format!("cannot remove all {n} {what}: llama.cpp needs at least one"));
        // On trust it is written, and the other process fails on it.
        let file = dir.path().join(format!("{name}-{variant}"));
        let removed: Vec<usize> = group.blocks.iter().map(|block| block.index()).collect();
        let on_trust = |constraints| Ok(Constraints { trusted: true, ..constraints });
        shorten_under(&parent, &removed, &file, on_trust).unwrap();
        checked.push((file, removed));
    }
    assert_eq!(evaluate(&checked).len(), checked.len());
}
