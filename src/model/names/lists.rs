//! Lists of names, and what runs beside them: lists of values, and a count.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};

use super::fate::{Fate, Mention, Mentioned};
use crate::error::Hint;
use crate::gguf::{EntryOut, Quoted, ValueOut, ValueType};

/// Keys of vocabularies and chat templates.
pub(super) const TOKENIZER: &str = "tokenizer.";

/// Lists directly under `general.` that run beside no other.
const LISTS_ALONE: &[&str] = &["general.tags", "general.languages", "general.datasets"];

/// Last parts of the keys of counts.
const COUNTS: &[&str] = &["count", "len", "length", "n"];

/// By which lists know one another: the key up to its last dot, and the length.
type Place = (String, usize);

/// Which elements go from what runs beside a list of names. That has the same length, under a key that differs in the last
/// part.
pub(super) struct Lists(BTreeMap<Place, BTreeSet<usize>>);

impl Lists {
    /// Finds the elements that go from lists beside names.
    ///
    /// # Errors
    /// What may run beside names, and is not known to, unless it is `trusted`.
    pub(super) fn of(entries: &[EntryOut<'_>], mentions: &[Mention], trusted: bool) -> Result<Self> {
        let mut lists = BTreeMap::new();
        let mut names: BTreeMap<Place, &str> = BTreeMap::new();
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
        // Names that all stay change nothing of what runs beside them.
        lists.retain(|_, gone| gone.as_ref().is_none_or(|gone| !gone.is_empty()));
        for (place, entry) in beside {
            let Some(doubt) = Doubt::of(&place, entry, &lists).filter(|_| !trusted) else {
                continue;
            };
            let names = names.get(&(place.0, doubt.n_names)).copied().unwrap_or_default();
            let (key, names) = (Quoted(entry.key()), Quoted(names));
            let why = doubt.why;
            let error = anyhow!("metadata {key} runs beside {names}, which names tensors, {why}");
            return Err(error.context(Hint(format!("--trust-any-cut {}, on your word", doubt.trusted))));
        }
        let known = lists.into_iter().filter_map(|(place, gone)| Some((place, gone?)));
        Ok(Self(known.collect()))
    }

    /// The elements that go from a list beside names. `None` if all stay.
    pub(super) fn removed(&self, entry: &EntryOut<'_>) -> Option<&BTreeSet<usize>> {
        self.0.get(&place(entry)?)
    }
}

/// Why it is not known which elements of a list go.
struct Doubt {
    /// Length of the list of names.
    n_names: usize,
    why: &'static str,
    /// What is done where the user knows.
    trusted: &'static str,
}

impl Doubt {
    /// Of the entry at `place`, beside `lists` of names that lose elements. `None` if it is known, or beside none.
    fn of(
        place: &Place,
        entry: &EntryOut<'_>,
        lists: &BTreeMap<Place, Option<BTreeSet<usize>>>,
    ) -> Option<Self> {
        let taken = "takes them for values of those tensors";
        let doubt = |n_names, why, trusted| Some(Self { n_names, why, trusted });
        match lists.get(place) {
            Some(Some(_)) if is_value(entry) => None,
            Some(Some(_)) => doubt(place.1, "and whether its elements are of tensors is not known", taken),
            Some(None) => doubt(place.1, "and another list of them, which loses other elements", taken),
            None if entry.value_type() == ValueType::Array => {
                // No more lists than the entry has elements.
                let shorter = lists.range((place.0.clone(), 0)..place.clone());
                let mut lengths = shorter.map(|((_, n), _)| *n);
                let n_names = lengths.find(|&n| place.1.is_multiple_of(n))?;
                doubt(
                    n_names,
                    "with several elements for each, and whether they are of tensors is not known",
                    "keeps it as it is",
                )
            }
            None => None,
        }
    }
}

/// By which lists and counts know one another. `None` of what is neither, or not the input's, or stands alone.
fn place(entry: &EntryOut<'_>) -> Option<Place> {
    let key = entry.key();
    if !entry.is_kept() || LISTS_ALONE.contains(&key) || key.starts_with(TOKENIZER) {
        return None;
    }
    let (prefix, last) = key.rsplit_once('.').unwrap_or(("", key));
    let value = entry.value();
    let n = match value.value_type() {
        ValueType::Array => value.as_array().ok()?.len(),
        _ if COUNTS.contains(&last) => usize::try_from(value.as_u64().ok()?).ok()?,
        _ => return None,
    };
    Some((prefix.to_owned(), n))
}

/// Whether this is of the names beside it: their count, or flags and numbers that count nothing.
fn is_value(entry: &EntryOut<'_>) -> bool {
    let elements = entry.value().as_array().map(|array| array.element_type());
    elements.is_ok_and(|elements| matches!(elements, ValueType::Bool | ValueType::F32 | ValueType::F64))
        || entry.value_type() != ValueType::Array
}

/// A list's new names or their count, without the removed elements. `None` if none is left, `Some(None)` if it stays as it is.
#[expect(clippy::option_option, reason = "the list goes, stays, or is another")]
pub(super) fn elements(
    entry: &EntryOut<'_>,
    mentioned: Mentioned,
    removed: Option<&BTreeSet<usize>>,
) -> Result<Option<Option<ValueOut>>> {
    let fates = match mentioned {
        Mentioned::Elements(fates) => fates,
        _ => BTreeMap::new(),
    };
    if removed.is_none() && fates.values().all(|fate| *fate == Fate::Same) {
        return Ok(Some(None));
    }
    if let (Ok(count), Some(removed)) = (entry.value().as_u64(), removed) {
        let left = count.saturating_sub(removed.len() as u64);
        let value = ValueOut::integer(entry.value_type(), left);
        return Ok((left > 0).then_some(value));
    }
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
