//! `compare`: size, quality and speed of several models in one table.
//!
//! The predictions of every model are held against the parent's, window by window. Models are evaluated side by side, as many
//! as there is memory for. So the parent evaluates each window once for all of them: half of the time, where all fit. The other
//! ways cost more. The parent's logits of all windows would be gigabytes (8,192 tokens of a vocabulary of 262,144: 4.3 GB). A
//! model that is loaded again for each window is as slow as the parent evaluated again.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, ensure};

use super::candidate::{Candidate, Loaded, Maker, Part, Short, new_scratch, note};
use super::eval::warn;
use super::{arguments, check_json, devices, note_counts, print_json, to_stdout};
use crate::choose::expert_sets::ChosenExperts;
use crate::choose::outcome::ChoiceReport;
use crate::choose::rows::{self as choice, ExpertRow, Row, Rows};
use crate::choose::settings::Drops;
use crate::cli::options::{Compare, Printing};
use crate::engine::load;
use crate::engine::load::{LoadedModel, Weights};
use crate::engine::logits::{LlamaLogits, vocabulary_difference};
use crate::engine::outcome::CalibrationReport;
use crate::engine::scored::{ScoredLogits, scored};
use crate::engine::text::{CalibrationSet, Texts};
use crate::error;
use crate::files::free_memory as room;
use crate::files::place;
use crate::heal::run as healing;
use crate::heal::settings::HealArg;
use crate::measure::blockwise;
use crate::measure::comparison::Kind;
use crate::measure::quality::side_by_side::SideBySide;
use crate::model::block::BlockSet;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::place::check_text;
use crate::output::Parent;
use crate::plan::experts::Mixture;
use crate::plan::{ChosenBy, Constraints, Cut};
use crate::report::comparison::{CompareReport, RowReport, judge, screen};
use crate::watch::{Unit, Watch};

/// The part of free memory that models evaluated together take. It is one in so many at most.
const SHARE_OF_FREE: u64 = 2;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the parent from being evaluated; after everything is printed, rows that failed.
pub fn run(options: &Compare) -> Result<()> {
    let printing = &options.printing;
    devices::warn(&options.text, printing);
    let input = Input::open(&options.parent)?;
    check_apart(options)?;
    let chosen_on = options.drops.as_ref().map_or(&[][..], |drops| drops.calibration.source.files());
    check_json(printing, &[&input], &[options.text.source.files(), chosen_on])?;
    let model = load::parse_causal(&input)?;
    note_counts(&model, &input, printing);
    let at_path = || input.path().display().to_string();
    let texts = Texts::read(options.text.source.clone())?;
    if let Some(drops) = &options.drops {
        // Read where it is used; what is wrong with it is said now.
        Texts::read(drops.calibration.source.clone())?;
    }
    if options.drops.as_ref().is_some_and(|drops| !drops.experts.is_empty()) {
        Mixture::of(&model).with_context(at_path)?;
    }
    if !options.types.is_empty() {
        new_scratch(&options.scratch)?;
    }
    warn(&input, &model, printing);
    ggml::log::echo(printing.verbose);
    // An unknown architecture tells nothing before it is loaded.
    if let Ok(constraints) = Constraints::of(&model) {
        let parent = Parent { input: &input, model: &model, constraints: &constraints };
        blockwise::check_whole(parent, &options.text, "whole models are compared")?;
    }
    let parent = LoadedModel::load(&input, &options.text, Weights::AsTheyAre)?;
    let set = parent.cut(&texts, &options.text, printing).with_context(at_path)?;
    load::check_window(&set, &parent.engine).with_context(at_path)?;

    let mut rows: Vec<Candidate> = options.files.iter().cloned().map(Candidate::File).collect();
    let mut constraints = None;
    let mut choice = None;
    if let Some(drops) = &options.drops {
        let shorter = match drops.rules.constraints(&model).with_context(at_path) {
            Ok(found) => {
                let parent_of_rows =
                    Parent { input: &input, model: &model, constraints: constraints.insert(found) };
                let shorter = Shorter { parent: parent_of_rows, drops, options };
                let (rows, report) = shorter.choose(&parent, &set)?;
                choice = Some(report);
                rows
            }
            Err(error) => {
                let numbers = drops.list.numbers(model.n_trunk_blocks());
                let why = error::message(&error);
                let failed = |n: &usize| blocks_fewer(*n, Err(anyhow!("{why}")));
                candidates(numbers.iter().map(failed).collect(), options)
            }
        };
        rows.extend(shorter);
    }
    rows.extend(options.types.iter().copied().map(Candidate::Type));

    let mut parent_row = RowReport::new(Kind::Parent, at_path());
    parent_row.path = Some(at_path());
    note(&mut parent_row, &model);
    let maker = Maker { options, input: &input, model: &model, constraints: constraints.as_ref() };
    // The threads of ggml rest while these work.
    let workers = rayon::ThreadPoolBuilder::new().num_threads(options.text.threads).build()?;
    let (mut rows, seconds, failures) = workers.install(|| {
        let mut evaluation = Evaluation::new(&parent, &set, options, parent_row)?;
        evaluation.all(&maker, rows)?;
        Ok::<_, Error>((evaluation.rows, evaluation.seconds, evaluation.failures))
    })?;
    let verdict = judge(&mut rows);
    let report = CompareReport {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        llama_cpp: ggml::backend::llama_cpp_version(),
        command: "compare",
        arguments: arguments(),
        text: CalibrationReport::new(&set, seconds),
        parent: ModelReport::of(&model, &input, printing.json.is_some().then(|| input.blake3_once())),
        choice,
        threads: options.text.threads,
        rows,
        verdict,
    };
    print(&report, printing)?;
    failed(failures, report.rows.len())
}

/// What the rows of fewer blocks are made of.
struct Shorter<'s> {
    parent: Parent<'s>,
    drops: &'s Drops,
    options: &'s Compare,
}

impl Shorter<'_> {
    /// The rows, chosen and healed as in the main job. Also how they were chosen.
    fn choose(
        &self,
        loaded: &LoadedModel<'_>,
        set: &CalibrationSet,
    ) -> Result<(Vec<Candidate>, ChoiceReport)> {
        let Self { parent, drops, options } = *self;
        let (at_path, heal, printing) = (|| parent.name(), &options.heal, &options.printing);
        healing::check(parent.model, heal).with_context(at_path)?;
        let numbers = drops.list.numbers(parent.model.n_trunk_blocks());
        let mut rows = Rows::choose(parent, drops, &numbers, printing)?;
        let n_healed = match heal.how {
            HealArg::None => 0,
            _ => healing::n_tokens(parent.model, heal).with_context(at_path)?,
        };
        let report = choice::report(drops, &mut rows, n_healed, loaded, set, printing);
        let healed = |row: Row| match heal.how {
            HealArg::None => Ok(row.cut),
            _ => Ok(healing::heal(parent, row.cut, &row.shortlist, heal, printing)?.cut),
        };
        let cuts = rows.rows.into_iter().map(|row| row.and_then(healed));
        let mut shorter: Vec<Short> =
            numbers.into_iter().zip(cuts).map(|(n, cut)| blocks_fewer(n, cut)).collect();
        shorter.extend(rows.experts.into_iter().map(experts_fewer));
        Ok((candidates(shorter, options), report.with_context(at_path)?))
    }
}

/// A row of fewer blocks.
fn blocks_fewer(n_fewer: usize, cut: Result<Cut>) -> Short {
    Short { part: Part::Blocks, n_fewer, cut: Arc::new(cut), auto: None }
}

/// A row of fewer experts.
fn experts_fewer(ExpertRow { n_fewer, chosen }: ExpertRow) -> Short {
    let (cut, auto) = match chosen {
        Ok(ChosenExperts { cut, auto }) => {
            let none = Cut::new(BlockSet::new(), &ChosenBy::NoBlock.to_string());
            (Ok(Cut { experts: Some(cut), ..none }), auto)
        }
        Err(error) => (Err(error), None),
    };
    Short { part: Part::Experts, n_fewer, cut: Arc::new(cut), auto }
}

/// The rows of these cuts, and after them those in other types.
fn candidates(shorter: Vec<Short>, options: &Compare) -> Vec<Candidate> {
    let types = options.types.iter().filter(|_| options.mixed);
    let mixed = types.flat_map(|&to| shorter.iter().cloned().map(move |short| Candidate::Mixed(short, to)));
    let mixed: Vec<Candidate> = mixed.collect();
    shorter.into_iter().map(Candidate::Drop).chain(mixed).collect()
}

/// Checks that the result takes the place of no other model.
fn check_apart(options: &Compare) -> Result<()> {
    let Some(json) = options.printing.json.as_deref().filter(|_| options.printing.tables()) else {
        return Ok(());
    };
    for file in &options.files {
        // A model that cannot be opened is a row that fails.
        match Input::open(file) {
            Ok(input) => check_text(json, &input, None)?,
            Err(_) => ensure!(!place::is_same(file, json), "{}: is the input itself", json.display()),
        }
    }
    Ok(())
}

/// The rows while they are measured, on the current pool's threads.
struct Evaluation<'e> {
    parent: &'e ggml::Model,
    logits: LlamaLogits<'e>,
    set: &'e CalibrationSet,
    options: &'e Compare,
    /// The parent's first.
    rows: Vec<RowReport>,
    seconds: f64,
    failures: Vec<Error>,
}

impl<'e> Evaluation<'e> {
    fn new(
        parent: &'e LoadedModel<'_>,
        set: &'e CalibrationSet,
        options: &'e Compare,
        row: RowReport,
    ) -> Result<Self> {
        Ok(Self {
            parent: &parent.engine,
            logits: parent.logits(set.window, options.text.threads).with_context(|| parent.name())?,
            set,
            options,
            rows: vec![row],
            seconds: 0.0,
            failures: Vec::new(),
        })
    }

    /// Measures the parent and every candidate, in groups that fit in memory.
    fn all(&mut self, maker: &Maker<'_, '_>, candidates: Vec<Candidate>) -> Result<()> {
        self.rows.extend(candidates.iter().map(Candidate::row));
        let room = room::available().map_or(0, |free| free / SHARE_OF_FREE);
        let (mut group, mut used) = (Vec::new(), 0u64);
        for (i, candidate) in candidates.iter().enumerate() {
            let number = i + 1;
            let ready = match maker.prepare(candidate, &mut self.rows[number]) {
                Ok(ready) => ready,
                Err(error) => {
                    self.fail(number, error);
                    continue;
                }
            };
            let needed = self.needed(ready.n_bytes);
            if !group.is_empty() && used.saturating_add(needed) > room {
                self.group(&group)?;
                group.clear();
                used = 0;
            }
            match maker.load(ready).and_then(|loaded| self.check(loaded)) {
                Ok(loaded) => {
                    group.push((number, loaded));
                    used = used.saturating_add(needed);
                }
                Err(error) => self.fail(number, error),
            }
        }
        // Where there is none, the parent alone.
        if !group.is_empty() || self.rows[0].perplexity.is_none() {
            self.group(&group)?;
        }
        Ok(())
    }

    /// Memory that a model of `n_bytes` takes. Its weights, and the logits of a window, which llama.cpp has twice.
    fn needed(&self, n_bytes: u64) -> u64 {
        let n_logits = scored(self.set.window).len().saturating_mul(self.parent.n_vocab());
        n_bytes.saturating_add((n_logits as u64).saturating_mul(2 * size_of::<f32>() as u64))
    }

    /// Checks that a model's predictions can be held against the parent's.
    fn check(&self, loaded: Loaded) -> Result<Loaded> {
        let name = loaded.name.display();
        if let Some(difference) = vocabulary_difference(&loaded.engine, self.parent) {
            return Err(anyhow!(
                "{name}: the vocabulary differs from that of {}: {difference}",
                self.logits.name()
            ));
        }
        load::check_window(self.set, &loaded.engine).with_context(|| name.to_string())?;
        Ok(loaded)
    }

    /// Measures some models side by side.
    fn group(&mut self, group: &[(usize, Loaded)]) -> Result<()> {
        let (window, threads) = (self.set.window, self.options.text.threads);
        let mut sides: Vec<(usize, &Path, LlamaLogits<'_>)> = Vec::new();
        for (number, loaded) in group {
            match LlamaLogits::new(&loaded.engine, &loaded.name, window, threads) {
                Ok(logits) => sides.push((*number, &loaded.name, logits)),
                Err(error) => {
                    let name = loaded.name.display().to_string();
                    self.fail(*number, error.context(name));
                }
            }
        }
        let mut models: Vec<&mut dyn ScoredLogits> =
            sides.iter_mut().map(|(_, _, logits)| logits as &mut dyn ScoredLogits).collect();
        let bar = self.options.printing.begin(
            "evaluating".into(),
            Unit::Tokens,
            (self.set.n_tokens() * (1 + models.len())) as u64,
        );
        let start = Instant::now();
        let found = SideBySide::measure(&mut self.logits, &mut models, self.set.windows(), &mut |n_tokens| {
            bar.advance(n_tokens as u64)
        });
        drop(bar);
        let found = found?;
        self.seconds += start.elapsed().as_secs_f64();
        if self.rows[0].perplexity.is_none() {
            let speed = self.logits.speed(self.set.windows());
            let speed = speed.with_context(|| self.logits.name())?;
            self.rows[0].measured_parent(&found.parent, speed);
        }
        for ((number, name, mut logits), quality) in sides.into_iter().zip(found.models) {
            let speed = |quality| {
                let speed = logits.speed(self.set.windows());
                Ok((quality, speed.with_context(|| name.display().to_string())?))
            };
            match quality.and_then(speed) {
                Ok((quality, speed)) => self.rows[number].measured(&quality, speed),
                Err(error) => self.fail(number, error),
            }
        }
        Ok(())
    }

    fn fail(&mut self, number: usize, error: Error) {
        self.rows[number].error = Some(error::message(&error));
        self.failures.push(error);
    }
}

fn print(report: &CompareReport, printing: &Printing) -> Result<()> {
    if printing.tables() {
        to_stdout(&screen(report))?;
    }
    print_json(report, printing)
}

/// The error of a run some of whose rows failed.
fn failed(failures: Vec<Error>, n_rows: usize) -> Result<()> {
    let n = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(error) if n == 1 => Err(error),
        Some(first) => Err(anyhow!("{n} of {n_rows} rows failed, the first: {}", error::message(&first))),
    }
}
