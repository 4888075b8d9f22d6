//! What becomes of metadata that names tensors or blocks. Pure.
//!
//! An entry names a tensor by its whole value, an element of its array, or a run of its key's parts (what dots divide it into),
//! with or without `.weight` or `.bias`; the prefix and number of a block alone name the block:
//!
//! ```text
//! general.tensor_extra.name              [blk.0.ffn_down.weight, blk.4.ffn_down.weight]   elements
//! general.tensor_extra.prec_a4           [true, false]                                    a list that runs beside it
//! comfy.gguf.orig_shape.blk.4.attn_q.weight   [32, 32]                                    a run of the key
//! ```
//!
//! A name follows its tensor: it gets the new number, or goes, with what is said of it. Text in which a name is only one word
//! of several stays as it is, of which a note tells. A vocabulary's tokens are never names.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, anyhow, ensure};

use crate::error::Hint;
use crate::gguf::{Array, EntryOut, MAX_NAME_BYTES, Quoted, Value, ValueOut, ValueType};
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, leading_block};

/// The prefix of every key that this program adds.
pub(crate) const OWN_PREFIX: &str = "gguf_shorten.";

/// Keys of vocabularies and chat templates.
const TOKENIZER: &str = "tokenizer.";

/// Lists directly under `general.` that run beside no other.
const LISTS_ALONE: &[&str] = &["general.tags", "general.languages", "general.datasets"];

/// Endings without which a name stands for the same tensor.
const SUFFIXES: [&str; 2] = [".weight", ".bias"];

/// The longest name that is looked for.
const MAX_BYTES: usize = MAX_NAME_BYTES + SUFFIXES[0].len();

/// The longest key that is looked at; the format allows no longer one.
const MAX_KEY_BYTES: usize = 65_535;

/// What becomes of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays.
    Same,
    /// It becomes another.
    Renamed(String),
    /// What it names is not in the output.
    Gone,
    /// What is said of it may not hold any more, for this reason.
    Unclear(&'static str),
}

/// What becomes of every name of a model.
pub(crate) struct Names<'n> {
    tensors: HashMap<&'n str, Fate>,
    /// By names without their suffix.
    stems: HashMap<&'n str, Fate>,
    /// What the names of blocks begin with, and their new numbers; `None` if blocks keep them.
    blocks: Option<(&'static str, &'n Renumbering)>,
    /// What stands before the blocks' prefix in the names of other towers' tensors.
    towers: BTreeSet<&'n str>,
}

impl<'n> Names<'n> {
    /// Of tensors, each by its name. Blocks have names of their own where they are given with their prefix.
    pub(crate) fn new(
        tensors: impl IntoIterator<Item = (&'n str, Fate)>,
        blocks: Option<(&'static str, &'n Renumbering)>,
    ) -> Self {
        let tensors: HashMap<&str, Fate> = tensors.into_iter().collect();
        let mut stems: HashMap<&str, Fate> = HashMap::new();
        let mut towers = BTreeSet::new();
        for (name, fate) in &tensors {
            let fate = match fate {
                Fate::Renamed(new) => Fate::Renamed(stem(new).0.to_owned()),
                fate => fate.clone(),
            };
            let of_stem = stems.entry(stem(name).0).or_insert_with(|| fate.clone());
            if *of_stem != fate {
                *of_stem = Fate::Unclear("stands for several tensors, to which not the same happens");
            }
            if let Some((prefix, _)) = blocks
                && let Some(at) = name.find(prefix).filter(|&at| at > 0)
            {
                towers.insert(&name[..at]);
            }
        }
        Self { tensors, stems, blocks, towers }
    }

    /// What becomes of a name; `None` of what names nothing.
    fn fate(&self, name: &str) -> Option<Fate> {
        if name.len() > MAX_BYTES {
            return None;
        }
        self.of_tensor(name).or_else(|| {
            let (prefix, renumbering) = self.blocks?;
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            let fate = fate_in_block(name, prefix, renumbering);
            // With a second block in it, it is a text.
            let is_one = name.matches(prefix).count() == 1;
            fate.filter(|_| is_one && name.bytes().all(is_name))
        })
    }

    fn of_tensor(&self, name: &str) -> Option<Fate> {
        if let Some(fate) = self.tensors.get(name) {
            return Some(fate.clone());
        }
        let (stem, suffix) = stem(name);
        // A single word, such as 'output', is not taken for a name.
        let fate = self.stems.get(stem).filter(|_| stem.contains('.'))?;
        Some(match fate {
            Fate::Renamed(new) => Fate::Renamed(format!("{new}{suffix}")),
            fate => fate.clone(),
        })
    }

    /// What becomes of the key, or of the whole entry where it is gone.
    fn of_key(&self, key: &str) -> Fate {
        if key.len() > MAX_KEY_BYTES {
            return Fate::Same;
        }
        if self.has_hidden_block(key) {
            return Fate::Unclear("may be that of a block");
        }
        let mut new = String::new();
        let mut at = 0;
        while at < key.len() {
            let (n_bytes, fate) = self.run(key, at);
            match fate {
                Fate::Same => new.push_str(&key[at..at + n_bytes]),
                Fate::Renamed(name) => new.push_str(&name),
                fate => return fate,
            }
            at += n_bytes;
            if at < key.len() {
                new.push('.');
                at += 1;
            }
        }
        match new == key {
            true => Fate::Same,
            false => Fate::Renamed(new),
        }
    }

    /// Whether a key has a block whose number changes, but not as parts of it: `x/blk.4.y`, `blk.4-5`.
    fn has_hidden_block(&self, key: &str) -> bool {
        let Some((prefix, renumbering)) = self.blocks else {
            return false;
        };
        key.match_indices(prefix).any(|(at, _)| {
            let rest = &key[at + prefix.len()..];
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, rest) = rest.split_at(n_digits);
            let number = digits.parse().unwrap_or(usize::MAX);
            let is_part =
                (at == 0 || key.as_bytes()[at - 1] == b'.') && (rest.is_empty() || rest.starts_with('.'));
            !is_part
                && number < renumbering.n_blocks()
                && renumbering.number(BlockId::new(number)) != Some(number)
        })
    }

    /// The longest name from `at` on, in bytes, and its fate; else the part there.
    fn run(&self, key: &str, at: usize) -> (usize, Fate) {
        let rest = &key[at..];
        if rest.starts_with('.') {
            return (0, Fate::Same);
        }
        let dots = rest.match_indices('.').map(|(dot, _)| dot);
        let ends: Vec<usize> = dots.chain([rest.len()]).take_while(|&end| end <= MAX_BYTES).collect();
        for &end in ends.iter().skip(1).rev() {
            if let Some(fate) = self.of_tensor(&rest[..end]) {
                return (end, fate);
            }
        }
        if let Some((prefix, renumbering)) = self.blocks
            && let Some((_, after)) = leading_block(rest, prefix)
        {
            let n_bytes = rest.len() - after.len();
            let before = |tower: &&str| {
                let rest = key[..at].strip_suffix(*tower);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let fate = match self.towers.iter().any(before) {
                true => None,
                false => fate_in_block(&rest[..n_bytes], prefix, renumbering),
            };
            return (n_bytes, fate.unwrap_or(Fate::Same));
        }
        (rest.find('.').unwrap_or(rest.len()), Fate::Same)
    }

    /// Whether a text speaks of a block that goes or gets another number.
    fn speaks_of_blocks(&self, text: &[u8]) -> bool {
        let Some((prefix, renumbering)) = self.blocks else {
            return false;
        };
        let prefix = prefix.as_bytes();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
        let mut found = text.windows(prefix.len()).enumerate();
        found.any(|(at, window)| {
            let after = &text[at + prefix.len()..];
            let n_digits = after.iter().take_while(|byte| byte.is_ascii_digit());
            let digits = &after[..n_digits.count()];
            window == prefix
                && !digits.is_empty()
                && (at == 0 || !is_word(text[at - 1]))
                && str::from_utf8(digits).is_ok_and(|number| {
                    let number = number.parse().unwrap_or(usize::MAX);
                    let block = BlockId::new(number);
                    number < renumbering.n_blocks() && renumbering.number(block) != Some(number)
                })
        })
    }

    /// The entries with the names that are left, and notes of text that is left as it is.
    ///
    /// # Errors
    /// An entry for which it is not known what would be right, unless it is `trusted`; two that would get one key.
    pub(crate) fn apply<'a>(
        &self,
        entries: Vec<EntryOut<'a>>,
        trusted: bool,
    ) -> Result<(Vec<EntryOut<'a>>, Vec<String>)> {
        let mut notes = Vec::new();
        let mut mentions = Vec::new();
        for entry in &entries {
            mentions.push(self.mention(entry, trusted, &mut notes)?);
        }
        let lists = Lists::of(&entries, &mentions, trusted)?;
        let mut out = Vec::new();
        let mut keys: HashMap<String, String> = HashMap::new();
        for (entry, mention) in entries.into_iter().zip(mentions) {
            let key = match mention.key {
                Fate::Gone => continue,
                Fate::Renamed(key) => key,
                Fate::Same | Fate::Unclear(_) => entry.key().to_owned(),
            };
            if let Some(other) = keys.insert(key.clone(), entry.key().to_owned()) {
                return Err(anyhow!(
                    "metadata {} and {} would both become {}",
                    Quoted(&other),
                    Quoted(entry.key()),
                    Quoted(&key)
                ));
            }
            // A list of names loses its own elements alone.
            let removed = match mention.value {
                Mentioned::Elements(_) => None,
                _ => lists.removed(&entry),
            };
            let value = match (mention.value, removed) {
                (Mentioned::Whole(Fate::Gone), _) => continue,
                (Mentioned::Whole(Fate::Renamed(name)), _) => Some(ValueOut::string(&name)),
                (mentioned, removed) => {
                    let Some(value) = elements(&entry, mentioned, removed)? else {
                        continue;
                    };
                    value
                }
            };
            out.push(match value {
                Some(value) => EntryOut::new(key, value),
                None if key == entry.key() => entry,
                None => entry.renamed(key),
            });
        }
        Ok((out, notes))
    }

    /// Whether an entry names a tensor or a block.
    pub(crate) fn names_any_of(&self, entry: &EntryOut<'_>) -> bool {
        let mention = self.mention(entry, true, &mut Vec::new());
        mention.is_ok_and(|mention| mention.names_any())
    }

    /// What an entry names.
    fn mention(&self, entry: &EntryOut<'_>, trusted: bool, notes: &mut Vec<String>) -> Result<Mention> {
        let key = entry.key();
        let mut mention = Mention { key: Fate::Same, value: Mentioned::Nothing };
        if key.starts_with(OWN_PREFIX) {
            return Ok(mention);
        }
        let refuse = |why: &str| -> Result<()> {
            let error = anyhow!("metadata {} {why}", Quoted(key));
            let hint = "--trust-any-cut keeps it as it is, on your word";
            ensure!(trusted, error.context(Hint(hint.to_owned())));
            Ok(())
        };
        let value = entry.value();
        let is_tokenizer = key.starts_with(TOKENIZER);
        if !is_tokenizer {
            mention.key = self.of_key(key);
        }
        if let Fate::Unclear(why) = mention.key {
            refuse(&format!("has a name in its key that {why}"))?;
        }
        let mut speaks = false;
        match value.value_type() {
            ValueType::String => {
                let text = value.as_bytes()?;
                let name = str::from_utf8(text).ok().filter(|_| !is_tokenizer);
                match name.and_then(|name| self.fate(name)) {
                    Some(Fate::Unclear(why)) => refuse(&format!("has a value that {why}"))?,
                    Some(fate) => mention.value = Mentioned::Whole(fate),
                    None => speaks = self.speaks_of_blocks(text),
                }
            }
            ValueType::Array if !is_tokenizer => {
                let array = value.as_array()?;
                match array.element_type() {
                    ValueType::String => {
                        (mention.value, speaks) = self.elements(array, &refuse)?;
                    }
                    ValueType::Array if self.is_named_in(value) => {
                        refuse("is an array of arrays with names of tensors or blocks")?;
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        if speaks {
            notes.push(format!(
                "metadata {} speaks of blocks by the numbers that they have in the input; it is left as it is",
                Quoted(key)
            ));
        }
        Ok(mention)
    }

    /// What the texts of a list name, and whether one speaks of blocks.
    fn elements(&self, array: Array<'_>, refuse: &dyn Fn(&str) -> Result<()>) -> Result<(Mentioned, bool)> {
        let (mut fates, mut speaks) = (BTreeMap::new(), false);
        for (i, text) in array.byte_strings().enumerate() {
            let text = text?;
            let name = str::from_utf8(text).ok();
            match name.and_then(|name| self.fate(name)) {
                Some(Fate::Unclear(why)) => refuse(&format!("has an element that {why}"))?,
                Some(fate) => {
                    fates.insert(i, fate);
                }
                None => speaks |= self.speaks_of_blocks(text),
            }
        }
        let changes = fates.values().any(|fate| *fate != Fate::Same);
        Ok((if changes { Mentioned::Elements(fates) } else { Mentioned::Nothing }, speaks))
    }

    /// Whether a value in an array of arrays is a name that changes.
    fn is_named_in(&self, value: Value<'_>) -> bool {
        match value.value_type() {
            ValueType::Array => {
                let mut elements = value.as_array().into_iter().flat_map(|a| a.elements());
                elements.any(|element| self.is_named_in(element))
            }
            ValueType::String => {
                let fate = value.as_str().ok().and_then(|name| self.fate(name));
                fate.is_some_and(|fate| fate != Fate::Same)
            }
            _ => false,
        }
    }
}

/// What an entry names, and what becomes of that.
struct Mention {
    key: Fate,
    value: Mentioned,
}

impl Mention {
    /// Whether it is of anything that does not just stay.
    fn names_any(&self) -> bool {
        let by_value = match &self.value {
            Mentioned::Nothing | Mentioned::Whole(Fate::Same) => false,
            Mentioned::Whole(_) | Mentioned::Elements(_) => true,
        };
        by_value || self.key != Fate::Same
    }
}

enum Mentioned {
    Nothing,
    Whole(Fate),
    /// Some elements, by their numbers.
    Elements(BTreeMap<usize, Fate>),
}

/// The name without its suffix, and the suffix.
fn stem(name: &str) -> (&str, &str) {
    let suffix = SUFFIXES.iter().find(|suffix| name.ends_with(*suffix));
    name.split_at(name.len() - suffix.map_or(0, |suffix| suffix.len()))
}

/// What becomes of a name that begins with a block's.
pub(crate) fn fate_in_block(name: &str, prefix: &str, renumbering: &Renumbering) -> Option<Fate> {
    let (block, rest) = leading_block(name, prefix)?;
    (block.index() < renumbering.n_blocks()).then(|| match renumbering.number(block) {
        None => Fate::Gone,
        Some(number) if number == block.index() => Fate::Same,
        Some(number) => Fate::Renamed(format!("{prefix}{number}{rest}")),
    })
}

/// Which elements go from lists that run beside a list of names: of the same length, under keys that differ in the last part.
struct Lists(BTreeMap<(String, usize), BTreeSet<usize>>);

impl Lists {
    fn of(entries: &[EntryOut<'_>], mentions: &[Mention], trusted: bool) -> Result<Self> {
        let mut lists = BTreeMap::new();
        let mut names: BTreeMap<(String, usize), &str> = BTreeMap::new();
        let mut beside = Vec::new();
        for (entry, mention) in entries.iter().zip(mentions) {
            let Some(place) = place(entry) else {
                continue;
            };
            let Mentioned::Elements(fates) = &mention.value else {
                beside.push((place, entry));
                continue;
            };
            let gone = fates.iter().filter(|(_, fate)| **fate == Fate::Gone);
            let gone: BTreeSet<usize> = gone.map(|(i, _)| *i).collect();
            let other = lists.entry(place.clone()).or_insert_with(|| Some(gone.clone()));
            if other.as_ref() != Some(&gone) {
                // Which of the two another list runs beside is not known.
                *other = None;
            }
            names.entry(place).or_insert(entry.key());
        }
        for (place, entry) in beside {
            let (Some(names), false) = (names.get(&place), trusted) else {
                continue;
            };
            let why = match lists.get(&place) {
                Some(Some(_)) if is_value(entry.value().as_array()?.element_type()) => continue,
                Some(None) => "and another list of them, which loses other elements",
                _ => "and whether its elements are of tensors is not known",
            };
            return Err(anyhow!(
                "metadata {} runs beside {}, which names tensors, {why}",
                Quoted(entry.key()),
                Quoted(names)
            )
            .context(Hint(
                "--trust-any-cut takes them for values of those tensors, on your word".to_owned(),
            )));
        }
        let known = lists.into_iter().filter_map(|(place, gone)| Some((place, gone?)));
        Ok(Self(known.collect()))
    }

    /// The elements that go from a list beside names; `None` if all stay.
    fn removed(&self, entry: &EntryOut<'_>) -> Option<&BTreeSet<usize>> {
        let removed = self.0.get(&place(entry)?)?;
        (!removed.is_empty()).then_some(removed)
    }
}

/// By which lists know one another: the key up to its last dot, and the length. `None` of what is no list of the input's, or
/// one that stands alone.
fn place(entry: &EntryOut<'_>) -> Option<(String, usize)> {
    let key = entry.key();
    if !entry.is_kept() || LISTS_ALONE.contains(&key) || key.starts_with(TOKENIZER) {
        return None;
    }
    let array = entry.value().as_array().ok()?;
    let (prefix, _) = key.rsplit_once('.').unwrap_or(("", key));
    Some((prefix.to_owned(), array.len()))
}

/// Whether elements of this type are values of what stands beside them: flags and numbers that count nothing.
fn is_value(value_type: ValueType) -> bool {
    matches!(value_type, ValueType::Bool | ValueType::F32 | ValueType::F64)
}

/// A list with the new names and without the elements that go: `None` if none is left, `Some(None)` if it stays as it is.
#[expect(clippy::option_option, reason = "the list goes, stays, or is another")]
fn elements(
    entry: &EntryOut<'_>,
    mentioned: Mentioned,
    removed: Option<&BTreeSet<usize>>,
) -> Result<Option<Option<ValueOut>>> {
    let fates = match mentioned {
        Mentioned::Elements(fates) => fates,
        _ if removed.is_none() => return Ok(Some(None)),
        _ => BTreeMap::new(),
    };
    let array = entry.value().as_array()?;
    let stays = |i: &usize| {
        let is_gone = fates.get(i) == Some(&Fate::Gone);
        !is_gone && removed.is_none_or(|removed| !removed.contains(i))
    };
    let kept: Vec<usize> = (0..array.len()).filter(stays).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    if array.element_type() != ValueType::String {
        return Ok(Some(Some(array.select(kept)?)));
    }
    let mut strings = Vec::new();
    for (i, text) in array.byte_strings().enumerate() {
        let text = text?;
        if stays(&i) {
            strings.push(match fates.get(&i) {
                Some(Fate::Renamed(name)) => name.as_bytes(),
                _ => text,
            });
        }
    }
    Ok(Some(Some(ValueOut::strings(&strings))))
}
