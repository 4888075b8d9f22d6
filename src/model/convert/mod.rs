//! Ollama's own files under the names that stock llama.cpp reads. Pure: no I/O.
//!
//! Models that Ollama converted for its own engine have architectures and keys of its own. They hold text, vision tower and
//! projector in one file. They are refused by llama.cpp, which does not know the architecture, misses a key, or finds more
//! tensors than it asked for. For those in `convert::rules` the text part is brought to stock names. Entries are renamed or
//! added, tensors renamed or left out, and no byte of a tensor that stays is touched. What cannot be done that way is refused
//! by name.
//!
//! `v.blk.0.` and the like number the blocks of a vision tower and never those of the model; they go as a whole.

mod rules;

mod draft;

use anyhow::{Context, Result};

use crate::gguf::{self, EntryOut, File, Layout, TensorOut};
use draft::Draft;
use rules::{RULES, Refusal, Rule, Sign};

/// What can be done about a layout that is refused.
pub const REMEDY: &str = "a GGUF of the same model that llama.cpp's convert_hf_to_gguf.py made, such as those on Hugging Face, can be \
                          shortened";

/// What a file is to llama.cpp.
pub enum Reading {
    /// As llama.cpp reads it, as far as is known here.
    Stock,
    /// A layout of Ollama's whose text part llama.cpp reads under other names.
    Converted(Converted),
    /// A layout of Ollama's that cannot be read so, with the reason.
    Refused(String),
}

/// The head under which llama.cpp reads the text part of a file.
pub struct Converted {
    /// `general.architecture` of the file.
    pub found: &'static str,
    /// `general.architecture` under which it is read.
    pub stock: &'static str,
    /// The tensors that are left out: names and bytes.
    pub left_out: Vec<(String, u64)>,
    head: Vec<u8>,
    sources: Vec<usize>,
}

/// Looks at what a file is.
///
/// # Errors
/// A file of Ollama's that is malformed: a value of the wrong type, or a name that would stand for two tensors.
pub fn read(file: &File<'_>) -> Result<Reading> {
    let Some(rule) = rule_of(file) else {
        return Ok(Reading::Stock);
    };
    if let Some(why) = refusal(rule, file)? {
        return Ok(Reading::Refused(format!(
            "is in Ollama's own layout '{}', which stock llama.cpp does not read: {why}",
            rule.found
        )));
    }
    let converted = convert(rule, file);
    let converted = converted.with_context(|| format!("as Ollama's layout '{}'", rule.found))?;
    Ok(Reading::Converted(converted))
}

impl Converted {
    /// The file under the new head.
    ///
    /// # Errors
    /// A bug.
    pub fn apply<'a>(&'a self, file: &File<'a>) -> Result<File<'a>> {
        Ok(file.under_head(&self.head, &self.sources)?)
    }

    /// Bytes of the tensors that are left out.
    #[must_use]
    pub fn n_bytes_left_out(&self) -> u64 {
        self.left_out.iter().map(|(_, n_bytes)| n_bytes).sum()
    }

    /// Why a tensor is left out.
    pub const WHY_LEFT_OUT: &'static str = "not of the text part, which alone llama.cpp reads";
}

fn rule_of(file: &File<'_>) -> Option<&'static Rule> {
    let architecture = file.metadata().get("general.architecture")?;
    let architecture = architecture.value().as_str().ok()?;
    RULES.iter().find(|rule| rule.found == architecture && shows(rule, file))
}

/// Whether a file is of that layout.
fn shows(rule: &Rule, file: &File<'_>) -> bool {
    let has_key = |key: &&str| file.metadata().get(&rules::key(rule.found, key)).is_some();
    let mut names = file.tensors().iter().map(|tensor| tensor.name());
    rule.signs.is_empty()
        || rule.signs.iter().any(|sign| match sign {
            Sign::Key(key) => has_key(key),
            Sign::NoKey(key) => !has_key(key),
            Sign::Tensors(prefix) => names.clone().any(|name| name.starts_with(prefix)),
            Sign::InBlock(rest) => names.any(|name| draft::rest_of(name) == Some(rest)),
            Sign::NormNamedAsOthers => {
                let has = |name| file.tensors().get(name).is_some();
                has("output_norm.weight") && !has("token_embd_norm.weight")
            }
            Sign::OtherVocabularies => {
                let rows = |name| Some(file.tensors().get(name)?.dims()[1]);
                let (main, per_layer) = (rows("token_embd.weight"), rows("per_layer_token_embd.weight"));
                main.is_some() && per_layer.is_some() && main != per_layer
            }
            Sign::Positive(key) => {
                let entry = file.metadata().get(&rules::key(rule.found, key));
                entry.is_some_and(|entry| entry.value().as_u64().is_ok_and(|n| n > 0))
            }
            Sign::TextIs(key, text) => {
                let entry = file.metadata().get(&rules::key(rule.found, key));
                entry.is_some_and(|entry| entry.value().as_str().is_ok_and(|found| found == *text))
            }
        })
}

/// Why a file of that layout cannot be brought to stock names.
fn refusal(rule: &Rule, file: &File<'_>) -> Result<Option<&'static str>> {
    for refusal in rule.refused {
        let why = match refusal {
            Refusal::Always(why) => Some(why),
            Refusal::InBlock(prefix, why) => {
                let is_such = |tensor: &gguf::TensorInfo<'_>| {
                    draft::rest_of(tensor.name()).is_some_and(|rest| rest.starts_with(prefix))
                };
                file.tensors().iter().any(is_such).then_some(why)
            }
            Refusal::Key(key, why) => {
                let key = rules::key(rule.found, key);
                file.metadata().get(&key).is_some().then_some(why)
            }
            Refusal::False(key, why) => match file.metadata().get(&rules::key(rule.found, key)) {
                Some(entry) => (!entry.value().as_bool()?).then_some(why),
                None => None,
            },
        };
        if let Some(why) = why {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

fn convert(rule: &'static Rule, file: &File<'_>) -> Result<Converted> {
    let mut draft = Draft::new(rule, file);
    for step in rule.steps {
        draft.take(*step)?;
    }
    let left_out = draft.left_out();
    let tensors = draft.tensors();
    let entries = draft.entries()?;
    let sources = tensors.iter().map(|(source, _)| *source).collect();
    let tensors = tensors.into_iter().map(|(_, tensor)| tensor).collect();
    let head = Layout::new(file.header().version, file.alignment(), entries, tensors, true)?;
    let mut bytes = Vec::new();
    gguf::write_head(&head, &mut bytes)?;
    Ok(Converted { found: rule.found, stock: rule.stock, left_out, head: bytes, sources })
}

/// The layout of a file with the entries and tensors of `file`. They are as they were, without gaps.
///
/// # Errors
/// Positions that do not fit.
pub fn layout_of<'a>(file: &File<'a>) -> Result<Layout<'a>> {
    Ok(Layout::mappable(
        file.header().version,
        file.alignment(),
        file.metadata().iter().map(EntryOut::keep).collect(),
        file.tensors().iter().map(TensorOut::keep).collect(),
        true,
    )?)
}
