//! `eval`: how well a model predicts a text, how far it is from its parent, tasks, and speed.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ggml::Backend;

use super::{
    arguments, check_json, cut, devices, model_options, note_counts, print_json, to_stdout,
    warnings,
};
use crate::calibration::{CalibrationSet, Texts};
use crate::evaluator::{self, LlamaLogits, Speed, vocabulary_difference};
use crate::input::Input;
use crate::llama;
use crate::model::Model;
use crate::options::{Calibration, Eval, Printing};
use crate::progress::{self, Unit};
use crate::quality::measure::Quality;
use crate::quality::{MIN_WINDOW, ScoredLogits};
use crate::report::evaluation::{AccuracyReport, EvalReport, screen};
use crate::report::{CalibrationReport, ModelReport};
use crate::tasks::{self, Task};

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being evaluated.
pub fn run(options: &Eval) -> Result<()> {
    let printing = &options.printing;
    devices::warn(&options.text, printing);
    let input = Input::open(&options.model)?;
    let parent_input = options.parent.as_deref().map(Input::open).transpose()?;
    for input in std::iter::once(&input).chain(&parent_input) {
        check_json(printing, input, None)?;
    }
    let model = parse(&input)?;
    let parent = parent_input.as_ref().map(parse).transpose()?;
    note_counts(&model, &input, printing);
    if let (Some(parent), Some(input)) = (&parent, &parent_input) {
        note_counts(parent, input, printing);
    }
    let hellaswag = options.hellaswag.as_deref();
    let hellaswag = hellaswag.map(|path| read_tasks(path, options.n_tasks, tasks::hellaswag));
    let hellaswag = hellaswag.transpose()?;
    let multiple_choice = options.multiple_choice.as_deref();
    let multiple_choice =
        multiple_choice.map(|path| read_tasks(path, options.n_tasks, tasks::json_lines));
    let multiple_choice = multiple_choice.transpose()?;
    let texts = Texts::read(options.text.source.clone())?;
    warn(&input, &model, printing);
    if let (Some(input_of_parent), Some(parent)) = (&parent_input, &parent) {
        warn(input_of_parent, parent, printing);
        warnings::of_tokenizers(&input, &model, parent, printing);
    }

    ggml::log::echo(printing.verbose);
    let load = |input: &Input| load_input(input, &options.text);
    let engine = load(&input)?;
    let parent_engine = parent_input.as_ref().map(load);
    let parent_engine = parent_engine.transpose()?;
    let at_model = || input.path().display().to_string();
    if let (Some(parent_engine), Some(parent_input)) = (&parent_engine, &parent_input)
        && let Some(difference) = vocabulary_difference(&engine, parent_engine)
    {
        bail!(
            "{}: the vocabulary differs from that of {}: {difference}",
            at_model(),
            parent_input.path().display()
        );
    }
    // A text of its own is written by the parent, whose predictions are the aim.
    let writer = match (&parent_engine, &parent_input, texts.source().seed()) {
        (Some(engine), Some(input), Some(_)) => (engine, input),
        _ => (&engine, &input),
    };
    let set = cut(&texts, writer, &options.text, printing)
        .with_context(|| writer.1.path().display().to_string())?;
    check_window(&set, &engine).with_context(at_model)?;
    if let (Some(engine), Some(input)) = (&parent_engine, &parent_input) {
        check_window(&set, engine).with_context(|| input.path().display().to_string())?;
    }

    // The threads of ggml rest while these work.
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(options.text.threads)
        .build()?;
    let sides = (
        (&engine, input.path()),
        parent_engine.as_ref().zip(parent_input.as_ref()),
    );
    let (quality, speed, seconds) = threads.install(|| measure(sides, &set, options))?;
    let hash = |input: &Input| printing.json.is_some().then(|| input.blake3());
    let mut report = EvalReport::new(
        ModelReport::of(&model, &input, hash(&input)),
        parent
            .zip(parent_input.as_ref())
            .map(|(parent, input)| ModelReport::of(&parent, input, hash(input))),
        CalibrationReport::new(&set, seconds),
        &quality,
        speed,
        options.text.threads,
    );
    report.arguments = arguments();
    // Not needed for what is left.
    drop(parent_engine);
    let accuracy = |name, tasks: Option<(&Path, Vec<Task>)>| {
        let result = tasks.map(|(path, tasks)| {
            threads.install(|| accuracy(name, path, &tasks, (&engine, &input), options))
        });
        result.transpose().with_context(at_model)
    };
    report.hellaswag = accuracy("HellaSwag", hellaswag)?;
    report.multiple_choice = accuracy("multiple choice", multiple_choice)?;
    print(&report, printing)
}

/// Evaluates `output` and its `parent` on the text behind its first `n_windows`, which chose the blocks, or on those too where
/// the text has no more; then the second value is true. Of both the speed is measured.
///
/// # Errors
/// Whatever keeps either from being evaluated.
pub(super) fn against_parent(
    output: &Input,
    parent: &Input,
    n_windows: usize,
    options: &Eval,
) -> Result<(EvalReport, bool)> {
    let models = (parse(output)?, parse(parent)?);
    warnings::of_tokenizer(parent, &models.1, &options.printing);
    let texts = Texts::read(options.text.source.clone())?;
    ggml::log::echo(options.printing.verbose);
    let (engine, parent_engine) = (
        load_input(output, &options.text)?,
        load_input(parent, &options.text)?,
    );
    let source = (&parent_engine, parent);
    let all = cut(&texts, source, &options.text, &options.printing)?;
    let others = match n_windows {
        0 => None,
        n => all.behind(n, all.windows().len().div_ceil(4)),
    };
    let same_text = others.is_none() && n_windows > 0;
    let set = others.unwrap_or(all);
    check_window(&set, &engine)?;
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(options.text.threads)
        .build()?;
    let sides = ((&engine, output.path()), Some((&parent_engine, parent)));
    let (quality, speed, seconds) = threads.install(|| measure(sides, &set, options))?;
    drop(engine);
    let parent_speed = threads.install(|| {
        LlamaLogits::new(
            &parent_engine,
            parent.path(),
            set.window,
            options.text.threads,
        )?
        .speed(set.windows())
    })?;
    let mut calibration = CalibrationReport::new(&set, seconds);
    if n_windows > 0 && !same_text {
        let n_tokens = n_windows * set.window;
        calibration.source += &format!(" (behind its first {n_tokens} tokens)");
    }
    let mut report = EvalReport::new(
        ModelReport::of(&models.0, output, None),
        Some(ModelReport::of(&models.1, parent, None)),
        calibration,
        &quality,
        speed,
        options.text.threads,
    );
    report.parent_tokens_per_second = Some(parent_speed.into());
    Ok((report, same_text))
}

/// Says what is doubtful about a model that is to be evaluated.
pub(super) fn warn(input: &Input, model: &Model<'_>, printing: &Printing) {
    warnings::of_weights(input, model, printing);
    warnings::of_tokenizer(input, model, printing);
}

/// Looks at the files as a model whose predictions mean something.
pub(super) fn parse(input: &Input) -> Result<Model<'_>> {
    let at_path = || input.path().display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    evaluator::check_causal(&model).with_context(at_path)?;
    Ok(model)
}

/// Reads the first `n` tasks of the file at `path`; all of it has to be well-formed.
pub(super) fn read_tasks(
    path: &Path,
    n: usize,
    parse: fn(&str) -> Result<Vec<Task>>,
) -> Result<(&Path, Vec<Task>)> {
    let at_path = || path.display().to_string();
    let bytes = std::fs::read(path).with_context(at_path)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let start = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = start.iter().filter(|&&byte| byte == b'\n').count() + 1;
        anyhow::anyhow!("line {line} is not UTF-8 text")
    });
    let mut tasks = text.and_then(|text| parse(&text)).with_context(at_path)?;
    tasks.truncate(n);
    Ok((path, tasks))
}

/// Loads the model of `input`, as `options` say.
pub(super) fn load_input(input: &Input, options: &Calibration) -> Result<ggml::Model> {
    let how = model_options(options)?;
    load(input.path(), &|| llama::load(input, how))
}

/// Loads a model, which errors call `name`.
pub(super) fn load(name: &Path, load: &dyn Fn() -> Result<ggml::Model>) -> Result<ggml::Model> {
    let at_path = || name.display().to_string();
    let backend = Backend::init();
    backend.on_abort(&format!("gguf-shorten: {}: ", at_path()));
    let engine = load().with_context(at_path)?;
    ensure!(
        engine.has_tokenizer(),
        "{}: the model has no tokenizer, so it cannot be evaluated on text",
        at_path()
    );
    evaluator::check_predicts(&engine).with_context(at_path)?;
    Ok(engine)
}

/// Checks that a model can take the windows of `set`, and that some of their tokens are scored.
pub(super) fn check_window(set: &CalibrationSet, engine: &ggml::Model) -> Result<()> {
    let (window, n_ctx) = (set.window, engine.n_ctx_train());
    ensure!(
        window >= MIN_WINDOW,
        "the model's context of {n_ctx} tokens leaves no token to score, expected {MIN_WINDOW} or more"
    );
    ensure!(
        n_ctx == 0 || window <= n_ctx,
        "a window of {window} tokens is longer than the model's context of {n_ctx}"
    );
    Ok(())
}

/// Evaluates all windows with the model and its parent, if there is one. Returns the time of that, too.
fn measure(
    ((engine, path), parent): ((&ggml::Model, &Path), Option<(&ggml::Model, &Input)>),
    set: &CalibrationSet,
    options: &Eval,
) -> Result<(Quality, Speed, f64)> {
    let logits = |engine, path: &Path| {
        LlamaLogits::new(engine, path, set.window, options.text.threads)
            .with_context(|| path.display().to_string())
    };
    let mut model = logits(engine, path)?;
    let parent = parent.map(|(engine, input)| logits(engine, input.path()));
    let mut parent = parent.transpose()?;
    let bar = progress::bar(
        "evaluating",
        Unit::Tokens,
        set.n_tokens() as u64,
        options.printing.quiet,
    );
    let start = Instant::now();
    let quality = Quality::measure(
        &mut model,
        parent
            .as_mut()
            .map(|parent| parent as &mut dyn ScoredLogits),
        set.windows(),
        &mut |n_tokens| bar.inc(n_tokens as u64),
    );
    bar.finish_and_clear();
    let quality = quality?;
    let seconds = start.elapsed().as_secs_f64();
    drop(parent);
    let speed = model
        .speed(set.windows())
        .with_context(|| path.display().to_string())?;
    Ok((quality, speed, seconds))
}

/// Does the tasks of the file at `path` with the model of `input`.
fn accuracy(
    name: &'static str,
    path: &Path,
    tasks: &[Task],
    (engine, input): (&ggml::Model, &Input),
    options: &Eval,
) -> Result<AccuracyReport> {
    let bar = progress::bar(
        name,
        Unit::Tasks,
        tasks.len() as u64,
        options.printing.quiet,
    );
    let start = Instant::now();
    let scores = evaluator::answer_scores(
        engine,
        input.path(),
        tasks,
        options.text.threads,
        &mut || bar.inc(1),
    );
    bar.finish_and_clear();
    let at_path = || path.display().to_string();
    let found = evaluator::accuracy(tasks, &scores.with_context(at_path)?);
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
