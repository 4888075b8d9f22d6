//! Record of one model: a line of JSON. It has the main job's result, and what tells whether it has to be done again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::job::Job;
use crate::files::stamp::Stamp;

/// The result of one model. On its line `error` follows the main job's fields, then `batch`.
#[derive(Clone, Debug)]
pub struct Record {
    /// The main job's result. Of a failed model with null for what is not known.
    result: Map<String, Value>,
    /// How it came about.
    pub run: Run,
}

/// How far a model got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its output is complete.
    Done,
    /// There is a reason why not.
    Failed,
    /// Its run was stopped, or ended without a word.
    Unfinished,
}

/// A file as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Where it is. Of an input as it was given, of an output in the folder of outputs. A name that is not UTF-8 is written with
    /// replacement characters.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What the system knows of it.
    #[serde(flatten)]
    pub stamp: Stamp,
}

/// How a result came about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// How far it got.
    pub state: State,
    /// The output: its name in the folder of results, or its path. A results file has one line for each.
    pub output: String,
    /// The flags, as they were given.
    pub flags: Vec<String>,
    /// Hash of the flags that count, and of files they name.
    pub flags_blake3: String,
    /// The input's files.
    pub input: Vec<Seen>,
    /// When the input was read, in nanoseconds since 1970.
    pub input_read_ns: i64,
    /// The output's files: one, or all parts.
    pub outputs: Vec<Seen>,
    /// The file that was written with the output: an importance matrix.
    pub beside: Vec<Seen>,
    /// Hash of the output's bytes, part after part.
    pub outputs_blake3: Option<String>,
    /// Whether the output's place was free when the model began. What may be replaced does not count.
    pub place_free: bool,
    /// When the output was complete, in nanoseconds since 1970.
    pub outputs_read_ns: i64,
    /// The task, such as `2/4`.
    pub task: Option<String>,
    /// Time of the model's process from start to end.
    pub seconds: Option<f64>,
    /// A remedy for the error.
    pub hint: Option<String>,
    /// The last lines of a process that failed.
    pub last_words: Vec<String>,
}

impl Record {
    /// Reads a line.
    ///
    /// # Errors
    /// Something that is no result, with what is expected.
    pub fn parse(line: &str) -> Result<Self> {
        let value: Map<String, Value> = serde_json::from_str(line).ok().context("is no JSON object")?;
        let mut result = value;
        let run = result.shift_remove("batch").context("is no result of a batch: it has no 'batch'")?;
        let run = serde_json::from_value(run).ok();
        Ok(Self { run: run.context("is no result of a batch: its 'batch' has other fields")?, result })
    }

    /// Of a model that is done, with the main job's result.
    ///
    /// # Errors
    /// A result that is not the main job's.
    pub fn done(stdout: &[u8], run: Run) -> Result<Self> {
        let mut result: Map<String, Value> =
            serde_json::from_slice(stdout).context("bug: what the process of the model gave is no result")?;
        result.insert("error".to_owned(), Value::Null);
        Ok(Self { result, run })
    }

    /// Of a model that is not done.
    #[must_use]
    pub fn failed(job: &Job, error: &str, run: Run) -> Self {
        let bytes: u64 = run.input.iter().map(|seen| seen.stamp.bytes).sum();
        let result = json!({
            "gguf_shorten": env!("CARGO_PKG_VERSION"),
            "llama_cpp": ggml::backend::llama_cpp_version(),
            "arguments": job.arguments().iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>(),
            "model": {
                "path": job.source.path().display().to_string(),
                "architecture": null,
                "block_count": null,
                "prediction_block_count": null,
                "bytes": (!run.input.is_empty()).then_some(bytes),
                "parameters": null,
                "blake3": null,
                "layout": null,
            },
            "calibration": null,
            "method": null,
            "chosen_by": null,
            "auto": null,
            "search": null,
            "goal": null,
            "heal": null,
            "requantize": null,
            "confidence": null,
            "against": null,
            "ablate": null,
            "blocks": null,
            "removed": null,
            "attention_removed": null,
            "attention_method": null,
            "experts": null,
            "experts_chosen_by": null,
            "experts_auto": null,
            "expert_scores": null,
            "pairs": null,
            "imatrix_out": null,
            "output": null,
            "evaluation": null,
            "error": error,
        });
        let result = match result {
            Value::Object(result) => result,
            _ => Map::new(),
        };
        Self { result, run }
    }

    /// The line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        let mut all = self.result.clone();
        let run = serde_json::to_value(&self.run).unwrap_or(Value::Null);
        all.insert("batch".to_owned(), run);
        Value::Object(all).to_string()
    }

    /// Why the model is not done.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.result.get("error")?.as_str()
    }

    /// A field of the main job's result, by its path of names.
    #[must_use]
    pub fn field(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let value = self.result.get(*first)?;
        rest.iter().try_fold(value, |value, name| value.get(name))
    }

    /// Text of the main job's result.
    #[must_use]
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.field(path)?.as_str()
    }

    /// Whether this version with this llama.cpp made it.
    #[must_use]
    pub fn is_of_this_version(&self) -> bool {
        self.text(&["gguf_shorten"]) == Some(env!("CARGO_PKG_VERSION"))
            && self.text(&["llama_cpp"]) == Some(ggml::backend::llama_cpp_version())
    }
}

impl Run {
    /// Of a job that begins, with its files as they are now.
    #[must_use]
    pub fn begins(job: &Job, output: String, flags_blake3: String, task: Option<String>) -> Self {
        let words = job.flags.arguments();
        Self {
            state: State::Unfinished,
            output,
            flags: words.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
            flags_blake3,
            input: seen(job.source.files.iter().map(PathBuf::as_path), None),
            input_read_ns: crate::files::stamp::now_ns(),
            outputs: Vec::new(),
            beside: Vec::new(),
            outputs_blake3: None,
            place_free: false,
            outputs_read_ns: 0,
            task,
            seconds: None,
            hint: None,
            last_words: Vec::new(),
        }
    }
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Those of `paths` that are there, as they are now. Those in `folder` are called by their names.
pub fn seen<'p>(paths: impl Iterator<Item = &'p Path>, folder: Option<&Path>) -> Vec<Seen> {
    let seen = paths.filter_map(|path| {
        let name = path.file_name().map(PathBuf::from);
        let called = match (folder, name) {
            (Some(folder), Some(name)) if path.parent() == Some(folder) => name,
            (Some(_), _) => path.canonicalize().ok()?,
            _ => path.to_owned(),
        };
        Some(Seen { path: called, stamp: Stamp::at(path).ok()? })
    });
    seen.collect()
}
