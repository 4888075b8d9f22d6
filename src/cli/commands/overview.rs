//! A model alone on the command line: what it is, what may go, and what to try next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::show;
use crate::error::Usage;
use crate::files::shell::shell;
use crate::model::Model;
use crate::model::block::block_list;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::plan::Constraints;
use crate::report::lines;

/// The share of blocks in a proposal: most models can spare one of eight.
const SHARE: usize = 8;

/// Presets of llama.cpp in a proposal, with their bits per weight, about.
const PRESETS: [(&str, f64); 4] = [("Q6_K", 6.6), ("Q4_K_M", 4.9), ("Q3_K_M", 3.9), ("Q2_K", 3.0)];

/// Shows the model, then fails: no blocks to remove are named.
///
/// # Errors
/// Always: a file that is no model, else [`Usage`].
pub fn run(path: &Path) -> Result<()> {
    let input = Input::open(path)?;
    let at_path = || path.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = Constraints::of(&model);
    // No result: on stderr, as the help is where nothing is asked for.
    let _ = std::io::stderr().write_all(text(&model, &input, path, &constraints).as_bytes());
    bail!(Usage("nothing is removed: --drop says how many blocks go, --blocks which".to_owned()))
}

/// The screen.
fn text(model: &Model<'_>, input: &Input, path: &Path, constraints: &Result<Constraints>) -> String {
    let report = ModelReport::of(model, input, None);
    let mut text = format!("model    {}\n", lines::model(&report));
    let _ = writeln!(
        text,
        "\nwhat may be removed\n{}{}",
        show::removal(model, constraints),
        staying(constraints)
    );
    text.push_str("try next\n");
    for (line, what) in proposals(model, path, constraints.is_ok()) {
        let _ = writeln!(text, "  {line}\n      {what}");
    }
    text
}

/// The blocks that must stay, by the reason.
fn staying(constraints: &Result<Constraints>) -> String {
    let mut by_reason: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (block, reason) in constraints.iter().flat_map(|constraints| &constraints.must_stay) {
        by_reason.entry(reason).or_default().push(block.index());
    }
    by_reason
        .iter()
        .map(|(reason, blocks)| format!("  {} must stay: {reason}\n", block_list(blocks)))
        .collect()
}

/// Three command lines, and what each is good for.
fn proposals(model: &Model<'_>, path: &Path, may_be_cut: bool) -> [(String, String); 3] {
    let named = path.display().to_string();
    let model_word = shell(&named);
    let stem = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy());
    let stem = stem.rsplit(['/', ':']).next().unwrap_or("model");
    if !may_be_cut {
        return [
            (format!("gguf-shorten show {model_word}"), "all that the file holds".to_owned()),
            (
                format!("gguf-shorten eval {model_word}"),
                "how well it predicts text, and how fast it is".to_owned(),
            ),
            ("gguf-shorten help architectures".to_owned(), "which models can be shortened".to_owned()),
        ];
    }
    let n = (model.n_trunk_blocks() / SHARE).max(1);
    let out = format!("{stem}-drop{n}.gguf");
    // A name is not taken for a flag.
    let out = shell(&if out.starts_with('-') { format!("./{out}") } else { out });
    let types = smaller_types(model);
    [
        (format!("gguf-shorten score {model_word}"), "how much each block matters".to_owned()),
        (
            format!("gguf-shorten {model_word} --drop {n} -o {out}"),
            format!("write it without the {n} of {} blocks that matter least", model.n_trunk_blocks()),
        ),
        (
            format!("gguf-shorten compare {model_word} --drop 1..{n} --requantize {types}"),
            "whether fewer blocks or a smaller type costs less".to_owned(),
        ),
    ]
}

/// The two presets next below the types of the model's blocks; the smallest if none is.
fn smaller_types(model: &Model<'_>) -> String {
    let of_blocks = model.tensors().iter().filter(|tensor| tensor.block.is_some());
    let (n_bytes, n_weights) = of_blocks.fold((0, 0), |(n_bytes, n_weights), tensor| {
        (n_bytes + tensor.info.n_bytes(), n_weights + tensor.info.n_elements())
    });
    let bits = n_bytes as f64 * 8.0 / n_weights.max(1) as f64;
    let is_smaller = |(_, preset): &&(&str, f64)| *preset < 0.8 * bits;
    let smaller: Vec<&str> = PRESETS.iter().filter(is_smaller).take(2).map(|(name, _)| *name).collect();
    if smaller.is_empty() { PRESETS[PRESETS.len() - 1].0.to_owned() } else { smaller.join(",") }
}
