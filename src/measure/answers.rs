//! Answers of multiple-choice tasks, scored by llama.cpp.

use crate::engine::hidden_state::Token;
use crate::engine::logits::announce;
use crate::measure::quality::choice::{Accuracy, Sequences, best, mean_log_probability};
use crate::measure::quality::log_softmax::Row;
use crate::measure::tasks::Task;
use anyhow::{Context, Result, ensure};
use ggml::{Batch, Decoder, DecoderOptions};
use rayon::prelude::*;
use std::path::Path;

/// Tokens up to which answers of a task are evaluated together. What they share is evaluated once. Else one by one.
const MAX_TOGETHER: usize = 2048;

/// The mean log-probability by `model` of each answer of `tasks`. `model` lies at `path`. `progress` is called after each
/// task.
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
        ensure!(longest <= n_ctx, "{} has {longest} tokens, the model's context {n_ctx}", at_line());
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

/// How many of `tasks` are right by the scores of their answers. `None` for no task.
#[must_use]
pub fn accuracy(tasks: &[Task], scores: &[Vec<f64>]) -> Option<Accuracy> {
    let result = |(task, scores): (&Task, &Vec<f64>)| (best(scores) == Some(task.right), scores.len());
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
        let most = tasks.iter().map(needs).fold((1, 1, 1), |a, b| (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2)));
        let options =
            DecoderOptions { tokens: most.0.max(most.1), sequences: most.1, outputs: most.2, threads };
        Ok(Self { decoder: Decoder::new(model, options)?, recurrent, n_vocab: model.n_vocab() })
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
