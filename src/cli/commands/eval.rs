//! `eval`: how well a model predicts a text. Also how far it is from its parent, tasks, and speed.

use super::{arguments, check_json, devices, note_counts, print_json, to_stdout};
use crate::cli::options::{Eval, Printing};
use crate::engine::load;
use crate::engine::load::LoadedModel;
use crate::engine::logits::{Speed, vocabulary_difference};
use crate::engine::outcome::CalibrationReport;
use crate::engine::text::{CalibrationSet, Texts};
use crate::measure::answers;
use crate::measure::blockwise;
use crate::measure::outcome::{AccuracyReport, EvalReport};
use crate::measure::quality::measure::Quality;
use crate::measure::scored_model::{ModelLogits, ScoredModel};
use crate::measure::tasks::{self, Task, read_tasks};
use crate::model::Model;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::warning;
use crate::report::evaluation::screen;
use crate::watch::{Unit, Watch};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being evaluated.
pub fn run(options: &Eval) -> Result<()> {
    let printing = &options.printing;
    devices::warn(&options.text, printing);
    let input = Input::open(&options.model)?;
    let parent_input = options.parent.as_deref().map(Input::open).transpose()?;
    let tasks: Vec<PathBuf> = options.hellaswag.iter().chain(&options.multiple_choice).cloned().collect();
    let inputs: Vec<&Input> = std::iter::once(&input).chain(&parent_input).collect();
    check_json(printing, &inputs, &[options.text.source.files(), &tasks])?;
    let model = load::parse_causal(&input)?;
    let parent = parent_input.as_ref().map(load::parse_causal).transpose()?;
    note_counts(&model, &input, printing);
    if let (Some(parent), Some(input)) = (&parent, &parent_input) {
        note_counts(parent, input, printing);
    }
    let hellaswag = options.hellaswag.as_deref();
    let hellaswag = hellaswag.map(|path| read_tasks(path, options.n_tasks, tasks::hellaswag)).transpose()?;
    let choices = options.multiple_choice.as_deref();
    let choices = choices.map(|path| read_tasks(path, options.n_tasks, tasks::json_lines)).transpose()?;
    let texts = Texts::read(options.text.source.clone())?;
    warn(&input, &model, printing);
    if let (Some(input_of_parent), Some(parent)) = (&parent_input, &parent) {
        warn(input_of_parent, parent, printing);
        warning::of_tokenizers(&input, &model, parent, printing);
    }

    ggml::log::echo(printing.verbose);
    let loaded = match &parent {
        Some(parent) => ScoredModel::load_beside(&input, &model, &options.text, parent)?,
        None => ScoredModel::load(&input, &model, &options.text, blockwise::room(&options.text))?,
    };
    for (path, _) in hellaswag.iter().chain(&choices) {
        loaded.check_whole(path)?;
    }
    let loaded_parent = parent_input.as_ref().zip(parent.as_ref());
    let loaded_parent = loaded_parent
        .map(|(input, parent)| ScoredModel::load_beside(input, parent, &options.text, &model))
        .transpose()?;
    let set =
        scored_windows(&texts, &loaded.loaded, loaded_parent.as_ref().map(|parent| &parent.loaded), options)?;

    // The threads of ggml rest while these work.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(options.text.threads).build()?;
    let (quality, speed, seconds) =
        threads.install(|| measure(&loaded, loaded_parent.as_ref(), &set, options))?;
    let report_of = |model: &Model<'_>, input: &Input| {
        ModelReport::of(model, input, printing.json.is_some().then(|| input.blake3_once()))
    };
    let mut report = EvalReport::new(
        report_of(&model, &input),
        parent.as_ref().zip(parent_input.as_ref()).map(|(model, input)| report_of(model, input)),
        CalibrationReport::new(&set, seconds),
        &quality,
        speed,
        options.text.threads,
    );
    report.arguments = arguments();
    // Not needed for what is left.
    drop(loaded_parent);
    let accuracy = |name, tasks: Option<(&Path, Vec<Task>)>| {
        let result = tasks
            .map(|(path, tasks)| threads.install(|| accuracy(name, path, &tasks, &loaded.loaded, options)));
        result.transpose().with_context(|| loaded.loaded.name())
    };
    report.hellaswag = accuracy("HellaSwag", hellaswag)?;
    report.multiple_choice = accuracy("multiple choice", choices)?;
    print(&report, printing)
}

/// Cuts the text into windows that the model can take. Its parent, if there is one, must have the same vocabulary.
fn scored_windows(
    texts: &Texts,
    loaded: &LoadedModel<'_>,
    parent: Option<&LoadedModel<'_>>,
    options: &Eval,
) -> Result<CalibrationSet> {
    if let Some(parent) = parent
        && let Some(difference) = vocabulary_difference(&loaded.engine, &parent.engine)
    {
        bail!("{}: the vocabulary differs from that of {}: {difference}", loaded.name(), parent.name());
    }
    // The parent writes a text of its own. Its predictions are the aim.
    let writer = parent.filter(|_| texts.source().seed().is_some()).unwrap_or(loaded);
    let set = writer.cut(texts, &options.text, &options.printing).with_context(|| writer.name())?;
    for loaded in std::iter::once(loaded).chain(parent) {
        load::check_window(&set, &loaded.engine).with_context(|| loaded.name())?;
    }
    Ok(set)
}

/// Evaluates `output` and its `parent` on the text after its first `n_windows`. Those chose the blocks; where the text has no
/// more, they are scored too, and the second value is true. Of both the speed is measured.
///
/// # Errors
/// Whatever keeps either from being evaluated.
pub(crate) fn against_parent(
    output: &Input,
    parent: &Input,
    n_windows: usize,
    options: &Eval,
) -> Result<(EvalReport, bool)> {
    let models = (load::parse_causal(output)?, load::parse_causal(parent)?);
    warning::of_tokenizer(parent, &models.1, &options.printing);
    let texts = Texts::read(options.text.source.clone())?;
    ggml::log::echo(options.printing.verbose);
    let loaded = ScoredModel::load_beside(output, &models.0, &options.text, &models.1)?;
    let loaded_parent = ScoredModel::load_beside(parent, &models.1, &options.text, &models.0)?;
    let all = loaded_parent.loaded.cut(&texts, &options.text, &options.printing)?;
    let others = match n_windows {
        0 => None,
        n => all.after(n, all.windows().len().div_ceil(4)),
    };
    let same_text = others.is_none() && n_windows > 0;
    let set = others.unwrap_or(all);
    load::check_window(&set, &loaded.loaded.engine)?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(options.text.threads).build()?;
    let (quality, speed, seconds) =
        threads.install(|| measure(&loaded, Some(&loaded_parent), &set, options))?;
    drop(loaded);
    let parent_speed =
        threads.install(|| loaded_parent.logits(&set, &options.text, &options.printing)?.speed(&set))?;
    let mut calibration = CalibrationReport::new(&set, seconds);
    if n_windows > 0 && !same_text {
        let n_tokens = n_windows * set.window;
        calibration.source += &format!(" (after its first {n_tokens} tokens)");
    }
    let mut report = EvalReport::new(
        ModelReport::of(&models.0, output, None),
        Some(ModelReport::of(&models.1, parent, None)),
        calibration,
        &quality,
        speed,
        options.text.threads,
    );
    report.parent_tokens_per_second = parent_speed.map(Into::into);
    Ok((report, same_text))
}

/// Warns of a model that may be evaluated wrongly.
pub(crate) fn warn(input: &Input, model: &Model<'_>, printing: &Printing) {
    warning::of_weights(input, model, printing);
    warning::of_tokenizer(input, model, printing);
}

/// Evaluates all windows with the model, and its parent if any. Returns the time of that, too.
fn measure(
    model: &ScoredModel<'_>,
    parent: Option<&ScoredModel<'_>>,
    set: &CalibrationSet,
    options: &Eval,
) -> Result<(Quality, Option<Speed>, f64)> {
    let printing = &options.printing;
    let start = Instant::now();
    let mut logits = model.logits(set, &options.text, printing)?;
    let mut parent = parent.map(|parent| parent.logits(set, &options.text, printing)).transpose()?;
    let bar = printing.begin("evaluating".into(), Unit::Tokens, set.n_tokens() as u64);
    let quality = Quality::measure(
        logits.scored(),
        parent.as_mut().map(ModelLogits::scored),
        set.windows(),
        &mut |n_tokens| bar.advance(n_tokens as u64),
    );
    drop(bar);
    let quality = quality?;
    let seconds = start.elapsed().as_secs_f64();
    drop(parent);
    let speed = logits.speed(set).with_context(|| model.loaded.name())?;
    Ok((quality, speed, seconds))
}

/// Does the tasks of the file at `path`.
fn accuracy(
    name: &'static str,
    path: &Path,
    tasks: &[Task],
    loaded: &LoadedModel<'_>,
    options: &Eval,
) -> Result<AccuracyReport> {
    let bar = options.printing.begin(name.into(), Unit::Tasks, tasks.len() as u64);
    let start = Instant::now();
    let (engine, model) = (&loaded.engine, loaded.input.path());
    let scores = answers::answer_scores(engine, model, tasks, options.text.threads, &mut || bar.advance(1));
    drop(bar);
    let at_path = || path.display().to_string();
    let found = answers::accuracy(tasks, &scores.with_context(at_path)?);
    let found = found.context("has no task").with_context(at_path)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(AccuracyReport::new(path, &found, seconds))
}

fn print(report: &EvalReport, printing: &Printing) -> Result<()> {
    if printing.tables() {
        to_stdout(&screen(report))?;
    }
    print_json(report, printing)
}
