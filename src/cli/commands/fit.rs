//! `fit`: a model within a size, at the least measured damage.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{arguments, devices, note_counts, print, to_stdout};
use crate::choose::outcome::block_rows;
use crate::cli::options::{Fit, fit::How};
use crate::files::place::{self, check_unread};
use crate::fit::recipe::Recipe;
use crate::fit::run::{self, Fitted};
use crate::model::Model;
use crate::model::block::{BlockSet, numbers};
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::warning;
use crate::output::Parent;
use crate::output::outcome::ExpertsReport;
use crate::output::outputs::{Done, Outputs};
use crate::output::save::{Unplaced, check_place};
use crate::plan::{Constraints, Plan};
use crate::report::Report;
use crate::watch::Watch;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being fitted; nothing is written then.
pub fn run(options: &Fit) -> Result<()> {
    let printing = &options.printing;
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = Constraints::of(&model).with_context(at_path)?;
    let parent = Parent { input: &input, model: &model, constraints: &constraints };
    let outputs = Outputs::claim(parent, &options.files)?;
    if let Some(place) = options.plan_only.as_deref().filter(|place| *place != "-") {
        check_place(place, &input, options.files.force)?;
        check_unread(place, options.files.read.iter().map(PathBuf::as_path))?;
        let matrix = options.files.imatrix_out.as_deref();
        ensure!(matrix != Some(place), "{}: is named for two results", place.display());
    }
    warning::of_weights(&input, &model, printing);
    let fitted = found(parent, options)?;
    if let Some(place) = &options.plan_only {
        let text = serde_json::to_string_pretty(&fitted.recipe)? + "\n";
        input.check_unchanged()?;
        match place.as_os_str() == "-" {
            true => to_stdout(&text)?,
            false => place::text(place, &text).with_context(|| place.display().to_string())?,
        }
        let Fitted { imatrix, .. } = &fitted;
        let imatrix_out = outputs.write_measured(imatrix.as_ref())?;
        let report = Report { imatrix_out, ..report(parent, fitted, None) };
        return if place.as_os_str() == "-" {
            super::print_json(&report, printing)
        } else {
            print(&report, printing)
        };
    }
    let plan =
        |parent_blake3| Plan::new(&model, &constraints, &fitted.cut, parent_blake3).with_context(at_path);
    let mut no_card = |_: &Plan<'_>, _: &[Unplaced<'_>]| Ok(String::new());
    let Done { plan, output, imatrix_out } =
        outputs.write(&plan, &mut no_card, fitted.imatrix.as_ref(), printing)?;
    note_counts(&model, &input, printing);
    plan.notes.iter().for_each(|note| printing.note(note));
    let experts = ExpertsReport::of(&model, &plan);
    let report = report(parent, fitted, Some(&plan));
    let report = Report { imatrix_out, output: Some(output), experts, ..report };
    print(&report, printing)
}

/// Measures, or takes what was measured before.
fn found(parent: Parent<'_>, options: &Fit) -> Result<Fitted> {
    match &options.how {
        How::Measured(settings) => {
            devices::warn(&settings.calibration, &options.printing);
            run::fit(parent, settings, &options.printing)
        }
        How::Plan(path) => {
            let apply = || -> Result<Fitted> {
                run::apply(
                    parent,
                    Recipe::read(path)?,
                    options.imatrix.as_deref(),
                    options.threads,
                    &options.printing,
                )
            };
            apply().with_context(|| path.display().to_string())
        }
    }
}

/// The result of what was written, without the output.
fn report(parent: Parent<'_>, fitted: Fitted, written: Option<&Plan<'_>>) -> Report {
    let Parent { input, model, .. } = parent;
    let none = BlockSet::new();
    let (removed, without_attention) =
        written.map_or((&none, &none), |plan| (&plan.removed, &plan.attention_removed));
    let blocks = block_rows(model.n_blocks(), fitted.importance.as_ref(), removed, without_attention);
    let of_parent = ModelReport::of(model, input, Some(input.blake3_once()));
    Report {
        calibration: fitted.calibration,
        removed: numbers(removed),
        attention_removed: numbers(without_attention),
        attention_method: fitted.cut.attention.filter(|_| written.is_some()).map(|cut| cut.method),
        fit: Some(fitted.report),
        ..Report::new(arguments(), of_parent, fitted.cut.method, blocks)
    }
}
