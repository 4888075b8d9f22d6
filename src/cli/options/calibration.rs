//! Checked settings of the text to calibrate on or to score.

use super::rpc;
use crate::cli::args::{CalibrationArgs, TextArgs};
use crate::engine::conversion::Conversion;
use crate::engine::imatrix;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::engine::settings::default_threads;
use crate::engine::text::{DEFAULT_TOKENS, DEFAULT_WINDOW, Source};
use crate::error::Usage;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

impl Calibration {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for numbers that do not fit together.
    pub fn new(args: &CalibrationArgs) -> Result<Self> {
        if let Some(servers) = &args.machine.rpc {
            rpc::check(servers)?;
        }
        let (own, files) = OwnText::find(&args.calibration)?;
        if own.is_none() && args.amount.seed.is_some() {
            bail!(Usage("--seed needs --calibration self".to_owned()));
        }
        // All that a model writes is used, unless less is asked for. Beside files it is one text of several.
        let written = own.and_then(|own| own.tokens).filter(|_| files.is_empty());
        let asked = match (args.amount.tokens, written) {
            (Some(tokens), Some(written)) => Some(tokens.min(written)),
            (tokens, written) => tokens.or(written),
        };
        // What was not asked for gives way to what was.
        let window = args.window.unwrap_or(DEFAULT_WINDOW.min(asked.unwrap_or(usize::MAX)));
        let tokens = asked.unwrap_or(DEFAULT_TOKENS.max(window));
        if window == 0 || args.machine.threads == Some(0) {
            bail!(Usage("--tokens, --window and --threads are at least 1".to_owned()));
        }
        if tokens < window && (args.amount.tokens.is_some() || written.is_none()) {
            bail!(Usage(format!("--tokens {tokens} is less than one window of {window}")));
        }
        if let Some(own) = own.and_then(|own| own.tokens).filter(|own| *own < window) {
            bail!(Usage(format!("--calibration self of {own} is less than one window of {window}")));
        }
        let seed = args.amount.seed.unwrap_or(0);
        Ok(Self {
            source: match (own, files.is_empty()) {
                (Some(_), true) => Source::Own { seed },
                (Some(own), false) => Source::FilesAndOwn { files, seed, tokens: own.tokens },
                (None, true) => Source::BuiltIn,
                (None, false) => Source::Files(files),
            },
            tokens,
            window,
            window_is_default: args.window.is_none(),
            threads: args.machine.threads.unwrap_or_else(default_threads),
            gpu_layers: args.machine.gpu_layers,
            rpc: args.machine.rpc.clone().unwrap_or_default(),
            cache: !args.no_cache,
            conversion: args.convert,
            memory: args.machine.memory.map(|memory| memory.0),
            scratch: None,
        })
    }
}

/// Checks that an importance matrix, where wanted, can be measured.
pub(crate) fn check_matrix(place: Option<&Path>, text: &Calibration) -> Result<()> {
    if place.is_none() {
        return Ok(());
    }
    if let Some(conversion) = text.conversion.filter(|conversion| *conversion != Conversion::None) {
        bail!(Usage(format!("--imatrix-out evaluates weights as they are, not with --convert {conversion}")));
    }
    imatrix::check_window(text.window).map_err(|error| Usage(format!("--imatrix-out: {error}")).into())
}

/// The text that is scored, and how.
pub(crate) fn scored_text(args: &TextArgs) -> Result<Calibration> {
    let text = Calibration::new(&CalibrationArgs {
        calibration: args.calibration.clone(),
        amount: args.amount.clone(),
        window: args.window,
        machine: args.machine.clone(),
        // What a model writes is kept; there are no scores.
        no_cache: false,
        convert: Some(Conversion::None),
    })?;
    if text.window < MIN_WINDOW {
        bail!(Usage(format!(
            "--window {} leaves no token to score, expected {MIN_WINDOW} or more",
            text.window
        )));
    }
    Ok(text)
}

/// The text that the model is to write: `self` or `self:TOKENS`. A file of that name is `./self`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnText {
    /// How much of it.
    tokens: Option<usize>,
}

impl OwnText {
    /// Among the values of `--calibration`, and the files there.
    fn find(values: &[PathBuf]) -> Result<(Option<Self>, Vec<PathBuf>)> {
        let mut own = None;
        let mut files = Vec::new();
        for value in values {
            match value.to_str().map(Self::parse).transpose().map_err(Usage)? {
                Some(Some(_)) if own.is_some() => {
                    bail!(Usage(
                        "--calibration self is given twice; a file of that name is ./self".to_owned()
                    ))
                }
                Some(Some(found)) => own = Some(found),
                _ => files.push(value.clone()),
            }
        }
        Ok((own, files))
    }

    /// `None` if `text` is the name of a file.
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some(rest) = text.strip_prefix("self") else {
            return Ok(None);
        };
        if rest.is_empty() {
            return Ok(Some(Self { tokens: None }));
        }
        let Some(number) = rest.strip_prefix(':') else {
            return Ok(None);
        };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse() {
            Ok(0) => Err(format!("--calibration {text} is no text")),
            Ok(tokens) if is_number && tokens <= MAX_OWN_TOKENS => Ok(Some(Self { tokens: Some(tokens) })),
            _ if is_number => Err(format!(
                "--calibration {text} is more than a model can write, at most {MAX_OWN_TOKENS} tokens"
            )),
            _ => Err(format!(
                "--calibration {text}: '{number}' is not a number of tokens; a file of that name is ./{text}"
            )),
        }
    }
}

/// More would take weeks, and is a mistake.
const MAX_OWN_TOKENS: usize = 1 << 30;
