//! Draft: a head while it is being converted.

use anyhow::{Context, Result, ensure};

use super::rules::{self, Rule, Step};
use crate::gguf::{Entry, EntryOut, File, Quoted, TensorInfo, TensorOut, Value, ValueOut, ValueType};
use crate::model::arch::BLOCK_PREFIX;
use crate::model::block_of;
use crate::model::names::{Fate, Names};

/// The lists that have one entry for each token of the vocabulary.
const VOCABULARY: &[&str] = &["tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"];

/// What an entry will be.
enum Content<'a> {
    Kept(Entry<'a>),
    New(ValueOut),
}

pub(super) struct Draft<'f, 'a> {
    rule: &'static Rule,
    file: &'f File<'a>,
    entries: Vec<(String, Content<'a>)>,
}

/// The part of a tensor's name after `blk.<i>.`. `None` of a tensor of no block.
pub(super) fn rest_of(name: &str) -> Option<&str> {
    block_of(name, BLOCK_PREFIX).map(|(_, rest)| rest)
}

impl<'f, 'a> Draft<'f, 'a> {
    /// The entries of the stock architecture, under stock keys. Those that are left out are not among them.
    pub(super) fn new(rule: &'static Rule, file: &'f File<'a>) -> Self {
        let prefix = format!("{}.", rule.found);
        let mut entries = Vec::new();
        for entry in file.metadata() {
            let Some(name) = entry.key().strip_prefix(&prefix) else {
                entries.push((entry.key().to_owned(), Content::Kept(*entry)));
                continue;
            };
            if rule.keys_left_out.iter().any(|left_out| name.starts_with(left_out)) {
                continue;
            }
            let moved = rule.moved.iter().find(|(from, _)| *from == name);
            let name = moved.map_or(name, |(_, to)| to);
            entries.push((format!("{}.{name}", rule.stock), Content::Kept(*entry)));
        }
        let mut draft = Self { rule, file, entries };
        if rule.stock != rule.found {
            draft.set("general.architecture", ValueOut::string(rule.stock));
        }
        draft
    }

    fn key(&self, name: &str) -> String {
        rules::key(self.rule.stock, name)
    }

    fn content(&self, name: &str) -> Option<&Content<'a>> {
        let key = self.key(name);
        let (_, content) = self.entries.iter().find(|(other, _)| *other == key)?;
        Some(content)
    }

    /// The value of an entry that is the file's own.
    fn kept(&self, name: &str) -> Option<Value<'a>> {
        match self.content(name)? {
            Content::Kept(entry) => Some(entry.value()),
            Content::New(_) => None,
        }
    }

    /// The text of an entry that is the file's own.
    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        Ok(self.kept(name).map(|value| value.as_str()).transpose()?)
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(match self.content(name) {
            None => None,
            Some(Content::Kept(entry)) => Some(entry.value().as_u64()?),
            // Only numbers of this type are made.
            Some(Content::New(value)) => {
                let bytes: Option<[u8; 4]> = value.raw().try_into().ok();
                bytes.map(|bytes| u32::from_le_bytes(bytes).into())
            }
        })
    }

    fn set(&mut self, name: &str, value: ValueOut) {
        let key = self.key(name);
        match self.entries.iter_mut().find(|(other, _)| *other == key) {
            Some((_, content)) => *content = Content::New(value),
            None => self.entries.push((key, Content::New(value))),
        }
    }

    fn add(&mut self, name: &str, value: ValueOut) {
        if self.content(name).is_none() {
            self.set(name, value);
        }
    }

    fn remove(&mut self, name: &str) {
        let key = self.key(name);
        self.entries.retain(|(other, _)| *other != key);
    }

    fn tensor(&self, name: &str) -> Option<&'f TensorInfo<'a>> {
        self.file.tensors().get(name)
    }

    /// The first block tensor with that name after the block's number.
    fn in_a_block(&self, rest: &str) -> Option<&'f TensorInfo<'a>> {
        let mut tensors = self.file.tensors().iter();
        tensors.find(|tensor| rest_of(tensor.name()) == Some(rest))
    }

    /// Makes one change.
    ///
    /// # Errors
    /// A value of the file that is not of the type, or not the one, that the change builds on.
    pub(super) fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::F32(name, value) => self.add(name, ValueOut::f32(value)),
            Step::U32(name, value) => self.add(name, ValueOut::u32(value)),
            Step::Text(name, text) => self.add(name, ValueOut::string(text)),
            Step::SetU32(name, value) => self.set(name, ValueOut::u32(value)),
            Step::SetText(name, text) => self.set(name, ValueOut::string(text)),
            Step::TextUnlessSaid(name, text) => {
                if matches!(self.text(name)?, None | Some("" | "default")) {
                    self.set(name, ValueOut::string(text));
                }
            }
            Step::TextInPlaceOf(name, other, text) => {
                if self.text(name)? == Some(other) {
                    self.set(name, ValueOut::string(text));
                }
            }
            Step::Remove(name) => self.remove(name),
            Step::Width { name, rest, dim } => {
                if self.content(name).is_none() {
                    self.set_width(name, self.in_a_block(rest), dim)?;
                }
            }
            Step::TrueWidth { name, rest, dim } => {
                if let Some(tensor) = self.in_a_block(rest)
                    && self.number(name)? != Some(tensor.dims()[dim])
                {
                    self.set_width(name, Some(tensor), dim)?;
                }
            }
            Step::WidthOf { name, tensor, dim } => self.set_width(name, self.tensor(tensor), dim)?,
            Step::Shares { name, rest, of } => self.shares(name, rest, of)?,
            Step::Sections { from, to } => self.sections(from, to)?,
            Step::SectionsOf128 => self.sections_of_128()?,
            Step::Largest(name) => self.largest(name)?,
            Step::LengthOf { name, list } => self.length_of(name, list)?,
            Step::Vocabulary => self.vocabulary()?,
            Step::EndTokens => self.end_tokens()?,
            Step::LongContext => self.long_context()?,
            Step::AbsorbedLengths => self.absorbed_lengths()?,
        }
        Ok(())
    }

    /// A dimension of `tensor`, if it is there.
    fn set_width(&mut self, name: &str, tensor: Option<&TensorInfo<'_>>, dim: usize) -> Result<()> {
        if let Some(tensor) = tensor {
            self.set(name, ValueOut::u32(u32::try_from(tensor.dims()[dim])?));
        }
        Ok(())
    }

    /// A missing number: dimension 0 of a block's tensor over the number under `of`.
    fn shares(&mut self, name: &str, rest: &str, of: &str) -> Result<()> {
        if self.content(name).is_none()
            && let Some(tensor) = self.in_a_block(rest)
            && let Some(n) = self.number(of)?
            && let Some(shares) = tensor.dims()[0].checked_div(n)
        {
            self.set(name, ValueOut::u32(u32::try_from(shares)?));
        }
        Ok(())
    }

    /// The length of a list of the file.
    fn length_of(&mut self, name: &str, list: &str) -> Result<()> {
        let n = match self.file.metadata().get(&rules::key(self.rule.found, list)) {
            Some(entry) => entry.value().as_array()?.len(),
            None => 0,
        };
        self.add(name, ValueOut::u32(u32::try_from(n)?));
        Ok(())
    }

    /// The scaling by which Gemma 3 reaches its full context.
    fn long_context(&mut self) -> Result<()> {
        let says = |name| self.content(name).is_some();
        let is_long = self.number(".context_length")?.is_some_and(|n_ctx| n_ctx >= 131_072);
        if is_long && !says(".rope.scaling.type") && !says(".rope.scaling.factor") {
            self.set(".rope.scaling.type", ValueOut::string("linear"));
            self.set(".rope.scaling.factor", ValueOut::f32(8.0));
        }
        Ok(())
    }

    /// The sections of rotated dimensions that Qwen3-VL has for heads of 128.
    fn sections_of_128(&mut self) -> Result<()> {
        const SECTIONS: &str = ".rope.dimension_sections";
        const LENGTH: &str = ".attention.key_length";
        if self.content(SECTIONS).is_some() {
            return Ok(());
        }
        let length = self.number(LENGTH)?;
        ensure!(
            length == Some(128),
            "{} is {}, expected 128: how other heads are rotated is not known",
            Quoted(&self.key(LENGTH)),
            length.map_or("missing".to_owned(), |n| n.to_string())
        );
        self.set(SECTIONS, ValueOut::i32s(&[24, 20, 20, 0]));
        Ok(())
    }

    /// Three sections of rotated dimensions, and a fourth that is empty.
    fn sections(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(value) = self.kept(from) else {
            return Ok(());
        };
        let array = value.as_array()?;
        if array.len() != 3 {
            return Ok(());
        }
        let mut sections: Vec<i32> = Vec::new();
        for number in array.i64s() {
            sections.push(i32::try_from(number?)?);
        }
        sections.push(0);
        if from != to {
            self.remove(from);
        }
        self.set(to, ValueOut::i32s(&sections));
        Ok(())
    }

    /// Replaces a list with its one value other than 0.
    fn largest(&mut self, name: &str) -> Result<()> {
        let Some(value) = self.kept(name).filter(|value| value.value_type() == ValueType::Array) else {
            return Ok(());
        };
        let mut largest = 0;
        for number in value.as_array()?.i64s() {
            let number = u32::try_from(number?)?;
            let key = self.key(name);
            ensure!(
                number == 0 || largest == 0 || number == largest,
                "metadata {} has {largest} and {number}, expected 0 or one number for all blocks",
                Quoted(&key)
            );
            largest = largest.max(number);
        }
        if largest > 0 {
            self.set(name, ValueOut::u32(largest));
        }
        Ok(())
    }

    /// Drops the tokens after those with an embedding row.
    fn vocabulary(&mut self) -> Result<()> {
        let Some(rows) = self.tensor("token_embd.weight").map(|tensor| tensor.dims()[1]) else {
            return Ok(());
        };
        let rows = usize::try_from(rows)?;
        for name in VOCABULARY {
            let Some(value) = self.kept(name).filter(|value| value.value_type() == ValueType::Array) else {
                continue;
            };
            let array = value.as_array()?;
            if array.len() > rows {
                self.set(name, array.select(0..rows)?);
            }
        }
        Ok(())
    }

    /// The second and third token at which a text ends. Their names are llama.cpp's.
    fn end_tokens(&mut self) -> Result<()> {
        let Some(value) =
            self.kept("tokenizer.ggml.eos_token_ids").filter(|value| value.value_type() == ValueType::Array)
        else {
            return Ok(());
        };
        let names = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        for (name, id) in names.iter().zip(value.as_array()?.i64s().skip(1)) {
            if let Ok(id) = u32::try_from(id?) {
                self.add(name, ValueOut::u32(id));
            }
        }
        Ok(())
    }

    /// Lengths of keys and values of latent attention, as llama.cpp reads them. Those of the latent state are apart from those
    /// of a head (`deepseek2.cpp`).
    fn absorbed_lengths(&mut self) -> Result<()> {
        let need = |draft: &Self, name: &str| -> Result<u32> {
            let key = draft.key(name);
            let number = draft.number(name)?;
            let number = number.with_context(|| format!("metadata {} is missing", Quoted(&key)))?;
            Ok(u32::try_from(number)?)
        };
        let rank = need(self, ".attention.kv_lora_rank")?;
        let rotated = need(self, ".rope.dimension_count")?;
        let of_head = need(self, ".attention.key_length")?;
        let key_length = rank.checked_add(rotated).context("a key is too long")?;
        self.set(".attention.key_length", ValueOut::u32(key_length));
        self.set(".attention.value_length", ValueOut::u32(rank));
        self.set(".attention.key_length_mla", ValueOut::u32(of_head));
        self.set(".attention.value_length_mla", ValueOut::u32(of_head));
        Ok(())
    }

    fn is_left_out(&self, tensor: &TensorInfo<'_>) -> bool {
        let mut prefixes = self.rule.tensors_left_out.iter();
        prefixes.any(|prefix| tensor.name().starts_with(prefix))
    }

    /// The tensors that are left out: names and bytes.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let tensors = self.file.tensors().iter();
        let tensors = tensors.filter(|tensor| self.is_left_out(tensor));
        tensors.map(|tensor| (tensor.name().to_owned(), tensor.n_bytes())).collect()
    }

    fn new_name(&self, name: &str) -> Option<String> {
        for (from, to) in self.rule.renamed {
            if *from == name {
                return Some((*to).to_owned());
            }
            let Some(rest) = rest_of(name) else {
                continue;
            };
            // What ends in a dot stands for all that begins so.
            let renamed = match from.ends_with('.') {
                true => rest.strip_prefix(from).map(|rest| format!("{to}{rest}")),
                false => (rest == *from).then(|| (*to).to_owned()),
            };
            if let Some(renamed) = renamed {
                let block = &name[..name.len() - rest.len()];
                return Some(format!("{block}{renamed}"));
            }
        }
        None
    }

    /// What becomes of the tensors' names.
    fn names(&self) -> Names<'f> {
        let tensors = self.file.tensors().iter().map(|tensor| {
            let name: &'f str = tensor.name();
            let fate = match self.new_name(name) {
                _ if self.is_left_out(tensor) => Fate::Gone,
                Some(new) => Fate::Renamed(new),
                None => Fate::Same,
            };
            (name, fate)
        });
        Names::new(tensors, None)
    }

    /// The tensors that stay, each with its number in the file.
    pub(super) fn tensors(&self) -> Vec<(usize, TensorOut<'a>)> {
        let tensors = self.file.tensors().iter().enumerate();
        tensors
            .filter(|(_, tensor)| !self.is_left_out(tensor))
            .map(|(i, tensor)| match self.new_name(tensor.name()) {
                Some(name) => (i, TensorOut::rename(tensor, name)),
                None => (i, TensorOut::keep(tensor)),
            })
            .collect()
    }

    /// The entries, which name tensors as they will be.
    ///
    /// # Errors
    /// Two entries that would get one key.
    pub(super) fn entries(self) -> Result<Vec<EntryOut<'a>>> {
        let names = self.names();
        let entries = self.entries.into_iter().map(|(key, content)| match content {
            Content::Kept(entry) if entry.key() == key => EntryOut::keep(&entry),
            Content::Kept(entry) => EntryOut::keep(&entry).renamed(key),
            Content::New(value) => EntryOut::new(key, value),
        });
        // An entry that is not clear names what it did.
        let (entries, _) = names.apply(entries.collect(), true)?;
        Ok(entries)
    }
}
