//! `compare`: size, quality and speed of several models in one table.
//!
//! The predictions of every model are held against the parent's, window by window. Models are evaluated side by side, as many
//! as there is memory for. So the parent evaluates each window once for all of them: half of the time, where all fit. The other
//! ways cost more. The parent's logits of all windows would be gigabytes (8,192 tokens of a vocabulary of 262,144: 4.3 GB). A
//! model that is loaded again for each window is as slow as the parent evaluated again.
//!
//! What does not fit in its part of memory is evaluated block by block. The parent's states before its last block are then kept,
//! and only that block and the head are evaluated again for others.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, ensure};

use super::candidate::{Candidate, Loaded, Maker, Part, Ready, Short, new_scratch, note};
use super::eval::warn;
use super::{arguments, check_json, devices, note_counts, print_json, to_stdout};
use crate::choose::expert_sets::ChosenExperts;
use crate::choose::outcome::ChoiceReport;
use crate::choose::rows::{self as choice, ExpertRow, Row, Rows};
use crate::choose::settings::Drops;
use crate::cli::options::{Compare, Printing};
use crate::engine::blockwise::need::check_whole;
use crate::engine::load;
use crate::engine::load::{LoadedModel, Weights};
use crate::engine::logits::{LlamaLogits, vocabulary_difference};
use crate::engine::outcome::CalibrationReport;
use crate::engine::scored::ScoredLogits;
use crate::engine::settings::Calibration;
use crate::engine::text::{CalibrationSet, Texts};
use crate::error;
use crate::files::place;
use crate::heal::run as healing;
use crate::heal::settings::HealArg;
use crate::measure::blockwise;
use crate::measure::comparison::Kind;
use crate::measure::quality::side_by_side::SideBySide;
use crate::measure::scored_model::{ModelLogits, ScoredModel};
use crate::model::Model;
use crate::model::block::BlockSet;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::place::check_text;
use crate::output::Parent;
use crate::plan::experts::{ExpertBudget, Mixture};
use crate::plan::{ChosenBy, Cut};
use crate::report::comparison::{CompareReport, RowReport, judge, screen};
use crate::watch::{Unit, Watch};

/// Shares of memory: one is the parent's, one that of all which are evaluated beside it.
const SHARES: u64 = 2;

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
        check_experts(&model, &drops.experts).with_context(at_path)?;
    }
    if !options.types.is_empty() {
        new_scratch(&options.scratch)?;
    }
    warn(&input, &model, printing);
    ggml::log::echo(printing.verbose);
    let set = cut(&input, &model, &texts, options)?;

    let mut rows: Vec<Candidate> = options.files.iter().cloned().map(Candidate::File).collect();
    let (mut constraints, mut chosen) = (None, None);
    if let Some(drops) = &options.drops {
        let shorter = match drops.rules.constraints(&model).with_context(at_path) {
            Ok(found) => {
                let parent_of_rows =
                    Parent { input: &input, model: &model, constraints: constraints.insert(found) };
                let shorter = Shorter { parent: parent_of_rows, drops, options };
                let (found, rows) = shorter.choose()?;
                chosen = Some((shorter, found));
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

    let room = Room::of(&options.text);
    let parent = room.load_parent(&input, &model, options)?;
    load::check_window(&set, &parent.loaded.engine).with_context(at_path)?;
    let choice = chosen.map(|(shorter, mut found)| shorter.report(&mut found, &parent.loaded, &set));
    let choice = choice.transpose()?;
    let mut parent_row = RowReport::new(Kind::Parent, at_path());
    parent_row.path = Some(at_path());
    note(&mut parent_row, &model);
    let maker = Maker { options, input: &input, model: &model, constraints: constraints.as_ref() };
    // The threads of ggml rest while these work.
    let workers = rayon::ThreadPoolBuilder::new().num_threads(options.text.threads).build()?;
    let (mut rows, seconds, failures) = workers.install(|| {
        let mut evaluation = Evaluation::new(&parent, &set, options, parent_row)?;
        evaluation.all(&maker, rows, &room.beside(&parent, &model, &options.text))?;
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

/// Checks that one of `budgets`, if there are any, may go from `model`. Of several, one that may not is a row that failed.
fn check_experts(model: &Model<'_>, budgets: &[ExpertBudget]) -> Result<()> {
    let Some(first) = budgets.first() else {
        return Ok(());
    };
    let mixture = Mixture::of(model)?;
    let check = |budget: &ExpertBudget| mixture.check_number(budget.n_kept(&mixture));
    match budgets.iter().any(|budget| check(budget).is_ok()) {
        true => Ok(()),
        false => check(first),
    }
}

/// What the rows of fewer blocks are made of.
struct Shorter<'s> {
    parent: Parent<'s>,
    drops: &'s Drops,
    options: &'s Compare,
}

impl Shorter<'_> {
    /// The rows, chosen and healed as the main job does it.
    fn choose(&self) -> Result<(Rows, Vec<Candidate>)> {
        let Self { parent, drops, options } = *self;
        let (heal, printing) = (&options.heal, &options.printing);
        healing::check(parent, heal)?;
        let numbers = drops.list.numbers(parent.model.n_trunk_blocks());
        let mut rows = Rows::choose(parent, drops, &numbers, printing)?;
        let healed = |row: Row| match heal.how {
            HealArg::None => Ok(row.cut),
            _ => Ok(healing::heal(parent, row.cut, &row.shortlist, heal, printing)?.cut),
        };
        let cuts = std::mem::take(&mut rows.rows).into_iter().map(|row| row.and_then(healed));
        let mut shorter: Vec<Short> =
            numbers.into_iter().zip(cuts).map(|(n, cut)| blocks_fewer(n, cut)).collect();
        shorter.extend(std::mem::take(&mut rows.experts).into_iter().map(experts_fewer));
        Ok((rows, candidates(shorter, options)))
    }

    /// How they were chosen, and the share of text seen for it.
    fn report(
        &self,
        rows: &mut Rows,
        loaded: &LoadedModel<'_>,
        set: &CalibrationSet,
    ) -> Result<ChoiceReport> {
        let Self { parent, drops, options } = *self;
        let n_healed = match options.heal.how {
            HealArg::None => Ok(0),
            _ => healing::n_tokens(parent.model, &options.heal),
        };
        n_healed
            .and_then(|n_healed| choice::report(drops, rows, n_healed, loaded, set, &options.printing))
            .with_context(|| parent.name())
    }
}

/// The windows that are scored. A text of the model's own is written now.
fn cut(input: &Input, model: &Model<'_>, texts: &Texts, options: &Compare) -> Result<CalibrationSet> {
    let text = &options.text;
    let weights = match texts.source().seed() {
        None => Weights::None,
        Some(_) => {
            let why = "it writes the text itself";
            check_whole(blockwise::whole_bytes(model, text), text.memory, why)
                .with_context(|| input.path().display().to_string())?;
            Weights::AsTheyAre
        }
    };
    let loaded = LoadedModel::load(input, text, weights)?;
    loaded.cut(texts, text, &options.printing).with_context(|| loaded.name())
}

/// The memory that models may take together, if it is known.
struct Room(Option<u64>);

/// The memory beside the parent.
struct Beside {
    /// For a model alone.
    alone: Option<u64>,
    /// For all that are evaluated side by side.
    group: u64,
    /// What each takes beside its weights, about: as much as the parent.
    overhead: u64,
}

impl Room {
    fn of(text: &Calibration) -> Self {
        Self(blockwise::room(text))
    }

    /// Loads the parent: within its share, or else within all that there is.
    fn load_parent<'i>(
        &self,
        input: &'i Input,
        model: &'i Model<'i>,
        options: &Compare,
    ) -> Result<ScoredModel<'i>> {
        let text = &options.text;
        // The whole model has written the text that chose the blocks, and may write it again.
        let writes = options.drops.as_ref().is_some_and(|drops| drops.calibration.source.seed().is_some());
        let share = self.0.map(|room| if writes { room } else { room / SHARES });
        ScoredModel::load(input, model, text, share)
            .or_else(|_| ScoredModel::load(input, model, text, self.0))
    }

    fn beside(&self, parent: &ScoredModel<'_>, model: &Model<'_>, text: &Calibration) -> Beside {
        let share = self.0.map_or(0, |room| room / SHARES);
        let whole = blockwise::whole_bytes(model, text);
        let alone = self.0.map(|room| room.saturating_sub(if parent.is_whole() { whole } else { share }));
        let overhead = whole.saturating_sub(model.n_bytes());
        Beside { alone, group: alone.unwrap_or(0).min(share), overhead }
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

/// A model beside the parent.
struct Side<'s> {
    /// The number of its row.
    number: usize,
    /// What errors call it.
    name: &'s Path,
    logits: ModelLogits<'s>,
}

/// The rows while they are measured, on the current pool's threads.
struct Evaluation<'e> {
    parent: &'e ggml::Model,
    logits: ModelLogits<'e>,
    set: &'e CalibrationSet,
    options: &'e Compare,
    /// The parent's first.
    rows: Vec<RowReport>,
    seconds: f64,
    failures: Vec<Error>,
}

impl<'e> Evaluation<'e> {
    fn new(
        parent: &'e ScoredModel<'_>,
        set: &'e CalibrationSet,
        options: &'e Compare,
        row: RowReport,
    ) -> Result<Self> {
        let start = Instant::now();
        Ok(Self {
            parent: &parent.loaded.engine,
            logits: parent.logits(set, &options.text, &options.printing)?,
            set,
            options,
            rows: vec![row],
            seconds: start.elapsed().as_secs_f64(),
            failures: Vec::new(),
        })
    }

    /// Measures the parent and every candidate, in groups that fit in memory.
    fn all<'a>(&mut self, maker: &Maker<'_, 'a>, candidates: Vec<Candidate>, room: &Beside) -> Result<()> {
        self.rows.extend(candidates.iter().map(Candidate::row));
        let (mut group, mut used) = (Vec::new(), 0u64);
        for (i, candidate) in candidates.iter().enumerate() {
            let number = i + 1;
            let ready = maker.prepare(candidate, &mut self.rows[number]);
            let Some(ready) = self.or_fail(number, ready) else { continue };
            let needed = room.overhead.saturating_add(ready.loading_bytes());
            if !group.is_empty() && used.saturating_add(needed) > room.group {
                self.group(&group)?;
                group.clear();
                used = 0;
            }
            if needed > room.group {
                self.alone(number, maker, ready, room.alone)?;
                continue;
            }
            let loaded = maker.load(ready);
            let loaded = loaded.and_then(|loaded| self.check(&loaded.engine, &loaded.name).map(|()| loaded));
            if let Some(loaded) = self.or_fail(number, loaded) {
                group.push((number, loaded));
                used = used.saturating_add(needed);
            }
        }
        // Where there is none, the parent alone.
        if !group.is_empty() || self.rows[0].perplexity.is_none() {
            self.group(&group)?;
        }
        Ok(())
    }

    /// Checks that a model's predictions can be held against the parent's.
    fn check(&mut self, engine: &ggml::Model, name: &Path) -> Result<()> {
        let name = name.display();
        if let Some(difference) = vocabulary_difference(engine, self.parent) {
            return Err(anyhow!(
                "{name}: the vocabulary differs from that of {}: {difference}",
                self.logits.scored().name()
            ));
        }
        load::check_window(self.set, engine).with_context(|| name.to_string())
    }

    /// Measures a model that is too large to be beside others. Where it does not fit, that is done block by block.
    fn alone<'a>(
        &mut self,
        number: usize,
        maker: &Maker<'_, 'a>,
        ready: Ready<'a>,
        room: Option<u64>,
    ) -> Result<()> {
        let Compare { text, printing, .. } = self.options;
        let name = ready.name.clone();
        let start = Instant::now();
        let files = maker.files(ready).with_context(|| name.display().to_string());
        let Some(files) = self.or_fail(number, files) else { return Ok(()) };
        let model = load::parse_causal(&files.input);
        let Some(model) = self.or_fail(number, model) else { return Ok(()) };
        let loaded = ScoredModel::load(&files.input, &model, text, room);
        let Some(loaded) = self.or_fail(number, loaded) else { return Ok(()) };
        let checked = self.check(&loaded.loaded.engine, &name);
        let logits = checked.and_then(|()| loaded.logits(self.set, text, printing));
        let Some(logits) = self.or_fail(number, logits) else { return Ok(()) };
        self.seconds += start.elapsed().as_secs_f64();
        self.side_by_side(vec![Side { number, name: &name, logits }])
    }

    /// Measures some models side by side.
    fn group(&mut self, group: &[(usize, Loaded)]) -> Result<()> {
        let (window, threads) = (self.set.window, self.options.text.threads);
        let mut sides = Vec::new();
        for (number, loaded) in group {
            let logits = LlamaLogits::new(&loaded.engine, &loaded.name, window, threads);
            if let Some(logits) =
                self.or_fail(*number, logits.with_context(|| loaded.name.display().to_string()))
            {
                let (name, logits) = (&*loaded.name, ModelLogits::Whole(logits));
                sides.push(Side { number: *number, name, logits });
            }
        }
        self.side_by_side(sides)
    }

    fn side_by_side(&mut self, mut sides: Vec<Side<'_>>) -> Result<()> {
        let mut models: Vec<&mut dyn ScoredLogits> =
            sides.iter_mut().map(|side| side.logits.scored()).collect();
        let bar = self.options.printing.begin(
            "evaluating".into(),
            Unit::Tokens,
            (self.set.n_tokens() * (1 + models.len())) as u64,
        );
        let start = Instant::now();
        let found =
            SideBySide::measure(self.logits.scored(), &mut models, self.set.windows(), &mut |n_tokens| {
                bar.advance(n_tokens as u64)
            });
        drop(bar);
        let found = found?;
        self.seconds += start.elapsed().as_secs_f64();
        if self.rows[0].perplexity.is_none() {
            let speed = self.logits.speed(self.set);
            let speed = speed.with_context(|| self.logits.scored().name())?;
            self.rows[0].measured_parent(&found.parent, speed);
        }
        for (Side { number, name, mut logits }, quality) in sides.into_iter().zip(found.models) {
            let speed = |quality| {
                let speed = logits.speed(self.set);
                Ok((quality, speed.with_context(|| name.display().to_string())?))
            };
            let measured = quality.and_then(speed);
            if let Some((quality, speed)) = self.or_fail(number, measured) {
                self.rows[number].measured(&quality, speed);
            }
        }
        Ok(())
    }

    /// What there is, or nothing: then the row has failed.
    fn or_fail<T>(&mut self, number: usize, found: Result<T>) -> Option<T> {
        found
            .map_err(|error| {
                self.rows[number].error = Some(error::message(&error));
                self.failures.push(error);
            })
            .ok()
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
