//! One file per command: each loads, computes, prints. The only modules, with `llama`, `evaluator`, `input`, `stores`, `temporary`,
//! `cache`, `scratch`, `room`, `commit`, `save`, `beside`, `oracle`, `stamp` and `batch`, that do I/O.

pub mod batch;

mod candidate;

mod card;

mod choice;

pub mod compare;

pub mod cache;

pub mod eval;

pub mod generate;

mod goal;

mod known;

mod measured;

pub(crate) mod ollama;

pub mod report;

mod resume;

mod runs;

pub mod score;

pub mod shorten;

pub mod show;

mod tasked;

pub mod verify;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ggml::{Backend, ContextOptions, ModelOptions};
use indicatif::DecimalBytes;

use known::Known;

use crate::arch::Architecture;
use crate::cache::{Entry, Scored};
use crate::calibration::{CalibrationSet, Cut, Texts};
use crate::commit;
use crate::error::Hint;
use crate::importance::Importance;
use crate::input::Input;
use crate::llama::{self, Course, Halves, LlamaHiddenStates};
use crate::model::Model;
use crate::options::{Calibration, Printing};
use crate::pairs::{Paired, Pairs};
use crate::plan::Constraints;
use crate::progress::{self, Unit};
use crate::report::{CalibrationReport, Report, table};
use crate::save;

/// Measures the importance of every block of the model of `input`, with `sub_blocks` also of its two halves, with `pairs` also
/// how alike the hidden states of any two positions are.
pub(crate) fn calibrate(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Calibration,
    printing: &Printing,
    sub_blocks: bool,
    pairs: Option<&mut Pairs>,
) -> Result<(Importance, CalibrationReport)> {
    let path = input.path();
    llama::check_ends(model).with_context(|| path.display().to_string())?;
    let scored = match sub_blocks {
        true => Scored::Halves,
        false => Scored::Blocks,
    };
    let known = Known::look(input, options, printing, scored)?;
    // Pairs of positions are not kept.
    if pairs.is_none()
        && let Some((entry, report)) = known.as_ref().and_then(Known::found)
        && let Some(importance) = entry.blocks(model.n_trunk_blocks())
    {
        warn_of_zero_rows(&importance, printing);
        return Ok((importance, report));
    }
    let halves = match sub_blocks {
        true => Some(
            Halves::of(model, constraints.rules, &constraints.kinds)
                .with_context(|| path.display().to_string())?,
        ),
        false => None,
    };
    let (engine, set) = load_and_cut(input, options, printing, Some(model))?;
    let (importance, seconds) = measure(
        model,
        constraints.rules,
        halves,
        pairs,
        &engine,
        &set,
        options,
        printing,
    )
    .with_context(|| path.display().to_string())?;
    warn_of_zero_rows(&importance, printing);
    let mut report = CalibrationReport::new(&set, seconds);
    if let Some(known) = known {
        report.scored = Some(known.model());
        known.keep(input, &report, |key, path, source, measured| {
            Entry::of_blocks(key, path, source, measured, &importance)
        });
    }
    Ok((importance, report))
}

/// Loads the model of `input`, and cuts the text into windows for it. With `recode` its weights may be [`Recoded`], which
/// scores do not see.
fn load_and_cut(
    input: &Input,
    options: &Calibration,
    printing: &Printing,
    recode: Option<&Model<'_>>,
) -> Result<(ggml::Model, CalibrationSet)> {
    let path = input.path();
    let texts = Texts::read(options.source.clone())?;
    let at_path = || path.display().to_string();
    let backend = Backend::init();
    backend.on_abort(
        format!("gguf-shorten: {}: ", path.display()),
        commit::remove_unfinished,
    );
    ggml::log::echo(printing.verbose);
    let engine = match recode {
        Some(model) => llama::load_for_scores(model, input.for_llama()?, options.gpu_layers),
        None => ggml::Model::load(
            backend,
            input.for_llama()?,
            ModelOptions {
                gpu_layers: options.gpu_layers,
                ..ModelOptions::default()
            },
        )
        .map_err(anyhow::Error::from),
    }
    .with_context(at_path)?;
    ensure!(
        engine.has_tokenizer(),
        anyhow::anyhow!(
            "{}: the model has no tokenizer, so it cannot be calibrated on text",
            path.display()
        )
        .context(Hint(
            "--blocks, and --method sequential or reverse, need no calibration".to_owned()
        ))
    );
    let set = cut(&texts, &engine, options).with_context(at_path)?;
    Ok((engine, set))
}

/// Cuts the text into windows that the model can take.
fn cut(texts: &Texts, engine: &ggml::Model, options: &Calibration) -> Result<CalibrationSet> {
    let mut window = options.window;
    let n_ctx = engine.n_ctx_train();
    if window > n_ctx && n_ctx > 0 {
        ensure!(
            options.window_is_default,
            "a window of {window} tokens is longer than the model's context of {n_ctx}"
        );
        window = n_ctx;
    }
    CalibrationSet::new(
        texts,
        Cut {
            window,
            tokens: options.tokens,
            bos: engine.bos(),
        },
        &|text| Ok(engine.tokenize(text)?),
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "one caller, which has them all apart"
)]
fn measure(
    model: &Model<'_>,
    rules: &Architecture,
    halves: Option<Halves>,
    pairs: Option<&mut Pairs>,
    engine: &ggml::Model,
    set: &CalibrationSet,
    options: &Calibration,
    printing: &Printing,
) -> Result<(Importance, f64)> {
    let mut states = LlamaHiddenStates::new(
        engine,
        ContextOptions {
            window: set.window,
            threads: options.threads,
        },
        rules.stream,
        Course::of(model, rules.stream)?,
    )?
    .with_halves(halves);
    let bar = progress::bar(
        "calibrating",
        Unit::Tokens,
        set.n_tokens() as u64,
        printing.quiet,
    );
    let start = Instant::now();
    let mut progress = |n_tokens| bar.inc(n_tokens as u64);
    let importance = match pairs {
        None => Importance::measure(&mut states, set.windows(), &mut progress),
        Some(pairs) => {
            let mut states = Paired::new(&mut states, pairs);
            Importance::measure(&mut states, set.windows(), &mut progress)
        }
    };
    bar.finish_and_clear();
    Ok((importance?, start.elapsed().as_secs_f64()))
}

fn warn_of_zero_rows(importance: &Importance, printing: &Printing) {
    let rows: u64 = importance
        .blocks
        .iter()
        .map(|block| block.n_zero_rows)
        .sum();
    if rows > 0 && !printing.quiet {
        eprintln!(
            "gguf-shorten: note: {rows} hidden states of a token are all zeros and take no part in the scores"
        );
    }
}

/// Says how a file of Ollama's own layout is read.
fn note_layout(input: &Input, printing: &Printing) {
    if let Some(restated) = input.restated()
        && !printing.quiet
    {
        let left_out = match restated.left_out.len() {
            0 => String::new(),
            n => format!(
                "; {n} tensors of {} are left out: they are not of the text part, which alone llama.cpp reads",
                DecimalBytes(restated.n_bytes_left_out())
            ),
        };
        eprintln!(
            "gguf-shorten: note: {} is in Ollama's own layout '{}' and is read as '{}'{left_out}",
            input.path().display(),
            restated.found,
            restated.stock
        );
    }
}

/// The command line without the program's name, for a result that says how it was made.
fn arguments() -> Vec<String> {
    let arguments = std::env::args_os().skip(1);
    arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// Prints a result: as a table, as JSON, or both.
fn print(report: &Report, printing: &Printing) -> Result<()> {
    if printing.tables() {
        let stdout = std::io::stdout();
        let colour =
            stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        to_stdout(&table::report(report, colour))?;
    }
    print_json(report, printing)
}

/// Checks before any work where `--json` says that the result goes.
fn check_json(printing: &Printing, input: &Input, output: Option<&Path>) -> Result<()> {
    match &printing.json {
        Some(path) if printing.tables() => save::check_text(path, input, output),
        _ => Ok(()),
    }
}

/// Writes a result to where `--json` says, if it says so.
fn print_json(result: &impl serde::Serialize, printing: &Printing) -> Result<()> {
    let Some(path) = &printing.json else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(result)? + "\n";
    if !printing.tables() {
        return to_stdout(&json);
    }
    save::text(path, &json).with_context(|| path.display().to_string())
}

/// Writes to stdout. A closed pipe is no error: who read it has seen enough.
fn to_stdout(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("stdout"),
    }
}
