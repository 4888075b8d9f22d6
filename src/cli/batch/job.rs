//! One model of a batch with all that its process is told. It is checked before any work is done.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Parser;

use super::find::Source;
use super::tables::Tables;
use crate::choose::settings::Choice;
use crate::cli::args::flags::Flags;
use crate::cli::args::words;
use crate::cli::args::{Cli, Command};
use crate::cli::options::Shorten;
use crate::error::{self, Hint, Usage};
use crate::files::part_name::{Prefix, as_text};
use crate::heal::settings::HealArg;
use crate::model::stores;
use crate::output::outputs::Files;
use crate::plan::Method;

/// One model, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model.
    pub source: Source,
    /// The name of its output in the folder of outputs.
    pub name: String,
    /// Where its output goes.
    pub output: PathBuf,
    /// The main job's flags for it.
    pub flags: Flags,
    /// Whether llama.cpp evaluates it, which needs memory for its weights.
    pub evaluates: bool,
    /// Other files that its process reads.
    pub read: Vec<PathBuf>,
}

impl Job {
    /// The arguments of its process, with the result as JSON on stdout.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        arguments(&self.flags, &self.output, self.source.path())
    }

    /// Bytes of the files of the model that are there.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        let files = self.source.files.iter();
        files.filter_map(|path| Some(std::fs::metadata(path).ok()?.len())).sum()
    }
}

fn arguments(flags: &Flags, output: &Path, model: &Path) -> Vec<OsString> {
    let mut arguments = vec!["shorten".into()];
    arguments.extend(flags.arguments());
    let mut to = OsString::from("--output=");
    to.push(output);
    // A file, whatever its name begins with.
    let model = stores::as_path(model).into();
    arguments.extend([to, "--json=-".into(), "--".into(), model]);
    arguments
}

/// What all jobs have in common.
#[derive(Debug)]
pub struct Common<'c> {
    /// Flags for all models.
    pub flags: &'c Flags,
    /// Options of single models.
    pub tables: Option<&'c Tables>,
    /// The folder of outputs.
    pub out_dir: &'c Path,
    /// The suffix of the names of outputs.
    pub suffix: Option<&'c str>,
}

/// The jobs of `models`, and the lines of tables used for them.
///
/// # Errors
/// [`Usage`] for flags that do not go together; two models with one output, and an output that would take the place of one
/// of the models.
pub fn jobs(models: &[Source], common: &Common<'_>) -> Result<(Vec<Job>, Vec<usize>)> {
    let mut lines = Vec::new();
    let jobs = models
        .iter()
        .map(|source| {
            let (job, used) = job(source, common)?;
            lines.extend(used);
            Ok(job)
        })
        .collect::<Result<Vec<_>>>()?;
    check_names(&jobs)?;
    Ok((jobs, lines))
}

fn job(source: &Source, common: &Common<'_>) -> Result<(Job, Vec<usize>)> {
    let model = source.path();
    let mut flags = common.flags.clone();
    let mut name = None;
    let mut lines = Vec::new();
    if let Some(tables) = common.tables {
        (name, lines) = tables.apply(model, &mut flags)?;
    }
    let name = match name {
        Some(name) => name,
        None => name_of(source, &flags, common.suffix)?,
    };
    let output = common.out_dir.join(&name);
    let options = check(&flags, &output, model)?;
    let evaluates = evaluates(&options);
    let Files { mut read, imatrix, .. } = options.files;
    read.extend(imatrix.map(|(from, _)| from));
    Ok((Job { source: source.clone(), name, output, evaluates, flags, read }, lines))
}

/// Checks the arguments of one process as that process will.
fn check(flags: &Flags, output: &Path, model: &Path) -> Result<Shorten> {
    let at_model = |what: String| Usage(format!("{}: {what}", model.display()));
    let words = std::iter::once("gguf-shorten".into()).chain(arguments(flags, output, model));
    let cli = Cli::try_parse_from(words).map_err(|e| at_model(words::of_arguments(&e)))?;
    let Some(Command::Shorten(args)) = cli.command else {
        bail!("bug: the arguments of a model are of another command");
    };
    match Shorten::new(&args) {
        Err(error) if error.is::<Usage>() => Err(at_model(error::message(&error)).into()),
        result => result,
    }
}

/// Whether llama.cpp evaluates the model. What is not known to do without does not.
fn evaluates(options: &Shorten) -> bool {
    let by_method = [&options.choosing.choice, &options.choosing.attention].iter().any(|choice| {
        matches!(choice, Choice::Best { method, .. } if !matches!(method, Method::Sequential | Method::Reverse))
    });
    by_method || matches!(options.choosing.choice, Choice::Goal { .. }) || options.heal.how != HealArg::None
}

/// The name of the output: the model's with a suffix.
fn name_of(source: &Source, flags: &Flags, suffix: Option<&str>) -> Result<String> {
    let model = source.path();
    let stem = match (&source.name, Prefix::of_part(model)) {
        (Some(name), _) => name.into(),
        (None, Some((prefix, _))) => prefix.name().to_owned(),
        (None, None) => match model.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("gguf") => {
                model.file_stem().unwrap_or_default().to_owned()
            }
            _ => model.file_name().unwrap_or_default().to_owned(),
        },
    };
    // Results hold text alone.
    let stem = as_text(&stem);
    let suffix = match (suffix, flags.value("drop").and_then(|drop| drop.to_str())) {
        (Some(suffix), _) => suffix.to_owned(),
        (None, Some(drop)) => format!("-drop{}", drop.replace('%', "pct")),
        (None, None) => "-short".to_owned(),
    };
    if Path::new(&suffix).components().count() > 1 || suffix.contains(std::path::is_separator) {
        bail!(Usage(format!("--suffix '{suffix}' would lead out of the folder of outputs")));
    }
    Ok(format!("{stem}{suffix}.gguf"))
}

fn check_names(jobs: &[Job]) -> Result<()> {
    let mut by_name = BTreeMap::new();
    // Some file systems take names that differ in capitals for one.
    for job in jobs {
        if let Some(first) = by_name.insert(job.name.to_lowercase(), job) {
            let [a, b] = [first, job].map(|job| job.source.path().display().to_string());
            return Err(anyhow::anyhow!(
                "{a} and {b} would have the same output, {}",
                job.output.display()
            )
            .context(Hint(
                "in the file of --config a table for one of them can give another name: output = \u{27}...\u{27}"
                    .to_owned(),
            )));
        }
    }
    let outputs: BTreeMap<PathBuf, &Job> =
        jobs.iter().filter_map(|job| Some((job.output.canonicalize().ok()?, job))).collect();
    for path in jobs.iter().flat_map(|job| &job.source.files) {
        if let Some(job) = path.canonicalize().ok().and_then(|path| outputs.get(&path)) {
            bail!(
                "{}: is one of the models, and the output of {} would take its place",
                path.display(),
                job.source.path().display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(drop: &str) -> Flags {
        let mut flags = Flags::default();
        flags.or_set("drop", drop);
        flags
    }

    #[test]
    fn outputs_are_called_after_the_model_and_what_is_dropped() {
        let name = |model: &str, flags: &Flags, suffix| {
            let source = Source { files: vec![model.into()], name: None };
            name_of(&source, flags, suffix).map_err(|error| error.to_string())
        };
        for (model, drop, expected) in [
            ("d/m.Q4_1.gguf", "9", "m.Q4_1-drop9.gguf"),
            ("m.GGUF", "12.5%", "m-drop12.5pct.gguf"),
            ("d/m-00001-of-00003.gguf", "25%", "m-drop25pct.gguf"),
            ("m.bin", "9", "m.bin-drop9.gguf"),
        ] {
            assert_eq!(name(model, &flags(drop), None).unwrap(), expected);
        }
        #[cfg(unix)]
        {
            let model = crate::files::system::os_str(b"d/m\xe8.gguf").unwrap();
            let source = Source { files: vec![model.into()], name: None };
            let name = name_of(&source, &flags("9"), None).unwrap();
            assert_eq!(name, "m%E8-drop9.gguf");
        }
        assert_eq!(name("m.gguf", &Flags::default(), None).unwrap(), "m-short.gguf");
        assert_eq!(name("m.gguf", &flags("9"), Some("")).unwrap(), "m.gguf");
        assert!(name("m.gguf", &flags("9"), Some("/../x")).is_err());
    }

    #[test]
    fn models_that_differ_in_capitals_alone_have_one_output() {
        let source = |name: &str| Source { files: vec![name.into()], name: None };
        let common = Common { flags: &flags("2"), tables: None, out_dir: Path::new("out"), suffix: None };
        let error = jobs(&[source("a/m.gguf"), source("b/M.gguf")], &common).unwrap_err();
        assert_eq!(
            error::message(&error),
            "a/m.gguf and b/M.gguf would have the same output, out/M-drop2.gguf"
        );
        assert!(jobs(&[source("a/m.gguf"), source("b/n.gguf")], &common).is_ok());
    }
}
