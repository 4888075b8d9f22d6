//! What each block of a model is, as far as llama.cpp decides it from metadata or from the block's number.

use anyhow::{Context, Result, ensure};

use crate::arch::{
    Architecture, FullBlock, Period, PositionRule, Recurrent, WindowPattern, WindowPresence,
};
use crate::gguf::{Entry, ValueType};
use crate::model::Model;

/// The kinds of a model's blocks. Each list has an entry for each trunk block; `None` where the blocks do not differ.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    /// Whether the block's attention has a sliding window.
    pub windows: Option<Vec<bool>>,
    /// Whether the block is recurrent instead of attending.
    pub recurrent: Option<Vec<bool>>,
    /// Blocks before the first with experts.
    pub n_leading_dense: Option<usize>,
    /// The first block that reads the keys and values of others.
    pub first_sharing: Option<usize>,
    /// Kinds that the program text ties to a block's number.
    pub by_position: Vec<ByPosition>,
}

/// A [`PositionRule`] with its period looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByPosition {
    period: usize,
    phase: usize,
    /// What the blocks have.
    pub what: &'static str,
}

impl ByPosition {
    /// Whether a block with this number has the kind.
    #[must_use]
    pub fn holds(self, number: usize) -> bool {
        number % self.period == self.phase
    }
}

impl Kinds {
    /// The kinds of `model` under `rules`.
    ///
    /// # Errors
    /// Metadata that does not say what llama.cpp would read from it.
    pub fn of(model: &Model<'_>, rules: &Architecture) -> Result<Self> {
        let windows = match rules.window {
            Some(pattern) => windows(model, pattern)?,
            None => None,
        };
        let recurrent = match rules.recurrent {
            Some(recurrent) => Some(recurrent_blocks(model, recurrent)?),
            None => None,
        };
        let n_leading_dense = if rules.leading.contains(&"leading_dense_block_count") {
            model.count("leading_dense_block_count")?.filter(|&n| n > 0)
        } else {
            None
        };
        let mut by_position = Vec::new();
        for rule in rules.positions {
            if !rule.only_with_window || windows.is_some() {
                by_position.extend(look_up(model, rule)?);
            }
        }
        Ok(Self {
            windows,
            recurrent,
            n_leading_dense,
            first_sharing: match rules.shared_kv {
                Some(key) => first_sharing(model, key)?,
                None => None,
            },
            by_position,
        })
    }

    /// What block `i` is, in words.
    #[must_use]
    pub fn words(&self, i: usize) -> Vec<&'static str> {
        let mut words = Vec::new();
        let flag = |flags: &Option<Vec<bool>>| flags.as_ref().and_then(|f| f.get(i).copied());
        match flag(&self.recurrent) {
            Some(true) => words.push("recurrent"),
            Some(false) => words.push("attention"),
            None => {}
        }
        match flag(&self.windows) {
            Some(true) => words.push("sliding window"),
            Some(false) => words.push("full attention"),
            None => {}
        }
        if self.first_sharing.is_some_and(|first| i >= first) {
            words.push("shared keys and values");
        }
        if let Some(n) = self.n_leading_dense {
            words.push(if i < n { "dense" } else { "experts" });
        }
        words.extend(
            self.by_position
                .iter()
                .filter(|kind| kind.holds(i))
                .map(|kind| kind.what),
        );
        words
    }
}

/// The first block that reads the keys and values of others, if `key` counts any.
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
        period
            .checked_sub(from_end)
            .context("bug: a phase outside of its period")?
    } else {
        from_end
    };
    // With a period of one every block is alike, or none has the phase.
    Ok((period > 1).then_some(ByPosition {
        period,
        phase,
        what: rule.what,
    }))
}

/// Whether each trunk block has a sliding window, as llama.cpp's loader decides; `None` if none has by design.
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
    let by_period =
        |period| -> Vec<bool> { (0..n).map(|i| pattern.has_window(period, i)).collect() };
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
            let period = pattern
                .period
                .with_context(|| format!("metadata '{key}' is missing"))?;
            Ok(Some(by_period(period)))
        }
    }
}

/// The flags of an array with an entry for each of `n` trunk blocks, or for each of all `n_blocks`.
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

fn recurrent_blocks(model: &Model<'_>, recurrent: Recurrent) -> Result<Vec<bool>> {
    let n = model.n_trunk_blocks();
    let entry = |name: &str| {
        model
            .metadata()
            .get(&format!("{}.{name}", model.architecture()))
    };
    match recurrent {
        Recurrent::WithoutKvHeads => match entry("attention.head_count_kv") {
            Some(entry) if entry.value().value_type() == ValueType::Array => {
                Ok(flags(entry, n, model.n_blocks())?
                    .into_iter()
                    .map(|has_heads| !has_heads)
                    .collect())
            }
            // One number for all blocks: all attend, or without heads none does.
            _ => Ok(vec![model.count("attention.head_count_kv")? == Some(0); n]),
        },
        Recurrent::Interval { key, default } => {
            if let Some(entry) = entry("attention.recurrent_layers") {
                return flags(entry, n, model.n_blocks());
            }
            let period = match model.count(key)? {
                Some(period) => period as u64,
                None => default,
            };
            ensure!(
                period > 0,
                "metadata '{}.{key}' is 0, expected at least 1",
                model.architecture()
            );
            let pattern = WindowPattern {
                period: Some(period),
                full: FullBlock::Last,
                present: WindowPresence::Always,
                needs_full: false,
            };
            Ok((0..n).map(|i| pattern.has_window(period, i)).collect())
        }
    }
}
