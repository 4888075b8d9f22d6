//! One file per command: each loads, computes, prints. The only modules, with `llama`, `evaluator`, `input`, `stores`, `temporary`,
//! `cache`, `scratch`, `room`, `commit`, `save`, `beside`, `oracle`, `stamp` and `batch`, that do I/O.

pub mod batch;

mod ablated;

mod candidate;

mod card;

mod choice;

pub mod compare;

pub mod cache;

mod devices;

pub mod eval;

pub mod generate;

mod goal;

mod healed;

mod job;
mod known;

mod measured;

pub(crate) mod ollama;

pub mod report;

mod repairs;

mod resume;

mod runs;

pub mod score;

pub mod shorten;

pub mod show;

mod selection;

mod tasked;

mod trials;

pub mod verify;

mod warnings;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ggml::rpc::Servers;
use ggml::{Backend, ContextOptions, ModelOptions};
use indicatif::DecimalBytes;

use known::Known;

use crate::arch::Architecture;
use crate::cache::{Cache, Entry, OWN_TEXT, Scored};
use crate::cache_folder::Files;
use crate::calibration::{CalibrationSet, Cut, Texts};
use crate::error::Hint;
use crate::hidden_state::{HiddenStates, Token};
use crate::importance::{Importance, Measuring};
use crate::input::Input;
use crate::llama::{self, Course, Halves, LlamaHiddenStates};
use crate::model::Model;
use crate::options::{Calibration, Printing};
use crate::own_text::{self, Order};
use crate::pairs::{Paired, Pairs};
use crate::plan::Constraints;
use crate::progress::{self, Unit};
use crate::report::{CalibrationReport, Report, table};
use crate::save;
use crate::stability::{self, Goal, Stopping};

/// What a calibration gave.
pub(crate) struct Calibrated {
    pub(crate) importance: Importance,
    /// Of the windows that were evaluated.
    report: CalibrationReport,
    /// Tokens that might have been evaluated.
    n_tokens_allowed: usize,
}

/// What is asked of a calibration beside the scores of whole blocks.
#[derive(Default)]
pub(crate) struct Asked<'c> {
    /// The scores of the two halves of each block.
    sub_blocks: bool,
    /// How alike the hidden states of any two positions are, of all windows that are evaluated.
    pairs: Option<&'c mut Pairs>,
    /// What the scores are for: the calibration ends as soon as the rest of the text cannot change what is chosen.
    goal: Option<Goal<'c>>,
}

/// Measures the importance of every block of the model of `input`, and what else is `asked`; scores that were measured before
/// come from the cache.
pub(crate) fn calibrate(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Calibration,
    printing: &Printing,
    asked: Asked<'_>,
) -> Result<Calibrated> {
    let path = input.path();
    llama::check_ends(model).with_context(|| path.display().to_string())?;
    let scored = match asked.sub_blocks {
        true => Scored::Halves,
        false => Scored::Blocks,
    };
    let known = match asked.goal {
        None => Known::look(input, options, printing, scored)?,
        // Of as many windows as this goal needs.
        Some(_) => None,
    };
    // Pairs of positions are not kept.
    if asked.pairs.is_none()
        && let Some((entry, report)) = known.as_ref().and_then(Known::found)
        && let Some(importance) = entry.blocks(model.n_trunk_blocks())
    {
        warnings::of_tokenizer(input, model, printing);
        warn_of_zero_rows(&importance, printing);
        return Ok(Calibrated {
            n_tokens_allowed: importance.n_tokens,
            importance,
            report,
        });
    }
    let halves = match asked.sub_blocks {
        true => Some(
            Halves::of(model, constraints.rules, &constraints.kinds)
                .with_context(|| path.display().to_string())?,
        ),
        false => None,
    };
    let (engine, set) = load_and_cut((input, model), options, printing, true)?;
    let stopping = (asked.goal).map(|goal| Stopping::new(constraints, goal, set.windows().len()));
    let (importance, seconds) = measure(
        model,
        constraints.rules,
        halves,
        asked.pairs,
        &engine,
        &set,
        options,
        printing,
        stopping.as_ref(),
    )
    .with_context(|| path.display().to_string())?;
    warn_of_zero_rows(&importance, printing);
    let mut report = CalibrationReport {
        windows: importance.n_windows,
        tokens: importance.n_tokens,
        ..CalibrationReport::new(&set, seconds)
    };
    if let Some(known) = known {
        report.scored = Some(known.model());
        known.keep(input, &report, |key, path, measured| {
            Entry::of_blocks(key, path, measured, &importance)
        });
    }
    Ok(Calibrated {
        importance,
        report,
        n_tokens_allowed: set.n_tokens(),
    })
}

/// How `options` says that a model is loaded. Servers are reached now.
///
/// # Errors
/// A server that cannot be.
fn model_options(options: &Calibration) -> Result<ModelOptions> {
    let rpc = match options.rpc.is_empty() {
        true => None,
        false => Some(Servers::reach(Backend::init(), &options.rpc)?),
    };
    Ok(ModelOptions {
        gpu_layers: options.gpu_layers,
        rpc,
        ..ModelOptions::default()
    })
}

/// Loads the model of `input`, and cuts the text into windows for it. With `recode` its weights may be [`Recoded`], which
/// scores do not see.
fn load_and_cut(
    (input, model): (&Input, &Model<'_>),
    options: &Calibration,
    printing: &Printing,
    recode: bool,
) -> Result<(ggml::Model, CalibrationSet)> {
    let path = input.path();
    let texts = Texts::read(options.source.clone())?;
    let at_path = || path.display().to_string();
    let backend = Backend::init();
    backend.on_abort(&format!("gguf-shorten: {}: ", path.display()));
    ggml::log::echo(printing.verbose);
    let how = model_options(options)?;
    let engine = match recode {
        true => llama::load_for_scores(model, input.for_llama()?, how),
        false => llama::load(input, how),
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
    warnings::of_tokenizer(input, model, printing);
    let set = cut(&texts, (&engine, input), options, printing).with_context(at_path)?;
    Ok((engine, set))
}

/// Cuts the text into windows that the model can take. A text that the model, which is that of the input, writes itself is
/// written now, or taken from the cache.
fn cut(
    texts: &Texts,
    (engine, input): (&ggml::Model, &Input),
    options: &Calibration,
    printing: &Printing,
) -> Result<CalibrationSet> {
    let mut window = options.window;
    let n_ctx = engine.n_ctx_train();
    if window > n_ctx && n_ctx > 0 {
        ensure!(
            options.window_is_default,
            "a window of {window} tokens is longer than the model's context of {n_ctx}"
        );
        window = n_ctx;
    }
    let own = match texts.source().seed() {
        Some(seed) => {
            let n_windows = texts.n_own_windows(options.tokens / window.max(1), window);
            let order = Order {
                window,
                n_windows,
                seed,
            };
            own_text(engine, input, order, options, printing)?
        }
        None => Vec::new(),
    };
    CalibrationSet::new(
        texts,
        own,
        Cut {
            window,
            tokens: options.tokens,
            bos: engine.bos(),
        },
        &|text| Ok(engine.tokenize(text)?),
    )
}

/// What the model of `input` writes itself: from the cache, or now, and kept there. What it writes rests on the model, the
/// order, and the version of this program and of llama.cpp.
fn own_text(
    engine: &ggml::Model,
    input: &Input,
    order: Order,
    options: &Calibration,
    printing: &Printing,
) -> Result<Vec<Token>> {
    own_text::first_token(engine)?;
    let n_tokens = order.n_windows.saturating_mul(order.window);
    let files = options.cache.then(|| Files::of(OWN_TEXT)).flatten();
    let mut key = blake3::Hasher::new();
    let model = match Cache::of_user(printing.quiet).filter(|_| options.cache) {
        Some(cache) => cache.model_hash(input),
        None => input.blake3(),
    };
    key.update(model.as_bytes());
    for number in [order.seed, order.window as u64, order.n_windows as u64] {
        key.update(&number.to_le_bytes());
    }
    key.update(env!("CARGO_PKG_VERSION").as_bytes());
    key.update(ggml::backend::llama_cpp_version().as_bytes());
    let key = key.finalize();
    let found = files.as_ref().map_or(Ok(None), |files| files.get(&key));
    if let Some(bytes) = found.unwrap_or_else(|error| {
        resume::note(
            printing,
            &format!("a text in the cache is damaged and is written again: {error:#}"),
        );
        None
    }) {
        let (tokens, rest) = bytes.as_chunks::<4>();
        let tokens: Vec<Token> = tokens.iter().copied().map(Token::from_le_bytes).collect();
        let known = |&token: &Token| usize::try_from(token).is_ok_and(|i| i < engine.n_vocab());
        if tokens.len() == n_tokens && rest.is_empty() && tokens.iter().all(known) {
            return Ok(tokens);
        }
    }
    let bar = progress::bar(
        "writing text",
        Unit::Tokens,
        n_tokens as u64,
        printing.quiet,
    );
    let tokens = own_text::write(engine, order, options.threads, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    let tokens = tokens?;
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    if let Some(Err(error)) = files.map(|files| files.put(&key, &bytes)) {
        resume::note(
            printing,
            &format!("the model's own text is not kept for the next time: {error:#}"),
        );
    }
    Ok(tokens)
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
    stopping: Option<&Stopping<'_>>,
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
    let mut paired;
    let states: &mut dyn HiddenStates = match pairs {
        None => &mut states,
        Some(pairs) => {
            paired = Paired::new(&mut states, pairs);
            &mut paired
        }
    };
    let importance = match stopping {
        None => Importance::measure(states, set.windows(), &mut |n_tokens| {
            bar.inc(n_tokens as u64);
        }),
        Some(stopping) => measure_until(states, set, &mut |measuring, n_tokens| {
            bar.inc(n_tokens as u64);
            stopping.is_enough(measuring)
        }),
    };
    bar.finish_and_clear();
    Ok((importance?, start.elapsed().as_secs_f64()))
}

/// Evaluates windows in random order until `is_enough`, which is told of the tokens of each, or there are no more.
fn measure_until(
    states: &mut dyn HiddenStates,
    set: &CalibrationSet,
    is_enough: &mut dyn FnMut(&Measuring, usize) -> bool,
) -> Result<Importance> {
    let windows: Vec<&[Token]> = set.windows().collect();
    let mut measuring = Measuring::new(states.n_blocks());
    for number in stability::order::order(windows.len(), set.blake3) {
        measuring.window(states, number, windows[number])?;
        if is_enough(&measuring, windows[number].len()) {
            break;
        }
    }
    measuring.importance()
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

/// Says that the file of `input` counts prediction blocks that are none, if it does.
fn note_counts(model: &Model<'_>, input: &Input, printing: &Printing) {
    if let Some(counts) = llama::note_counts(model) {
        resume::note(printing, &format!("{}: {counts}", input.path().display()));
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
