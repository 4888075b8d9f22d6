//! Saved results, read back: what the commands wrote with `--json`, and the lines of a batch.
//!
//! A file holds one JSON object after another, over many lines or one a line, of any commands in any order. Fields that are
//! not known here are left alone, so that results of a newer release can be shown too. Pure: from text to values.

mod fields;

mod read;

pub use read::{MAX_FILE_BYTES, Read, read};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use fields::Fields;

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub enum Saved {
    /// Of `score` or the main job.
    Scored(Box<Scored>),
    /// Of `eval`.
    Evaluated(Box<Evaluated>),
    /// Of `compare`.
    Compared(Box<Compared>),
    /// Of `verify`.
    Verified(Box<Verified>),
    /// Of a model of a batch that failed.
    Failed(Failed),
}

/// What a result was made with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// Version of this program.
    pub version: Option<String>,
    /// Version of its llama.cpp.
    pub llama_cpp: Option<String>,
    /// The command line without the program's name. Empty where it was not saved.
    pub arguments: Vec<String>,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SavedModel {
    /// Where it was.
    pub path: Option<String>,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Blocks.
    pub n_blocks: Option<usize>,
    /// Bytes of all files.
    pub bytes: Option<u64>,
    /// Weights.
    pub parameters: Option<u64>,
    /// Hash of all bytes.
    pub blake3: Option<String>,
}

/// A text that was evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    /// `built-in`, or the files.
    pub source: Option<String>,
    /// Hash of the text.
    pub blake3: Option<String>,
    /// Tokens of a window.
    pub window: Option<u64>,
    /// Tokens of all windows.
    pub tokens: Option<u64>,
}

/// The score of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Block Influence.
    pub bi: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
}

/// Scores of the experts of some blocks, by the blocks' numbers.
pub type ExpertRows = Vec<(usize, Vec<Option<f64>>)>;

/// A result of `score` or the main job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// What it was made with.
    pub made: Made,
    /// The input.
    pub model: SavedModel,
    /// How it was measured.
    pub text: Option<Text>,
    /// How blocks were chosen.
    pub method: Option<String>,
    /// Of each block, where it was measured.
    pub scores: Vec<Option<Score>>,
    /// The blocks that go.
    pub removed: Vec<usize>,
    /// The blocks that lose their attention.
    pub attention_removed: Vec<usize>,
    /// The cosine of any two positions of the stream. Empty if it was not measured.
    pub cosine: Vec<Vec<Option<f64>>>,
    /// Of each block with experts, by its number, their scores (REAP); `None` where one was never chosen.
    pub experts: ExpertRows,
    /// The shortened model; `None` of `score`.
    pub output: Option<SavedModel>,
    /// Perplexity and divergence that a search measured, on the calibration text.
    pub search: Option<Quality>,
    /// What was measured of the output against the input.
    pub evaluation: Option<Box<Evaluated>>,
    /// The types of a fit.
    pub fit: Option<SavedFit>,
    /// What else the result says of how it came about: a name and some words.
    pub remarks: Vec<(&'static str, String)>,
}

/// The types of a fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SavedFit {
    /// Of each block what became of it, and its bits per weight.
    pub blocks: Vec<(String, f64)>,
    /// Megabytes, and the least sum of losses.
    pub curve: Vec<(f64, f64)>,
    /// Megabytes and divergence of the choice, as measured.
    pub chosen: Option<(f64, f64)>,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Perplexity.
    pub perplexity: Option<f64>,
    /// Its standard error.
    pub perplexity_stderr: Option<f64>,
    /// The parent's perplexity.
    pub parent_perplexity: Option<f64>,
    /// Its standard error.
    pub parent_perplexity_stderr: Option<f64>,
    /// Mean divergence from the parent, in nats.
    pub kl: Option<f64>,
    /// Its standard error.
    pub kl_stderr: Option<f64>,
    /// Share of tokens with the parent's likeliest successor.
    pub same_top: Option<f64>,
    /// Tokens per second of a prompt.
    pub prompt: Option<f64>,
    /// Tokens per second, one after another.
    pub decode: Option<f64>,
    /// The same two of the parent.
    pub parent_speed: (Option<f64>, Option<f64>),
}

/// A result of `eval`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// What it was made with.
    pub made: Made,
    /// The model.
    pub model: SavedModel,
    /// What it was compared with.
    pub parent: Option<SavedModel>,
    /// What was scored.
    pub text: Text,
    /// What was found.
    pub quality: Quality,
    /// Tasks by name, with accuracy and its standard error.
    pub tasks: Vec<(&'static str, f64, Option<f64>)>,
}

/// What a row of `compare` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The parent itself.
    Parent,
    /// The parent without some blocks.
    Shortened,
    /// The parent without some experts of each block.
    FewerExperts,
    /// The parent in other types of tensors.
    Requantized,
    /// Another file.
    File,
}

/// A result of `compare`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// What it was made with.
    pub made: Made,
    /// The model that all are compared with.
    pub parent: SavedModel,
    /// What was scored.
    pub text: Text,
    /// The files.
    pub rows: Vec<Row>,
    /// What it comes to, in words.
    pub verdict: Option<String>,
}

/// A row of `compare`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its bytes, blocks and weights.
    pub model: SavedModel,
    /// The blocks that it lacks.
    pub removed: Vec<usize>,
    /// What was found.
    pub quality: Quality,
    /// Why nothing was found.
    pub error: Option<String>,
}

/// A result of `verify`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// What it was made with.
    pub made: Made,
    /// Whether nothing differs.
    pub verified: bool,
    /// Whether logits were compared too.
    pub was_run: bool,
    /// The shortened model.
    pub output: SavedModel,
    /// Its parent.
    pub parent: SavedModel,
}

/// A model that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub path: Option<String>,
    /// Why.
    pub error: String,
}

impl Saved {
    /// Reads one result.
    ///
    /// # Errors
    /// A value that is no result, or a field of it that is not what it should be.
    pub fn new(value: &Value) -> Result<Self> {
        let result = Fields::of(value)?;
        let is_failure = result.value("error").is_some_and(Value::is_string);
        if is_failure {
            return Ok(Self::Failed(failed(&result)?));
        }
        if result.has("rows") {
            return Ok(Self::Compared(Box::new(compared(&result)?)));
        }
        if result.has("verified") {
            return Ok(Self::Verified(Box::new(verified(&result)?)));
        }
        if result.has("perplexity") {
            return Ok(Self::Evaluated(Box::new(evaluated(&result)?)));
        }
        if result.has("blocks") && result.has("model") {
            return Ok(Self::Scored(Box::new(scored(&result)?)));
        }
        bail!(
            "is no result of gguf-shorten: it has neither 'blocks', 'perplexity', 'rows', 'verified' nor 'error'"
        )
    }

    /// What it was made with.
    #[must_use]
    pub fn made(&self) -> Option<&Made> {
        match self {
            Self::Scored(result) => Some(&result.made),
            Self::Evaluated(result) => Some(&result.made),
            Self::Compared(result) => Some(&result.made),
            Self::Verified(result) => Some(&result.made),
            Self::Failed(_) => None,
        }
    }
}

fn made(result: &Fields<'_>) -> Result<Made> {
    Ok(Made {
        version: result.text("gguf_shorten")?,
        llama_cpp: result.text("llama_cpp")?,
        arguments: result.texts("arguments")?,
    })
}

fn model(fields: &Fields<'_>) -> Result<SavedModel> {
    Ok(SavedModel {
        path: fields.text("path")?,
        architecture: fields.text("architecture")?,
        n_blocks: fields.n_blocks("block_count")?,
        bytes: fields.count("bytes")?,
        parameters: fields.count("parameters")?,
        blake3: fields.text("blake3")?,
    })
}

fn model_of(result: &Fields<'_>, key: &str) -> Result<Option<SavedModel>> {
    result.object(key)?.as_ref().map(model).transpose()
}

fn text_of(result: &Fields<'_>, key: &str) -> Result<Option<Text>> {
    let text = |text: Fields<'_>| {
        Ok(Text {
            source: text.text("source")?,
            blake3: text.text("blake3")?,
            window: text.count("window")?,
            tokens: text.count("tokens")?,
        })
    };
    result.object(key)?.map(text).transpose()
}

fn scored(result: &Fields<'_>) -> Result<Scored> {
    let model = model_of(result, "model")?.unwrap_or_default();
    let mut scores = Vec::new();
    for (i, block) in result.objects("blocks")?.iter().enumerate() {
        let number = block.n_blocks("block")?.unwrap_or(i);
        ensure!(
            number == i && i < crate::model::MAX_BLOCKS,
            "entry {i} of 'blocks' is block {number}, expected every block in order"
        );
        let stderr = block.number("bi_stderr")?;
        let bi = block.number("bi")?;
        scores.push(bi.map(|bi| Score { bi, stderr }));
    }
    let n_blocks = model.n_blocks.unwrap_or(scores.len());
    let of_model = |key: &str| -> Result<Vec<usize>> {
        let blocks = result.blocks(key)?;
        if let Some(block) = blocks.iter().find(|&&block| block >= n_blocks) {
            bail!("'{key}' has block {block}, but the model has {n_blocks} blocks");
        }
        Ok(blocks)
    };
    let mut remarks = Vec::new();
    for key in ["goal", "heal", "confidence", "portability", "draft"] {
        remarks.extend(result.words(key).map(|words| (key, words)));
    }
    if let Some(experts) = result.object("experts")?
        && let (Some(kept), Some(all)) = (experts.count("kept_count")?, experts.count("count")?)
    {
        let by = experts.text("method")?.map_or(String::new(), |method| format!(" (by {method})"));
        remarks.push(("experts", format!("{kept} of {all} stay in each block{by}")));
    }
    let search = result.object("search")?;
    if let Some(search) = &search {
        let objective = search.text("objective")?;
        remarks.extend(objective.map(|objective| ("search", format!("objective: {objective}"))));
    }
    let pairs = result.object("pairs")?;
    let cosine = pairs.map(|pairs| pairs.square("cosine")).transpose()?;
    let evaluation = result.object("evaluation")?.as_ref().map(evaluated);
    Ok(Scored {
        made: made(result)?,
        text: text_of(result, "calibration")?,
        method: result.text("method")?,
        scores,
        removed: of_model("removed")?,
        attention_removed: of_model("attention_removed")?,
        cosine: cosine.unwrap_or_default(),
        experts: experts_of(result)?,
        output: model_of(result, "output")?,
        fit: result.object("fit")?.as_ref().map(fit_of).transpose()?,
        search: search.as_ref().map(quality).transpose()?,
        evaluation: evaluation.transpose()?.map(Box::new),
        remarks,
        model,
    })
}

/// The types of a fit.
fn fit_of(fit: &Fields<'_>) -> Result<SavedFit> {
    let most = crate::model::MAX_BLOCKS;
    let block = |block: &Fields<'_>| {
        Ok((block.text("rung")?.unwrap_or_default(), block.number("bits")?.unwrap_or(0.0).clamp(0.0, 64.0)))
    };
    let point = |bytes: Option<u64>, kl: Option<f64>| {
        let (bytes, kl) = bytes.zip(kl.filter(|kl| kl.is_finite()))?;
        Some((bytes as f64 / 1e6, kl))
    };
    let blocks = fit.objects("blocks")?;
    let curve = fit.objects("curve")?;
    ensure!(blocks.len() <= most && curve.len() <= most, "'fit' has more than {most} blocks or points");
    let on_curve = |of: &Fields<'_>| Ok(point(of.count("bytes")?, of.number("expected_kl")?));
    let points = curve.iter().map(on_curve).collect::<Result<Vec<_>>>()?;
    Ok(SavedFit {
        blocks: blocks.iter().map(block).collect::<Result<_>>()?,
        curve: points.into_iter().flatten().collect(),
        chosen: point(fit.count("bytes")?, fit.number("kl_divergence")?),
    })
}

/// The scores of experts.
fn experts_of(result: &Fields<'_>) -> Result<ExpertRows> {
    let of_expert = |expert: &Fields<'_>| -> Result<Option<f64>> {
        let score = expert.number("reap")?;
        Ok(score.filter(|score| score.is_finite() && expert.count("tokens").ok().flatten() != Some(0)))
    };
    let of_block = |block: &Fields<'_>| -> Result<(usize, Vec<Option<f64>>)> {
        let experts = block.objects("experts")?;
        ensure!(experts.len() <= MAX_EXPERTS, "a block of 'expert_scores' has {} experts", experts.len());
        let number = block.n_blocks("block")?.unwrap_or(0);
        Ok((number, experts.iter().map(of_expert).collect::<Result<_>>()?))
    };
    let blocks = result.objects("expert_scores")?;
    let most = crate::model::MAX_BLOCKS;
    ensure!(blocks.len() <= most, "'expert_scores' has {} blocks, expected {most} at most", blocks.len());
    blocks.iter().map(of_block).collect()
}

/// As many as llama.cpp can count (`llama-hparams.h`).
const MAX_EXPERTS: usize = 1024;

/// Perplexity and the like, as `eval`, `compare` or a search write them.
fn quality(fields: &Fields<'_>) -> Result<Quality> {
    let mut quality = Quality {
        perplexity: fields.number("perplexity")?,
        perplexity_stderr: fields.number("perplexity_stderr")?,
        parent_perplexity: fields.number("parent_perplexity")?,
        parent_perplexity_stderr: fields.number("parent_perplexity_stderr")?,
        same_top: fields.number("same_top")?,
        ..Quality::default()
    };
    // A search gives the mean alone.
    if fields.value("kl_divergence").is_some_and(Value::is_number) {
        quality.kl = fields.number("kl_divergence")?;
    } else if let Some(kl) = fields.object("kl_divergence")? {
        quality.kl = kl.number("mean")?;
        quality.kl_stderr = kl.number("mean_stderr")?;
    }
    if let Some(speed) = fields.object("tokens_per_second")? {
        quality.prompt = speed.number("prompt")?;
        quality.decode = speed.number("decode")?;
    }
    if let Some(speed) = fields.object("parent_tokens_per_second")? {
        quality.parent_speed = (speed.number("prompt")?, speed.number("decode")?);
    }
    Ok(quality)
}

fn evaluated(result: &Fields<'_>) -> Result<Evaluated> {
    let mut tasks = Vec::new();
    for (key, name) in [("hellaswag", "HellaSwag"), ("multiple_choice", "multiple choice")] {
        if let Some(task) = result.object(key)?
            && let Some(accuracy) = task.number("accuracy")?
        {
            tasks.push((name, accuracy, task.number("accuracy_stderr")?));
        }
    }
    Ok(Evaluated {
        made: made(result)?,
        model: model_of(result, "model")?.unwrap_or_default(),
        parent: model_of(result, "parent")?,
        text: text_of(result, "calibration")?.unwrap_or_default(),
        quality: quality(result)?,
        tasks,
    })
}

fn compared(result: &Fields<'_>) -> Result<Compared> {
    let mut rows = Vec::new();
    for (i, row) in result.objects("rows")?.iter().enumerate() {
        let kind = row.text("kind")?;
        let model = model(row)?;
        let name = row.text("name")?.or_else(|| model.path.clone());
        rows.push(Row {
            name: name.unwrap_or_else(|| format!("row {i}")),
            kind: match kind.as_deref() {
                Some("parent") => Kind::Parent,
                Some("drop" | "mixed") => Kind::Shortened,
                Some("experts") => Kind::FewerExperts,
                Some("requantize") => Kind::Requantized,
                _ => Kind::File,
            },
            removed: match row.value("removed") {
                Some(Value::Array(_)) => row.blocks("removed")?,
                _ => Vec::new(),
            },
            quality: quality(row)?,
            error: row.text("error")?,
            model,
        });
    }
    Ok(Compared {
        made: made(result)?,
        parent: model_of(result, "parent")?.unwrap_or_default(),
        text: text_of(result, "text")?.unwrap_or_default(),
        rows,
        verdict: result.words("verdict"),
    })
}

fn verified(result: &Fields<'_>) -> Result<Verified> {
    Ok(Verified {
        made: made(result)?,
        verified: result.flag("verified")?.unwrap_or(false),
        was_run: result.has("run"),
        output: model_of(result, "output")?.unwrap_or_default(),
        parent: model_of(result, "parent")?.unwrap_or_default(),
    })
}

fn failed(result: &Fields<'_>) -> Result<Failed> {
    // The model is a path, or has the shape of other results.
    let path = match result.value("model") {
        Some(Value::Object(_)) => model_of(result, "model")?.and_then(|model| model.path),
        _ => result.text("model")?,
    };
    Ok(Failed { path: path.or(result.text("path")?), error: result.text("error")?.unwrap_or_default() })
}
