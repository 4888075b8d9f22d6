//! What becomes of metadata that names tensors or blocks. Pure.
//!
//! An entry names a tensor by its whole value, an element of its array, or a run of its key's parts (what dots divide it into).
//! It does so with or without `.weight` or `.bias`. The prefix and number of a block alone name the block:
//!
//! ```text
//! general.tensor_extra.name              [blk.0.ffn_down.weight, blk.4.ffn_down.weight]   elements
//! general.tensor_extra.prec_a4           [true, false]                                    a list that runs beside it
//! comfy.gguf.orig_shape.blk.4.attn_q.weight   [32, 32]                                    a run of the key
//! ```
//!
//! A name follows its tensor: it gets the new number, or goes, with what is said of it. Text in which a name is only one word
//! of several stays as it is, of which a note tells. A vocabulary's tokens are never names. What may be a block's in other
//! words, or numbers that may be blocks', are refused.

mod fate;
mod foreign;
mod lists;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, anyhow, ensure};

use self::fate::{Mention, Mentioned, SUFFIXES, stem};
use self::foreign::Spoken;
use self::lists::{Lists, TOKENIZER, elements};
use crate::error::Hint;
use crate::gguf::{Array, EntryOut, MAX_NAME_BYTES, Quoted, Value, ValueOut, ValueType};
use crate::model::leading_block;
use crate::model::renumbering::Renumbering;

pub(crate) use self::fate::{Fate, fate_in_block};

/// The prefix of every key that this program adds.
pub(crate) const OWN_PREFIX: &str = "gguf_shorten.";

/// The longest name that is looked for.
const MAX_BYTES: usize = MAX_NAME_BYTES + SUFFIXES[0].len();

/// The longest key that is looked at. The format allows no longer one.
const MAX_KEY_BYTES: usize = 65_535;

/// The reason for a name that may be a block's.
const MAY_BE_BLOCK: &str = "may be that of a block";

/// A key or name, looked at part by part.
#[derive(Clone, Copy)]
struct Key<'k> {
    text: &'k str,
    /// Where its first word for another tower begins.
    tower_word: usize,
}

impl<'k> Key<'k> {
    fn new(text: &'k str) -> Self {
        Self { text, tower_word: foreign::tower_word(text) }
    }
}

/// What becomes of every name of a model.
pub(crate) struct Names<'n> {
    tensors: HashMap<&'n str, Fate>,
    /// By names without their suffix.
    stems: HashMap<&'n str, Fate>,
    /// What the names of blocks begin with, and their new numbers. `None` if blocks keep them.
    blocks: Option<(&'static str, &'n Renumbering)>,
    /// The text before the block prefix in tensor names of other towers.
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
            // With a second block in it, it is a text.
            if !name.bytes().all(is_name) || name.matches(prefix).count() > 1 {
                return None;
            }
            let fate = fate_in_block(name, prefix, renumbering);
            fate.or_else(|| self.in_other_words(name, prefix, renumbering))
        })
    }

    /// What becomes of a name that is not simply a tensor's. A block's stands after others, or it is of another format.
    fn in_other_words(&self, name: &str, prefix: &str, renumbering: &Renumbering) -> Option<Fate> {
        let Some(dot) = name.find(&format!(".{prefix}")) else {
            let (at, number) = foreign::first_number(name)?;
            let moves = renumbering.moves(number) && !self.is_in_tower(Key::new(name), at);
            return moves.then_some(Fate::Unclear(MAY_BE_BLOCK));
        };
        if self.is_in_tower(Key::new(name), dot + 1) {
            return None;
        }
        let before = &name[..dot];
        Some(match fate_in_block(&name[dot + 1..], prefix, renumbering)? {
            Fate::Same => Fate::Same,
            _ if !foreign::is_text(before) => Fate::Unclear(MAY_BE_BLOCK),
            Fate::Renamed(new) => Fate::Renamed(format!("{before}.{new}")),
            fate => fate,
        })
    }

    /// Whether the name at `at` of a key belongs to another tower.
    fn is_in_tower(&self, key: Key<'_>, at: usize) -> bool {
        let Some(before) = key.text[..at].strip_suffix('.') else {
            return false;
        };
        let is_named = key.text[at..].starts_with("blk.") && foreign::is_tower_name(before);
        is_named || key.tower_word < at || self.ends_in_tower(&key.text[..at])
    }

    /// Whether the last parts before a block's name are another tower's. Each has a dot after it.
    fn ends_in_tower(&self, before: &str) -> bool {
        let near = &before[before.ceil_char_boundary(before.len().saturating_sub(MAX_BYTES))..];
        let starts = near.match_indices('.').map(|(dot, _)| dot + 1);
        let whole = (near.len() == before.len()).then_some(0);
        starts.chain(whole).any(|start| self.towers.contains(&near[start..]))
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

    /// The fate of a key. A removed key takes its entry along.
    fn of_key(&self, key: &str) -> Fate {
        if key.len() > MAX_KEY_BYTES {
            return Fate::Same;
        }
        if self.has_hidden_block(key) {
            return Fate::Unclear(MAY_BE_BLOCK);
        }
        let mut new = String::new();
        let mut at = 0;
        let parts = Key::new(key);
        while at < key.len() {
            let (n_bytes, fate) = self.run(parts, at);
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

    /// Whether a moved block is in a key other than as parts: `x/blk.4.y`, `blk.4-5`.
    fn has_hidden_block(&self, key: &str) -> bool {
        let Some((prefix, renumbering)) = self.blocks else {
            return false;
        };
        key.match_indices(prefix).any(|(at, _)| {
            let rest = &key[at + prefix.len()..];
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, rest) = rest.split_at(n_digits);
            let is_part =
                (at == 0 || key.as_bytes()[at - 1] == b'.') && (rest.is_empty() || rest.starts_with('.'));
            !is_part && renumbering.moves(digits.parse().unwrap_or(usize::MAX))
        })
    }

    /// The longest name from `at` on, in bytes, and its fate. Else the part there.
    fn run(&self, key: Key<'_>, at: usize) -> (usize, Fate) {
        let rest = &key.text[at..];
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
        let end = rest.find('.').unwrap_or(rest.len());
        let Some((prefix, renumbering)) = self.blocks.filter(|_| !self.is_in_tower(key, at)) else {
            return (end, Fate::Same);
        };
        if let Some((_, after)) = leading_block(rest, prefix) {
            let n_bytes = rest.len() - after.len();
            let fate = fate_in_block(&rest[..n_bytes], prefix, renumbering);
            return (n_bytes, fate.unwrap_or(Fate::Same));
        }
        let is_other = foreign::number_at(key.text, at).is_some_and(|number| renumbering.moves(number));
        (end, if is_other { Fate::Unclear(MAY_BE_BLOCK) } else { Fate::Same })
    }

    /// Whether a text mentions a removed or renumbered block.
    fn speaks_of_blocks(&self, text: &[u8]) -> bool {
        let Some((prefix, renumbering)) = self.blocks else {
            return false;
        };
        foreign::spoken(text, prefix).any(|Spoken { before, is_own, number }| {
            let is_named = is_own && before.strip_suffix('.').is_some_and(foreign::is_tower_name);
            renumbering.moves(number)
                && !is_named
                && !foreign::is_of_tower(&before)
                && !self.ends_in_tower(&before)
        })
    }

    /// The entries with the names that are left, and notes. Those are of text that is left as it is.
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
        let mut speaks = !is_tokenizer && mention.key == Fate::Same && self.speaks_of_blocks(key.as_bytes());
        match value.value_type() {
            ValueType::String => {
                let text = value.as_bytes()?;
                let name = str::from_utf8(text).ok().filter(|_| !is_tokenizer);
                match name.and_then(|name| self.fate(name)) {
                    Some(Fate::Unclear(why)) => refuse(&format!("has a value that {why}"))?,
                    Some(fate) => mention.value = Mentioned::Whole(fate),
                    None => speaks |= self.speaks_of_blocks(text),
                }
            }
            ValueType::Array if !is_tokenizer => {
                let array = value.as_array()?;
                match array.element_type() {
                    ValueType::String => {
                        let in_text;
                        (mention.value, in_text) = self.elements(array, &refuse)?;
                        speaks |= in_text;
                    }
                    ValueType::Array if self.is_named_in(value) => {
                        refuse("is an array of arrays with names of tensors or blocks")?;
                    }
                    _ => {}
                }
                if matches!(mention.value, Mentioned::Nothing) && self.may_number_blocks(entry, array) {
                    refuse("may be of blocks by their numbers")?;
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

    /// The names in a list of texts, and whether one mentions blocks.
    fn elements(&self, array: Array<'_>, refuse: &dyn Fn(&str) -> Result<()>) -> Result<(Mentioned, bool)> {
        let (mut fates, mut speaks) = (BTreeMap::new(), false);
        for (i, text) in array.byte_strings().enumerate() {
            let text = text?;
            let name = str::from_utf8(text).ok();
            match name.and_then(|name| self.fate(name)) {
                Some(Fate::Unclear(why)) => {
                    refuse(&format!("has an element, {}, that {why}", Quoted(name.unwrap_or_default())))?;
                }
                Some(fate) => {
                    fates.insert(i, fate);
                }
                None => speaks |= self.speaks_of_blocks(text),
            }
        }
        Ok((if fates.is_empty() { Mentioned::Nothing } else { Mentioned::Elements(fates) }, speaks))
    }

    /// Whether an array's key says that it is about blocks. It has their numbers, or something of each.
    fn may_number_blocks(&self, entry: &EntryOut<'_>, array: Array<'_>) -> bool {
        let Some((_, renumbering)) = self.blocks.filter(|_| entry.is_kept()) else {
            return false;
        };
        let key = entry.key();
        let moves = |n: i64| usize::try_from(n).is_ok_and(|n| renumbering.moves(n));
        foreign::is_of_blocks(key)
            && !self.has_name(key)
            && (array.len() == renumbering.n_blocks()
                || (!foreign::is_size(key) && array.i64s().any(|n| n.is_ok_and(moves))))
    }

    /// Whether a key contains the name of a tensor or block.
    fn has_name(&self, key: &str) -> bool {
        let mut at = 0;
        let parts = Key::new(key);
        while at < key.len() {
            let end = at + self.run(parts, at).0;
            if key[at..end].contains('.') {
                return true;
            }
            at = end + 1;
        }
        false
    }

    /// Whether an array of arrays contains a name that changes.
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
