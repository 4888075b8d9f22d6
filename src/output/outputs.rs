//! Outputs: all files of a run. They are claimed before any work is done, and written together or not at all.
//!
//! Of the result as JSON only the place is claimed: it says what became of the others.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::files::place::{check_no_model, check_unread, is_same};
use crate::files::staged::{Staged, commit, folder_of};
use crate::gguf::Quoted;
use crate::model::companion::Companion;
use crate::model::input::Input;
use crate::model::place::check_text;
use crate::output::Parent;
use crate::output::imatrix_file::{self, ImatrixFile, stale};
use crate::output::ollama::Creation;
use crate::output::outcome::{
    ImatrixReport, MeasuredReport, OllamaReport, OutputReport, PartReport, planned_files,
};
use crate::output::save::{Naming, Others, Target, Unplaced, check_place, stage_text};
use crate::plan::imatrix::Left;
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::plan::{Plan, Provenance, Splitting};
use crate::watch::{Unit, Watch};

/// The files of a run, as settings.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The shortened model; `None` for a dry run without a place.
    pub output: Option<PathBuf>,
    /// How it is cut into files.
    pub splitting: Splitting,
    /// An importance matrix that is renumbered too, and where it goes.
    pub imatrix: Option<(PathBuf, PathBuf)>,
    /// Other files that the run reads beside the model: nothing is written over one of them.
    pub read: Vec<PathBuf>,
    /// The place of an importance matrix that is measured.
    pub imatrix_out: Option<PathBuf>,
    /// The shortened model's name in Ollama; a Modelfile goes beside it.
    pub ollama: Option<String>,
    /// The place of a model card.
    pub card: Option<PathBuf>,
    /// The place of the result as JSON; `-` is stdout.
    pub json: Option<PathBuf>,
    /// Files that are there may be overwritten.
    pub force: bool,
    /// Bytes that stay free on the disk of the shortened model.
    pub min_free: u64,
    /// Nothing is written.
    pub dry_run: bool,
}

/// The files of a run, in places that are free for them.
pub struct Outputs<'a> {
    parent: Parent<'a>,
    files: &'a Files,
    /// `None` in a dry run.
    target: Option<Target>,
    imatrix: Option<ImatrixFile>,
    /// `None` in a dry run.
    imatrix_out: Option<&'a Path>,
    ollama: Option<Creation>,
    /// `None` in a dry run.
    card: Option<&'a Path>,
}

/// The files that were written, or in a dry run would be.
pub struct Done<'a> {
    /// What the output is.
    pub plan: Plan<'a>,
    /// The output, with all that belongs to it.
    pub output: OutputReport,
    /// The importance matrix that was measured; `None` if none was written.
    pub imatrix_out: Option<MeasuredReport>,
}

/// Writes a model card from the plan and the finished output files.
pub type WriteCard<'w, 'a> = dyn FnMut(&Plan<'a>, &[Unplaced<'_>]) -> Result<String> + 'w;

impl<'a> Outputs<'a> {
    /// Checks that all `files` can be written. Each folder is there and writable, nothing is overwritten without `force`, and
    /// no two files, and none of the input's, have one place.
    ///
    /// # Errors
    /// The first file that cannot be written.
    pub fn claim(parent: Parent<'a>, files: &'a Files) -> Result<Self> {
        let Parent { input, model, .. } = parent;
        let target = match &files.output {
            Some(path) if !files.dry_run => {
                let target = Target::split(path, files.splitting, input, files.force)?;
                Some(target.leaving(files.min_free))
            }
            _ => None,
        };
        let matrix = files.imatrix.as_ref().map(|(from, _)| from.as_path());
        let output = target.as_ref().map(Target::naming);
        let claims = Claims { output, matrix, read: &files.read, taken: Vec::new() };
        let mut claims = claims.with_output()?;
        if let Some(json) = &files.json {
            let is_file = json != Path::new("-");
            if is_file {
                check_text(json, input, target.as_ref().map(Target::path))?;
            }
            claims.add(json, "results")?;
            if is_file {
                check_no_model(json)?;
            }
        }
        let imatrix = match &files.imatrix {
            Some((from, to)) => {
                let file = ImatrixFile::open(from, to)?;
                claims.add(to, "results")?;
                // A dry run writes nothing over anything.
                check_place(to, input, files.force || files.dry_run)?;
                file.parse(model)?;
                Some(file)
            }
            None => None,
        };
        let imatrix_out = files.imatrix_out.as_deref();
        if let Some(path) = imatrix_out {
            claims.add(path, "results")?;
            check_place(path, input, files.force || files.dry_run)?;
        }
        let ollama = match (&files.ollama, &files.output) {
            (Some(name), Some(output)) => Some(Creation::plan(model, input, name, output)?),
            _ => None,
        };
        if let (Some(ollama), Some(_)) = (&ollama, &target) {
            claims.add(ollama.path(), "results")?;
            check_place(ollama.path(), input, files.force)?;
        }
        let card = files.card.as_deref().filter(|_| target.is_some());
        if let Some(card) = card {
            claims.add(card, "files")?;
            check_place(card, input, files.force)?;
            check_no_model(card)?;
        }
        let imatrix_out = imatrix_out.filter(|_| !files.dry_run);
        Ok(Self { parent, files, target, imatrix, imatrix_out, ollama, card })
    }

    /// Writes the output and all files beside it. `plan` makes it from the hash of the parent. In a dry run only plans them.
    /// `card` writes the text of the card, where there is one; `measured` is the importance matrix that has a place of its own.
    ///
    /// # Errors
    /// Those of `plan` and `card`; the system's. No file is then in its place, and none that was there is touched.
    pub fn write(
        &self,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        card: &mut WriteCard<'_, 'a>,
        measured: Option<&MeasuredImatrix>,
        watch: &dyn Watch,
    ) -> Result<Done<'a>> {
        let (input, force) = (self.parent.input, self.files.force);
        let mut others = Others::default();
        let (matrix, imatrix_out) = self.stage_measured(measured)?.unzip();
        others.staged.extend(matrix);
        let imatrix = self.stage_imatrix(plan, &mut others.staged)?;
        let Some(target) = &self.target else {
            let plan = plan(input.blake3())?;
            let files = self.planned(&plan)?;
            let output = OutputReport::new(self.parent, &plan, files, imatrix);
            return Ok(Done { plan, output, imatrix_out });
        };
        if let Some(ollama) = &self.ollama {
            others.staged.push(ollama.stage(input, force)?);
        }
        let mut card_seconds = 0.0;
        let mut describe = |plan: &Plan<'a>, files: &[Unplaced<'_>]| -> Result<Vec<Staged>> {
            let Some(path) = self.card else {
                return Ok(Vec::new());
            };
            let start = Instant::now();
            let staged = stage_text(path, &card(plan, files)?, input, force);
            card_seconds = start.elapsed().as_secs_f64();
            Ok(vec![staged.with_context(|| path.display().to_string())?])
        };
        others.describe = Some(&mut describe);
        let bar = watch.begin("writing".into(), Unit::Bytes, self.parent.model.n_bytes());
        let start = Instant::now();
        let saved = target.save_with(self.parent, plan, others, &mut |n_bytes| bar.advance(n_bytes));
        let seconds = start.elapsed().as_secs_f64() - card_seconds;
        drop(bar);
        let (plan, written) = saved?;
        // Read again only for those who ask.
        let blake3 = self.files.json.as_ref().map(|_| Input::open_file(&written[0].path)).transpose()?;
        let blake3 = blake3.map(|output| output.blake3().to_hex().to_string());
        let parts = written
            .into_iter()
            .map(|file| PartReport { path: Some(file.path.display().to_string()), bytes: file.n_bytes });
        let output = OutputReport::new(self.parent, &plan, parts.collect(), imatrix);
        let output = OutputReport { blake3, seconds: Some(seconds), ..output };
        Ok(Done { plan, output, imatrix_out })
    }

    /// Writes the measured importance matrix of a run without a model.
    ///
    /// # Errors
    /// Sums that are not finite; the system's. The place is then as it was.
    pub fn write_measured(&self, measured: Option<&MeasuredImatrix>) -> Result<Option<MeasuredReport>> {
        let Some((staged, report)) = self.stage_measured(measured)? else {
            return Ok(None);
        };
        self.parent.input.check_unchanged()?;
        commit(vec![staged]).with_context(|| format!("{}: nothing was written", report.path))?;
        Ok(Some(report))
    }

    fn stage_measured(&self, measured: Option<&MeasuredImatrix>) -> Result<Option<(Staged, MeasuredReport)>> {
        let (Some(path), Some(measured)) = (self.imatrix_out, measured) else {
            return Ok(None);
        };
        let planned = measured.plan().with_context(|| path.display().to_string())?;
        let like = &self.parent.input.parts()[0].mapping;
        let staged = imatrix_file::stage(path, &planned, like, self.files.force)?;
        Ok(Some((staged, MeasuredReport::new(path, measured, &planned))))
    }

    /// Plans the importance matrix for the kept blocks. Unless it is a dry run, it is written beside its place.
    fn stage_imatrix(
        &self,
        plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
        staged: &mut Vec<Staged>,
    ) -> Result<Option<ImatrixReport>> {
        let Some(file) = &self.imatrix else {
            return Ok(None);
        };
        let imatrix = file.parse(self.parent.model)?;
        let plan = plan(Provenance::DRAFT)?;
        let n_experts = self.parent.model.count("expert_count")?.unwrap_or(0);
        let experts = plan.experts.as_ref().map(|cut| (&cut.kept, n_experts));
        let planned = file.plan(&imatrix, Left { blocks: &plan.renumbering, experts })?;
        if self.target.is_some() {
            staged.push(file.stage(&planned, self.files.force)?);
        }
        Ok(Some(ImatrixReport {
            path: file.to().display().to_string(),
            bytes: planned.n_bytes(),
            entries: planned.n_entries,
            removed: planned.n_removed,
        }))
    }

    /// The files of the planned output.
    ///
    /// # Errors
    /// An output that cannot be cut as it should be.
    fn planned(&self, plan: &Plan<'_>) -> Result<Vec<PartReport>> {
        let Parent { input, model, .. } = self.parent;
        planned_files(model, plan, input, self.files.output.as_deref(), self.files.splitting)
    }

    /// Has Ollama make a model of the written output. The report is there whether that fails or not.
    pub fn make_ollama(&self, watch: &dyn Watch) -> (Option<OllamaReport>, Result<()>) {
        let Some(ollama) = &self.ollama else {
            return (None, Ok(()));
        };
        ollama.notes().iter().for_each(|note| watch.note(note));
        let created = match &self.target {
            Some(_) => ollama.run(watch),
            None => Ok(false),
        };
        let report = OllamaReport {
            name: ollama.name().to_owned(),
            modelfile: ollama.path().display().to_string(),
            created: created.as_ref().is_ok_and(|created| *created),
        };
        (Some(report), created.map(drop))
    }

    /// A note about files beside the model that do not fit afterwards. To be asked for before that is written.
    #[must_use]
    pub fn stale_note(&self) -> Option<String> {
        let matrix = self.files.imatrix.as_ref();
        let mut known: Vec<&Path> = matrix.map_or_else(Vec::new, |(from, to)| vec![from.as_path(), to]);
        known.extend(self.imatrix_out);
        let stale = stale(self.parent.input, self.parent.model.architecture(), &known);
        if stale.is_empty() {
            return None;
        }
        let files: Vec<_> = stale.iter().map(|(name, kind)| format!("{} ({kind})", Quoted(name))).collect();
        let has_matrix = stale.iter().any(|(_, kind)| *kind == Companion::Imatrix.to_string());
        let remedy = match has_matrix && matrix.is_none() {
            true => "; --imatrix IN OUT renumbers an importance matrix",
            false => "",
        };
        Some(format!(
            "files beside the model that go by block number do not fit the shortened one: {}{remedy}",
            files.join(", ")
        ))
    }
}

/// Places that are taken by files of a run.
struct Claims<'c> {
    /// The shortened model.
    output: Option<&'c Naming>,
    /// The importance matrix that is read.
    matrix: Option<&'c Path>,
    /// Other files that are read.
    read: &'c [PathBuf],
    /// Other files that are written.
    taken: Vec<PathBuf>,
}

impl Claims<'_> {
    /// Claims the place of the shortened model.
    fn with_output(self) -> Result<Self> {
        for read in self.read.iter().map(PathBuf::as_path).chain(self.matrix) {
            let is_output = self.output.is_some_and(|output| output.takes(read));
            ensure!(
                !is_output,
                "{}: is read by this run, and the output would take its place",
                read.display()
            );
        }
        Ok(self)
    }

    /// Claims `path` for one of the run's `kind`.
    fn add(&mut self, path: &Path, kind: &str) -> Result<()> {
        let name = path.display();
        let is_output = self.output.is_some_and(|output| output.takes(path));
        ensure!(!is_output, "{name}: is the output itself");
        let is_taken = self.taken.iter().any(|other| is_one_place(path, other));
        ensure!(!is_taken, "{name}: is named for two {kind}");
        let is_matrix = self.matrix.is_some_and(|matrix| is_one_place(path, matrix));
        ensure!(!is_matrix, "{name}: is the importance matrix that is read");
        check_unread(path, self.read.iter().map(PathBuf::as_path))?;
        self.taken.push(path.to_owned());
        Ok(())
    }
}

/// Whether both paths are one file, now or once it exists.
fn is_one_place(a: &Path, b: &Path) -> bool {
    a == b || is_same(a, b) || (a.file_name() == b.file_name() && is_same(folder_of(a), folder_of(b)))
}
