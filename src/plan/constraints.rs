//! Constraints: the blocks of a model that may be removed, and the sets.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail, ensure};

use super::counts::Counts;
use super::kinds::{ByPosition, Kinds, Pattern};
use super::metadata::WINDOWS;
use crate::error::Hint;
use crate::gguf::Quoted;
use crate::model::arch::{Architecture, FirstRule, LastRule, Needed, Which};
use crate::model::block::BlockSet;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model};

/// Conditions under which the output computes the input without the removed blocks.
#[derive(Clone, Debug)]
pub struct Constraints {
    /// All blocks, trailing prediction blocks included.
    pub n_blocks: usize,
    /// Blocks that an evaluation runs.
    pub n_trunk_blocks: usize,
    /// Prediction blocks that go with any cut. Those that the file counts but does not hold, or all of them.
    pub dropped: BlockSet,
    /// Some counted prediction blocks are not such blocks. Any cut mends the count.
    pub miscounted: bool,
    /// Blocks that must stay, each with the reason.
    pub must_stay: BTreeMap<BlockId, String>,
    /// Of each of these groups at least one block must stay.
    pub groups: Vec<Group>,
    /// What a block must be at its new place.
    pub places: Vec<Place>,
    /// Numbers of blocks that llama.cpp treats in a special way.
    pub counts: Counts,
    /// What each block is.
    pub kinds: Kinds,
    /// The rules of the architecture.
    pub rules: &'static Architecture,
    /// The user answers for the cut: only what would be no model at all is refused.
    pub trusted: bool,
    /// No list may say block by block what a period says too.
    pub portable: bool,
}

/// Blocks of which at least one must stay.
#[derive(Clone, Debug)]
pub struct Group {
    /// The blocks.
    pub blocks: BlockSet,
    /// What they are, in the plural.
    pub what: &'static str,
}

/// What a block must be at its new place.
#[derive(Clone, Debug)]
pub enum Place {
    /// A block has the kind at its new number exactly as before. Where the kind is tied to a period, the block stays in it.
    SameKind(ByPosition),
    /// A block has the kind by the period, without a list. At its new number it has it where it has it in the input, and only
    /// there.
    InPattern(Pattern),
    /// The first block must be one of these.
    First {
        /// For each trunk block whether it may be the first.
        may: Vec<bool>,
        /// Why.
        why: &'static str,
    },
    /// The last trunk block must be one of these.
    Last {
        /// For each trunk block whether it may be the last.
        may: Vec<bool>,
        /// Why.
        why: &'static str,
    },
}

impl Place {
    /// Whether `block` may become block `number` of `n_kept` trunk blocks.
    #[must_use]
    pub fn allows(&self, block: BlockId, number: usize, n_kept: usize) -> bool {
        let may = |may: &[bool]| may.get(block.index()).copied().unwrap_or(false);
        match self {
            Self::SameKind(kind) => kind.is_kept(block.index(), number),
            Self::InPattern(kind) => kind.has(block.index()) == kind.without_list(number),
            Self::First { may: list, .. } => number != 0 || may(list),
            Self::Last { may: list, .. } => number + 1 != n_kept || may(list),
        }
    }

    /// Why `block` may not become block `number`.
    fn refusal(&self, block: BlockId, number: usize) -> String {
        match self {
            Self::SameKind(kind) if kind.holds(block.index()) == kind.holds(number) => format!(
                "block {block} would become block {number}, before which fewer blocks have {}: its weights are made for \
                 all of them",
                kind.what
            ),
            Self::SameKind(kind) => {
                let (old, new) = (kind.holds(block.index()), kind.holds(number));
                let has = |holds| if holds { "has" } else { "does not have" };
                format!(
                    "block {block}, which {} {}, would become block {number}, which {} it: llama.cpp decides that by \
                     the block's number",
                    has(old),
                    kind.what,
                    has(new)
                )
            }
            Self::InPattern(kind) => {
                let has = |holds| if holds { "has" } else { "does not have" };
                format!(
                    "block {block}, which {} {}, would become block {number}, which {} it in the built-in pattern, and a \
                     portable output has no list that says so",
                    has(kind.has(block.index())),
                    kind.what,
                    has(kind.without_list(number))
                )
            }
            Self::First { why, .. } => format!("block {block} cannot be the first: {why}"),
            Self::Last { why, .. } => format!("block {block} cannot be the last: {why}"),
        }
    }
}

impl Constraints {
    /// The constraints of `model`.
    ///
    /// # Errors
    /// A model that cannot be shortened at all: its architecture or a per-block metadata entry is not known, or it has no
    /// tensors.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        Self::new(model, false)
    }

    /// As [`Constraints::of`]. With `trusted` the user answers for the cut, and what is not known is taken for harmless.
    ///
    /// # Errors
    /// As [`Constraints::of`].
    pub fn new(model: &Model<'_>, trusted: bool) -> Result<Self> {
        ensure!(!model.tensors().is_empty(), "has no tensors: a vocabulary, not a model");
        let is_of_trunk = |block: BlockId| block.index() < model.n_trunk_blocks();
        ensure!(
            model.n_trunk_blocks() == model.n_blocks()
                || model
                    .tensors()
                    .iter()
                    .any(|tensor| tensor.block.is_some_and(|(block, _)| is_of_trunk(block))),
            "has tensors of prediction blocks (MTP) alone: a draft head, not a model"
        );
        let rules = rules(model, trusted)?;
        super::metadata::check(model, rules, trusted)?;
        let (n_blocks, n_trunk_blocks) = (model.n_blocks(), model.n_trunk_blocks());
        // A count without tensors is nothing to load. Many architectures do not even take it.
        let is_missing = |&block: &BlockId| !model.has_tensors(block);
        let dropped: BlockSet = model.prediction_blocks().filter(is_missing).collect();
        let n_prediction_blocks = model.prediction_blocks().count();
        let kinds = Kinds::of(model, rules)?;
        let mut must_stay = must_stay(model, rules, &kinds)?;
        must_stay.retain(|block, _| !dropped.contains(block));
        let groups = groups(model, rules, &kinds)?;
        let places = places(model, rules, &kinds)?;
        let counts = Counts::of(model, rules)?;
        super::tensors::check(model, rules)?;
        Ok(Self {
            n_blocks,
            n_trunk_blocks,
            dropped,
            miscounted: model.n_counted_prediction_blocks() > n_prediction_blocks,
            must_stay,
            groups,
            places,
            counts,
            kinds,
            rules,
            trusted,
            portable: false,
        })
    }

    /// The same, but the prediction blocks go with any cut.
    ///
    /// # Errors
    /// A model without such blocks.
    pub fn dropping_prediction_blocks(mut self) -> Result<Self> {
        ensure!(
            (self.n_trunk_blocks < self.n_blocks || self.miscounted) && self.rules.head_blocks().is_none(),
            "has no next-token prediction blocks (MTP) to drop"
        );
        self.dropped = (self.n_trunk_blocks..self.n_blocks).map(BlockId::new).collect();
        self.must_stay.retain(|block, _| !self.dropped.contains(block));
        Ok(self)
    }

    /// The same, without lists that older releases of llama.cpp may ignore.
    ///
    /// Kinds that follow a period unless a list says them block by block must follow it at the new numbers too. Lists that
    /// llama.cpp cannot do without, such as those of KV heads, stay.
    #[must_use]
    pub fn portable(mut self) -> Self {
        let patterns = self.kinds.patterns.iter().cloned();
        self.places.extend(patterns.map(Place::InPattern));
        self.portable = true;
        self
    }

    /// The same, not [`Constraints::portable`].
    #[must_use]
    pub fn with_lists(mut self) -> Self {
        self.places.retain(|place| !matches!(place, Place::InPattern(_)));
        self.portable = false;
        self
    }

    /// Keys of lists without which llama.cpp would mistake kept blocks' kinds. They are below the architecture's prefix.
    ///
    /// It would apply its built-in period to the new numbers.
    #[must_use]
    pub fn lists_needed(&self, renumbering: &Renumbering) -> Vec<&'static str> {
        if self.portable {
            return Vec::new();
        }
        let shifted = |pattern: &&Pattern| {
            // The list takes the place of a period of the input's own.
            let built_in = self.rules.window().filter(|_| pattern.key == WINDOWS);
            let without_list = |number| match built_in.and_then(|rule| Some((rule, rule.period?))) {
                Some((rule, period)) => rule.has_window(period, number),
                None => pattern.without_list(number),
            };
            let kept = renumbering.kept().iter().map(|block| block.index());
            kept.take_while(|&block| block < self.n_trunk_blocks)
                .enumerate()
                .any(|(number, block)| pattern.has(block) != without_list(number))
        };
        let patterns = self.kinds.patterns.iter().filter(shifted);
        patterns.map(|pattern| pattern.key).collect()
    }

    /// Checks a set of blocks that are to go.
    ///
    /// # Errors
    /// The first rule that the set breaks.
    pub fn check(&self, removed: &BlockSet) -> Result<()> {
        if let Some(block) = removed.iter().find(|b| b.index() >= self.n_blocks) {
            bail!(
                "cannot remove block {block}: the model has {} blocks, 0 to {}",
                self.n_blocks,
                self.n_blocks - 1
            );
        }
        let n_removed = removed.iter().filter(|block| block.index() < self.n_trunk_blocks).count();
        ensure!(
            n_removed < self.n_trunk_blocks,
            "cannot remove {n_removed} blocks: the model has {}, and at least one must stay",
            self.n_trunk_blocks
        );
        if self.trusted {
            return Ok(());
        }
        for block in removed {
            if let Some(reason) = self.must_stay.get(block) {
                let error = anyhow!("cannot remove block {block}: it {reason}");
                return Err(if block.index() < self.n_trunk_blocks {
                    error
                } else {
                    error.context(Hint("--drop-mtp removes all such blocks".to_owned()))
                });
            }
        }
        for group in &self.groups {
            ensure!(
                !group.blocks.is_subset(removed),
                "cannot remove all {} {}: llama.cpp needs at least one",
                group.blocks.len(),
                group.what
            );
        }
        self.check_count(n_removed)?;
        let kept: Vec<BlockId> =
            (0..self.n_trunk_blocks).map(BlockId::new).filter(|block| !removed.contains(block)).collect();
        for (number, &block) in kept.iter().enumerate() {
            if let Some(place) = self.places.iter().find(|place| !place.allows(block, number, kept.len())) {
                bail!("cannot remove these blocks: {}", place.refusal(block, number));
            }
        }
        Ok(())
    }

    /// Checks the number of blocks that are to go.
    ///
    /// # Errors
    /// A number of blocks at which llama.cpp computes something else.
    pub fn check_count(&self, n_removed: usize) -> Result<()> {
        let after = self.n_trunk_blocks - n_removed;
        match self.counts.refusal(after) {
            Some(why) if !self.trusted && n_removed > 0 => {
                bail!("cannot shorten {} blocks to {after}: {why}", self.n_trunk_blocks)
            }
            _ => Ok(()),
        }
    }
}

fn rules(model: &Model<'_>, trusted: bool) -> Result<&'static Architecture> {
    let name = model.architecture();
    if let Some(rules) = model.rules() {
        return Ok(rules);
    }
    if let Some(why) = Architecture::refusal(name) {
        bail!("blocks of architecture {} cannot be removed: {why}", Quoted(name));
    }
    if trusted {
        return Ok(Architecture::trusted());
    }
    Err(anyhow!(
        "what llama.cpp derives from a block's number is not known for architecture {}, so its blocks cannot be removed",
        Quoted(name)
    )
    .context(Hint(
        "--trust-any-cut takes any cut of it on your word".to_owned(),
    )))
}

fn must_stay(model: &Model<'_>, rules: &Architecture, kinds: &Kinds) -> Result<BTreeMap<BlockId, String>> {
    let n_trunk = model.n_trunk_blocks();
    let mut must_stay = BTreeMap::new();
    for block in model.prediction_blocks() {
        must_stay.insert(block, "is a next-token prediction block after the model's own".to_owned());
    }
    for block in model.head_blocks() {
        must_stay.insert(block, "belongs to the head after the model's own blocks".to_owned());
    }
    for block in deepstack_blocks(model)? {
        must_stay.insert(block, "receives features of images".to_owned());
    }
    if let Some(FirstRule::Itself { why }) = rules.first() {
        must_stay.insert(BlockId::new(0), format!("must be the first: {why}"));
    }
    if let Some(FirstRule::These { n_blocks, why }) = rules.first() {
        for block in (0..n_blocks.min(n_trunk)).map(BlockId::new) {
            must_stay.insert(block, format!("is one of the first {n_blocks}: {why}"));
        }
    }
    if let Some(first) = kinds.first_sharing {
        for block in [first - 2, first - 1].map(BlockId::new) {
            let why = "holds the keys and values that blocks after it read (llama-model.cpp)";
            must_stay.insert(block, why.to_owned());
        }
    }
    if let Some(LastRule::ItselfWithoutWindow { why }) = rules.last()
        && kinds.windows.is_none()
    {
        must_stay.insert(BlockId::new(n_trunk - 1), format!("must be the last: {why}"));
    }
    Ok(must_stay)
}

fn groups(model: &Model<'_>, rules: &Architecture, kinds: &Kinds) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    let mut add = |blocks: &mut dyn Iterator<Item = bool>, what| {
        let blocks: BlockSet =
            blocks.enumerate().filter(|&(_, is_in)| is_in).map(|(i, _)| BlockId::new(i)).collect();
        if !blocks.is_empty() {
            groups.push(Group { blocks, what });
        }
    };
    if let Some(windows) = &kinds.windows {
        // Without one llama.cpp cannot make its cache (llama-model.cpp: create_memory).
        add(&mut windows.iter().copied(), "blocks with a sliding window");
        if rules.window().is_some_and(|pattern| pattern.needs_full) {
            add(&mut windows.iter().map(|has_window| !has_window), "blocks without a sliding window");
        }
    }
    if let Some(recurrent) = &kinds.recurrent {
        // Without one of each, the other's inputs are never allocated (llama-graph.cpp: set_input).
        add(&mut recurrent.iter().copied(), "recurrent blocks");
        let attends = |i: usize| !recurrent[i] && !kinds.is_feed_forward(i);
        add(&mut (0..recurrent.len()).map(attends), "attention blocks");
    }
    if let Some(used) = experts_used(model)? {
        // A model that has experts must use some (llama-model.cpp: load_hparams).
        add(&mut used.into_iter(), "blocks that use experts");
    }
    for needed in rules.needed() {
        if let Some(blocks) = needed_blocks(model, &needed)? {
            add(&mut blocks.into_iter(), needed.what);
        }
    }
    Ok(groups)
}

/// Whether each trunk block is of a kind that is needed. `None` where nothing tells blocks apart.
fn needed_blocks(model: &Model<'_>, needed: &Needed) -> Result<Option<Vec<bool>>> {
    let n_trunk = model.n_trunk_blocks();
    let listed = |key: &str, is_of_kind: &dyn Fn(i64) -> bool| -> Result<Option<Vec<bool>>> {
        let Some(list) = list(model, key)? else {
            return Ok(None);
        };
        let of_trunk = list.into_iter().take(n_trunk);
        Ok(Some(of_trunk.map(is_of_kind).collect()))
    };
    match needed.blocks {
        Which::With(key, number) => listed(key, &|entry| entry == number),
        Which::WithAny(key) => listed(key, &|entry| entry != 0),
        Which::After(key) => {
            let n_leading = model.count(key)?.unwrap_or(0);
            Ok(Some((0..n_trunk).map(|i| i >= n_leading).collect()))
        }
    }
}

/// Whether each trunk block uses experts, where a list says so.
fn experts_used(model: &Model<'_>) -> Result<Option<Vec<bool>>> {
    if model.count("expert_count")?.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let used = numbers(model, "expert_used_count")?;
    Ok(used.map(|mut used| {
        used.truncate(model.n_trunk_blocks());
        used
    }))
}

/// Whether each number of a list under the architecture's prefix is nonzero. `None` if there is no such list.
fn numbers(model: &Model<'_>, name: &str) -> Result<Option<Vec<bool>>> {
    let list = list(model, name)?;
    Ok(list.map(|list| list.into_iter().map(|n| n != 0).collect()))
}

/// The numbers of a list below the architecture's prefix. `None` if there is no such list.
fn list(model: &Model<'_>, name: &str) -> Result<Option<Vec<i64>>> {
    let key = format!("{}.{name}", model.architecture());
    match model.metadata().get(&key).map(|entry| entry.value().as_array()) {
        Some(Ok(array)) => Ok(Some(array.i64s().collect::<Result<_, _>>()?)),
        // One number for all blocks, or none.
        _ => Ok(None),
    }
}

fn places(model: &Model<'_>, rules: &Architecture, kinds: &Kinds) -> Result<Vec<Place>> {
    let mut places: Vec<_> = kinds.by_position.iter().copied().map(Place::SameKind).collect();
    if let (Some(FirstRule::FullAttention { why }), Some(windows)) = (rules.first(), &kinds.windows) {
        places.push(Place::First { may: windows.iter().map(|window| !window).collect(), why });
    }
    // llama.cpp derives head sizes and rotated dimensions from block 0 (llama-model.cpp). A block without heads gives none.
    if let Some(has_heads) = numbers(model, "attention.head_count")? {
        let first = has_heads.first().copied().unwrap_or(false);
        places.push(Place::First {
            may: has_heads.iter().map(|&has| has == first).collect(),
            why: "llama.cpp takes the head size from the first block, and only one of the two has heads",
        });
    }
    if let (Some(LastRule::WithFeedForward { why }), Some(may)) =
        (rules.last(), numbers(model, "feed_forward_length")?)
    {
        places.push(Place::Last { may, why });
    }
    Ok(places)
}

/// Blocks to which llama.cpp adds features of images (`qwen3vl.cpp`, `granite.cpp`). Text does not need them, but a
/// projector beside the model does.
fn deepstack_blocks(model: &Model<'_>) -> Result<Vec<BlockId>> {
    let first = model.count("n_deepstack_layers")?.unwrap_or(0);
    let mut blocks: Vec<_> = (0..first.min(model.n_trunk_blocks())).map(BlockId::new).collect();
    let key = format!("{}.deepstack_mapping", model.architecture());
    if let Some(entry) = model.metadata().get(&key) {
        for (i, feature) in entry.value().as_array()?.i64s().enumerate() {
            // Block 0 receives its features with the embeddings.
            if feature? >= 0 && i > 0 {
                blocks.push(BlockId::new(i));
            }
        }
    }
    Ok(blocks)
}

#[cfg(test)]
impl Constraints {
    /// Those of `n_blocks` blocks, any set of which may be removed.
    pub(crate) fn of_any_set(n_blocks: usize) -> Self {
        Self {
            n_blocks,
            n_trunk_blocks: n_blocks,
            must_stay: BTreeMap::new(),
            groups: Vec::new(),
            places: Vec::new(),
            counts: Counts::default(),
            dropped: BlockSet::new(),
            miscounted: false,
            portable: false,
            kinds: Kinds::default(),
            rules: Architecture::trusted(),
            trusted: false,
        }
    }
}
