//! Recipe: the choice of a fit as a file, to be seen, edited and applied.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize};

use super::removal::Removal;
use crate::files::unique::unique;
use crate::gguf::{Quoted, TensorType};
use crate::model::block::{BlockSet, numbers};
use crate::model::{BlockId, Model};
use crate::output::rounding::{may_be_rounded, needs_importance};
use crate::plan::experts::{KeptExperts, LIST, Mixture, is_method};
use crate::plan::{AttentionCut, ChosenBy, ExpertCut, attention};

/// Bytes of a file at most.
const MAX_BYTES: u64 = 64 << 20;

/// The version of the form.
const VERSION: u32 = 1;

/// A choice of types and blocks for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of this form.
    pub gguf_shorten_fit: u32,
    /// Hash of the model that it is for.
    pub parent_blake3: String,
    /// Hash of the importance matrix by which weights are rounded; null for none.
    pub imatrix_blake3: Option<String>,
    /// The blocks to remove.
    pub removed: Vec<usize>,
    /// The method that named them; `blocks` for a list.
    pub method: String,
    /// The blocks that stay without their attention.
    #[serde(default)]
    pub attention_removed: Vec<usize>,
    /// How they were chosen; `blocks` for a list, which null stands for.
    #[serde(default)]
    pub attention_method: Option<String>,
    /// The experts that stay, by block; null where none go.
    #[serde(default, deserialize_with = "some_unique")]
    pub experts: Option<BTreeMap<usize, Vec<usize>>>,
    /// How they were chosen; `list` for a list, which null stands for.
    #[serde(default)]
    pub experts_method: Option<String>,
    /// The tensors in other types, by their names in the model.
    #[serde(deserialize_with = "unique")]
    pub types: BTreeMap<String, String>,
    /// Bytes of the file.
    pub bytes: u64,
    /// The expected mean KL divergence, in nats: the sum of single losses.
    pub expected_kl: Option<f64>,
    /// As measured, in nats.
    pub kl_divergence: Option<f64>,
    /// Hash of all above when it was measured. With another one the divergences are not those of this plan.
    #[serde(default)]
    pub measured_blake3: Option<String>,
}

fn some_unique<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<usize, Vec<usize>>>, D::Error> {
    #[derive(Deserialize)]
    struct Lists(#[serde(deserialize_with = "unique")] BTreeMap<usize, Vec<usize>>);
    Ok(Option::<Lists>::deserialize(deserializer)?.map(|lists| lists.0))
}

/// Types of tensors, by their index among the model's.
pub type Types = BTreeMap<usize, TensorType>;

/// A recipe that was checked against its model.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) removal: Removal,
    /// The tensors in other types.
    pub(super) types: Types,
}

impl Recipe {
    /// Of a choice for `model`, whose files have the hash `parent`.
    #[must_use]
    pub(super) fn new(model: &Model<'_>, parent: blake3::Hash, removal: &Removal, types: &Types) -> Self {
        let named = |(source, to): (&usize, &TensorType)| {
            let tensor = model.tensors().get(*source)?;
            Some((tensor.info.name().to_owned(), to.name().to_owned()))
        };
        Self {
            gguf_shorten_fit: VERSION,
            parent_blake3: parent.to_hex().to_string(),
            imatrix_blake3: None,
            removed: numbers(&removal.blocks),
            attention_removed: removal.without_attention(),
            attention_method: removal.attention.as_ref().map(|cut| cut.method.clone()),
            experts: removal.experts.as_ref().map(|cut| {
                cut.kept.iter().map(|(block, experts)| (block.index(), experts.clone())).collect()
            }),
            experts_method: removal.experts.as_ref().map(|cut| cut.method.clone()),
            method: ChosenBy::List.to_string(),
            types: types.iter().filter_map(named).collect(),
            bytes: 0,
            expected_kl: None,
            kl_divergence: None,
            measured_blake3: None,
        }
    }

    /// With the hash of all that it says.
    ///
    /// # Errors
    /// A bug.
    pub(super) fn measured(self) -> Result<Self> {
        let hash = self.hash()?;
        Ok(Self { measured_blake3: Some(hash), ..self })
    }

    /// Its divergences, as a sum and as measured, unless it was edited after that.
    pub(super) fn divergences(&self) -> Result<[Option<f64>; 2]> {
        Ok(match self.measured_blake3.as_deref() == Some(&*self.hash()?) {
            true => [self.expected_kl, self.kl_divergence],
            false => [None; 2],
        })
    }

    fn hash(&self) -> Result<String> {
        let plain = Self { measured_blake3: None, ..self.clone() };
        Ok(blake3::hash(&serde_json::to_vec(&plain)?).to_hex().to_string())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The system's; what is no recipe.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MAX_BYTES, "is larger than any plan of a fit");
        Self::parse(&bytes)
    }

    /// Reads the bytes of a file.
    fn parse(bytes: &[u8]) -> Result<Self> {
        let recipe: Self =
            serde_json::from_slice(bytes).map_err(|error| anyhow::anyhow!("is no plan of a fit: {error}"))?;
        ensure!(
            recipe.gguf_shorten_fit == VERSION,
            "is a plan of version {}, expected {VERSION}",
            recipe.gguf_shorten_fit
        );
        Ok(recipe)
    }

    /// Checks that it can be applied to `model` with those hashes. `parent` is that of the model's files, `imatrix` that of
    /// the importance matrix.
    ///
    /// # Errors
    /// A plan for another model; a tensor that is not there, or cannot take its type.
    pub(super) fn check(
        &self,
        model: &Model<'_>,
        parent: blake3::Hash,
        imatrix: Option<blake3::Hash>,
    ) -> Result<Checked> {
        let found = parent.to_hex();
        ensure!(
            self.parent_blake3 == found.as_str(),
            "is a plan for the model of blake3 {}, but this one has {found}",
            self.parent_blake3
        );
        match (&self.imatrix_blake3, imatrix) {
            (None, None) => {}
            (Some(wanted), Some(found)) if *wanted == found.to_hex().as_str() => {}
            (Some(wanted), _) => {
                bail!("is a plan with the importance matrix of blake3 {wanted}, which --imatrix has to name")
            }
            (None, Some(_)) => bail!("is a plan without an importance matrix, but --imatrix names one"),
        }
        let removal = self.removal(model)?;
        let sources: BTreeMap<&str, usize> =
            model.tensors().iter().enumerate().map(|(i, tensor)| (tensor.info.name(), i)).collect();
        let mut types = BTreeMap::new();
        for (name, to) in &self.types {
            let source = *sources
                .get(name.as_str())
                .with_context(|| format!("names tensor {}, which the model does not have", Quoted(name)))?;
            let tensor = &model.tensors()[source];
            ensure!(!removal.takes(tensor), "gives tensor {} a type and removes it", Quoted(name));
            types.insert(source, checked_type(&tensor.info, to, imatrix.is_some())?);
        }
        Ok(Checked { removal, types })
    }

    /// The removal, checked for `model`.
    fn removal(&self, model: &Model<'_>) -> Result<Removal> {
        let block = |block: &usize| {
            ensure!(
                *block < model.n_blocks(),
                "removes block {block}, but the model has {} blocks, 0 to {}",
                model.n_blocks(),
                model.n_blocks().saturating_sub(1)
            );
            Ok(BlockId::new(*block))
        };
        let blocks: BlockSet = self.removed.iter().map(block).collect::<Result<_>>()?;
        let attention = self.attention(model, &blocks)?;
        let experts = self.experts(model, &blocks)?;
        let method = match (ChosenBy::of_word(&self.method), blocks.is_empty()) {
            (None, _) => bail!("chose blocks by {}, which is no method", Quoted(&self.method)),
            (Some(_), true) => ChosenBy::NoBlock.to_string(),
            (Some(ChosenBy::NoBlock), false) => ChosenBy::List.to_string(),
            (Some(by), false) => by.to_string(),
        };
        Ok(Removal { blocks, attention, experts, method, kl: 0.0 })
    }

    /// The attention that goes, checked for `model` without `removed`.
    fn attention(&self, model: &Model<'_>, removed: &BlockSet) -> Result<Option<AttentionCut>> {
        if self.attention_removed.is_empty() {
            ensure!(
                self.attention_method.is_none(),
                "names a method for attention, but no block that loses it"
            );
            return Ok(None);
        }
        attention::check_model(model)?;
        let blocks: BlockSet = self.attention_removed.iter().copied().map(BlockId::new).collect();
        attention::check(model, removed, &blocks)?;
        let method = self.attention_method.clone().unwrap_or_else(|| ChosenBy::List.to_string());
        ensure!(
            matches!(ChosenBy::of_word(&method), Some(ChosenBy::Method(_) | ChosenBy::List)),
            "chose attention by {}, which is no method",
            Quoted(&method)
        );
        Ok(Some(AttentionCut { blocks, method }))
    }

    /// The experts that stay, checked for `model` without `removed`.
    fn experts(&self, model: &Model<'_>, removed: &BlockSet) -> Result<Option<ExpertCut>> {
        let Some(experts) = &self.experts else {
            ensure!(self.experts_method.is_none(), "names a method for experts, but not which stay");
            return Ok(None);
        };
        let method = self.experts_method.clone().unwrap_or_else(|| LIST.to_owned());
        ensure!(is_method(&method), "chose experts by {}, which is no method", Quoted(&method));
        let kept: KeptExperts =
            experts.iter().map(|(block, experts)| (BlockId::new(*block), experts.clone())).collect();
        Mixture::of(model)?.check(removed, &kept)?;
        Ok(Some(ExpertCut { kept, method }))
    }
}

/// The type of that name, which the tensor can take.
fn checked_type(info: &crate::gguf::TensorInfo<'_>, to: &str, has_matrix: bool) -> Result<TensorType> {
    let name = Quoted(info.name());
    let found = TensorType::all().find(|of| of.name() == to && ggml::quantize::can_quantize(of.id()));
    let to = found.with_context(|| {
        format!("gives tensor {name} type {}, to which nothing can be rounded", Quoted(to))
    })?;
    ensure!(may_be_rounded(info), "gives tensor {name} a type, which llama-quantize leaves as it is");
    let n_columns = info.dims()[0];
    if to.row_bytes(n_columns).is_none() {
        let smaller =
            TensorType::all().filter(|of| ggml::quantize::can_quantize(of.id()) && of.block_size() > 1);
        let fits = smaller.filter(|of| of.row_bytes(n_columns).is_some());
        let nearest = fits.min_by_key(|of| {
            let bits = |of: TensorType| of.block_bytes() * 8192 / of.block_size();
            bits(*of).abs_diff(bits(to))
        });
        let instead = nearest.map_or_else(String::new, |of| format!("; {of} can"));
        bail!(
            "gives tensor {name} type {to}, but its rows of {n_columns} weights are no multiple of {}{instead}",
            to.block_size()
        );
    }
    ensure!(to != info.tensor_type(), "gives tensor {name} type {to}, which it has");
    ensure!(
        has_matrix || !needs_importance(to),
        "gives tensor {name} type {to}, which needs an importance matrix (--imatrix)"
    );
    Ok(to)
}
