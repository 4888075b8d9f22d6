//! Candidates: the rows of `compare`. Each is a file, or the parent without some blocks or in another type, which then has no
//! place of its own.

use std::fs::OpenOptions;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ggml::{Backend, FileType, Mapping, ModelOptions};

use super::eval::warn;
use super::note_counts;
use crate::choose::outcome::ExpertsAutoReport;
use crate::cli::options::Compare;
use crate::engine::load;
use crate::engine::load::model_options;
use crate::engine::logits as evaluator;
use crate::engine::memory_file::MemoryFile;
use crate::error::Hint;
use crate::files::place;
use crate::files::unnamed::ScratchFile;
use crate::gguf::{self, ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Header, ValueOut};
use crate::measure::comparison::Kind;
use crate::model::Model;
use crate::model::block::numbers;
use crate::model::input::Input;
use crate::model::warning;
use crate::output::outcome::ExpertsReport;
use crate::plan::{Constraints, Cut, Plan};
use crate::report::comparison::RowReport;
use crate::watch::{Progress, Unit, Watch};

/// A row, before anything of it is read or made.
pub(crate) enum Candidate {
    /// A file as it is.
    File(PathBuf),
    /// The parent without some blocks or experts.
    Drop(Short),
    /// That in another type.
    Mixed(Short, FileType),
    /// The parent in another type.
    Type(FileType),
}

/// Parts of a model that a row may have fewer of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Blocks,
    /// Experts of each block.
    Experts,
}

/// The parent without some blocks, healed or not, or without some experts.
#[derive(Clone)]
pub(crate) struct Short {
    /// Of what.
    pub(crate) part: Part,
    /// How many.
    pub(crate) n_fewer: usize,
    /// Which, unless none could be chosen.
    pub(crate) cut: Arc<Result<Cut>>,
    /// The sets of experts that were compared.
    pub(crate) auto: Option<ExpertsAutoReport>,
}

impl Short {
    fn name(&self) -> String {
        let parts = match (self.part, self.n_fewer) {
            (Part::Blocks, 1) => "block",
            (Part::Blocks, _) => "blocks",
            (Part::Experts, 1) => "expert",
            (Part::Experts, _) => "experts",
        };
        let is_healed = (self.cut.as_ref().as_ref()).is_ok_and(|cut| cut.healing.is_some());
        format!("{} {parts} fewer{}", self.n_fewer, if is_healed { ", healed" } else { "" })
    }

    fn kind(&self) -> Kind {
        match self.part {
            Part::Blocks => Kind::Drop,
            Part::Experts => Kind::Experts,
        }
    }
}

impl Candidate {
    /// The row, with nothing but what it stands for.
    pub(crate) fn row(&self) -> RowReport {
        match self {
            Self::File(path) => {
                let mut row = RowReport::new(Kind::File, path.display().to_string());
                row.path = Some(path.display().to_string());
                row
            }
            Self::Drop(short) => RowReport::new(short.kind(), short.name()),
            Self::Mixed(short, file_type) => {
                let mut row = RowReport::new(Kind::Mixed, format!("{}, {}", short.name(), file_type.name()));
                row.file_type = Some(file_type.name());
                row
            }
            Self::Type(file_type) => {
                let mut row = RowReport::new(Kind::Requantize, file_type.name().to_owned());
                row.file_type = Some(file_type.name());
                row
            }
        }
    }
}

/// A candidate that only has to be loaded.
pub(crate) struct Ready<'a> {
    /// What errors call it.
    pub(crate) name: PathBuf,
    /// Bytes of its files.
    n_bytes: u64,
    source: Source<'a>,
}

impl Ready<'_> {
    /// Bytes of weights that loading it takes as a whole.
    pub(crate) fn loading_bytes(&self) -> u64 {
        match self.source {
            Source::Plan(_) => MemoryFile::loading_bytes(self.n_bytes),
            Source::File(_) | Source::Scratch(_) => self.n_bytes,
        }
    }
}

/// The files of a candidate.
pub(crate) struct Files {
    pub(crate) input: Input,
    /// Where it is of no place of its own.
    _scratch: Option<ScratchFile>,
}

enum Source<'a> {
    File(Box<Input>),
    Plan(Box<Plan<'a>>),
    Scratch(ScratchFile),
}

/// Keeps the mapped file alive while the engine reads it.
enum Kept {
    Input(#[expect(dead_code, reason = "held for its temporary file")] Box<Input>),
    Scratch(#[expect(dead_code, reason = "held for its file")] ScratchFile),
}

/// A candidate that can be evaluated.
pub(crate) struct Loaded {
    /// What errors call it.
    pub(crate) name: PathBuf,
    pub(crate) engine: ggml::Model,
    /// Where weights lie that are mapped.
    _kept: Option<Kept>,
}

/// Makes candidates of one parent.
pub(crate) struct Maker<'m, 'a> {
    pub(crate) options: &'m Compare,
    pub(crate) input: &'m Input,
    pub(crate) model: &'m Model<'a>,
    /// What may be removed, where blocks are.
    pub(crate) constraints: Option<&'m Constraints>,
}

impl<'a> Maker<'_, 'a> {
    /// Reads, plans or quantizes a candidate. What is then known is noted in `row`.
    ///
    /// # Errors
    /// Whatever keeps it from being loaded, with the name of what it is made of.
    pub(crate) fn prepare(&self, candidate: &Candidate, row: &mut RowReport) -> Result<Ready<'a>> {
        let parent = self.input.path().display();
        match candidate {
            Candidate::File(path) => {
                let input = Input::open(path)?;
                let model = load::parse_causal(&input)?;
                note_counts(&model, &input, &self.options.printing);
                warn(&input, &model, &self.options.printing);
                warning::of_tokenizers(&input, &model, self.model, &self.options.printing);
                note(row, &model);
                drop(model);
                Ok(Ready {
                    name: path.clone(),
                    n_bytes: row.bytes.unwrap_or(0),
                    source: Source::File(Box::new(input)),
                })
            }
            Candidate::Drop(short) => {
                let plan = self.plan(short, row)?;
                row.file_type = file_type(self.model);
                row.bytes = Some(plan.layout.file_len());
                row.block_count = Some(plan.renumbering.kept().len());
                let n_trunk = self.model.n_trunk_blocks();
                let kept = plan.renumbering.kept().iter();
                row.n_trunk_blocks = Some(kept.filter(|block| block.index() < n_trunk).count());
                row.n_experts =
                    row.experts.as_ref().map_or_else(|| n_experts(self.model), |kept| kept.kept_count);
                row.parameters = Some(plan.n_parameters);
                Ok(Ready {
                    name: format!("{parent}, {}", row.name).into(),
                    n_bytes: plan.layout.file_len(),
                    source: Source::Plan(Box::new(plan)),
                })
            }
            Candidate::Mixed(short, to) => {
                let plan = self.plan(short, row)?;
                let name = format!("{parent}, {}", row.name);
                let file = MemoryFile::write_plan(self.model, &plan).with_context(|| name.clone())?;
                self.quantized(file.path(), *to, name.into(), row)
            }
            Candidate::Type(to) => {
                let name = format!("{parent} as {}", to.name());
                self.quantized(self.input.for_llama()?, *to, name.into(), row)
            }
        }
    }

    /// What the file at `from` is in another type.
    fn quantized(&self, from: &Path, to: FileType, name: PathBuf, row: &mut RowReport) -> Result<Ready<'a>> {
        let scratch = self.quantize(from, to, &name).with_context(|| name.display().to_string())?;
        let mapping = Mapping::open(scratch.path())?;
        let whole = gguf::File::parse(&mapping).map_err(Into::into).and_then(|file| Model::new(vec![file]));
        let whole = whole.with_context(|| {
            format!(
                "{}: what llama.cpp wrote in folder '{}' is not whole, perhaps the disk is full",
                name.display(),
                self.options.scratch.display()
            )
        })?;
        note(row, &whole);
        row.file_type = Some(to.name());
        Ok(Ready { name, n_bytes: whole.n_bytes(), source: Source::Scratch(scratch) })
    }

    /// The plan of a row of fewer blocks, which is noted there.
    fn plan(&self, short: &Short, row: &mut RowReport) -> Result<Plan<'a>> {
        let Some(constraints) = self.constraints else {
            bail!("bug: blocks are removed under no constraints");
        };
        let cut = match &*short.cut {
            Ok(cut) => cut,
            // An error has one owner.
            Err(error) => bail!("{}", crate::error::message(error)),
        };
        let plan = Plan::draft(self.model, constraints, cut);
        let plan = plan.with_context(|| self.input.path().display().to_string())?;
        if short.part == Part::Blocks {
            row.removed = Some(numbers(&plan.removed));
            let attention = numbers(&plan.attention_removed);
            row.attention_removed = (!attention.is_empty()).then_some(attention);
            row.method = Some(cut.method.clone());
            row.heal = Some(cut.heal.clone());
        }
        row.experts = ExpertsReport::of(self.model, &plan);
        row.experts_auto = short.auto.clone();
        Ok(plan)
    }

    fn quantize(&self, from: &Path, file_type: FileType, name: &Path) -> Result<ScratchFile> {
        let folder = &self.options.scratch;
        let scratch = new_scratch(folder)?;
        let bar: Rc<dyn Progress> = self
            .options
            .printing
            .begin(
                format!("quantizing to {}", file_type.name()).into(),
                Unit::Tensors,
                self.model.tensors().len() as u64,
            )
            .into();
        let shown = Rc::clone(&bar);
        let backend = Backend::init();
        backend.on_abort(&format!("gguf-shorten: {}: ", name.display()));
        let result = ggml::requantize::requantize(
            backend,
            from,
            scratch.path(),
            file_type,
            self.options.text.threads,
            Rc::new(move |n_begun, _| shown.set_position(n_begun as u64)),
        );
        drop(bar);
        result?;
        say_alignment(scratch.path())?;
        Ok(scratch)
    }

    /// The files of what was prepared. A plan is written.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn files(&self, ready: Ready<'a>) -> Result<Files> {
        let scratch = match ready.source {
            Source::File(input) => return Ok(Files { input: *input, _scratch: None }),
            Source::Scratch(scratch) => scratch,
            Source::Plan(plan) => {
                let scratch = new_scratch(&self.options.scratch)?;
                place::check_free(&self.options.scratch, ready.n_bytes, 0)?;
                let mut file = BufWriter::new(OpenOptions::new().write(true).open(scratch.path())?);
                gguf::write(&plan.layout, &mut file, |i, out| plan.data[i].write(self.model, out))?;
                file.flush()?;
                scratch
            }
        };
        Ok(Files { input: Input::open_file(scratch.path())?, _scratch: Some(scratch) })
    }

    /// Loads what was prepared.
    ///
    /// # Errors
    /// llama.cpp's; a shortened model that cannot be evaluated.
    pub(crate) fn load(&self, ready: Ready<'a>) -> Result<Loaded> {
        let name = ready.name;
        let at_name = || name.display().to_string();
        let options = model_options(&self.options.text)?;
        let (engine, kept) = match ready.source {
            Source::File(input) => {
                let engine = load::load_named(&name, &|| load::load(&input, options))?;
                (engine, Some(Kept::Input(input)))
            }
            Source::Scratch(scratch) => {
                let as_model = || load::load_as(self.model, scratch.path(), options);
                let engine = load::load_named(&name, &as_model)?;
                (engine, Some(Kept::Scratch(scratch)))
            }
            Source::Plan(plan) => {
                let file = MemoryFile::write_plan(self.model, &plan).with_context(at_name)?;
                let mapping = Mapping::open(file.path()).with_context(at_name)?;
                let short = Model::new(vec![gguf::File::parse(&mapping).with_context(at_name)?]);
                short.and_then(|short| evaluator::check_causal(&short)).with_context(at_name)?;
                // The file is gone afterwards: its bytes are in memory once.
                let options = ModelOptions { no_mmap: true, ..options };
                let as_it_is = || Ok(ggml::Model::load(Backend::init(), file.path(), options)?);
                (load::load_named(&name, &as_it_is)?, None)
            }
        };
        Ok(Loaded { name, engine, _kept: kept })
    }
}

/// Records in a file that llama.cpp quantized how its data is aligned. That is to the default, whatever the input says
/// (`llama-quant.cpp: llama_model_quantize_impl`).
fn say_alignment(path: &Path) -> Result<()> {
    let mapping = Mapping::open(path)?;
    let mut end = Header::N_BYTES;
    let mut entries = gguf::File::first_entries(&mapping, u64::MAX).into_iter();
    let found = entries.find(|entry| {
        end += entry.raw().len() as u64;
        entry.key() == ALIGNMENT_KEY
    });
    let Some(value) =
        found.and_then(|found| ValueOut::integer(found.value().value_type(), DEFAULT_ALIGNMENT))
    else {
        return Ok(());
    };
    drop(mapping);
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(end - value.raw().len() as u64))?;
    Ok(file.write_all(value.raw())?)
}

/// Notes what a file says of itself.
pub(crate) fn note(row: &mut RowReport, model: &Model<'_>) {
    row.file_type = file_type(model);
    row.bytes = Some(model.n_bytes());
    row.block_count = Some(model.n_blocks());
    row.n_trunk_blocks = Some(model.n_trunk_blocks());
    row.n_experts = n_experts(model);
    row.parameters = Some(model.n_parameters());
}

/// How many experts a block of a mixture has; 0 of other models.
fn n_experts(model: &Model<'_>) -> usize {
    model.count("expert_count").ok().flatten().unwrap_or(0)
}

/// The type that a file says it has.
fn file_type(model: &Model<'_>) -> Option<&'static str> {
    let number = model.metadata().get("general.file_type")?.value().as_u64();
    FileType::of_number(number.ok()?).map(FileType::name)
}

/// A scratch file in `folder`, or what is wrong with that folder.
///
/// # Errors
/// A folder in which no file can be made.
pub(crate) fn new_scratch(folder: &Path) -> Result<ScratchFile> {
    ScratchFile::new(folder)
        .with_context(|| format!("cannot write in folder '{}'", folder.display()))
        .context(Hint("--scratch names another folder".to_owned()))
}
