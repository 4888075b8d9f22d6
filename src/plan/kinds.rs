//! Kinds of blocks, by metadata or a block's number, as in llama.cpp.

use anyhow::{Context, Result, ensure};

use super::metadata::{RECURRENT, WINDOWS};
use crate::gguf::{Entry, ValueType};
use crate::model::Model;
use crate::model::arch::{
    Architecture, FullBlock, Period, PositionRule, Recurrent, WindowPattern, WindowPresence,
};

/// The kinds of a model's blocks. Each list has an entry for each trunk block; `None` where the blocks do not differ.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    /// Whether the block's attention has a sliding window.
    pub windows: Option<Vec<bool>>,
    /// Whether the block is recurrent instead of attending.
    pub recurrent: Option<Vec<bool>>,
    /// Whether the block has no attention, nor anything in its place.
    pub no_attention: Option<Vec<bool>>,
    /// Whether the block is a feed-forward network alone: neither recurrent nor attending.
    pub feed_forward: Option<Vec<bool>>,
    /// Blocks before the first with experts.
    pub n_leading_dense: Option<usize>,
    /// Leading blocks that choose experts by token instead of stream.
    pub n_hash_routed: Option<usize>,
    /// How many keys the block's attention compresses into one; 0: none.
    pub compression: Option<Vec<usize>>,
    /// The first block that reads the keys and values of others.
    pub first_sharing: Option<usize>,
    /// Kinds that the program text ties to a block's number.
    pub by_position: Vec<ByPosition>,
    /// Kinds with a period, unless a list says them per block.
    pub patterns: Vec<Pattern>,
}

/// A kind with a period, unless a list says it per block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The key of the list, below the architecture's prefix.
    pub key: &'static str,
    /// What the blocks have or are.
    pub what: &'static str,
    rule: WindowPattern,
    period: u64,
    flags: Vec<bool>,
}

impl Pattern {
    /// Whether `block` of the input has the kind.
    #[must_use]
    pub fn has(&self, block: usize) -> bool {
        self.flags.get(block).copied().unwrap_or(false)
    }

    /// Whether a block with this number has the kind without a list. The input's own period tells, where it has a key for that,
    /// else the architecture's.
    #[must_use]
    pub fn without_list(&self, number: usize) -> bool {
        self.rule.has_window(self.period, number)
    }
}

/// A [`PositionRule`] with its period looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByPosition {
    period: usize,
    phase: usize,
    /// Whether a block must also stay in its period.
    pub in_period: bool,
    /// What the blocks have.
    pub what: &'static str,
}

impl ByPosition {
    /// Whether a block with this number has the kind.
    #[must_use]
    pub fn holds(self, number: usize) -> bool {
        number % self.period == self.phase
    }

    /// Whether block `old` is under its number `new` what it was.
    #[must_use]
    pub fn is_kept(self, old: usize, new: usize) -> bool {
        self.holds(old) == self.holds(new) && (!self.in_period || old / self.period == new / self.period)
    }
}

impl Kinds {
    /// The kinds of `model` under `rules`.
    ///
    /// # Errors
    /// Metadata that does not say what llama.cpp would read from it.
    pub fn of(model: &Model<'_>, rules: &Architecture) -> Result<Self> {
        let windows = match rules.window() {
            Some(pattern) => windows(model, pattern)?,
            None => None,
        };
        let recurrent = match rules.recurrent() {
            Some(recurrent) => Some(recurrent_blocks(model, recurrent)?),
            None => None,
        };
        let feed_forward = match rules.recurrent() {
            Some(Recurrent::WithoutKvHeadsAndFeedForward) => Some(positive(model, "feed_forward_length")?),
            _ => None,
        };
        let leading = |key| match rules.leading().any(|leading| leading == key) {
            true => Ok::<_, anyhow::Error>(model.count(key)?.filter(|&n| n > 0)),
            false => Ok(None),
        };
        let compression = match rules.arrays().any(|array| array == COMPRESSION) {
            true => Some(compression(model)?),
            false => None,
        };
        let mut by_position = Vec::new();
        for rule in rules.positions() {
            if !rule.only_with_window || windows.is_some() {
                by_position.extend(look_up(model, &rule)?);
            }
        }
        let patterns = patterns(model, rules, windows.as_deref(), recurrent.as_deref())?;
        Ok(Self {
            windows,
            recurrent,
            no_attention: no_attention(model, rules)?,
            feed_forward,
            n_leading_dense: leading("leading_dense_block_count")?,
            n_hash_routed: leading("hash_layer_count")?,
            compression,
            first_sharing: match rules.shared_kv() {
                Some(key) => first_sharing(model, key)?,
                None => None,
            },
            by_position,
            patterns,
        })
    }

    /// Whether block `i` is a feed-forward network alone.
    #[must_use]
    pub fn is_feed_forward(&self, i: usize) -> bool {
        let flags = self.feed_forward.as_ref();
        flags.and_then(|flags| flags.get(i)).copied() == Some(true)
    }

    /// What block `i` is, in words.
    #[must_use]
    pub fn words(&self, i: usize) -> Vec<&'static str> {
        let mut words = Vec::new();
        let flag = |flags: &Option<Vec<bool>>| flags.as_ref().and_then(|f| f.get(i).copied());
        match flag(&self.recurrent) {
            _ if self.is_feed_forward(i) => words.push("feed-forward"),
            Some(true) => words.push("recurrent"),
            Some(false) => words.push("attention"),
            None => {}
        }
        match flag(&self.windows) {
            Some(true) => words.push("sliding window"),
            Some(false) => words.push("full attention"),
            None => {}
        }
        if flag(&self.no_attention) == Some(true) {
            words.push("no attention");
        }
        if self.first_sharing.is_some_and(|first| i >= first) {
            words.push("shared keys and values");
        }
        if let Some(n) = self.n_leading_dense {
            words.push(if i < n { "dense" } else { "experts" });
        }
        if let Some(n) = self.n_hash_routed {
            words.push(if i < n { "experts by token" } else { "experts" });
        }
        match self.compression.as_ref().and_then(|ratios| ratios.get(i)) {
            Some(0) => words.push("window only"),
            // The ratios that llama.cpp takes (deepseek4.cpp).
            Some(4) => words.push("keys compressed 4:1"),
            Some(128) => words.push("keys compressed 128:1"),
            Some(_) => words.push("keys compressed"),
            None => {}
        }
        words.extend(self.by_position.iter().filter(|kind| kind.holds(i)).map(|kind| kind.what));
        words
    }
}

/// Whether each trunk block has no attention. `None` where all have one, or something in its place.
fn no_attention(model: &Model<'_>, rules: &Architecture) -> Result<Option<Vec<bool>>> {
    if !rules.has_no_attention_without_heads() {
        return Ok(None);
    }
    let key = format!("{}.attention.head_count", model.architecture());
    match model.metadata().get(&key) {
        Some(entry) if entry.value().value_type() == ValueType::Array => {
            let has_heads = flags(entry, model.n_trunk_blocks(), model.n_blocks())?;
            Ok(Some(has_heads.into_iter().map(|has| !has).collect()))
        }
        _ => Ok(None),
    }
}

/// How many keys each block's attention compresses into one.
const COMPRESSION: &str = "attention.compress_ratios";

fn compression(model: &Model<'_>) -> Result<Vec<usize>> {
    let key = format!("{}.{COMPRESSION}", model.architecture());
    let entry = model.metadata().get(&key).with_context(|| format!("metadata '{key}' is missing"))?;
    let ratios = entry.value().as_array()?;
    ratios
        .i64s()
        .map(|ratio| {
            let ratio = ratio?;
            usize::try_from(ratio)
                .ok()
                .with_context(|| format!("metadata '{key}' has the entry {ratio}, expected 0 or more"))
        })
        .collect()
}

/// The first block that reads the KV of others, by `key`.
fn first_sharing(model: &Model<'_>, key: &str) -> Result<Option<usize>> {
    let n_sharing = model.count(key)?.unwrap_or(0);
    // Prediction blocks are counted, too (gemma4.cpp).
    let first = model.n_blocks().checked_sub(n_sharing);
    let first = first.filter(|&first| first >= 2).with_context(|| {
        format!(
            "metadata '{}.{key}' is {n_sharing}, but of {} blocks two need keys and values of their own",
            model.architecture(),
            model.n_blocks()
        )
    })?;
    Ok((n_sharing > 0).then_some(first))
}

fn look_up(model: &Model<'_>, rule: &PositionRule) -> Result<Option<ByPosition>> {
    let period = match rule.period {
        Period::Fixed(period) => period,
        Period::Key(key) => model.count(key)?.unwrap_or(0),
    };
    if period == 0 {
        return Ok(None);
    }
    let from_end = usize::try_from(rule.phase.unsigned_abs()).unwrap_or(0);
    let phase = if rule.phase < 0 {
        period.checked_sub(from_end).context("bug: a phase outside of its period")?
    } else {
        from_end
    };
    // With a period of one all blocks are alike.
    Ok((period > 1 || rule.in_period).then_some(ByPosition {
        period,
        phase,
        in_period: rule.in_period,
        what: rule.what,
    }))
}

/// The kinds that go by a period.
fn patterns(
    model: &Model<'_>,
    rules: &Architecture,
    windows: Option<&[bool]>,
    recurrent: Option<&[bool]>,
) -> Result<Vec<Pattern>> {
    let mut patterns = Vec::new();
    if let (Some(rule), Some(flags)) = (rules.window(), windows)
        && let Some(built_in) = rule.period
    {
        let entry = model.metadata().get(&format!("{}.{WINDOWS}", model.architecture()));
        let period = match entry.filter(|entry| entry.value().value_type() != ValueType::Array) {
            Some(entry) => entry.value().as_u64()?,
            None => built_in,
        };
        patterns.push(Pattern {
            key: WINDOWS,
            what: "a sliding window",
            rule,
            period,
            flags: flags.to_vec(),
        });
    }
    if let (Some(Recurrent::Interval { key, default }), Some(flags)) = (rules.recurrent(), recurrent) {
        // Beside a list a period of 0 is not read; without one, no block could be recurrent.
        let period = model.count(key)?.map_or(default, |period| period.max(1) as u64);
        patterns.push(Pattern {
            key: RECURRENT,
            what: "a recurrent state",
            rule: INTERVALS,
            period,
            flags: flags.to_vec(),
        });
    }
    Ok(patterns)
}

/// Attention in the last block of each period. What the others have stands for a window.
const INTERVALS: WindowPattern =
    WindowPattern { period: None, full: FullBlock::Last, present: WindowPresence::Always, needs_full: false };

/// Whether each trunk block has a sliding window, as llama.cpp's loader decides. `None` if none has by design.
fn windows(model: &Model<'_>, pattern: WindowPattern) -> Result<Option<Vec<bool>>> {
    let size = model.count("attention.sliding_window")?;
    let present = match pattern.present {
        WindowPresence::Always => true,
        WindowPresence::IfPositive => size.unwrap_or(0) > 0,
        WindowPresence::UnlessZero => size != Some(0),
    };
    if !present {
        return Ok(None);
    }
    let n = model.n_trunk_blocks();
    let key = format!("{}.attention.sliding_window_pattern", model.architecture());
    let by_period = |period| -> Vec<bool> { (0..n).map(|i| pattern.has_window(period, i)).collect() };
    match model.metadata().get(&key) {
        Some(entry) if entry.value().value_type() == ValueType::Array => {
            flags(entry, n, model.n_blocks()).map(Some)
        }
        Some(entry) if pattern.period.is_some() => Ok(Some(by_period(entry.value().as_u64()?))),
        Some(entry) => {
            // llama.cpp wants the array here.
            entry.value().as_array()?;
            Ok(None)
        }
        None => {
            let period = pattern.period.with_context(|| format!("metadata '{key}' is missing"))?;
            Ok(Some(by_period(period)))
        }
    }
}

/// The flags of `n` trunk blocks. The array has an entry for each, or for each of all `n_blocks`.
///
/// llama.cpp does not check the length of most such arrays: a shorter one leaves blocks without the flag.
fn flags(entry: &Entry<'_>, n: usize, n_blocks: usize) -> Result<Vec<bool>> {
    let array = entry.value().as_array()?;
    ensure!(
        array.len() == n || array.len() == n_blocks,
        "metadata '{}' has {} entries, expected one for each of the {n_blocks} blocks",
        entry.key(),
        array.len()
    );
    array
        .elements()
        .take(n)
        .map(|value| match value.value_type() {
            ValueType::Bool => Ok(value.as_bool()?),
            _ => Ok(value.as_i64()? != 0),
        })
        .collect()
}

/// Whether each trunk block's number under a key is nonzero. One number stands for all blocks.
fn positive(model: &Model<'_>, name: &str) -> Result<Vec<bool>> {
    let n = model.n_trunk_blocks();
    let key = format!("{}.{name}", model.architecture());
    match model.metadata().get(&key) {
        Some(entry) if entry.value().value_type() == ValueType::Array => flags(entry, n, model.n_blocks()),
        Some(_) => Ok(vec![model.count(name)? != Some(0); n]),
        // As many as heads (llama-model.cpp: load_hparams).
        None if name == KV_HEADS => positive(model, "attention.head_count"),
        None => Ok(vec![false; n]),
    }
}

const KV_HEADS: &str = "attention.head_count_kv";

fn recurrent_blocks(model: &Model<'_>, recurrent: Recurrent) -> Result<Vec<bool>> {
    let n = model.n_trunk_blocks();
    let entry = |name: &str| model.metadata().get(&format!("{}.{name}", model.architecture()));
    match recurrent {
        Recurrent::WithoutKvHeads => {
            Ok(positive(model, KV_HEADS)?.into_iter().map(|has_heads| !has_heads).collect())
        }
        Recurrent::WithoutKvHeadsAndFeedForward => {
            let has_heads = positive(model, KV_HEADS)?;
            let has_feed_forward = positive(model, "feed_forward_length")?;
            let neither = |(heads, feed_forward): (bool, bool)| !heads && !feed_forward;
            Ok(has_heads.into_iter().zip(has_feed_forward).map(neither).collect())
        }
        Recurrent::Interval { key, default } => {
            if let Some(entry) = entry("attention.recurrent_layers") {
                return flags(entry, n, model.n_blocks());
            }
            let period = match model.count(key)? {
                Some(period) => period as u64,
                None => default,
            };
            ensure!(period > 0, "metadata '{}.{key}' is 0, expected at least 1", model.architecture());
            Ok((0..n).map(|i| INTERVALS.has_window(period, i)).collect())
        }
    }
}
