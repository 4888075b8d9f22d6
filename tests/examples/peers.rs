//! What llama.cpp's own removal of layers, `llama-quantize --prune-layers`, does. It gets the models and sets of blocks that
//! the tests of architectures use.
//!
//! ```text
//! cargo run --release --example peers [ARCHITECTURE...]
//! ```
//!
//! Prints a line for each architecture, then the totals. A set is *exact* if no float differs from the parent with those blocks
//! zeroed (for encoders whose stream passes norms: from this project's output). It is *changed* if the file loads and computes
//! something else, *broken* if it does not load, or ends the process that removes, loads or evaluates.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "shares the modules of the tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use ggml::Backend;
use gguf_shorten::model::arch::Architecture;

#[path = "../engine/architectures.rs"]
#[allow(dead_code, reason = "its tests")]
mod architectures;

#[path = "../engine/random_model.rs"]
#[allow(dead_code, reason = "for the tests")]
mod random_model;

#[path = "../engine/support.rs"]
#[allow(dead_code, reason = "for the tests")]
mod support;

use architectures::{
    NOT_EVALUATED, allowed_sets, constraints, has_more_than_sums, n_blocks, zeroing_is_identity,
};
use random_model::Spec;
use support::{outputs, shorten, zero};

/// First argument of a process that removes the blocks of one set. It may end as llama.cpp likes.
const ONE: &str = "--one";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, folder, set] = &args[..]
        && flag == ONE
    {
        return remove(Path::new(folder), &parse(set)?);
    }
    let mut totals = BTreeMap::new();
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for architecture in Architecture::all() {
        let name = architecture.name;
        let wanted = args.is_empty() || args.iter().any(|arg| arg == name);
        if !wanted || NOT_EVALUATED.contains(&name) {
            continue;
        }
        let outcomes = compare(architecture).with_context(|| name.to_owned())?;
        let mut counts = BTreeMap::new();
        for (_, outcome) in &outcomes {
            *counts.entry(outcome.word()).or_insert(0) += 1;
            *totals.entry(outcome.word()).or_insert(0) += 1;
        }
        lists.entry(worst(&outcomes)).or_default().push(name);
        let count = |word| counts.get(word).copied().unwrap_or(0);
        println!(
            "{name:<18}{} sets: {} exact, {} changed, {} broken{}",
            outcomes.len(),
            count("exact"),
            count("changed"),
            count("broken"),
            reason(&outcomes)
        );
    }
    println!();
    for (word, names) in &lists {
        println!("{word} ({}): {}", names.len(), names.join(", "));
    }
    println!("sets: {totals:?}");
    Ok(())
}

/// What became of one set.
enum Outcome {
    Exact,
    Changed { different: usize, floats: usize },
    Broken(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Changed { .. } => "changed",
            Self::Broken(_) => "broken",
        }
    }
}

type Outcomes = Vec<(Vec<usize>, Outcome)>;

/// What can be said of an architecture: the outcomes of its sets, from good to bad.
fn worst(outcomes: &Outcomes) -> &'static str {
    let has = |word| outcomes.iter().any(|(_, outcome)| outcome.word() == word);
    match (has("exact"), has("changed"), has("broken")) {
        (_, false, false) => "every set exact",
        (true, true, false) => "some sets exact, some changed",
        (true, _, true) => "some sets exact, some broken",
        (false, true, false) => "every set changed",
        (false, true, true) => "every set changed or broken",
        (false, false, true) => "every set broken",
    }
}

/// The first changed and the first broken set, as examples.
fn reason(outcomes: &Outcomes) -> String {
    let first = |word| outcomes.iter().find(|(_, outcome)| outcome.word() == word);
    let bad = [first("changed"), first("broken")];
    let said = bad.into_iter().flatten().map(|(set, outcome)| match outcome {
        Outcome::Exact => String::new(),
        Outcome::Changed { different, floats } => {
            format!("; {set:?}: {different} of {floats} floats differ")
        }
        Outcome::Broken(why) => format!("; {set:?}: {why}"),
    });
    said.collect()
}

fn compare(architecture: &Architecture) -> Result<Outcomes> {
    let folder = tempfile::tempdir()?;
    let [parent, reference] = ["parent.gguf", "reference.gguf"].map(|name| folder.path().join(name));
    let n = n_blocks(architecture);
    Spec::new(architecture.name, n).save(Backend::init(), &parent).map_err(|error| anyhow!(error))?;
    let constraints = constraints(&parent).map_err(|error| anyhow!(error))?;
    let sets = allowed_sets(&constraints);
    let mut outcomes = Vec::new();
    for set in sets {
        if zeroing_is_identity(architecture) && !has_more_than_sums(&constraints, &set) {
            zero(&parent, &set, &reference);
        } else {
            shorten(&parent, &set, &reference).map_err(|error| anyhow!(error))?;
        }
        let expected = outputs(&reference).map_err(|error| anyhow!(error))?;
        let outcome = run(folder.path(), &set, &expected)?;
        outcomes.push((set, outcome));
    }
    Ok(outcomes)
}

/// Removes `set` and evaluates the rest, in a separate process.
fn run(folder: &Path, set: &[usize], expected: &[f32]) -> Result<Outcome> {
    let floats = folder.join("floats");
    let _ = std::fs::remove_file(&floats);
    let output = Command::new(std::env::current_exe()?)
        .arg(ONE)
        .arg(folder)
        .arg(serde_json::to_string(set)?)
        .stdout(Stdio::null())
        .output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().find(|line| {
            line.starts_with("Error: ") || line.contains("GGML_ASSERT") || line.contains("panicked")
        });
        let why = last.unwrap_or("").trim_start_matches("Error: ");
        return Ok(Outcome::Broken(format!("{why} ({})", output.status)));
    }
    let found: Vec<f32> = std::fs::read(&floats)?
        .chunks_exact(4)
        .map(|bytes| bytes.try_into().map(f32::from_le_bytes))
        .collect::<Result<_, _>>()?;
    if found.len() != expected.len() {
        bail!("{} floats, expected {}", found.len(), expected.len());
    }
    // A number that is none is no output.
    let different = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    Ok(match different {
        0 => Outcome::Exact,
        _ => Outcome::Changed { different, floats: found.len() },
    })
}

/// What the process of one set does: removes, loads, evaluates, and leaves the floats in a file.
fn remove(folder: &Path, set: &[usize]) -> Result<()> {
    let layers: Vec<i32> = set.iter().map(|&i| i32::try_from(i)).collect::<Result<_, _>>()?;
    let out = folder.join("pruned.gguf");
    let _ = std::fs::remove_file(&out);
    let parent = folder.join("parent.gguf");
    ggml::testing::prune_layers(Backend::init(), &parent, &out, &layers)?;
    let found = outputs(&out).map_err(|error| anyhow!(error))?;
    let bytes: Vec<u8> = found.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(folder.join("floats"), bytes)?;
    Ok(())
}

fn parse(set: &str) -> Result<Vec<usize>> {
    serde_json::from_str(set).context("a list of blocks")
}
