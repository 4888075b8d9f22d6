//! `score`: the importance of every block.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::{arguments, calibrate, check_json, note_layout, print};
use crate::cli::ScoreArgs;
use crate::input::Input;
use crate::model::Model;
use crate::options::{Calibration, Printing};
use crate::pairs::Pairs;
use crate::plan::{Constraints, Method};
use crate::report::{ModelReport, PairsReport, Report, block_rows};

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being scored.
pub fn run(args: &ScoreArgs) -> Result<()> {
    let options = Calibration::new(&args.calibration)?;
    let printing = Printing::new(&args.common);
    let input = Input::open(&args.model)?;
    check_json(&printing, &input, None)?;
    let at_path = || args.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = Constraints::of(&model).with_context(at_path)?;
    note_layout(&input, &printing);
    let mut pairs = Pairs::default();
    let (importance, calibration) = calibrate(
        &model,
        &constraints,
        &input,
        &options,
        &printing,
        args.sub_blocks,
        args.pairs.then_some(&mut pairs),
    )?;
    let blake3 = printing.json.is_some().then(|| input.blake3());
    let report = Report {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        llama_cpp: ggml::backend::llama_cpp_version(),
        arguments: arguments(),
        model: ModelReport::of(&model, &input, blake3),
        calibration: Some(calibration),
        method: Method::Bi.to_string(),
        search: None,
        goal: None,
        blocks: block_rows(
            model.n_blocks(),
            Some(&importance),
            &BTreeSet::new(),
            &BTreeSet::new(),
        ),
        removed: Vec::new(),
        attention_removed: Vec::new(),
        attention_method: None,
        pairs: args.pairs.then(|| PairsReport {
            cosine: pairs.cosine(),
        }),
        output: None,
        evaluation: None,
    };
    print(&report, &printing)
}
