//! Many models: each in a process of its own, each result kept at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{devices, to_stdout};
use crate::cli::args::BatchArgs;
use crate::cli::args::task::Task;
use crate::cli::batch::child::{self, Failure};
use crate::cli::batch::earlier::{self, Kept, NewStamps};
use crate::cli::batch::find::{Found, Source, find, list_name};
use crate::cli::batch::job::{Common, Job, jobs};
use crate::cli::batch::memory::Memory;
use crate::cli::batch::record::{Record, Run, Seen, State, seen};
use crate::cli::batch::results::Results;
use crate::cli::batch::screen::Screen;
use crate::cli::batch::settings::Options;
use crate::cli::batch::share::fingerprint;
use crate::cli::batch::tables::Tables;
use crate::cli::colour;
use crate::cli::options::Printing;
use crate::error::{self, Interrupted};
use crate::files::place;
use crate::files::staged::{folder_of, remove_left_by};
use crate::files::stamp::now_ns;
use crate::report::batch::{End, Row, Short, batch, counts};

/// Runs the command.
///
/// # Errors
/// What keeps the batch from beginning; at its end, that a model failed.
pub fn run(args: &BatchArgs) -> Result<()> {
    let printing = Printing::new(&args.common);
    let options = Options::new(args)?;
    let found = find(&args.paths, &args.out_dir)?;
    let tables = args.config.as_deref().map(Tables::read).transpose()?;
    let common = Common {
        flags: &options.flags,
        tables: tables.as_ref(),
        out_dir: &args.out_dir,
        suffix: args.suffix.as_deref(),
    };
    let (mut jobs, lines) = jobs(&found.models, &common)?;
    check_places(&jobs, args, &options, &printing)?;
    let n_found = jobs.len();
    if let Some(task) = options.task {
        jobs.retain(|job| is_of(task, &job.source));
    }
    if !printing.quiet {
        let unused = tables.map_or(Vec::new(), |tables| tables.without(&lines));
        say_what_is_left_out(&found, &args.out_dir, &unused);
        if let Some(task) = options.task {
            eprintln!("gguf-shorten: note: task {task}: {} of {n_found} models", jobs.len());
        }
    }
    devices::warn_of(gpu_layers(&jobs), &printing);
    let screen = Screen::new(jobs.len(), printing.quiet, printing.verbose);
    let n_jobs = options.n_jobs;
    let work = Work {
        results: match options.dry_run {
            true => None,
            false => {
                let out_dir = &args.out_dir;
                fs::create_dir_all(out_dir).with_context(|| out_dir.display().to_string())?;
                let results = Results::open(&options.results, &options.all_results)?;
                Some(Mutex::new(results))
            }
        },
        memory: Memory::free_now(),
        n_ended: AtomicUsize::new(0),
        n_jobs: jobs.len(),
        verbose: printing.verbose,
        options,
        screen,
    };
    child::begin();
    let ended = work.all(&jobs, n_jobs);
    work.screen.clear();
    let saved = match work.results {
        Some(results) => results.into_inner().unwrap_or_else(PoisonError::into_inner).finish(),
        None => Ok(()),
    };
    let rows: Vec<Row> = jobs.iter().zip(&ended).map(|(job, ended)| row(job, ended.as_ref())).collect();
    print(&rows, &ended, &work.options, &printing)?;
    saved?;
    let n_failed = rows.iter().filter(|row| matches!(row.end, End::Failed { .. })).count();
    if child::is_stopping() {
        bail!(Interrupted(format!("interrupted; {}", counts(&rows))));
    }
    ensure!(n_failed == 0, "{n_failed} of {} models failed", rows.len());
    Ok(())
}

/// The first nonzero number of GPU layers of a job here.
fn gpu_layers(jobs: &[Job]) -> Option<i32> {
    let of = |job: &Job| match job.flags.has("rpc") {
        true => None,
        false => job.flags.value("gpu-layers")?.to_str()?.parse().ok(),
    };
    jobs.iter().filter_map(of).find(|&n: &i32| n != 0)
}

/// Whether a model is this task's. One that cannot be read has no content to go by: the first task says so.
fn is_of(task: Task, source: &Source) -> bool {
    task.takes(fingerprint(&source.files).unwrap_or(0))
}

/// Checks that no result takes the place of a model or result.
fn check_places(jobs: &[Job], args: &BatchArgs, options: &Options, printing: &Printing) -> Result<()> {
    let lists = args.paths.iter().filter_map(|path| list_name(path));
    let read = jobs.iter().flat_map(|job| &job.read).chain(&args.config).map(PathBuf::as_path);
    let read: Vec<&Path> = read.chain(lists).collect();
    let json = printing.json.as_deref().filter(|_| printing.tables());
    for path in json.into_iter().chain([&*options.results]) {
        let mut files = jobs.iter().flat_map(|job| &job.source.files);
        ensure!(!files.any(|file| place::is_same(file, path)), "{}: is one of the models", path.display());
        place::check_unread(path, read.iter().copied())?;
        place::check_no_model(path)?;
    }
    if let Some(json) = json {
        let folder = folder_of(json);
        ensure!(
            folder.is_dir() || folder == options.out_dir,
            "{}: '{}' is not a folder",
            json.display(),
            folder.display()
        );
        ensure!(!json.is_dir(), "{}: is a folder", json.display());
        ensure!(json != options.results, "{}: is where results are kept", json.display());
    }
    Ok(())
}

fn say_what_is_left_out(found: &Found, out_dir: &Path, unused: &[String]) {
    for warning in &found.warnings {
        eprintln!("gguf-shorten: warning: {warning}");
    }
    for (path, why) in &found.skipped {
        eprintln!("gguf-shorten: note: {} {why}; left out", path.display());
    }
    match found.outputs.len() {
        0 => {}
        1 => eprintln!(
            "gguf-shorten: note: {} in the folder of outputs was written by this program; left out",
            found.outputs[0].display()
        ),
        n => eprintln!(
            "gguf-shorten: note: {n} files in {} were written by this program; left out",
            out_dir.display()
        ),
    }
    for table in unused {
        eprintln!("gguf-shorten: note: {table} is for none of the models");
    }
}

/// A model that has ended, one way or the other.
struct Ended {
    record: Record,
    /// Whether an earlier run did it.
    before: bool,
}

/// What all models share.
struct Work {
    options: Options,
    results: Option<Mutex<Results>>,
    memory: Memory,
    screen: Screen,
    verbose: bool,
    n_ended: AtomicUsize,
    n_jobs: usize,
}

impl Work {
    /// Does all jobs, `n` at a time. `None` for those that did not begin.
    fn all(&self, jobs: &[Job], n: usize) -> Vec<Option<Ended>> {
        let next = AtomicUsize::new(0);
        let mut ended: Vec<Option<Ended>> = jobs.iter().map(|_| None).collect();
        let slots: Vec<Mutex<&mut Option<Ended>>> = ended.iter_mut().map(Mutex::new).collect();
        std::thread::scope(|scope| {
            for _ in 0..n.min(jobs.len()) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::SeqCst);
                        let (Some(job), false) = (jobs.get(i), child::is_stopping()) else {
                            break;
                        };
                        let end = self.one(job);
                        self.say(job, end.as_ref());
                        **slots[i].lock().unwrap_or_else(PoisonError::into_inner) = end;
                    }
                });
            }
        });
        drop(slots);
        ended
    }

    fn say(&self, job: &Job, ended: Option<&Ended>) {
        let Some(ended) = ended else {
            return;
        };
        self.screen.ends();
        let i = self.n_ended.fetch_add(1, Ordering::SeqCst) + 1;
        let model = job.source.path().display().to_string();
        let what = match row(job, Some(ended)).end {
            End::Done(short) => match short.seconds {
                Some(seconds) => format!("{}, {seconds:.1} s", short.words()),
                None => short.words(),
            },
            End::DoneBefore(short) => format!("done before: {}", short.words()),
            End::Failed { why, .. } => {
                let prefix = format!("{model}: ");
                format!("failed: {}", why.strip_prefix(&prefix).unwrap_or(&why))
            }
            End::NotDone => "not done".to_owned(),
        };
        self.screen.say(&format!("[{i}/{}] {model}: {what}", self.n_jobs));
    }

    /// Does one job, if it is not done already. `None` if the batch ended before it began.
    fn one(&self, job: &Job) -> Option<Ended> {
        let called = self.options.called(job);
        let known = self.results().and_then(|results| results.get(&called).cloned());
        let flags = job.flags.blake3();
        let flags = flags.map(|hash| hash.to_hex().to_string());
        let task = self.options.task.map(|task| task.to_string());
        let mut run = Run::begins(job, called, flags.as_ref().map_or(String::new(), String::clone), task);
        if let Err(error) = flags {
            return self.fails(job, &format!("a file that is named by a flag: {error}"), run);
        }
        let mut overwrite = self.options.force;
        if let Some(known) = known {
            let output = match earlier::output(&known.run, &self.options.out_dir) {
                Ok(output) => output,
                Err(_) if child::is_stopping() => return None,
                Err(_) => Kept::No,
            };
            if output == Kept::Whole && !self.options.redo {
                match earlier::is_done(job, &known, &run) {
                    Ok(Some(input)) => return Some(self.keeps(known, input)),
                    Err(_) if child::is_stopping() => return None,
                    // What cannot be read is for the model's process to say.
                    Ok(None) | Err(_) => {}
                }
            }
            // What this batch wrote it may replace; a run that was cut off may have written it without a word.
            let cut_off = known.run.state == State::Unfinished && known.run.place_free;
            overwrite |= output != Kept::No || cut_off;
            run.outputs = known.run.outputs.clone();
            run.beside = known.run.beside.clone();
            run.outputs_blake3.clone_from(&known.run.outputs_blake3);
            run.outputs_read_ns = known.run.outputs_read_ns;
            return self.begins(job, run, overwrite, Some(&known));
        }
        self.begins(job, run, overwrite, None)
    }

    /// Runs the process of a model.
    fn begins(&self, job: &Job, mut run: Run, overwrite: bool, known: Option<&Record>) -> Option<Ended> {
        run.place_free = overwrite || earlier::is_free(&job.output);
        let _held = job.evaluates.then(|| self.memory.hold(job.n_bytes()));
        if child::is_stopping() {
            return None;
        }
        if !self.options.dry_run
            && let Err(error) = place::check_free(&self.options.out_dir, 0, self.options.min_free)
        {
            let error = format!("{}: nothing was written: {error}", job.output.display());
            return self.fails(job, &error, run);
        }
        let mut job = job.clone();
        if overwrite {
            job.flags.give("force");
        }
        // If this process is ended, the next run expects half an output.
        let unfinished = "not finished: the run ended before this model did";
        if let Some(mut results) = self.results() {
            results.put(Record::failed(&job, unfinished, run.clone()));
        }
        let start = Instant::now();
        let bar = self.screen.model(&job.source.path().display().to_string());
        let mut arguments = job.arguments();
        if self.verbose {
            arguments.insert(1, "--verbose".into());
        }
        let ended = child::run(&arguments, &bar);
        drop(bar);
        run.seconds = Some(start.elapsed().as_secs_f64());
        let ended = match ended {
            Ok(Some(ended)) => ended,
            Ok(None) => {
                self.put_back(&run, known);
                return None;
            }
            Err(error) => {
                let error = format!("no process could be made for it: {error}");
                return self.fails(&job, &error, run);
            }
        };
        let Some(failure) = ended.failure() else {
            return match self.done(&job, &ended.stdout, run.clone()) {
                Ok(ended) => Some(ended),
                Err(error) => self.fails(&job, &error::message(&error), run),
            };
        };
        // A process that was killed could not remove its files itself.
        remove_left_by(ended.id, &self.options.out_dir);
        if failure.state == State::Unfinished && child::is_stopping() {
            self.put_back(&run, known);
            return None;
        }
        run.state = failure.state;
        run.hint.clone_from(&failure.hint);
        run.last_words = ended.last_words;
        let error = explained(&failure, &run.input);
        Some(self.not_done(&job, &error, run))
    }

    /// The line, on an interrupt, of what was done before. Its output must still be there as it was.
    fn put_back(&self, run: &Run, known: Option<&Record>) {
        let Some(mut results) = self.results() else {
            return;
        };
        let is_as_it_was = |record: &&Record| earlier::has_stamps(&record.run, &self.options.out_dir);
        match known.filter(is_as_it_was) {
            Some(known) => results.put_back(known),
            None if run.outputs.is_empty() && !self.options.out_dir.join(&run.output).exists() => {
                results.remove(&run.output);
            }
            None => {}
        }
    }

    fn fails(&self, job: &Job, error: &str, mut run: Run) -> Option<Ended> {
        run.state = State::Failed;
        Some(self.not_done(job, error, run))
    }

    fn not_done(&self, job: &Job, error: &str, run: Run) -> Ended {
        let record = Record::failed(job, error, run);
        if let Some(mut results) = self.results() {
            results.put(record.clone());
        }
        Ended { record, before: false }
    }

    fn done(&self, job: &Job, stdout: &[u8], mut run: Run) -> Result<Ended> {
        run.state = State::Done;
        let now = seen(job.source.files.iter().map(PathBuf::as_path), None);
        if now != run.input {
            // Its process has read a whole model, whichever of the two: the next run looks closer.
            run.input = now;
            run.input_read_ns = 0;
        }
        let mut record = Record::done(stdout, run)?;
        if !self.options.dry_run {
            let out_dir = &*self.options.out_dir;
            let [outputs, beside] = earlier::files(&record, out_dir);
            let out_dir = Some(out_dir);
            record.run.outputs = seen(outputs.iter().map(PathBuf::as_path), out_dir);
            record.run.beside = seen(beside.iter().map(PathBuf::as_path), out_dir);
            record.run.outputs_blake3 = record.text(&["output", "blake3"]).map(str::to_owned);
            record.run.outputs_read_ns = now_ns();
            ensure!(
                !outputs.is_empty() && record.run.outputs.len() == outputs.len(),
                "{}: is gone already",
                job.output.display()
            );
        }
        if let Some(mut results) = self.results() {
            results.put(record.clone());
        }
        Ok(Ended { record, before: false })
    }

    /// A model that an earlier run did, with its files' new stamps.
    fn keeps(&self, mut known: Record, input: Option<NewStamps>) -> Ended {
        if let Some((files, read_ns)) = input {
            known.run.input = files;
            known.run.input_read_ns = read_ns;
            if let Some(mut results) = self.results()
                && results.is_own(&known.run.output)
            {
                results.put(known.clone());
            }
        }
        Ended { record: known, before: true }
    }

    fn results(&self) -> Option<MutexGuard<'_, Results>> {
        let results = self.results.as_ref()?;
        Some(results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The reason of a failure, with any change of the input. It may be the cause.
fn explained(failure: &Failure, input: &[Seen]) -> String {
    let changed = input.iter().find_map(|seen| seen.stamp.check(&seen.path).err());
    match changed.map(|error| error.to_string()) {
        Some(changed) if !failure.error.contains("while it was read") => {
            format!("{changed}; {}", failure.error)
        }
        _ => failure.error.clone(),
    }
}

fn row(job: &Job, ended: Option<&Ended>) -> Row {
    let model = job.source.path().display().to_string();
    let Some(ended) = ended else {
        return Row { model, end: End::NotDone };
    };
    let record = &ended.record;
    let number = |path: &[&str]| record.field(path).and_then(|value| value.as_u64());
    let end = match (record.error(), short(record, job, &number)) {
        (None, Some(short)) if ended.before => End::DoneBefore(short),
        (None, Some(short)) => End::Done(short),
        (why, _) => End::Failed {
            why: why.unwrap_or("bug: its result lacks something").to_owned(),
            hint: record.run.hint.clone(),
        },
    };
    Row { model, end }
}

fn short(record: &Record, job: &Job, number: &dyn Fn(&[&str]) -> Option<u64>) -> Option<Short> {
    let removed = record.field(&["removed"])?.as_array()?.iter();
    Some(Short {
        parent_blocks: number(&["model", "block_count"])?,
        removed: removed.filter_map(|block| usize::try_from(block.as_u64()?).ok()).collect(),
        parent_bytes: number(&["model", "bytes"])?,
        blocks: number(&["output", "block_count"])?,
        bytes: number(&["output", "bytes"])?,
        output: job.output.display().to_string(),
        seconds: record.run.seconds,
    })
}

fn print(rows: &[Row], ended: &[Option<Ended>], options: &Options, printing: &Printing) -> Result<()> {
    if printing.tables() {
        let results = options.results.display().to_string();
        let results = (!options.dry_run).then_some(&*results);
        to_stdout(&batch(rows, results, colour::on_stdout()))?;
    }
    let Some(path) = &printing.json else {
        return Ok(());
    };
    let lines = ended.iter().flatten().map(|ended| ended.record.line() + "\n");
    let lines: String = lines.collect();
    match printing.tables() {
        true => place::text(path, &lines)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| path.display().to_string()),
        false => to_stdout(&lines),
    }
}
