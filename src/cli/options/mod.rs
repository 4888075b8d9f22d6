//! Checked settings made from the arguments: values of flags, and every cross-check between flags.

mod calibration;

mod compare;

pub mod fit;

mod heal;

mod rpc;

mod score;

mod shorten;

use crate::cli::args::{Command, CommonArgs, EvalArgs, VerifyArgs};
use crate::engine::settings::{Calibration, default_threads};
use crate::error::{Hint, Usage};
use crate::files::part_name::Prefix;
use anyhow::{Result, bail};
use calibration::scored_text;
use clap::Subcommand;
pub use compare::Compare;
pub use fit::Fit;
pub use score::Score;
pub use shorten::Shorten;
use std::path::{Path, PathBuf};

/// What takes several models.
const COMPARE: &str = "compare puts several models in one table";

/// The one model that is named. It is a file, or all parts of a split model, as a shell makes them of a pattern. After
/// `--parent` the pattern of the parent's parts leaves all but one of them among the models.
///
/// # Errors
/// [`Usage`] for several models, with the `hint`.
pub(crate) fn one_model(named: &[PathBuf], parent: Option<&Path>, hint: Option<&str>) -> Result<PathBuf> {
    let models = models(named, parent);
    match &models[..] {
        [model] => Ok(model.clone()),
        [] => bail!(Usage("a model is needed".to_owned())),
        [first, second, ..] => {
            let error = anyhow::Error::new(Usage(format!(
                "{} models are named, '{}' and '{}'{}, expected one",
                models.len(),
                first.display(),
                second.display(),
                if models.len() > 2 { " among them" } else { "" }
            )));
            let order = command_after(&models).map(|command| command_first(&command, first));
            Err(match order.or(hint.map(str::to_owned)) {
                Some(hint) => error.context(Hint(hint)),
                None => error,
            })
        }
    }
}

/// A command that stands where a model should, as in `MODEL show`.
pub(crate) fn command_after(models: &[PathBuf]) -> Option<String> {
    let commands = Command::augment_subcommands(clap::Command::new("gguf-shorten"));
    let names: Vec<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
    let found = models.iter().skip(1).filter(|model| !model.exists()).find_map(|model| model.to_str());
    found.filter(|word| names.contains(word)).map(str::to_owned)
}

/// A hint for a command that stands after the model `first`.
pub(crate) fn command_first(command: &str, first: &Path) -> String {
    format!("the command comes first: gguf-shorten {command} {}", first.display())
}

/// Each named model once, however many of its parts are named. Without the parent, where there are others.
fn models(named: &[PathBuf], parent: Option<&Path>) -> Vec<PathBuf> {
    let split = |path: &Path| Prefix::of_part(path).map(|(prefix, of)| (prefix, of.n_parts));
    let mut seen = Vec::new();
    let mut models: Vec<PathBuf> = Vec::new();
    for path in named {
        let split = split(path);
        if split.is_none() || !seen.contains(&split) {
            seen.push(split);
            models.push(path.clone());
        }
    }
    let of_parent = parent.and_then(split);
    let is_other = |path: &PathBuf| of_parent.is_none() || split(path) != of_parent;
    if models.iter().any(is_other) {
        models.retain(is_other);
    }
    models
}

/// Checks that a file which is written beside its place has one.
pub(crate) fn check_not_stdout(flag: &str, place: Option<&Path>) -> Result<()> {
    if place == Some(Path::new("-")) {
        bail!(Usage(format!("--{flag} cannot go to stdout, only --json can; a file of that name is ./-")));
    }
    Ok(())
}

/// Settings of what a command prints.
#[derive(Clone, Debug)]
pub struct Printing {
    /// Where the result goes as JSON.
    pub json: Option<PathBuf>,
    /// No progress and no notes.
    pub quiet: bool,
    /// What llama.cpp says.
    pub verbose: bool,
}

impl Printing {
    /// Takes over the arguments.
    #[must_use]
    pub fn new(args: &CommonArgs) -> Self {
        Self { json: args.json.clone(), quiet: args.quiet, verbose: args.verbose }
    }

    /// Whether tables go to stdout: not where JSON does.
    #[must_use]
    pub fn tables(&self) -> bool {
        self.json.as_deref() != Some("-".as_ref())
    }
}

/// A verification, checked.
#[derive(Clone, Debug)]
pub struct Verify {
    /// The shortened model.
    pub output: PathBuf,
    /// The model that it was made from.
    pub parent: PathBuf,
    /// The user answers for the cut.
    pub trust_any_cut: bool,
    /// Compare weights alone.
    pub weights: bool,
    /// Compare logits too.
    pub run: bool,
    /// The importance matrix by which weights were rounded.
    pub imatrix: Option<PathBuf>,
    /// CPU threads.
    pub threads: usize,
    /// The output of the command.
    pub printing: Printing,
}

impl Verify {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for no threads.
    pub fn new(args: &VerifyArgs) -> Result<Self> {
        if args.threads == Some(0) {
            bail!(Usage("--threads is at least 1".to_owned()));
        }
        Ok(Self {
            output: one_model(&args.output, Some(&args.parent), None)?,
            parent: args.parent.clone(),
            trust_any_cut: args.trust_any_cut,
            weights: args.weights,
            run: args.run,
            imatrix: args.imatrix.clone(),
            threads: args.threads.unwrap_or_else(default_threads),
            printing: Printing::new(&args.common),
        })
    }
}

/// Default number of tasks of a file.
const DEFAULT_TASKS: usize = 400;

/// An evaluation, checked.
#[derive(Clone, Debug)]
pub struct Eval {
    /// The model.
    pub model: PathBuf,
    /// The model that it is compared with.
    pub parent: Option<PathBuf>,
    /// The text that is scored, and how.
    pub text: Calibration,
    /// HellaSwag tasks.
    pub hellaswag: Option<PathBuf>,
    /// Multiple-choice tasks.
    pub multiple_choice: Option<PathBuf>,
    /// At most this many tasks of each file.
    pub n_tasks: usize,
    /// The output of the command.
    pub printing: Printing,
}

impl Eval {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for numbers that do not fit together.
    pub fn new(args: &EvalArgs) -> Result<Self> {
        let text = Calibration { scratch: args.scratch.clone(), ..scored_text(&args.text)? };
        if args.tasks.is_some() && args.hellaswag.is_none() && args.multiple_choice.is_none() {
            bail!(Usage("--tasks needs --hellaswag or --multiple-choice".to_owned()));
        }
        if args.tasks == Some(0) {
            bail!(Usage("--tasks is at least 1".to_owned()));
        }
        Ok(Self {
            model: one_model(&args.model, args.parent.as_deref(), Some(COMPARE))?,
            parent: args.parent.clone(),
            text,
            hellaswag: args.hellaswag.clone(),
            multiple_choice: args.multiple_choice.clone(),
            n_tasks: args.tasks.unwrap_or(DEFAULT_TASKS),
            printing: Printing::new(&args.common),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn all_parts_of_a_split_model_are_one() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let m = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        let p = ["p-00001-of-00002.gguf", "p-00002-of-00002.gguf"];
        let one = |names: &[&str], parent: Option<&str>| {
            one_model(&paths(names), parent.map(Path::new), Some(COMPARE))
                .map(|path| path.display().to_string())
        };
        assert_eq!(one(&m, None).unwrap(), m[0]);
        assert_eq!(one(&[m[1], m[0]], None).unwrap(), m[1]);
        // As shells expand `OUT --parent p-*`, and the other way round.
        assert_eq!(one(&["out.gguf", p[1]], Some(p[0])).unwrap(), "out.gguf");
        assert_eq!(one(&[p[1], m[0], m[1]], Some(p[0])).unwrap(), m[0]);
        assert_eq!(one(&[p[1]], Some(p[0])).unwrap(), p[1]);
        let error = one(&["a.gguf", "b.gguf", "a.gguf"], None).unwrap_err();
        assert_eq!(
            error::message(&error),
            "3 models are named, 'a.gguf' and 'b.gguf' among them, expected one"
        );
        assert!(error.is::<Usage>());
        assert_eq!(error::hint(&error).as_deref(), Some(COMPARE));
        let error = one(&[m[0], m[1], p[0], p[1]], None).unwrap_err();
        assert!(error::message(&error).starts_with("2 models are named, 'm-00001-"));
        assert_eq!(models(&paths(&[m[0], m[1], "a", p[1], p[0]]), None).len(), 3);
    }
}
