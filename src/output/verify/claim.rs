//! Claim: the entries of a shortened file about itself, under `gguf_shorten.`.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, ensure};

use super::{Difference, Differences, VERSION_KEY};
use crate::error::Hint;
use crate::gguf::{Entry, Metadata, Place};
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::named::Named;
use crate::plan::attention::{METHOD_KEY as ATTENTION_METHOD_KEY, REMOVED_KEY};
use crate::plan::experts;
use crate::plan::healing::{LOSS_KEY, TENSORS_KEY};
use crate::plan::{AttentionCut, ChosenBy, HealMethod, requantized};

const BLOCKS_KEY: &str = "gguf_shorten.blocks";
const PARENT_KEY: &str = "gguf_shorten.parent.blake3";
const PARENT_BLOCKS_KEY: &str = "gguf_shorten.parent.block_count";
const METHOD_KEY: &str = "gguf_shorten.method";
const HEAL_KEY: &str = "gguf_shorten.heal";

/// The release that this is.
const THIS_RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The longest version that is taken for one.
const MAX_VERSION_BYTES: usize = 64;

/// The entries of a file about itself. One that is missing, or of another type, is `None`; it then differs from
/// the planned one.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The release that wrote it.
    pub version: Option<String>,
    /// Hash of the parent.
    pub parent_blake3: Option<blake3::Hash>,
    /// Number of blocks of the parent.
    pub n_parent_blocks: Option<u64>,
    /// How the blocks were chosen.
    pub method: Option<String>,
    /// What made up for the removed blocks.
    pub heal: Option<String>,
    /// The tensors that have other weights than the parent's, by its names. `None` if it says nothing of that.
    pub healed: Option<HealedClaim>,
    /// The tensors in other types; `None` if it says nothing of that.
    pub types: Option<TypesClaim>,
    /// The parent's numbers of the blocks that it holds.
    pub kept: Vec<BlockId>,
    /// Those of them that it holds without their attention. `None` if it says nothing of that.
    pub attention: Option<AttentionCut>,
    /// The experts that it holds; `None` if it says nothing of that.
    pub experts: Option<ExpertClaim>,
}

/// The entries of a file about its experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertClaim {
    /// The parent's numbers of them, block after block.
    pub kept: Vec<usize>,
    /// How they were chosen.
    pub method: String,
}

/// The entries of a file about replaced weights.
#[derive(Clone, Debug, PartialEq)]
pub struct HealedClaim {
    /// The parent's names of them.
    pub tensors: Vec<String>,
    /// The loss without them and with them, in nats per token.
    pub loss: [f32; 2],
}

impl HealedClaim {
    fn of(metadata: &Metadata<'_>) -> Result<Option<Self>> {
        let Some(tensors) = names(metadata, TENSORS_KEY)? else {
            return Ok(None);
        };
        Ok(Some(Self { tensors, loss: two_losses(metadata, LOSS_KEY)? }))
    }
}

/// The entries of a file about types.
#[derive(Clone, Debug, PartialEq)]
pub struct TypesClaim {
    /// The parent's names of the tensors in other types.
    pub tensors: Vec<String>,
    /// The mean KL divergence from the parent, in nats: as the sum of single losses, and as measured.
    pub loss: [f32; 2],
    /// What rounded the weights.
    pub ggml: String,
    /// Hash of the importance matrix that was used.
    pub imatrix: Option<blake3::Hash>,
}

impl TypesClaim {
    fn of(metadata: &Metadata<'_>) -> Result<Option<Self>> {
        let Some(tensors) = names(metadata, requantized::TENSORS_KEY)? else {
            return Ok(None);
        };
        let text = |key| metadata.get(key).and_then(|entry| entry.value().as_str().ok());
        Ok(Some(Self {
            tensors,
            loss: two_losses(metadata, requantized::LOSS_KEY)?,
            ggml: text(requantized::GGML_KEY).unwrap_or_default().to_owned(),
            imatrix: text(requantized::IMATRIX_KEY).and_then(|hex| blake3::Hash::from_hex(hex).ok()),
        }))
    }
}

/// The names of a list; `None` if there is none.
fn names(metadata: &Metadata<'_>, key: &str) -> Result<Option<Vec<String>>> {
    let Some(entry) = metadata.get(key) else {
        return Ok(None);
    };
    let names = entry.value().as_array()?.strs();
    // A name that is there many times stands for one tensor.
    let names = names.map(|name| Ok(name?.to_owned())).collect::<Result<BTreeSet<_>>>()?;
    Ok(Some(names.into_iter().collect()))
}

/// Two losses; NaN for one that is missing.
fn two_losses(metadata: &Metadata<'_>, key: &str) -> Result<[f32; 2]> {
    let mut losses = [f32::NAN; 2];
    if let Some(entry) = metadata.get(key) {
        for (to, found) in losses.iter_mut().zip(entry.value().as_array()?.f64s()) {
            #[expect(clippy::cast_possible_truncation, reason = "written as a float")]
            let found = found? as f32;
            *to = found;
        }
    }
    Ok(losses)
}

impl Claim {
    /// Of a file that says nothing of itself, with these blocks of the parent.
    pub(super) fn of_blocks(kept: Vec<BlockId>) -> Self {
        Self {
            version: None,
            parent_blake3: None,
            n_parent_blocks: None,
            method: None,
            heal: None,
            healed: None,
            types: None,
            kept,
            attention: None,
            experts: None,
        }
    }

    /// Reads what the metadata says.
    ///
    /// # Errors
    /// No list of blocks, or one that is not in rising order.
    pub fn of(metadata: &Metadata<'_>) -> Result<Self> {
        let text = |key| {
            let value = metadata.get(key)?.value();
            value.as_str().ok().map(str::to_owned)
        };
        Ok(Self {
            version: text(VERSION_KEY),
            parent_blake3: text(PARENT_KEY).and_then(|hex| blake3::Hash::from_hex(hex).ok()),
            n_parent_blocks: (metadata.get(PARENT_BLOCKS_KEY)).and_then(|entry| entry.value().as_u64().ok()),
            method: text(METHOD_KEY),
            heal: text(HEAL_KEY),
            healed: HealedClaim::of(metadata)?,
            types: TypesClaim::of(metadata)?,
            kept: kept(metadata)?,
            attention: match metadata.get(REMOVED_KEY) {
                Some(entry) => Some(AttentionCut {
                    blocks: rising(entry)?.into_iter().collect(),
                    method: text(ATTENTION_METHOD_KEY).unwrap_or_default(),
                }),
                None => None,
            },
            experts: match metadata.get(experts::KEPT_KEY) {
                Some(entry) => Some(ExpertClaim {
                    kept: numbers(entry)?,
                    method: text(experts::METHOD_KEY).unwrap_or_default(),
                }),
                None => None,
            },
        })
    }

    /// The blocks that are left out, of a parent with `n_blocks`.
    ///
    /// # Errors
    /// A block that the parent does not have.
    pub(super) fn removed(&self, n_blocks: usize) -> Result<BlockSet> {
        let mut removed: BTreeSet<_> = (0..n_blocks).map(BlockId::new).collect();
        for block in &self.kept {
            ensure!(
                removed.remove(block),
                "metadata '{BLOCKS_KEY}' names block {block}, but the parent has {n_blocks} blocks, 0 to {}",
                n_blocks.saturating_sub(1)
            );
        }
        Ok(removed)
    }

    /// The file's version, if it is that of another release.
    #[must_use]
    pub fn other_release(&self) -> Option<&str> {
        self.version.as_deref().filter(|&version| version != THIS_RELEASE && is_version(version))
    }

    /// Checks the words that the plan takes over as they are. Nothing else could find them wrong.
    pub(super) fn check(&self, differences: &mut Differences) {
        let without_block = self.attention.is_some() || self.experts.is_some() || self.types.is_some();
        let is_wrong = |word: &str, without_block: bool| match ChosenBy::of_word(word) {
            Some(ChosenBy::NoBlock) => !without_block,
            Some(ChosenBy::Method(_) | ChosenBy::List) => false,
            None => true,
        };
        let method = self.method.as_deref().filter(|word| is_wrong(word, without_block));
        let attention = self.attention.as_ref().map(|cut| cut.method.as_str());
        let attention = attention.filter(|word| is_wrong(word, false));
        let heal = self.heal.as_deref().filter(|word| match HealMethod::of_word(word) {
            Some(method) => (method != HealMethod::None) != self.healed.is_some(),
            None => true,
        });
        let of_experts = self.experts.as_ref().map(|experts| experts.method.as_str());
        let of_experts = of_experts.filter(|word| !experts::is_method(word));
        for (key, word) in [
            (METHOD_KEY, method),
            (ATTENTION_METHOD_KEY, attention),
            (experts::METHOD_KEY, of_experts),
            (HEAL_KEY, heal),
        ] {
            if let Some(word) = word {
                differences
                    .push(Difference::Word { entry: Place::Key(key.to_owned()), word: word.to_owned() });
            }
        }
    }
}

fn kept(metadata: &Metadata<'_>) -> Result<Vec<BlockId>> {
    let Some(entry) = metadata.get(BLOCKS_KEY) else {
        return Err(anyhow!(
            "metadata '{BLOCKS_KEY}' is missing, so it is not known which blocks of a parent these are"
        )
        .context(Hint("--weights finds the blocks by their bytes".to_owned())));
    };
    rising(entry)
}

/// The block numbers of a list.
fn rising(entry: &Entry<'_>) -> Result<Vec<BlockId>> {
    let mut blocks: Vec<BlockId> = Vec::new();
    for number in entry.value().as_array()?.i64s() {
        let number = number?;
        let block = usize::try_from(number).ok().map(BlockId::new);
        let rises = |block: &BlockId| blocks.last().is_none_or(|last| last < block);
        let Some(block) = block.filter(rises) else {
            return Err(anyhow!(
                "metadata '{}' has {number} at position {}, expected block numbers in rising order",
                entry.key(),
                blocks.len()
            ));
        };
        blocks.push(block);
    }
    Ok(blocks)
}

/// The numbers of a list.
fn numbers(entry: &Entry<'_>) -> Result<Vec<usize>> {
    let number =
        |number: i64| usize::try_from(number).map_err(|_| anyhow!("metadata '{}' has {number}", entry.key()));
    entry.value().as_array()?.i64s().map(|found| number(found?)).collect()
}

/// Whether a text has the form of a version: `1.2.3`, perhaps with a suffix such as `-rc.1`.
fn is_version(text: &str) -> bool {
    let (numbers, suffix) = match text.find(['-', '+']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= MAX_VERSION_BYTES
        && numbers.split('.').count() == 3
        && numbers.split('.').all(is_number)
        && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::is_version;

    #[test]
    fn versions_have_three_numbers() {
        for version in ["0.1.0", "10.20.30", "1.0.0-rc.1", "1.0.0+build-5"] {
            assert!(is_version(version), "{version}");
        }
        for other in ["", "1.0", "1.0.0.0", "1.0.x", "1..0", "v1.0.0", "1.0.0-a b"] {
            assert!(!is_version(other), "{other}");
        }
        assert!(!is_version(&format!("1.0.{}", "0".repeat(100))));
    }
}
