//! The main job: one model -> one shorter model.

use super::card::CardFile;
use super::{arguments, check_json, devices, note_counts, print};
use crate::choose::outcome::block_rows;
use crate::choose::resume::close_journal;
use crate::choose::selection::select;
use crate::cli::options::{Printing, Shorten};
use crate::error::Hint;
use crate::files::staged::Staged;
use crate::gguf;
use crate::heal::run as healed;
use crate::heal::settings::HealArg;
use crate::model::companion::Companion;
use crate::model::hashes;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::renumbering::Renumbering;
use crate::model::warning;
use crate::model::{BlockId, Model};
use crate::output::imatrix_file::{ImatrixFile, stale};
use crate::output::ollama::{Creation, Wanted};
use crate::output::outcome::planned_files;
use crate::output::outcome::{ImatrixReport, OllamaReport, OutputReport, PartReport, converted_changes};
use crate::output::save::{Naming, Target, Tell, Unplaced, Written};
use crate::plan::parts::{self};
use crate::plan::{Constraints, Plan, Provenance, Splitting, attention};
use crate::report::Report;
use crate::watch::Silent;
use crate::watch::{Unit, Watch};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being shortened; nothing is written then.
pub fn run(options: &Shorten) -> Result<()> {
    devices::warn(&options.choosing.calibration, &options.printing);
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = constraints(&model, options).with_context(at_path)?;
    let target = match &options.output {
        Some(path) if !options.dry_run => {
            let splitting = options.splitting;
            let target = Target::split(path, splitting, &input, options.force)?;
            Some(target.leaving(options.min_free))
        }
        _ => None,
    };
    check_json(&options.printing, &input, target.as_ref().map(Target::path))?;
    if let (Some(target), Some(json)) = (&target, &options.printing.json) {
        check_apart(target, json)?;
    }
    let card = match (&options.card, &target) {
        (Some(path), Some(target)) => Some(CardFile::new(path, &input, target, options)?),
        _ => None,
    };
    let imatrix_file = open_imatrix(&input, target.as_ref(), options)?;
    let imatrix = imatrix_file.as_ref().map(|file| file.parse(&model)).transpose()?;
    healed::check(&model, &options.heal, &options.choosing.calibration).with_context(at_path)?;
    let creation = match (&options.ollama, &options.output) {
        (Some(name), Some(output)) => {
            let imatrix = options.imatrix.iter().map(|(_, to)| to);
            let others: Vec<&Path> = imatrix.chain(&options.printing.json).map(PathBuf::as_path).collect();
            let wanted = Wanted { name, output, force: options.force, others: &others };
            Some(Creation::plan(&model, &input, target.as_ref(), &wanted)?)
        }
        _ => None,
    };
    warning::of_weights(&input, &model, &options.printing);
    let output_bytes = |removed: &BTreeSet<BlockId>, method: &str| {
        let provenance = Provenance::draft(method);
        let plan = Plan::new(&model, &constraints, removed.clone(), &provenance)?;
        let place = options.output.as_deref();
        let files = planned_files(&model, &plan, &input, place, options.splitting)?;
        Ok(files.iter().map(|file| file.bytes).sum())
    };
    let mut selection =
        select(&model, &constraints, &input, &options.choosing, &output_bytes, &options.printing)?;
    let scored = selection.calibration.as_ref().and_then(|of| of.scored);
    let mut heal_report = None;
    let mut heal = HealArg::None.to_string();
    let mut healing = None;
    if options.heal.how != HealArg::None {
        let healed = healed::heal(
            &model,
            &constraints,
            &input,
            (&selection.removed, &selection.shortlist),
            selection.attention.as_ref(),
            &options.heal,
            options.choosing.objective,
            &options.choosing.calibration,
            &options.printing,
        )?;
        selection.removed = healed.removed;
        selection.attention = healed.attention;
        (heal, healing) = (healed.method, healed.healing);
        heal_report = Some(healed.report);
    }
    let plan = |parent_blake3: blake3::Hash| {
        check_scored(scored, parent_blake3, &input).with_context(at_path)?;
        let provenance = Provenance { parent_blake3, method: selection.method.clone(), heal: heal.clone() };
        Plan::healed(
            &model,
            &constraints,
            selection.removed.clone(),
            selection.attention.as_ref(),
            healing.as_ref(),
            &provenance,
        )
        .with_context(at_path)
    };
    // Before there is an output that would be found.
    let stale = stale_note(&model, &input, options);
    let mut beside = Vec::new();
    let mut imatrix_report = None;
    if let (Some(file), Some(imatrix)) = (&imatrix_file, &imatrix) {
        let renumbering = Renumbering::new(model.n_blocks(), &selection.removed);
        let planned = file.plan(imatrix, &renumbering)?;
        imatrix_report = Some(ImatrixReport {
            path: file.to().display().to_string(),
            bytes: planned.n_bytes(),
            entries: planned.n_entries,
            removed: planned.n_removed,
        });
        if target.is_some() {
            beside.push(file.stage(&planned, options.force)?);
        }
    }
    if let (Some(creation), Some(_)) = (&creation, &target) {
        beside.push(creation.stage(&input, options.force)?);
    }
    let mut blake3 = None;
    let mut evaluation = None;
    let (plan, files, seconds) = match &target {
        Some(target) => {
            let mut telling = 0.0;
            let mut tell = |plan: &Plan<'_>, files: &[Unplaced<'_>]| {
                let Some(card) = &card else {
                    return Ok(Vec::new());
                };
                let start = Instant::now();
                let n_windows = selection.n_windows();
                let (staged, found) = card.write((&input, &model), plan, files, n_windows, options)?;
                evaluation = found;
                telling = start.elapsed().as_secs_f64();
                Ok(vec![staged])
            };
            let (plan, files, seconds) =
                write(target, beside, &mut tell, (&input, &model), &plan, &options.printing)?;
            let seconds = seconds - telling;
            // Read again only for those who ask.
            if options.printing.json.is_some() {
                blake3 = Some(Input::open_file(&files[0].path)?.blake3().to_hex().to_string());
            }
            let report = |file: Written| PartReport {
                path: Some(file.path.display().to_string()),
                bytes: file.n_bytes,
            };
            (plan, files.into_iter().map(report).collect(), Some(seconds))
        }
        None => {
            let plan = plan(input.blake3())?;
            let files = planned_files(&model, &plan, &input, options.output.as_deref(), options.splitting)
                .with_context(at_path)?;
            (plan, files, None)
        }
    };
    note_counts(&model, &input, &options.printing);
    if !options.printing.quiet {
        if let Some(stale) = stale {
            eprintln!("gguf-shorten: note: {stale}");
        }
        for note in &plan.notes {
            eprintln!("gguf-shorten: note: {note}");
        }
        if let Some((name, n_bytes)) = parts::too_large(&plan.layout, options.splitting) {
            eprintln!(
                "gguf-shorten: note: tensor {} alone has {n_bytes} bytes, so its part is larger than --split-max-size",
                gguf::Quoted(name)
            );
        }
        for key in constraints.lists_needed(&plan.renumbering) {
            let seen = match constraints.rules.lists_since() {
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
    let mut blocks =
        block_rows(model.n_blocks(), selection.importance.as_ref(), &plan.removed, &plan.attention_removed);
    if let Some(rating) = &selection.rating {
        rating.mark(&mut blocks);
    }
    let mut ollama = None;
    let mut failure = None;
    if let Some(creation) = &creation {
        if !options.printing.quiet {
            for note in creation.notes() {
                eprintln!("gguf-shorten: note: {note}");
            }
        }
        let created = match &target {
            Some(_) => creation.run(&options.printing).unwrap_or_else(|error| {
                failure = Some(error);
                false
            }),
            None => false,
        };
        ollama = Some(OllamaReport {
            name: creation.name().to_owned(),
            modelfile: creation.path().display().to_string(),
            created,
        });
    }
    let report = Report {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        llama_cpp: ggml::backend::llama_cpp_version(),
        arguments: arguments(),
        model: ModelReport::of(&model, &input, Some(plan.provenance.parent_blake3)),
        calibration: selection.calibration,
        method: selection.method,
        search: selection.search,
        goal: selection.goal,
        heal: heal_report,
        confidence: selection.confidence,
        against: None,
        ablate: None,
        blocks,
        removed: plan.removed.iter().map(|block| block.index()).collect(),
        attention_removed: plan.attention_removed.iter().map(|block| block.index()).collect(),
        attention_method: selection.attention.as_ref().map(|cut| cut.method.clone()),
        pairs: None,
        output: Some(OutputReport {
            path: files[0].path.clone(),
            block_count: plan.renumbering.kept().len(),
            architecture: match selection.attention {
                Some(_) => attention::TO.to_owned(),
                None => model.architecture().to_owned(),
            },
            bytes: files.iter().map(|file| file.bytes).sum(),
            parameters: plan.n_parameters,
            blake3,
            seconds,
            parts: files,
            imatrix: imatrix_report,
            ollama,
            changes: [plan.changes, converted_changes(&input)].concat(),
            notes: plan.notes,
        }),
        evaluation,
    };
    print(&report, &options.printing)?;
    // What an interrupt would have left to go on with is not needed any more.
    close_journal(selection.journal, &options.printing);
    failure.map_or(Ok(()), Err)
}

/// Checks that the scores are of the model that is written: its hash was remembered where they come from the cache, and it may
/// have been changed since it was read.
fn check_scored(scored: Option<blake3::Hash>, parent: blake3::Hash, input: &Input) -> Result<()> {
    // Of a draft.
    let is_draft = parent == blake3::Hash::from_bytes([0; blake3::OUT_LEN]);
    if scored.is_some_and(|scored| scored != parent) && !is_draft {
        hashes::forget(input, &Silent);
        bail!(
            anyhow::anyhow!("is not the model that was scored: it was changed in place")
                .context(Hint("the next run scores it anew".to_owned()))
        );
    }
    Ok(())
}

fn constraints(model: &Model<'_>, options: &Shorten) -> Result<Constraints> {
    let mut constraints = Constraints::new(model, options.trust_any_cut)?;
    if options.choosing.drop_mtp {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    if options.portable {
        constraints = constraints.portable();
    }
    Ok(constraints)
}

/// The importance matrix that the user names, and a place for the new one.
fn open_imatrix(input: &Input, target: Option<&Target>, options: &Shorten) -> Result<Option<ImatrixFile>> {
    let Some((from, to)) = &options.imatrix else {
        return Ok(None);
    };
    let output = target.map(Target::naming);
    // A dry run writes nothing over anything.
    let force = options.force || options.dry_run;
    let file = ImatrixFile::open(from, to, input, output, force)?;
    if let Some(json) = options.printing.json.as_ref().filter(|_| options.printing.tables()) {
        let json_naming = Naming::new(json, Splitting::Whole, input)?;
        ensure!(!json_naming.takes(to), "{}: is named for two results", to.display());
        ensure!(
            !same_file::is_same_file(from, json).unwrap_or(false),
            "{}: is the importance matrix that is read",
            json.display()
        );
    }
    Ok(Some(file))
}

/// Which files beside the model no longer fit what is left of it.
fn stale_note(model: &Model<'_>, input: &Input, options: &Shorten) -> Option<String> {
    if options.printing.quiet {
        return None;
    }
    let named = options.imatrix.as_ref();
    let known: Vec<&Path> = named.map_or_else(Vec::new, |(from, to)| vec![from.as_path(), to]);
    let stale = stale(input, model.architecture(), &known);
    if stale.is_empty() {
        return None;
    }
    let files: Vec<_> = stale.iter().map(|(name, kind)| format!("{} ({kind})", gguf::Quoted(name))).collect();
    let has_imatrix = stale.iter().any(|(_, kind)| *kind == Companion::Imatrix.to_string());
    let remedy = if has_imatrix && options.imatrix.is_none() {
        "; --imatrix IN OUT renumbers an importance matrix"
    } else {
        ""
    };
    Some(format!(
        "what goes by block number beside the model does not fit the shortened one: {}{remedy}",
        files.join(", ")
    ))
}

/// Checks that another result takes the place of no part of the output.
fn check_apart(target: &Target, other: &Path) -> Result<()> {
    ensure!(!target.naming().takes(other), "{}: is the output itself", other.display());
    Ok(())
}

/// Writes the planned files. Returns their plan, what they are, and the seconds that it took.
fn write<'a>(
    target: &Target,
    beside: Vec<Staged>,
    tell: &mut Tell<'_, 'a>,
    (input, model): (&Input, &Model<'a>),
    plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
    printing: &Printing,
) -> Result<(Plan<'a>, Vec<Written>, f64)> {
    let bar = printing.begin("writing".into(), Unit::Bytes, model.n_bytes());
    let start = Instant::now();
    let result = target.save_and_tell(beside, tell, input, model, plan, &mut |n_bytes| {
        bar.advance(n_bytes);
    });
    drop(bar);
    let (plan, files) = result?;
    Ok((plan, files, start.elapsed().as_secs_f64()))
}
