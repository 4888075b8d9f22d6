//! The main job: one model -> one shorter model.

use super::{arguments, card, devices, note_counts, print};
use crate::choose::outcome::block_rows;
use crate::choose::resume::close_journal;
use crate::choose::selection::{Selection, select};
use crate::cli::options::Shorten;
use crate::error::Hint;
use crate::fit::mixture::{self, Importance, MixtureReport};
use crate::gguf::Quoted;
use crate::heal::outcome::HealReport;
use crate::heal::run as healing;
use crate::heal::settings::HealArg;
use crate::model::block::numbers;
use crate::model::hashes;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::{Model, warning};
use crate::output::Parent;
use crate::output::outcome::ExpertsReport;
use crate::output::outputs::{Done, Files, Outputs};
use crate::output::save::Unplaced;
use crate::plan::{Plan, Provenance, attention, parts};
use crate::report::Report;
use crate::watch::{Silent, Watch};
use anyhow::{Context, Result, bail};

/// The newest release of Ollama that `tests/stock/ollama.sh` or its sources showed to ignore lists.
const OLLAMA_SEEN: &str = "0.17.4";

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being shortened; nothing is written then.
pub fn run(options: &Shorten) -> Result<()> {
    let printing = &options.printing;
    devices::warn(&options.choosing.calibration, printing);
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let files = input.parse()?;
    let n_unused: usize = files.iter().map(|file| file.trailing_bytes().len()).sum();
    let model = Model::new(files).with_context(at_path)?;
    let constraints = options.choosing.rules.constraints(&model).with_context(at_path)?;
    let parent = Parent { input: &input, model: &model, constraints: &constraints };
    let outputs = Outputs::claim(parent, &options.files)?;
    healing::check(parent, &options.heal)?;
    warning::of_weights(&input, &model, printing);
    let mut chosen = select(parent, &options.choosing, printing)?;
    let healed = heal(parent, &mut chosen, options)?;
    let requantized = requantize(parent, &mut chosen, options)?;
    // Before there is an output that would be found.
    let stale = if printing.quiet { None } else { outputs.stale_note() };
    let plan = |parent_blake3| {
        check_scored(&chosen, parent_blake3, &input).with_context(at_path)?;
        Plan::new(&model, &constraints, &chosen.cut, parent_blake3).with_context(at_path)
    };
    let mut evaluation = None;
    let mut card = |plan: &Plan<'_>, files: &[Unplaced<'_>]| {
        let (text, found) = card::write(parent, plan, files, chosen.seen(), options)?;
        evaluation = found;
        Ok(text)
    };
    let Done { plan, mut output, imatrix_out } =
        outputs.write(&plan, &mut card, chosen.imatrix.as_ref(), printing)?;
    note_counts(&model, &input, printing);
    let mut notes = notes(parent, &plan, &options.files);
    if n_unused > 0 {
        notes.push(format!(
            "{}: {n_unused} bytes after the last tensor belong to nothing and are not carried over",
            at_path()
        ));
    }
    stale.iter().chain(&notes).for_each(|note| printing.note(note));
    let made;
    (output.ollama, made) = outputs.make_ollama(printing);
    let journal = chosen.journal.take();
    let report = Report {
        imatrix_out,
        output: Some(output),
        evaluation,
        requantize: requantized,
        ..report(parent, &plan, chosen, healed)
    };
    print(&report, printing)?;
    // The journal for going on after an interrupt is needed no more.
    close_journal(journal, printing);
    made
}

/// Heals the chosen cut, if that is wanted.
fn heal(parent: Parent<'_>, chosen: &mut Selection, options: &Shorten) -> Result<Option<HealReport>> {
    if options.heal.how == HealArg::None {
        return Ok(None);
    }
    let (cut, watch) = (chosen.cut.clone(), &options.printing);
    let healed = healing::heal(parent, cut, &chosen.shortlist, &options.heal, watch)?;
    chosen.cut = healed.cut;
    Ok(Some(healed.report))
}

/// Rounds the tensors of the chosen cut, if that is wanted.
fn requantize(
    parent: Parent<'_>,
    chosen: &mut Selection,
    options: &Shorten,
) -> Result<Option<MixtureReport>> {
    let Some(to) = options.requantize else {
        return Ok(None);
    };
    let importance = match (&options.files.imatrix, &chosen.imatrix) {
        (Some((from, _)), _) => Importance::File(from),
        (None, Some(measured)) => Importance::Measured(measured),
        (None, None) => Importance::None,
    };
    let threads = options.choosing.calibration.threads;
    let cut = chosen.cut.clone();
    let (cut, report) = mixture::apply(parent, cut, to, importance, threads, &options.printing)
        .with_context(|| options.model.display().to_string())?;
    chosen.cut = cut;
    Ok(Some(report))
}

/// Checks that the scores are of the model that is written. Scores from the cache go by a remembered hash, and the model may
/// have been changed since it was read.
fn check_scored(chosen: &Selection, parent: blake3::Hash, input: &Input) -> Result<()> {
    let scored = chosen.calibration.as_ref().and_then(|text| text.scored);
    if scored.is_some_and(|scored| scored != parent) && parent != Provenance::DRAFT {
        hashes::forget(input, &Silent);
        bail!(
            anyhow::anyhow!("is not the model that was scored: it was changed in place")
                .context(Hint("the next run scores it anew".to_owned()))
        );
    }
    Ok(())
}

/// Notes about the planned output.
fn notes(parent: Parent<'_>, plan: &Plan<'_>, files: &Files) -> Vec<String> {
    let Parent { model, constraints, .. } = parent;
    let mut notes = plan.notes.clone();
    if let Some((name, n_bytes)) = parts::too_large(&plan.layout, files.splitting) {
        notes.push(format!(
            "tensor {} alone has {n_bytes} bytes, so its part is larger than --split-max-size",
            Quoted(name)
        ));
    }
    for key in constraints.lists_needed(&plan.renumbering) {
        let seen = match constraints.rules.lists_since() {
            Some(release) => format!("release {release} does"),
            None => format!("the bundled {} does", ggml::backend::llama_cpp_version()),
        };
        notes.push(format!(
            "the output needs a llama.cpp that reads '{}.{key}' block by block, as {seen}; an older one may compute something \
             else without a word; --portable needs no such list",
            model.architecture(),
        ));
        if files.ollama.is_some() {
            notes.push(format!(
                "Ollama, up to {OLLAMA_SEEN} at least, ignores '{}.{key}' of most architectures and goes by its own pattern, so what \
                 it computes will be something else; --portable keeps that pattern",
                model.architecture(),
            ));
        }
    }
    if !plan.attention_removed.is_empty() {
        notes.push(format!(
            "the output is of architecture '{}', for which llama.cpp takes no adapters made for '{}'",
            attention::TO,
            model.architecture()
        ));
    }
    notes
}

/// The result without the output.
fn report(parent: Parent<'_>, plan: &Plan<'_>, chosen: Selection, heal: Option<HealReport>) -> Report {
    let Parent { input, model, .. } = parent;
    let importance = chosen.importance.as_ref();
    let mut blocks = block_rows(model.n_blocks(), importance, &plan.removed, &plan.attention_removed);
    if let Some(rating) = &chosen.rating {
        rating.mark(&mut blocks);
    }
    let parent = ModelReport::of(model, input, Some(plan.provenance.parent_blake3));
    Report {
        calibration: chosen.calibration,
        chosen_by: chosen.auto.is_some().then_some("auto"),
        auto: chosen.auto,
        search: chosen.search,
        goal: chosen.goal,
        heal,
        confidence: chosen.confidence,
        removed: numbers(&plan.removed),
        attention_removed: numbers(&plan.attention_removed),
        attention_method: chosen.cut.attention.map(|cut| cut.method),
        experts: ExpertsReport::of(model, plan),
        experts_chosen_by: chosen.experts_auto.is_some().then_some("auto"),
        experts_auto: chosen.experts_auto,
        expert_scores: chosen.experts,
        ..Report::new(arguments(), parent, chosen.cut.method, blocks)
    }
}
