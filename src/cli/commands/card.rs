//! The model card of a shortened model: its measurements and its text.

use anyhow::Result;
use ggml::fault::RemovedOnDeath;

use super::eval;
use crate::choose::selection::Seen;
use crate::cli::options::{Eval, Shorten};
use crate::engine::settings::Calibration;
use crate::files::system;
use crate::measure::outcome::EvalReport;
use crate::model::block::numbers;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::output::Parent;
use crate::output::outcome::ExpertsReport;
use crate::output::save::Unplaced;
use crate::plan::{Plan, attention};
use crate::report::card::Card;
use crate::watch::Watch;

/// Measures the finished output against its parent, and writes its card. That nothing could be measured is said in the card,
/// and noted.
///
/// # Errors
/// The system's.
pub(crate) fn write(
    parent: Parent<'_>,
    plan: &Plan<'_>,
    files: &[Unplaced<'_>],
    seen: Seen,
    options: &Shorten,
) -> Result<(String, Option<EvalReport>)> {
    let output = Linked::new(files)?;
    let place = files[0].path;
    let found = measure(&output.input, parent.input, seen, options);
    let (evaluation, same_text) = match found {
        Ok((mut found, same_text)) => {
            found.model.path = place.display().to_string();
            (Ok(found), same_text)
        }
        Err(reason) => {
            // The file has another name by now.
            let reason = reason.root_cause().to_string().replace(char::is_control, " ");
            let card = options.files.card.iter().map(|path| path.display()).next();
            if let Some(card) = card {
                let note = format!("{card}: quality and speed are not measured: {reason}");
                options.printing.note(&note);
            }
            (Err(reason), false)
        }
    };
    let has_attention = plan.attention_removed.is_empty();
    let hash = plan.provenance.parent_blake3;
    let blake3 = output.input.blake3().to_hex().to_string();
    let mut evaluation = evaluation;
    if let Ok(found) = &mut evaluation {
        found.model.blake3 = Some(blake3.clone());
        if let Some(parent) = &mut found.parent {
            parent.blake3 = Some(hash.to_hex().to_string());
        }
    }
    let card = Card {
        metadata: parent.model.metadata(),
        parent: ModelReport::of(parent.model, parent.input, Some(hash)),
        file: place.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        n_files: files.len(),
        architecture: match has_attention {
            true => parent.model.architecture().to_owned(),
            false => attention::TO.to_owned(),
        },
        n_blocks: plan.renumbering.kept().len(),
        bytes: output.input.parts().iter().map(|part| part.mapping.len() as u64).sum(),
        parameters: plan.n_parameters,
        blake3,
        removed: numbers(&plan.removed),
        attention_removed: numbers(&plan.attention_removed),
        experts: ExpertsReport::of(parent.model, plan),
        method: plan.provenance.method.clone(),
        by_auto: seen.auto,
        heal: plan.provenance.heal.clone(),
        n_changed: plan.changes.len(),
        evaluation,
        same_text,
    };
    Ok((card.text(), card.evaluation.ok()))
}

fn measure(output: &Input, parent: &Input, seen: Seen, options: &Shorten) -> Result<(EvalReport, bool)> {
    let text = Calibration {
        // As many as are scored, after all that chose the blocks.
        tokens: options.choosing.calibration.tokens.saturating_add(seen.tokens),
        ..options.choosing.calibration.clone()
    };
    let options = Eval {
        model: output.path().to_owned(),
        parent: Some(parent.path().to_owned()),
        text,
        hellaswag: None,
        multiple_choice: None,
        n_tasks: 0,
        printing: options.printing.clone(),
    };
    eval::against_parent(output, parent, seen.windows, &options)
}

/// The finished files under the names that they will have. By these the parts of a split model find one another.
struct Linked {
    input: Input,
    _folder: Option<tempfile::TempDir>,
    // What an interrupt removes, too.
    _removed: Vec<RemovedOnDeath>,
}

impl Linked {
    fn new(files: &[Unplaced<'_>]) -> Result<Self> {
        if let [file] = files {
            return Ok(Self { input: Input::open_file(file.now)?, _folder: None, _removed: Vec::new() });
        }
        let folder = tempfile::tempdir()?;
        let name = |file: &Unplaced<'_>| folder.path().join(file.path.file_name().unwrap_or_default());
        let mut removed: Vec<_> = files.iter().map(|file| RemovedOnDeath::new(&name(file))).collect();
        // After its content.
        removed.push(RemovedOnDeath::new(folder.path()));
        for file in files {
            system::link(&std::path::absolute(file.now)?, &name(file))?;
        }
        Ok(Self { input: Input::open_file(&name(&files[0]))?, _folder: Some(folder), _removed: removed })
    }
}
