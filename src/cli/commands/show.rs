//! `show`: header, metadata, blocks, sizes, and what may be removed.

use super::devices::{self, BackEndReport};
use super::{check_json, print_json, to_stdout};
use crate::cli::args::ShowArgs;
use crate::cli::commands::escaped::Escaped;
use crate::cli::options::{Printing, one_model};
use crate::engine::llama;
use crate::gguf::{self, Entry, TensorInfo, ValueType};
use crate::model::block::counted;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::warning;
use crate::model::{BlockId, Model};
use crate::plan::Constraints;
use crate::plan::experts::Mixture;
use anyhow::{Context, Result};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// Characters of a metadata string that are shown.
const SHOWN_CHARACTERS: usize = 60;

/// Entries of a metadata array that are shown.
const SHOWN_ENTRIES: usize = 8;

/// The kind of a trailing block, which an evaluation does not run.
const PREDICTION: &str = "prediction (MTP)";

/// Runs the command.
///
/// # Errors
/// A file that is not well-formed GGUF.
pub fn run(args: &ShowArgs) -> Result<()> {
    let printing = Printing::new(&args.common);
    let path = one_model(&args.model, None, None)?;
    let input = Input::open(&path)?;
    check_json(&printing, &[&input], &[])?;
    // What cannot be shortened can be shown.
    let (files, mut model) = match input.parse() {
        Ok(files) => (files.clone(), Model::new(files)),
        Err(error) => (input.parse_as_stored()?, Err(error)),
    };
    match &model {
        Ok(model) => warning::of_weights(&input, model, &printing),
        Err(_) => warning::of_store(&input, &printing),
    }
    if printing.json.is_some() {
        // Said before anything is shown.
        model = Ok(model.with_context(|| path.display().to_string())?);
    }
    if printing.tables() {
        let text = if args.diffable { diffable(&files) } else { shown(&input, &files, &model, args.tensors) };
        to_stdout(&text)?;
    }
    match &model {
        Ok(model) => print_json(&ShowReport::new(model, &input), &printing),
        Err(_) => Ok(()),
    }
}

fn shown(input: &Input, files: &[gguf::File<'_>], model: &Result<Model<'_>>, all_tensors: bool) -> String {
    let mut text = String::new();
    for (part, file) in input.parts().iter().zip(files) {
        let header = file.header();
        let _ = writeln!(
            text,
            "{}: GGUF v{}, {} metadata entries, {} tensors, alignment {}, data from byte {}, {}",
            part.path.display(),
            header.version,
            header.n_metadata,
            header.n_tensors,
            file.alignment(),
            file.data_start(),
            DecimalBytes(file.bytes().len() as u64)
        );
        if !file.trailing_bytes().is_empty() {
            let _ = writeln!(
                text,
                "note: {} bytes after the last tensor belong to nothing and are not carried over",
                file.trailing_bytes().len()
            );
        }
    }
    text.push_str("\nmetadata\n");
    text.push_str(&metadata(&files[0]));
    match model {
        Ok(model) => text.push_str(&blocks(model)),
        Err(error) => {
            let _ = writeln!(text, "\nno model: {}", crate::error::message(error));
        }
    }
    if all_tensors {
        text.push_str("\ntensors\n");
        for tensor in files.iter().flat_map(|file| file.tensors().iter()) {
            let _ = writeln!(
                text,
                "  {} at byte {}, {}",
                tensor_line(tensor),
                tensor.position(),
                DecimalBytes(tensor.n_bytes())
            );
        }
    }
    text.push_str("\ndevices\n");
    for line in devices::lines().lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// Everything but offsets and sizes.
fn diffable(files: &[gguf::File<'_>]) -> String {
    let mut text = String::new();
    for file in files {
        let _ = writeln!(text, "GGUF v{}", file.header().version);
        text.push_str(&metadata(file));
        for tensor in file.tensors() {
            let _ = writeln!(text, "  {}", tensor_line(tensor));
        }
    }
    text
}

fn metadata(file: &gguf::File<'_>) -> String {
    let mut text = String::new();
    for entry in file.metadata() {
        let _ = writeln!(text, "  {} = {}", Escaped(entry.key()), value(entry));
    }
    text
}

fn value(entry: &Entry<'_>) -> String {
    let value = entry.value();
    let kind = value.value_type();
    if kind != ValueType::Array {
        return format!("{kind} {}", element(&value));
    }
    let Ok(array) = value.as_array() else {
        return kind.to_string();
    };
    let mut shown: Vec<_> = array.elements().take(SHOWN_ENTRIES).map(|e| element(&e)).collect();
    if array.len() > SHOWN_ENTRIES {
        // Per-block arrays are what one looks for here; vocabularies are not.
        if array.len() <= crate::model::MAX_BLOCKS && array.element_type() != ValueType::String {
            shown = array.elements().map(|e| element(&e)).collect();
        } else {
            shown.push("...".to_owned());
        }
    }
    format!("{}[{}] {}", array.element_type(), array.len(), shown.join(" "))
}

fn element(value: &gguf::Value<'_>) -> String {
    let kind = value.value_type();
    let text = match kind {
        ValueType::String => value.as_str().map(|text| {
            let mut shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
            if shown.len() < text.len() {
                shown.push_str("...");
            }
            format!("\"{}\"", Escaped(&shown))
        }),
        ValueType::Bool => value.as_bool().map(|flag| flag.to_string()),
        ValueType::F32 => value.as_f32().map(|number| number.to_string()),
        ValueType::F64 => value.as_f64().map(|number| number.to_string()),
        ValueType::U64 => value.as_u64().map(|number| number.to_string()),
        ValueType::Array => {
            value.as_array().map(|array| format!("{}[{}]", array.element_type(), array.len()))
        }
        _ => value.as_i64().map(|number| number.to_string()),
    };
    // Only a string that is not UTF-8 has no text.
    let n_bytes = || value.as_bytes().map_or(0, <[u8]>::len);
    text.unwrap_or_else(|_| format!("({} bytes that are not text)", n_bytes()))
}

fn tensor_line(tensor: &TensorInfo<'_>) -> String {
    let dims = tensor.dims();
    let dims: Vec<_> = dims.iter().take(tensor.n_dims()).map(ToString::to_string).collect();
    format!("{} {} [{}]", Escaped(tensor.name()), tensor.tensor_type(), dims.join(", "))
}

fn blocks(model: &Model<'_>) -> String {
    let mut text = format!(
        "\nmodel    {}, {}, {} parameters, {}\n\nblocks\n",
        Escaped(model.architecture()),
        counted(model.n_blocks()),
        HumanCount(model.n_parameters()),
        DecimalBytes(model.n_bytes())
    );
    let constraints = Constraints::of(model);
    for row in rows(model, constraints.as_ref().ok()) {
        let _ = writeln!(
            text,
            "  {:>4}  {:>3} tensors  {:>10}  {}{}",
            row.block,
            row.tensors,
            DecimalBytes(row.bytes).to_string(),
            row.types.join(" "),
            row.notes()
        );
    }
    let outside: u64 = model
        .tensors()
        .iter()
        .filter(|tensor| tensor.block.is_none())
        .map(|tensor| tensor.info.n_bytes())
        .sum();
    let _ = writeln!(text, "  outside blocks: {}", DecimalBytes(outside));
    text.push_str("\nremoval\n");
    text.push_str(&removal(model, &constraints));
    text
}

/// What may be removed, and what not.
pub(super) fn removal(model: &Model<'_>, constraints: &Result<Constraints>) -> String {
    let mut text = String::new();
    match constraints {
        Err(error) => {
            let _ = writeln!(text, "  none: {}", crate::error::message(error));
        }
        Ok(constraints) => {
            let stay = &constraints.must_stay;
            let _ = writeln!(
                text,
                "  {} of {} blocks may be removed",
                constraints.n_trunk_blocks
                    - stay.keys().filter(|b| b.index() < constraints.n_trunk_blocks).count(),
                constraints.n_blocks
            );
            for group in &constraints.groups {
                let _ =
                    writeln!(text, "  of the {} {} at least one must stay", group.blocks.len(), group.what);
            }
            if let Some(counts) = llama::note_counts(model) {
                let _ = writeln!(text, "  {counts}");
            }
            match Mixture::of(model) {
                Ok(mixture) => {
                    let _ = writeln!(text, "  {}", ExpertsShown::of(&mixture));
                }
                Err(error) if has_experts(model) => {
                    let _ = writeln!(text, "  no expert: {}", crate::error::message(&error));
                }
                Err(_) => {}
            }
            if constraints.n_trunk_blocks < constraints.n_blocks {
                text.push_str("  prediction blocks may go all together, with --drop-mtp\n");
            }
            for rule in constraints.counts.rules() {
                let _ = writeln!(text, "  {rule}");
            }
        }
    }
    text
}

fn has_experts(model: &Model<'_>) -> bool {
    model.count("expert_count").is_ok_and(|count| count.is_some_and(|count| count > 0))
}

/// The experts of each block.
#[derive(Serialize)]
struct ExpertsShown {
    count: usize,
    used: usize,
    groups: usize,
    groups_used: usize,
    /// Blocks that have them.
    blocks: usize,
    /// The most of each block that may go.
    may_go: usize,
}

impl ExpertsShown {
    fn of(mixture: &Mixture) -> Self {
        Self {
            count: mixture.n_experts,
            used: mixture.n_used,
            groups: mixture.n_groups,
            groups_used: mixture.n_groups_used,
            blocks: mixture.blocks.len(),
            may_go: mixture.n_experts.saturating_sub(mixture.fewest()),
        }
    }
}

impl fmt::Display for ExpertsShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, used, groups, groups_used, blocks, may_go } = self;
        write!(
            f,
            "{may_go} of {count} experts may be removed from each of {blocks} blocks: {used} are used at once"
        )?;
        match groups {
            1 => Ok(()),
            _ => write!(f, ", of {groups_used} of {groups} groups, which must stay of one size"),
        }
    }
}

/// One block.
#[derive(Serialize)]
struct BlockRow {
    block: usize,
    tensors: usize,
    bytes: u64,
    types: Vec<&'static str>,
    /// Its kind, where blocks differ.
    kinds: Vec<&'static str>,
    must_stay: Option<String>,
}

impl BlockRow {
    fn notes(&self) -> String {
        let mut notes = String::new();
        for kind in &self.kinds {
            let _ = write!(notes, "  {kind}");
        }
        if let Some(reason) = &self.must_stay {
            let _ = write!(notes, "  stays: {reason}");
        }
        notes
    }
}

fn rows(model: &Model<'_>, constraints: Option<&Constraints>) -> Vec<BlockRow> {
    let mut by_block: BTreeMap<BlockId, Vec<&TensorInfo<'_>>> = BTreeMap::new();
    for tensor in model.tensors() {
        if let Some((block, _)) = tensor.block {
            by_block.entry(block).or_default().push(&tensor.info);
        }
    }
    (0..model.n_blocks())
        .map(|block| {
            let id = BlockId::new(block);
            let tensors = by_block.remove(&id).unwrap_or_default();
            let mut types: Vec<_> = tensors.iter().map(|t| t.tensor_type().name()).collect();
            types.sort_unstable();
            types.dedup();
            BlockRow {
                block,
                tensors: tensors.len(),
                bytes: tensors.iter().map(|tensor| tensor.n_bytes()).sum(),
                types,
                kinds: match block < model.n_trunk_blocks() {
                    true => constraints.map_or_else(Vec::new, |c| c.kinds.words(block)),
                    false if model.has_tensors(id) => vec![PREDICTION],
                    false => vec![PREDICTION, "not in the file"],
                },
                must_stay: constraints.and_then(|c| c.must_stay.get(&id).cloned()),
            }
        })
        .collect()
}

/// What `show --json` writes.
#[derive(Serialize)]
struct ShowReport {
    gguf_shorten: &'static str,
    model: ModelReport,
    metadata: BTreeMap<String, String>,
    blocks: Vec<BlockRow>,
    /// The experts of each block; null where there are none, or none may go.
    experts: Option<ExpertsShown>,
    /// Why no expert may go; null where some may, or there are none.
    experts_refused: Option<String>,
    /// Why nothing may be removed; null if something may.
    refused: Option<String>,
    /// What can evaluate it here.
    back_ends: Vec<BackEndReport>,
}

impl ShowReport {
    fn new(model: &Model<'_>, input: &Input) -> Self {
        let constraints = Constraints::of(model);
        let (experts, experts_refused) = match Mixture::of(model) {
            Ok(mixture) => (Some(ExpertsShown::of(&mixture)), None),
            Err(error) => (None, has_experts(model).then(|| crate::error::message(&error))),
        };
        Self {
            experts,
            experts_refused,
            gguf_shorten: env!("CARGO_PKG_VERSION"),
            model: ModelReport::of(model, input, Some(input.blake3())),
            metadata: model.metadata().iter().map(|entry| (entry.key().to_owned(), value(entry))).collect(),
            blocks: rows(model, constraints.as_ref().ok()),
            refused: constraints.err().map(|error| crate::error::message(&error)),
            back_ends: devices::report(),
        }
    }
}
