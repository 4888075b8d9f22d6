//! [`ScoredLogits`], tasks and speed by llama.cpp.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ggml::{Backend, Batch, Decoder, DecoderOptions};
use rayon::prelude::*;

use crate::hidden_state::Token;
use crate::llama;
use crate::model::Model;
use crate::quality::choice::{Accuracy, Sequences, best, mean_log_probability};
use crate::quality::log_softmax::Row;
use crate::quality::{ScoredLogits, scored};
use crate::tasks::Task;

/// Answers of a task are evaluated together, with what they share evaluated once, up to this many tokens; else one by one.
const MAX_TOGETHER: usize = 2048;

/// Windows that are evaluated again to measure the speed of prompts.
const SPEED_WINDOWS: usize = 2;

/// Tokens that are generated to measure the speed of decoding.
const SPEED_TOKENS: usize = 48;

/// Checks that `model` predicts each token from those before it alone.
///
/// # Errors
/// A model whose tokens see those behind them; one that llama.cpp never ends evaluating.
pub fn check_causal(model: &Model<'_>) -> Result<()> {
    llama::check_ends(model)?;
    let key = format!("{}.attention.causal", model.architecture());
    if let Some(entry) = model.metadata().get(&key) {
        ensure!(
            entry.value().as_bool()?,
            "metadata '{key}' is false: every token sees those behind it, so predictions cannot be scored"
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

/// The first difference between the vocabularies of two models; `None` if there is none.
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
        let (Some(own), Some(other)) = (
            model.vocabulary_entry(token),
            parent.vocabulary_entry(token),
        ) else {
            return Some(format!("entry {token} cannot be read"));
        };
        if own.text != other.text {
            return Some(format!(
                "entry {token} is {}, {} in the parent",
                text(own.text),
                text(other.text)
            ));
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
    (own != other).then(|| {
        format!(
            "{} begins every text, {} in the parent",
            bos(own),
            bos(other)
        )
    })
}

/// Evaluates windows with llama.cpp.
pub struct LlamaLogits<'model> {
    decoder: Decoder<'model>,
    path: PathBuf,
    n_vocab: usize,
    window: usize,
}

impl<'model> LlamaLogits<'model> {
    /// Prepares evaluation of windows of at most `window` tokens with `model`, which lies at `path`, on `threads` CPU
    /// threads. Memory for logits is that of half a window.
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn new(
        model: &'model ggml::Model,
        path: &Path,
        window: usize,
        threads: usize,
    ) -> Result<Self> {
        let options = DecoderOptions {
            tokens: window,
            sequences: 1,
            outputs: scored(window).len().max(1),
            threads,
        };
        Ok(Self {
            decoder: Decoder::new(model, options)?,
            path: path.to_owned(),
            n_vocab: model.n_vocab(),
            window,
        })
    }

    /// Evaluates `tokens` from position 0, with the logits behind those in `outputs`.
    fn evaluate(
        &mut self,
        tokens: &[Token],
        outputs: impl Fn(usize) -> bool,
    ) -> Result<&[f32], ggml::Error> {
        announce(&self.path);
        let mut batch = Batch::default();
        for (position, &token) in tokens.iter().enumerate() {
            batch.push(token, position, &[0], outputs(position));
        }
        self.decoder.clear();
        self.decoder.decode_and_rest(&batch)
    }

    /// Measures how fast the model is, with the threads that it was given.
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
        // llama.cpp leaves its buffer as it is for a model without an output head.
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

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
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
fn announce(path: &Path) {
    Backend::init().on_abort(&format!("gguf-shorten: {}: ", path.display()));
}

/// The mean log-probability of each answer of each of `tasks`, of `model`, which lies at `path`; `progress` is called after
/// each task.
///
/// # Errors
/// A task that is longer than the model's context; llama.cpp's; logits that are not finite.
pub fn answer_scores(
    model: &ggml::Model,
    path: &Path,
    tasks: &[Task],
    threads: usize,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Vec<f64>>> {
    announce(path);
    let n_ctx = match model.n_ctx_train() {
        0 => usize::MAX,
        n_ctx => n_ctx,
    };
    let mut sequences = Vec::with_capacity(tasks.len());
    for task in tasks {
        let at_line = || format!("the task at line {}", task.line);
        let tokens = task.texts().map(|text| model.tokenize(&text));
        let tokens: Vec<Vec<Token>> = tokens.collect::<Result<_, _>>().with_context(at_line)?;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        ensure!(
            longest <= n_ctx,
            "{} has {longest} tokens, the model's context {n_ctx}",
            at_line()
        );
        sequences.push(Sequences::new(tokens).with_context(at_line)?);
    }
    let mut answers = Answers::new(model, &sequences, threads)?;
    let mut scores = Vec::with_capacity(tasks.len());
    for (task, sequences) in tasks.iter().zip(&sequences) {
        let found = answers.scores(sequences);
        scores.push(found.with_context(|| format!("the task at line {}", task.line))?);
        progress();
    }
    Ok(scores)
}

/// How many of `tasks` are right by the scores of their answers; `None` for no task.
#[must_use]
pub fn accuracy(tasks: &[Task], scores: &[Vec<f64>]) -> Option<Accuracy> {
    let result =
        |(task, scores): (&Task, &Vec<f64>)| (best(scores) == Some(task.right), scores.len());
    Accuracy::of(&tasks.iter().zip(scores).map(result).collect::<Vec<_>>())
}

/// Scores the answers of one task after the other.
struct Answers<'model> {
    decoder: Decoder<'model>,
    /// A token cannot belong to several sequences of this model.
    recurrent: bool,
    n_vocab: usize,
}

impl<'model> Answers<'model> {
    /// With room for each of `tasks`.
    fn new(model: &'model ggml::Model, tasks: &[Sequences], threads: usize) -> Result<Self> {
        let recurrent = model.is_recurrent();
        let needs = |task: &Sequences| {
            if together(task, recurrent) {
                let n_outputs = task.n_tokens() - task.shared().len() + 1;
                return (task.n_tokens(), task.whole().len(), n_outputs);
            }
            let longest = task.whole().iter().map(Vec::len).max().unwrap_or(1);
            (longest, 1, longest - task.shared().len())
        };
        let most = tasks
            .iter()
            .map(needs)
            .fold((1, 1, 1), |a, b| (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2)));
        let options = DecoderOptions {
            tokens: most.0.max(most.1),
            sequences: most.1,
            outputs: most.2,
            threads,
        };
        Ok(Self {
            decoder: Decoder::new(model, options)?,
            recurrent,
            n_vocab: model.n_vocab(),
        })
    }

    /// The mean log-probability of each answer.
    fn scores(&mut self, task: &Sequences) -> Result<Vec<f64>> {
        if together(task, self.recurrent) {
            return self.scores_together(task);
        }
        let n_shared = task.shared().len();
        let mut scores = Vec::new();
        for (whole, own) in task.whole().iter().zip(task.own()) {
            let mut batch = Batch::default();
            for (position, &token) in whole[..whole.len() - 1].iter().enumerate() {
                batch.push(token, position, &[0], position + 1 >= n_shared);
            }
            let rows = self.rows(&batch)?;
            scores.push(mean_log_probability(&rows[0], &rows[1..], own));
        }
        Ok(scores)
    }

    /// All answers in one batch, what they share only once.
    fn scores_together(&mut self, task: &Sequences) -> Result<Vec<f64>> {
        let n_shared = task.shared().len();
        let all: Vec<usize> = (0..task.whole().len()).collect();
        let mut batch = Batch::default();
        for (position, &token) in task.shared().iter().enumerate() {
            batch.push(token, position, &all, position + 1 == n_shared);
        }
        for (answer, own) in task.own().enumerate() {
            for (i, &token) in own[..own.len() - 1].iter().enumerate() {
                batch.push(token, n_shared + i, &[answer], true);
            }
        }
        let rows = self.rows(&batch)?;
        let (first, mut rest) = (&rows[0], &rows[1..]);
        let mut scores = Vec::new();
        for own in task.own() {
            let (these, others) = rest.split_at(own.len() - 1);
            scores.push(mean_log_probability(first, these, own));
            rest = others;
        }
        Ok(scores)
    }

    /// Evaluates a batch from nothing; a row for each of its outputs.
    fn rows(&mut self, batch: &Batch) -> Result<Vec<Row<'_>>> {
        self.decoder.clear();
        let logits = self.decoder.decode_and_rest(batch)?;
        ensure!(
            logits.iter().any(|&logit| logit != 0.0),
            "the model gives no logits, so it predicts nothing"
        );
        let rows = logits.par_chunks_exact(self.n_vocab);
        rows.map(Row::new).collect()
    }
}

/// Whether all answers of a task are evaluated in one batch.
fn together(task: &Sequences, recurrent: bool) -> bool {
    !recurrent && task.n_tokens() <= MAX_TOGETHER
}
