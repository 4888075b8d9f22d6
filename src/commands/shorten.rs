//! The main job: one model -> one shorter model.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{calibrate, check_json, print};
use crate::error::Hint;
use crate::importance::Importance;
use crate::input::Input;
use crate::model::{BlockId, Model};
use crate::options::{Choice, Printing, Shorten};
use crate::plan::{AttentionCut, Constraints, Plan, Provenance, attention, removal};
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
        Plan::with_attention_cut(
            &model,
            &constraints,
            selection.removed.clone(),
            selection.attention.as_ref(),
            &provenance,
        )
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
            let seen = match constraints.rules.lists_since {
                Some(release) => format!("release {release} does"),
                None => format!("the bundled {} does", ggml::backend::llama_cpp_version()),
            };
            eprintln!(
                "gguf-shorten: note: the output needs a llama.cpp that reads '{}.{key}' block by block, as {seen}; an older \
                 one may compute something else without a word; --portable needs no such list",
                model.architecture(),
            );
        }
    }
    if selection.attention.is_some() && !options.printing.quiet {
        eprintln!(
            "gguf-shorten: note: the output is of architecture '{}', for which llama.cpp takes no adapters made for '{}'",
            attention::TO,
            model.architecture()
        );
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
            &plan.attention_removed,
        ),
        removed: plan.removed.iter().map(|block| block.index()).collect(),
        attention_removed: plan
            .attention_removed
            .iter()
            .map(|block| block.index())
            .collect(),
        attention_method: selection.attention.as_ref().map(|cut| cut.method.clone()),
        output: Some(OutputReport {
            path: options
                .output
                .as_ref()
                .map(|path| path.display().to_string()),
            block_count: plan.renumbering.kept().len(),
            architecture: match selection.attention {
                Some(_) => attention::TO.to_owned(),
                None => model.architecture().to_owned(),
            },
            bytes: plan.layout.file_len(),
            parameters: plan.n_parameters,
            blake3,
            seconds,
            changes: plan.changes,
        }),
    };
    print(&report, &options.printing)
}

fn constraints(model: &Model<'_>, options: &Shorten) -> Result<Constraints> {
    let mut constraints = Constraints::new(model, options.trust_any_cut)?;
    if options.drop_mtp {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    if options.portable {
        constraints = constraints.portable();
    }
    Ok(constraints)
}

/// What goes, and why.
struct Selection {
    removed: BTreeSet<BlockId>,
    method: String,
    attention: Option<AttentionCut>,
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
    let n_trunk = model.n_trunk_blocks();
    // All that can be refused is refused before anything is measured.
    let listed = listed_attention(model, &options.attention).with_context(at_path)?;
    let mut keep = kept_by_hand(model, constraints, options).with_context(at_path)?;
    keep.extend(&listed);
    let mut removed = BTreeSet::new();
    let n_removed = match &options.choice {
        Choice::Nothing { .. } => 0,
        Choice::Blocks(list) => {
            removed = list
                .blocks(model.n_blocks(), "remove")
                .with_context(at_path)?;
            constraints
                .check(&removed)
                .map_err(|error| with_nearest(error, constraints, &removed))
                .with_context(at_path)?;
            removed.len()
        }
        Choice::Best { budget, .. } => {
            let n = budget.n_removed(n_trunk);
            removal::check(constraints, &keep, n).with_context(at_path)?;
            n
        }
    };
    if !listed.is_empty() {
        attention::check(model, &removed, &listed).with_context(at_path)?;
    }
    if let Choice::Best { budget, .. } = &options.attention {
        let n_may = n_trunk.saturating_sub(n_removed + 1);
        attention::check_number(budget.n_removed(n_trunk), n_may).with_context(at_path)?;
    }
    let needs_scores =
        |choice: &Choice| matches!(choice, Choice::Best { method, .. } if method.needs_scores());
    let (importance, calibration) =
        if needs_scores(&options.choice) || needs_scores(&options.attention) {
            let (importance, calibration) = calibrate(
                model,
                constraints,
                input.path(),
                &options.calibration,
                &options.printing,
                needs_scores(&options.attention),
            )?;
            (Some(importance), Some(calibration))
        } else {
            (None, None)
        };
    let method = match &options.choice {
        Choice::Nothing { .. } if options.drop_mtp => "blocks".to_owned(),
        Choice::Nothing { .. } => attention::NO_WHOLE_BLOCK.to_owned(),
        Choice::Blocks(_) => "blocks".to_owned(),
        Choice::Best { method, .. } => {
            removed = removal::choose(constraints, *method, importance.as_ref(), &keep, n_removed)
                .with_context(at_path)?;
            method.to_string()
        }
    };
    let attention = match &options.attention {
        Choice::Nothing { .. } => None,
        Choice::Blocks(_) => Some(AttentionCut {
            blocks: listed,
            method: "blocks".to_owned(),
        }),
        Choice::Best { budget, method, .. } => {
            let n = budget.n_removed(n_trunk);
            let blocks = attention::choose(model, *method, importance.as_ref(), &removed, &keep, n)
                .with_context(at_path)?;
            Some(AttentionCut {
                blocks,
                method: method.to_string(),
            })
        }
    };
    if let Some(cut) = &attention {
        // The blocks that were chosen to go as a whole may have made another one the first.
        attention::check(model, &removed, &cut.blocks).with_context(at_path)?;
    }
    Ok(Selection {
        removed,
        method,
        attention,
        importance,
        calibration,
    })
}

/// The blocks whose attention goes by a list; checks that the model can lose attention if any may be asked for.
fn listed_attention(model: &Model<'_>, choice: &Choice) -> Result<BTreeSet<BlockId>> {
    match choice {
        Choice::Nothing { .. } => Ok(BTreeSet::new()),
        Choice::Best { .. } => attention::check_model(model).map(|()| BTreeSet::new()),
        Choice::Blocks(list) => {
            attention::check_model(model)?;
            list.blocks(model.n_blocks(), "remove the attention of")
        }
    }
}

/// The blocks that stay as they are, by a list.
fn kept_by_hand(
    model: &Model<'_>,
    constraints: &Constraints,
    options: &Shorten,
) -> Result<BTreeSet<BlockId>> {
    let mut kept = BTreeSet::new();
    for choice in [&options.choice, &options.attention] {
        if let Choice::Best {
            keep: Some(list), ..
        }
        | Choice::Nothing { keep: Some(list) } = choice
        {
            kept.extend(list.blocks(model.n_blocks(), "keep")?);
        }
    }
    if let Some(block) = kept.intersection(&constraints.dropped).next() {
        let why = match options.drop_mtp {
            true => "--drop-mtp removes it",
            false => "it has no tensors",
        };
        bail!("cannot keep block {block}: {why}");
    }
    Ok(kept)
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
