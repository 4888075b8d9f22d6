//! The arguments of a batch, checked.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::job::Job;
use crate::cli::args::BatchArgs;
use crate::cli::args::flags::Flags;
use crate::cli::args::task::Task;
use crate::error::Usage;
use crate::files::byte_size::ByteSize;
use crate::files::staged::folder_of;

/// What stays free on the disk of the outputs by default. Results are saved there too.
const MIN_FREE: &str = "4MiB";

/// What holds for all models of a batch.
#[derive(Debug)]
pub struct Options {
    /// The main job's flags, with those set by default.
    pub flags: Flags,
    /// The folder of outputs.
    pub out_dir: PathBuf,
    /// Where this run keeps its results.
    pub results: PathBuf,
    /// Where a run without tasks does.
    pub all_results: PathBuf,
    /// How many models at a time.
    pub n_jobs: usize,
    /// Do again what is done.
    pub redo: bool,
    /// Overwrite what is not the batch's own.
    pub force: bool,
    /// Write nothing.
    pub dry_run: bool,
    /// Bytes that stay free on the disk of the outputs.
    pub min_free: u64,
    /// The share of the models.
    pub task: Option<Task>,
}

impl Options {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for numbers that do not fit; a place that is none.
    pub fn new(args: &BatchArgs) -> Result<Self> {
        if args.jobs == Some(0) {
            bail!(Usage("--jobs is at least 1".to_owned()));
        }
        if args.out_dir.exists() && !args.out_dir.is_dir() {
            bail!("{}: is not a folder", args.out_dir.display());
        }
        let task = match args.task {
            Some(task) => Some(task),
            None => Task::from_slurm(|name| std::env::var(name).ok())?,
        };
        let all_results = args.results.clone().unwrap_or_else(|| args.out_dir.join("results.jsonl"));
        if all_results.file_name().is_none() || all_results.is_dir() {
            bail!("{}: is not the name of a file", all_results.display());
        }
        if all_results.exists() && !all_results.is_file() {
            bail!("{}: is not a regular file", all_results.display());
        }
        let n_cores = num_cpus::get_physical().min(num_cpus::get()).max(1);
        let n_jobs = args.jobs.unwrap_or((n_cores / 4).clamp(1, 4));
        let mut flags = args.flags.clone();
        // A command of its own has all cores; here those that run together share them.
        flags.or_set("threads", &(n_cores / n_jobs).max(1).to_string());
        flags.or_set("min-free", MIN_FREE);
        let min_free = flags.value("min-free").and_then(|size| size.to_str());
        let min_free = min_free.and_then(|size| size.parse().ok());
        let ByteSize(min_free) = min_free.context("bug: --min-free was checked before")?;
        Ok(Self {
            out_dir: args.out_dir.clone(),
            results: match task {
                Some(task) => task.results(&all_results),
                None => all_results.clone(),
            },
            all_results,
            n_jobs,
            redo: args.redo,
            force: flags.has("force"),
            dry_run: flags.has("dry-run"),
            min_free,
            task,
            flags,
        })
    }

    /// Name of an output in a results file. It is the file name where both lie in one folder, which may then be moved.
    #[must_use]
    pub fn called(&self, job: &Job) -> String {
        let [folder, out_dir] = [folder_of(&self.results), &self.out_dir].map(|path| path.canonicalize());
        match (folder, out_dir) {
            (Ok(folder), Ok(out_dir)) if folder != out_dir => out_dir.join(&job.name).display().to_string(),
            _ => job.name.clone(),
        }
    }
}
