//! The main job: one model -> one shorter model.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{calibrate, check_json, print};
use crate::error::Hint;
use crate::importance::Importance;
use crate::input::Input;
use crate::model::{BlockId, Model};
use crate::options::{BlockList, Choice, Printing, Shorten};
use crate::plan::{Constraints, Plan, Provenance, removal};
use crate::progress::{self, Unit};
use crate::report::{CalibrationReport, ModelReport, OutputReport, Report, block_list, block_rows};
use crate::save::Target;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being shortened; nothing is written then.
pub fn run(options: &Shorten) -> Result<()> {
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = constraints(&model, options).with_context(at_path)?;
    let target = match &options.output {
        Some(path) if !options.dry_run => Some(Target::new(path, &input, options.force)?),
        _ => None,
    };
    check_json(&options.printing, &input, target.as_ref().map(Target::path))?;
    let selection = select(&model, &constraints, &input, options)?;
    let plan = |parent_blake3| {
        let provenance = Provenance {
            parent_blake3,
            method: selection.method.clone(),
            heal: "none".to_owned(),
        };
        Plan::new(&model, &constraints, selection.removed.clone(), &provenance)
            .with_context(at_path)
    };
    let (plan, seconds) = match &target {
        Some(target) => {
            let (plan, seconds) = write(target, &input, &model, &plan, &options.printing)?;
            (plan, Some(seconds))
        }
        None => (plan(input.blake3())?, None),
    };
    if !options.printing.quiet {
        for key in constraints.lists_needed(&plan.renumbering) {
            eprintln!(
                "gguf-shorten: note: the output needs a llama.cpp that reads '{}.{key}' block by block, as the bundled \
                 {} does; an older one may compute something else without a word",
                model.architecture(),
                ggml::backend::llama_cpp_version()
            );
        }
    }
    let blake3 = match &target {
        // Read again only for those who ask.
        Some(target) if options.printing.json.is_some() => {
            Some(Input::open(target.path())?.blake3().to_hex().to_string())
        }
        _ => None,
    };
    let report = Report {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        llama_cpp: ggml::backend::llama_cpp_version(),
        model: ModelReport::new(&model, input.path(), Some(plan.provenance.parent_blake3)),
        calibration: selection.calibration,
        method: selection.method,
        blocks: block_rows(
            model.n_blocks(),
            selection.importance.as_ref(),
            &plan.removed,
        ),
        removed: plan.removed.iter().map(|block| block.index()).collect(),
        output: Some(OutputReport {
            path: options
                .output
                .as_ref()
                .map(|path| path.display().to_string()),
            block_count: plan.renumbering.kept().len(),
            bytes: plan.layout.file_len(),
            parameters: plan.n_parameters,
            blake3,
            seconds,
        }),
    };
    print(&report, &options.printing)
}

fn constraints(model: &Model<'_>, options: &Shorten) -> Result<Constraints> {
    let constraints = Constraints::new(model, options.trust_any_cut)?;
    if options.drop_mtp {
        return constraints.dropping_prediction_blocks();
    }
    Ok(constraints)
}

/// What goes, and why.
struct Selection {
    removed: BTreeSet<BlockId>,
    method: String,
    importance: Option<Importance>,
    calibration: Option<CalibrationReport>,
}

fn select(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Shorten,
) -> Result<Selection> {
    let at_path = || options.model.display().to_string();
    let by_hand = |removed| Selection {
        removed,
        method: "blocks".to_owned(),
        importance: None,
        calibration: None,
    };
    let (budget, method, keep) = match &options.choice {
        Choice::OnlyPrediction { keep } => {
            kept(model, constraints, keep.as_ref(), options.drop_mtp).with_context(at_path)?;
            return Ok(by_hand(BTreeSet::new()));
        }
        Choice::Blocks(list) => {
            let removed = list
                .blocks(model.n_blocks(), "remove")
                .with_context(at_path)?;
            constraints
                .check(&removed)
                .map_err(|error| with_nearest(error, constraints, &removed))
                .with_context(at_path)?;
            return Ok(by_hand(removed));
        }
        Choice::Best {
            budget,
            method,
            keep,
        } => (budget, *method, keep),
    };
    let keep = kept(model, constraints, keep.as_ref(), options.drop_mtp).with_context(at_path)?;
    let n = budget.n_removed(model.n_trunk_blocks());
    removal::check(constraints, &keep, n).with_context(at_path)?;
    let (importance, calibration) = if method.needs_scores() {
        let (importance, calibration) = calibrate(
            model,
            constraints,
            input.path(),
            &options.calibration,
            &options.printing,
        )?;
        (Some(importance), Some(calibration))
    } else {
        (None, None)
    };
    let removed = removal::choose(constraints, method, importance.as_ref(), &keep, n)
        .with_context(at_path)?;
    Ok(Selection {
        removed,
        method: method.to_string(),
        importance,
        calibration,
    })
}

/// The blocks of `--keep`.
fn kept(
    model: &Model<'_>,
    constraints: &Constraints,
    list: Option<&BlockList>,
    drop_mtp: bool,
) -> Result<BTreeSet<BlockId>> {
    let Some(list) = list else {
        return Ok(BTreeSet::new());
    };
    let keep = list.blocks(model.n_blocks(), "keep")?;
    if let Some(block) = keep.intersection(&constraints.dropped).next() {
        let why = match drop_mtp {
            true => "--drop-mtp removes it",
            false => "it has no tensors",
        };
        bail!("cannot keep block {block}: {why}");
    }
    Ok(keep)
}

/// Names the nearest set that is allowed, where there is one.
fn with_nearest(
    error: anyhow::Error,
    constraints: &Constraints,
    removed: &BTreeSet<BlockId>,
) -> anyhow::Error {
    match removal::nearest(constraints, removed) {
        Some(nearest) if error.downcast_ref::<Hint>().is_none() => {
            let nearest: Vec<usize> = nearest.iter().map(|block| block.index()).collect();
            error.context(Hint(format!(
                "the nearest allowed set is --blocks {}",
                block_list(&nearest)
            )))
        }
        _ => error,
    }
}

/// Writes the planned file. Returns its plan and the seconds that it took.
fn write<'a>(
    target: &Target,
    input: &Input,
    model: &Model<'a>,
    plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
    printing: &Printing,
) -> Result<(Plan<'a>, f64)> {
    let bar = progress::bar("writing", Unit::Bytes, model.n_bytes(), printing.quiet);
    let start = Instant::now();
    let result = target.save(input, model, plan, &mut |n_bytes| bar.inc(n_bytes));
    bar.finish_and_clear();
    Ok((result?, start.elapsed().as_secs_f64()))
}
