//! Fewer experts: each block keeps as many of its own, whose bytes stay as they are.
//!
//! Tensors with an entry for each expert have the expert as their outermost dimension, so a kept expert is a run of bytes.
//! llama.cpp counts experts once for the model (`llama-model.cpp: load_hparams`), so that every block keeps the same number.
//! What the output computes is the parent with the router choosing among the kept experts alone. Where weights are a softmax
//! over all experts that is not divided by the sum of the chosen ones, kept experts weigh more than in the parent.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Runs, TensorData, Tensors};
use crate::error::Hint;
use crate::gguf::{EntryOut, Quoted, TensorOut, ValueOut, ValueType};
use crate::model::arch::{Architecture, ExpertCount, Experts, Gate, Normalised};
use crate::model::block::BlockSet;
use crate::model::renumbering::Renumbering;
use crate::model::{BlockId, Model, ModelTensor};
use crate::named::{Named, named};

named! {
    /// How experts are chosen.
    pub enum ExpertMethod {
        /// The best of the sets of reap, frequency and contribution, by the loss of each on text that chose nothing
        Auto = "auto",
        /// Lowest mean of gate weight times length of the output, over the tokens that are routed to it (REAP)
        Reap = "reap",
        /// Least used
        Frequency = "frequency",
        /// Lowest mean gate weight of the tokens that are routed to it
        Gate = "gate",
        /// Lowest mean of gate weight times length of the output, over all tokens: REAP times frequency
        Contribution = "contribution",
    }
}

/// The word of a choice by a list.
pub const LIST: &str = "list";

/// Whether an output may say `word` of how its experts were chosen.
#[must_use]
pub fn is_method(word: &str) -> bool {
    // What auto takes is named.
    word == LIST || ExpertMethod::of_word(word).is_some_and(|method| method != ExpertMethod::Auto)
}

/// How many experts of each block go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExpertBudget {
    /// This many.
    Experts(usize),
    /// This share in percent, rounded down to whole experts of each group. At least one.
    Percent(f64),
}

impl ExpertBudget {
    /// How many of `mixture` stay.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded down, between 0 and the number of experts"
    )]
    pub fn n_kept(self, mixture: &Mixture) -> usize {
        let n_experts = mixture.n_experts;
        let n_removed = match self {
            Self::Experts(n) => n,
            Self::Percent(share) => {
                // As with blocks, rounding errors must not cost a whole number.
                let of_group = (n_experts / mixture.n_groups) as f64 * share / 100.0 + 1e-9;
                (of_group as usize).max(1) * mixture.n_groups
            }
        };
        n_experts.saturating_sub(n_removed)
    }
}

impl FromStr for ExpertBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a number of experts such as 16, or a share such as 25%";
        let share = text.strip_suffix('%').map(|share| share.trim().parse::<f64>());
        match (share, text.parse::<usize>()) {
            (Some(Ok(share)), _) if share > 0.0 && share < 100.0 => Ok(Self::Percent(share)),
            (Some(Ok(_)), _) => Err("a share lies between 0% and 100%".to_owned()),
            (None, Ok(0)) => Err("at least one expert has to go".to_owned()),
            (None, Ok(n)) => Ok(Self::Experts(n)),
            _ => Err(expected.to_owned()),
        }
    }
}

/// The parent's numbers of the kept experts of each block, rising.
pub type KeptExperts = BTreeMap<BlockId, Vec<usize>>;

/// The experts that stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertCut {
    /// Of each block with experts; entries of removed blocks have no effect.
    pub kept: KeptExperts,
    /// How they were chosen.
    pub method: String,
}

/// The experts of a model, and how many must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts of each block.
    pub n_experts: usize,
    /// The most that are used at once.
    pub n_used: usize,
    /// Groups that are chosen before their experts; 1 without groups.
    pub n_groups: usize,
    /// Groups that are used at once.
    pub n_groups_used: usize,
    /// The blocks that have experts.
    pub blocks: BlockSet,
    /// Whether kept experts weigh more without the others.
    pub weights_grow: bool,
    n_trunk_blocks: usize,
    special: Option<ExpertCount>,
}

/// Prefixes of tensors with all experts of a block, without dot.
const MATRICES: &[&str] = &["ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps"];

/// The tensor that every block with experts has, after `blk.<i>.`.
const DOWN: &str = "ffn_down_exps.weight";

/// The router of a block, after `blk.<i>.`.
const ROUTER: &str = "ffn_gate_inp.weight";

/// The experts of each token, in blocks that choose by it.
const TABLE: &str = "ffn_gate_tid2eid.weight";

/// The dimension with one entry per expert, the outermost; `None` for other tensors. `rest` stands after `blk.<i>.`
/// (`llama-model.cpp: load_tensors` and the models' `load_arch_tensors`).
pub(crate) fn dimension(rest: &str) -> Option<usize> {
    match rest {
        ROUTER => Some(1),
        "ffn_gate_inp.bias" | "exp_probs_b" | "exp_probs_b.bias" | "exp_probs_b_vl.bias" => Some(0),
        _ => match rest.split_once('.')? {
            (name, "weight") if MATRICES.contains(&name) => Some(2),
            (name, "bias") if MATRICES.contains(&name) => Some(1),
            (name, "scale" | "input_scale") if MATRICES.contains(&name) => Some(0),
            _ => None,
        },
    }
}

/// Whether an unknown tensor may have an entry for each expert.
fn is_unclear(rest: &str) -> bool {
    // The norm before all experts of arctic.
    let is_of_experts = rest.contains("exps") && !rest.starts_with("ffn_norm_exps.");
    dimension(rest).is_none() && (is_of_experts || rest.starts_with("exp_probs"))
}

impl Mixture {
    /// That of `model`.
    ///
    /// # Errors
    /// A model without experts, or one from which none can be removed, with the reason.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        let count = |name: &str| Ok::<_, anyhow::Error>(model.count(name)?.unwrap_or(0));
        let n_experts = count("expert_count")?;
        let name = model.architecture();
        ensure!(n_experts > 1, "has no experts to remove: '{name}.expert_count' is {n_experts}");
        let rules = model.rules().unwrap_or(Architecture::trusted());
        let (gate, normalised) = match rules.experts {
            Experts::Routed(gate, normalised) => (gate, normalised),
            Experts::Fixed(why) => bail!("experts of architecture {} cannot be removed: {why}", Quoted(name)),
            Experts::Unknown => bail!(
                "how a block chooses among experts is not known for architecture {}, so none can be removed",
                Quoted(name)
            ),
        };
        let n_used = n_used(model)?;
        ensure!(
            (1..=n_experts).contains(&n_used),
            "metadata '{name}.expert_used_count' says {n_used} of {n_experts} experts"
        );
        let n_groups = count("expert_group_count")?.max(1);
        let n_groups_used = if n_groups > 1 { count("expert_group_used_count")? } else { 1 };
        ensure!(
            n_experts.is_multiple_of(n_groups) && (1..=n_groups).contains(&n_groups_used),
            "{n_experts} experts are not {n_groups} equal groups of which {n_groups_used} can be used"
        );
        Ok(Self {
            n_experts,
            n_used,
            n_groups,
            n_groups_used,
            blocks: blocks(model, n_experts)?,
            weights_grow: grow(model, gate, normalised)?,
            n_trunk_blocks: model.n_trunk_blocks(),
            special: rules.expert_count(),
        })
    }

    /// The fewest experts that a block can keep: as many as are used at once, of groups two at least, and enough for all that
    /// are used in the groups that are.
    #[must_use]
    pub fn fewest(&self) -> usize {
        match self.n_groups {
            1 => self.n_used,
            n_groups => n_groups * self.n_used.div_ceil(self.n_groups_used).max(2),
        }
    }

    /// Checks that blocks may keep `n` experts.
    ///
    /// # Errors
    /// Why not.
    pub fn check_number(&self, n: usize) -> Result<()> {
        let n_experts = self.n_experts;
        ensure!(n <= n_experts, "cannot keep {n} experts: each block has {n_experts}");
        ensure!(n < n_experts, "cannot keep {n} experts: that is all of them, so none is removed");
        let fewest = self.fewest();
        match self.n_groups {
            1 => ensure!(n >= fewest, "cannot keep {n} of {n_experts} experts: {fewest} are used at once"),
            n_groups => {
                ensure!(
                    n >= fewest,
                    "cannot keep {n} of {n_experts} experts: {} are used at once, of {} of {n_groups} groups, so {fewest} \
                     must stay",
                    self.n_used,
                    self.n_groups_used
                );
                ensure!(
                    n.is_multiple_of(n_groups),
                    "cannot keep {n} of {n_experts} experts: they are in {n_groups} groups, which must stay of one size"
                );
            }
        }
        if let Some(ExpertCount { n_experts: special, what }) = self.special {
            ensure!(
                n != special && n_experts != special,
                "cannot keep {n} of {n_experts} experts: llama.cpp {what} if there are exactly {special}"
            );
        }
        Ok(())
    }

    /// The blocks with experts that stay without `removed`.
    ///
    /// # Errors
    /// None; prediction blocks with experts, for which there is no choice.
    pub fn blocks_left(&self, removed: &BlockSet) -> Result<Vec<BlockId>> {
        let left: Vec<BlockId> = self.blocks.difference(removed).copied().collect();
        if let Some(block) = left.iter().find(|block| block.index() >= self.n_trunk_blocks) {
            return Err(anyhow!(
                "cannot remove experts: block {block} has as many and is for multi-token prediction, which is not evaluated"
            )
            .context(Hint("--drop-mtp removes all such blocks".to_owned())));
        }
        ensure!(!left.is_empty(), "cannot remove experts: no block that stays has any");
        Ok(left)
    }

    /// Checks `kept` for a model without `removed`. Returns how many experts each block keeps.
    ///
    /// # Errors
    /// A block of which nothing is said, or that has no experts; lists of other lengths, not rising, or of experts that are not
    /// there; a number of them that is not possible.
    pub fn check(&self, removed: &BlockSet, kept: &KeptExperts) -> Result<usize> {
        if let Some(block) = kept.keys().find(|block| !self.blocks.contains(block)) {
            bail!("cannot remove experts of block {block}: it has none");
        }
        let left = self.blocks_left(removed)?;
        let of = |block: &BlockId| {
            kept.get(block)
                .with_context(|| format!("block {block} has experts, but which are kept is not said"))
        };
        let n = of(&left[0])?.len();
        for block in &left {
            let experts = of(block)?;
            ensure!(
                experts.len() == n,
                "block {block} would keep {} experts, but block {} {n}: llama.cpp counts them once for all blocks",
                experts.len(),
                left[0]
            );
            ensure!(
                experts.is_sorted_by(|a, b| a < b),
                "the kept experts of block {block} are not in rising order, each once"
            );
            if let Some(outside) = experts.iter().find(|&&expert| expert >= self.n_experts) {
                bail!(
                    "cannot keep expert {outside} of block {block}: it has {}, 0 to {}",
                    self.n_experts,
                    self.n_experts - 1
                );
            }
        }
        self.check_number(n)?;
        left.iter().try_for_each(|block| self.check_groups(*block, &kept[block]))?;
        Ok(n)
    }

    fn check_groups(&self, block: BlockId, kept: &[usize]) -> Result<()> {
        let of_group = self.n_experts / self.n_groups;
        for group in 0..self.n_groups {
            let n = kept.iter().filter(|&&expert| expert / of_group == group).count();
            ensure!(
                n * self.n_groups == kept.len(),
                "block {block} would keep {n} experts of group {group}, expected {} of each of {} groups",
                kept.len() / self.n_groups,
                self.n_groups
            );
        }
        Ok(())
    }
}

/// The most experts that a block uses at once.
///
/// # Errors
/// Metadata that does not say it.
pub fn n_used(model: &Model<'_>) -> Result<usize> {
    let key = format!("{}.expert_used_count", model.architecture());
    let entry = model.metadata().get(&key).with_context(|| format!("has no metadata '{key}'"))?;
    if entry.value().value_type() != ValueType::Array {
        return Ok(model.count("expert_used_count")?.unwrap_or(0));
    }
    let mut most = 0;
    for number in entry.value().as_array()?.i64s() {
        most = most.max(number?);
    }
    usize::try_from(most).with_context(|| format!("metadata '{key}' says {most}"))
}

/// The blocks that have experts. Checks that all they have of each is known.
fn blocks(model: &Model<'_>, n_experts: usize) -> Result<BlockSet> {
    let mut blocks = BlockSet::new();
    let mut routed = BlockSet::new();
    for tensor in model.tensors() {
        let Some((block, rest)) = tensor.block else {
            continue;
        };
        let name = Quoted(tensor.info.name());
        ensure!(
            rest != TABLE,
            "cannot remove experts: block {block} has a table of the experts of each token, {name}"
        );
        ensure!(!is_unclear(rest), "cannot remove experts: how to cut tensor {name} is not known");
        match rest {
            DOWN => drop(blocks.insert(block)),
            ROUTER => drop(routed.insert(block)),
            _ => {}
        }
        if let Some(dim) = dimension(rest) {
            let dims = tensor.info.dims();
            ensure!(
                tensor.info.n_dims() == dim + 1 && dims[dim] == n_experts as u64,
                "tensor {name} has {} entries in dimension {dim}, expected one for each of {n_experts} experts, in its last \
                 dimension",
                dims[dim]
            );
            ensure!(
                dim > 0 || tensor.info.tensor_type().block_size() == 1,
                "tensor {name} is {}, whose numbers for experts cannot be taken apart",
                tensor.info.tensor_type()
            );
        }
    }
    if let Some(block) = routed.symmetric_difference(&blocks).next() {
        bail!("cannot remove experts: block {block} has only one of '{ROUTER}' and '{DOWN}'");
    }
    Ok(blocks)
}

/// Whether the weights of kept experts grow without the others.
fn grow(model: &Model<'_>, gate: Gate, normalised: Normalised) -> Result<bool> {
    /// `llama-hparams.h: llama_expert_gating_func_type`.
    const KEY_OF_SOFTMAX: usize = 1;
    let is_softmax = match (gate, model.count("expert_gating_func")?.unwrap_or(0)) {
        (Gate::Softmax, _) | (Gate::ByKeyElseSoftmax, 0) => true,
        (Gate::Own, _) => false,
        (Gate::ByKey | Gate::ByKeyElseSoftmax, key) => key == KEY_OF_SOFTMAX,
    };
    let key = format!("{}.expert_weights_norm", model.architecture());
    let is_normalised = match normalised {
        Normalised::Always => true,
        Normalised::Never => false,
        Normalised::ByKey => match model.metadata().get(&key) {
            Some(entry) => entry.value().as_bool()?,
            None => false,
        },
    };
    Ok(is_softmax && !is_normalised)
}

impl ExpertCut {
    /// The cut that a list says: of each block with experts that stays without `removed`, one after another, as many of the
    /// parent's numbers.
    ///
    /// # Errors
    /// A model without experts; a list that is not as many numbers for each block.
    pub fn of_list(model: &Model<'_>, removed: &BlockSet, list: &[usize], method: String) -> Result<Self> {
        let left = Mixture::of(model)?.blocks_left(removed)?;
        let n = list.len() / left.len();
        ensure!(
            n > 0 && n * left.len() == list.len(),
            "{} kept experts are not as many for each of {} blocks",
            list.len(),
            left.len()
        );
        let kept = left.into_iter().zip(list.chunks_exact(n).map(<[usize]>::to_vec)).collect();
        Ok(Self { kept, method })
    }

    /// How many of how many experts `tensor` keeps an entry for; `None` of one without entries for experts, or of a block of
    /// which nothing is said.
    #[must_use]
    pub fn share_of(&self, tensor: &ModelTensor<'_>) -> Option<(u64, u64)> {
        let (block, rest) = tensor.block?;
        let n_experts = tensor.info.dims()[dimension(rest)?];
        let kept = self.kept.get(&block)?;
        (n_experts > 0).then_some((kept.len() as u64, n_experts))
    }

    /// What is left of `bytes`, the data of `tensor` in some type.
    #[must_use]
    pub fn kept_bytes(&self, tensor: &ModelTensor<'_>, bytes: Vec<u8>) -> Vec<u8> {
        let kept = tensor.block.and_then(|(block, _)| self.kept.get(&block));
        let (Some((_, n_experts)), Some(kept)) = (self.share_of(tensor), kept) else {
            return bytes;
        };
        let of_expert = bytes.len() / usize::try_from(n_experts).unwrap_or(usize::MAX);
        let entries =
            kept.iter().filter_map(|&expert| bytes.get(expert * of_expert..(expert + 1) * of_expert));
        entries.collect::<Vec<_>>().concat()
    }

    /// What a user should know of it.
    ///
    /// # Errors
    /// A model without experts.
    pub(super) fn note(&self, model: &Model<'_>) -> Result<Option<String>> {
        let note = "the weights of experts are a softmax over all of a block: those that stay weigh more than in the input";
        Ok(Mixture::of(model)?.weights_grow.then(|| note.to_owned()))
    }

    /// Cuts the tensors that have an entry for each expert.
    ///
    /// # Errors
    /// Kept experts that cannot be.
    pub(super) fn apply(
        &self,
        model: &Model<'_>,
        removed: &BlockSet,
        tensors: &mut Tensors<'_>,
    ) -> Result<()> {
        let mixture = Mixture::of(model)?;
        let n = mixture.check(removed, &self.kept)?;
        for (out, data) in &mut tensors.planned {
            let TensorData::Whole { source } = *data else {
                continue;
            };
            let tensor = &model.tensors()[source];
            let Some((block, rest)) = tensor.block else {
                continue;
            };
            let (Some(dim), Some(kept)) = (dimension(rest), self.kept.get(&block)) else {
                continue;
            };
            let (runs, dims) = Runs::of_parts(&tensor.info, dim, mixture.n_experts, kept.iter().copied())?;
            *out = TensorOut::new(out.name().to_owned(), &dims[..=dim], tensor.info.tensor_type())?;
            let why = format!("of {n} of {} experts", mixture.n_experts);
            *data = TensorData::Sliced { source, runs, why };
        }
        Ok(())
    }

    /// Converts a shortened model's entries to those for the kept experts.
    ///
    /// # Errors
    /// A count that does not fit its type.
    pub(super) fn convert<'a>(
        &self,
        model: &Model<'a>,
        entries: Vec<EntryOut<'a>>,
        renumbering: &Renumbering,
    ) -> Result<Vec<EntryOut<'a>>> {
        let count_key = format!("{}.expert_count", model.architecture());
        let n_experts = model.count("expert_count")?.unwrap_or(0);
        let kept = renumbering.kept();
        let lists: Vec<&Vec<usize>> = kept.iter().filter_map(|block| self.kept.get(block)).collect();
        let n = lists.first().map_or(0, |list| list.len());
        let list: Vec<i32> =
            lists.iter().flat_map(|list| list.iter()).map(|&n| i32::try_from(n)).collect::<Result<_, _>>()?;
        let suffix = format!(" ({} of {} blocks, {n} of {n_experts} experts)", kept.len(), model.n_blocks());
        let name = model.name().map(|name| ValueOut::string(&[name, suffix.as_bytes()].concat()));
        let convert = |entry: EntryOut<'a>| -> Result<EntryOut<'a>> {
            if entry.key() == count_key {
                let value = ValueOut::integer(entry.value_type(), n as u64)
                    .with_context(|| format!("metadata '{count_key}' has a type that cannot hold {n}"))?;
                return Ok(EntryOut::new(count_key.clone(), value));
            }
            Ok(match &name {
                Some(name) if entry.key() == "general.name" => EntryOut::new("general.name", name.clone()),
                _ => entry,
            })
        };
        let mut entries: Vec<EntryOut<'a>> = entries.into_iter().map(convert).collect::<Result<_>>()?;
        entries.push(EntryOut::new(KEPT_KEY, ValueOut::i32s(&list)));
        entries.push(EntryOut::string(METHOD_KEY, &self.method));
        Ok(entries)
    }
}

/// The parent's numbers of the kept experts, block after block.
pub const KEPT_KEY: &str = "gguf_shorten.experts";

/// How they were chosen.
pub const METHOD_KEY: &str = "gguf_shorten.experts_method";

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(n_groups: usize) -> Mixture {
        Mixture {
            n_experts: 24,
            n_used: 4,
            n_groups,
            n_groups_used: 2.min(n_groups),
            blocks: BlockSet::new(),
            weights_grow: false,
            n_trunk_blocks: 0,
            special: None,
        }
    }

    #[test]
    fn shares_are_rounded_down_to_whole_experts_of_each_group() {
        let kept = |text: &str, n_groups| text.parse::<ExpertBudget>().unwrap().n_kept(&mixture(n_groups));
        assert_eq!([kept("6", 1), kept("6", 4), kept("30", 1)], [18, 18, 0]);
        assert_eq!([kept("25%", 1), kept("25%", 4), kept("1%", 1), kept("1%", 4)], [18, 20, 23, 20]);
        for wrong in ["0", "-1", "x", "", "%", "0%", "100%", "nan%", "1e3"] {
            assert!(wrong.parse::<ExpertBudget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn as_many_stay_as_are_used_and_two_of_each_group() {
        assert_eq!(mixture(1).fewest(), 4);
        // Two groups of two.
        assert_eq!(mixture(4).fewest(), 8);
        let many = Mixture { n_used: 8, ..mixture(4) };
        assert_eq!(many.fewest(), 16);
        let allowed: Vec<usize> = (0..30).filter(|n| many.check_number(*n).is_ok()).collect();
        assert_eq!(allowed, [16, 20]);
    }

    #[test]
    fn an_output_names_the_score_that_was_taken() {
        let found = ["list", "reap", "contribution", "auto", "blocks", ""].map(is_method);
        assert_eq!(found, [true, true, true, false, false, false]);
    }

    #[test]
    fn tensors_of_experts_are_known_by_name() {
        assert_eq!(dimension("ffn_gate_up_exps.weight"), Some(2));
        assert_eq!(dimension("ffn_down_exps.bias"), Some(1));
        assert_eq!(dimension("ffn_up_exps.input_scale"), Some(0));
        for rest in
            ["ffn_up_shexp.weight", "ffn_gate_inp.scale", "ffn_gate_inp_shexp.weight", "ffn_norm_exps.weight"]
        {
            assert!(dimension(rest).is_none() && !is_unclear(rest), "{rest}");
        }
        for rest in ["ffn_up_exps.lora_a", "ffn_up_chexps.weight", "exp_probs_x.bias"] {
            assert!(dimension(rest).is_none() && is_unclear(rest), "{rest}");
        }
    }
}
