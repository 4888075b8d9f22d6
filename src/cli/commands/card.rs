//! The model card of a shortened model: measures what it says, and writes it beside its place.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ggml::fault::RemovedOnDeath;

use super::eval;
use crate::cli::options::{Eval, Shorten};
use crate::engine::settings::Calibration;
use crate::files::staged::Staged;
use crate::measure::outcome::EvalReport;
use crate::model::Model;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::output::save::{self, Target, Unplaced};
use crate::plan::{Plan, attention};
use crate::report::card::Card;

/// A place for a card, checked before any work is done.
pub(crate) struct CardFile {
    path: PathBuf,
}

impl CardFile {
    /// Checks that a card can be written at `path`: the folder is there and writable, nothing is overwritten without
    /// `--force`, and never another file of this run.
    ///
    /// # Errors
    /// What is wrong with the place.
    pub(crate) fn new(path: &Path, input: &Input, target: &Target, options: &Shorten) -> Result<Self> {
        save::check_place(path, input, options.force)?;
        let fail = || path.display().to_string();
        ensure!(!target.naming().takes(path), "{}: is the output itself", fail());
        let results = options.printing.json.iter().filter(|_| options.printing.tables());
        let matrices = options.imatrix.iter().flat_map(|(from, to)| [from, to]);
        for other in results.chain(matrices) {
            let is_same = path == other.as_path() || same_file::is_same_file(path, other).unwrap_or(false);
            ensure!(!is_same, "{}: is named for two files", fail());
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Measures the finished output against its parent, and writes the card, ready to be committed. That nothing could be
    /// measured is said in the card, and on stderr.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn write(
        &self,
        (parent, model): (&Input, &Model<'_>),
        plan: &Plan<'_>,
        files: &[Unplaced<'_>],
        n_windows: usize,
        options: &Shorten,
    ) -> Result<(Staged, Option<EvalReport>)> {
        let output = Linked::new(files)?;
        let place = files[0].path;
        let found = measure(&output.input, parent, n_windows, options);
        let (evaluation, same_text) = match found {
            Ok((mut found, same_text)) => {
                found.model.path = place.display().to_string();
                (Ok(found), same_text)
            }
            Err(reason) => {
                // The file has another name by now.
                let reason = reason.root_cause().to_string().replace(char::is_control, " ");
                if !options.printing.quiet {
                    eprintln!(
                        "gguf-shorten: note: {}: quality and speed are not measured: {reason}",
                        self.path.display()
                    );
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
            metadata: model.metadata(),
            parent: ModelReport::of(model, parent, Some(hash)),
            file: place.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            n_files: files.len(),
            architecture: match has_attention {
                true => model.architecture().to_owned(),
                false => attention::TO.to_owned(),
            },
            n_blocks: plan.renumbering.kept().len(),
            bytes: output.input.parts().iter().map(|part| part.mapping.len() as u64).sum(),
            parameters: plan.n_parameters,
            blake3,
            removed: plan.removed.iter().map(|block| block.index()).collect(),
            attention_removed: plan.attention_removed.iter().map(|block| block.index()).collect(),
            method: plan.provenance.method.clone(),
            heal: plan.provenance.heal.clone(),
            n_changed: plan.changes.len(),
            evaluation,
            same_text,
        };
        let staged = self.stage(&card.text(), parent, options.force);
        let staged = staged.with_context(|| self.path.display().to_string())?;
        Ok((staged, card.evaluation.ok()))
    }

    fn stage(&self, text: &str, parent: &Input, force: bool) -> Result<Staged> {
        let permissions = save::permissions(&parent.parts()[0].mapping)?;
        let staged = Staged::new(&self.path, force, permissions)?;
        staged.file().write_all(text.as_bytes())?;
        staged.file().sync_all()?;
        Ok(staged)
    }
}

fn measure(
    output: &Input,
    parent: &Input,
    n_windows: usize,
    options: &Shorten,
) -> Result<(EvalReport, bool)> {
    let text = Calibration {
        // As many again as chose the blocks.
        tokens: match n_windows {
            0 => options.choosing.calibration.tokens,
            _ => options.choosing.calibration.tokens.saturating_mul(2),
        },
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
    eval::against_parent(output, parent, n_windows, &options)
}

/// The finished files under the names that they will have, which those of a split model find one another by.
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
        // Behind what is in it.
        removed.push(RemovedOnDeath::new(folder.path()));
        for file in files {
            link(&std::path::absolute(file.now)?, &name(file))?;
        }
        Ok(Self { input: Input::open_file(&name(&files[0]))?, _folder: Some(folder), _removed: removed })
    }
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(from, to)
}

#[cfg(not(unix))]
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to)
}
