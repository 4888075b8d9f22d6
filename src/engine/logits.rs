//! [`ScoredLogits`], tasks and speed by llama.cpp.

use crate::engine::hidden_state::Token;
use crate::engine::llama;
use crate::engine::scored::{ScoredLogits, scored};
use crate::model::Model;
use anyhow::{Context, Result, ensure};
use ggml::{Backend, Batch, Decoder, DecoderOptions};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Windows that are evaluated again to measure the speed of prompts.
const SPEED_WINDOWS: usize = 2;

/// Tokens that are generated to measure the speed of decoding.
const SPEED_TOKENS: usize = 48;

/// Checks that `model` predicts each token from those before it alone.
///
/// # Errors
/// A model whose tokens see those after them; one that llama.cpp never ends evaluating.
pub fn check_causal(model: &Model<'_>) -> Result<()> {
    llama::check_ends(model)?;
    let key = format!("{}.attention.causal", model.architecture());
    if let Some(entry) = model.metadata().get(&key) {
        ensure!(
            entry.value().as_bool()?,
            "metadata '{key}' is false: every token sees those after it, so predictions cannot be scored"
        );
    }
    Ok(())
}

/// Checks that a loaded model predicts the next token.
///
/// # Errors
/// A diffusion model.
pub fn check_predicts(engine: &ggml::Model) -> Result<()> {
    ensure!(
        !engine.is_diffusion(),
        "the model fills in masked tokens instead of predicting the next one, so predictions cannot be scored"
    );
    Ok(())
}

/// The first difference between two vocabularies; `None` if there is none.
///
/// Compared are the number of entries, the text, score and attributes of each, and the token that begins every text.
#[must_use]
pub fn vocabulary_difference(model: &ggml::Model, parent: &ggml::Model) -> Option<String> {
    let (n, n_parent) = (model.n_vocab(), parent.n_vocab());
    if n != n_parent {
        return Some(format!("{n} entries, {n_parent} in the parent"));
    }
    let text = |text: &[u8]| format!("'{}'", text.escape_ascii());
    for token in (0..n).filter_map(|token| Token::try_from(token).ok()) {
        let (Some(own), Some(other)) = (model.vocabulary_entry(token), parent.vocabulary_entry(token)) else {
            return Some(format!("entry {token} cannot be read"));
        };
        if own.text != other.text {
            return Some(format!("entry {token} is {}, {} in the parent", text(own.text), text(other.text)));
        }
        if own.score.to_bits() != other.score.to_bits() {
            return Some(format!(
                "entry {token}, {}, has the score {}, {} in the parent",
                text(own.text),
                own.score,
                other.score
            ));
        }
        if own.attributes != other.attributes {
            return Some(format!(
                "entry {token}, {}, has the attributes {:#x}, {:#x} in the parent",
                text(own.text),
                own.attributes,
                other.attributes
            ));
        }
    }
    let bos = |bos: Option<Token>| bos.map_or("no token".to_owned(), |bos| format!("token {bos}"));
    let (own, other) = (model.bos(), parent.bos());
    (own != other).then(|| format!("{} begins every text, {} in the parent", bos(own), bos(other)))
}

/// Evaluates windows with llama.cpp.
pub struct LlamaLogits<'model> {
    decoder: Decoder<'model>,
    path: PathBuf,
    n_vocab: usize,
    window: usize,
}

impl<'model> LlamaLogits<'model> {
    /// Prepares evaluation of windows of at most `window` tokens.
    ///
    /// `model` lies at `path`. Memory for logits is that of half a window.
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn new(model: &'model ggml::Model, path: &Path, window: usize, threads: usize) -> Result<Self> {
        let options =
            DecoderOptions { tokens: window, sequences: 1, outputs: scored(window).len().max(1), threads };
        Ok(Self {
            decoder: Decoder::new(model, options)?,
            path: path.to_owned(),
            n_vocab: model.n_vocab(),
            window,
        })
    }

    /// Evaluates `tokens` from position 0, with the logits after those in `outputs`.
    fn evaluate(&mut self, tokens: &[Token], outputs: impl Fn(usize) -> bool) -> Result<&[f32], ggml::Error> {
        announce(&self.path);
        let mut batch = Batch::default();
        for (position, &token) in tokens.iter().enumerate() {
            batch.push(token, position, &[0], outputs(position));
        }
        self.decoder.clear();
        self.decoder.decode_and_rest(&batch)
    }

    /// Measures the speed of the model with its threads.
    ///
    /// Prompt processing is timed on the first windows, evaluated again with the logits of the last token alone, as a
    /// program that answers a prompt does it. Decoding is timed on tokens that follow the first token of the text, the
    /// likeliest each time.
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn speed<'w>(&mut self, windows: impl Iterator<Item = &'w [Token]>) -> Result<Speed> {
        let windows: Vec<&[Token]> = windows.take(SPEED_WINDOWS).collect();
        let first = windows.first().and_then(|window| window.first());
        let first = *first.context("the text has no window")?;
        let start = Instant::now();
        for window in &windows {
            let last = window.len() - 1;
            self.evaluate(window, |position| position == last)?;
        }
        let prompt = rate(windows.iter().map(|w| w.len()).sum(), start);

        let n_tokens = SPEED_TOKENS.min(self.window - 1);
        let mut token = likeliest(self.evaluate(&[first], |_| true)?);
        let start = Instant::now();
        for position in 1..=n_tokens {
            let mut batch = Batch::default();
            batch.push(token, position, &[0], true);
            token = likeliest(self.decoder.decode(&batch)?);
        }
        let decode = rate(n_tokens, start);
        self.decoder.rest();
        Ok(Speed { prompt, decode })
    }
}

impl ScoredLogits for LlamaLogits<'_> {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn logits(&mut self, window: &[Token]) -> Result<&[f32]> {
        let scored = scored(window.len());
        let logits = self.evaluate(window, |position| scored.contains(&position))?;
        // llama.cpp leaves its buffer unchanged for a model without output head.
        ensure!(
            logits.iter().any(|&logit| logit != 0.0),
            "the model gives no logits, so it predicts nothing"
        );
        Ok(logits)
    }
}

/// How fast a model is, in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Of a prompt, all tokens of a window at once.
    pub prompt: f64,
    /// One token after another.
    pub decode: f64,
}

fn rate(n_tokens: usize, start: Instant) -> f64 {
    n_tokens as f64 / start.elapsed().as_secs_f64()
}

/// The token with the largest logit.
fn likeliest(logits: &[f32]) -> Token {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    // A token id fits: the vocabulary was counted in the same type.
    Token::try_from(best).unwrap_or(0)
}

/// Says on whose account the process ends if llama.cpp gives up.
pub(crate) fn announce(path: &Path) {
    Backend::init().on_abort(&format!("gguf-shorten: {}: ", path.display()));
}
