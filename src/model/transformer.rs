//! A transformer's view of a GGUF file: architecture, blocks, the tensors of each.
//!
//! Knows nothing of scores or of what will be removed, and does no I/O.

use crate::error::Hint;
use crate::gguf::{self, Metadata, TensorInfo};
use crate::model::arch::{Architecture, BLOCK_PREFIX};
use crate::model::block::BlockId;
use crate::model::block::block_of;
use crate::model::companion::Companion;
use anyhow::{Context, Result, anyhow, bail, ensure};

/// The most blocks that llama.cpp takes (`llama-hparams.h: LLAMA_MAX_LAYERS`).
pub const MAX_BLOCKS: usize = 512;

/// A tensor and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct ModelTensor<'a> {
    /// Its entry in the tensor table.
    pub info: TensorInfo<'a>,
    /// Which part of a split model holds it, counted from 0.
    pub part: usize,
    /// The block in its name `blk.<i>.<rest>`, with the rest. `None` for tensors of no block. (Some architectures have
    /// another [`Architecture::block_prefix`].)
    pub block: Option<(BlockId, &'a str)>,
}

/// A model: its metadata and all its tensors, of all parts, in file order.
#[derive(Debug)]
pub struct Model<'a> {
    parts: Vec<gguf::File<'a>>,
    architecture: &'a str,
    n_blocks: usize,
    /// Prediction blocks, and how many the file counts.
    n_prediction_blocks: usize,
    n_counted_prediction_blocks: usize,
    /// Blocks of a head.
    n_head_blocks: usize,
    tensors: Vec<ModelTensor<'a>>,
}

impl<'a> Model<'a> {
    /// Looks at the files as a model. `parts` are the parts of a split model in order, or the one file.
    ///
    /// # Errors
    /// No part; no architecture or number of blocks, or one that llama.cpp does not take; a tensor of a block that does
    /// not exist; a tensor in two parts.
    pub fn new(parts: Vec<gguf::File<'a>>) -> Result<Self> {
        let first = parts.first().context("a model has at least one file")?;
        refuse_companion(first)?;
        parts.iter().try_for_each(check_end)?;
        let Some(architecture) = first.metadata().get("general.architecture") else {
            return Err(no_model(first, None, "general.architecture"));
        };
        let architecture = architecture.value().as_str()?;
        if let Some(entry) = first.metadata().get("general.type") {
            let kind = entry.value().as_str()?;
            ensure!(kind == "model", "metadata 'general.type' is {}, expected 'model'", gguf::Quoted(kind));
        }
        let key = key(architecture, "block_count");
        let n_blocks = count(first.metadata(), architecture, "block_count")?
            .ok_or_else(|| no_model(first, Some(architecture), &key))?;
        ensure!(
            (1..=MAX_BLOCKS).contains(&n_blocks),
            "metadata {} is {n_blocks}, expected 1 to {MAX_BLOCKS}",
            gguf::Quoted(&key)
        );
        let head_blocks = Architecture::find(architecture).and_then(Architecture::head_blocks);
        let trailing = |name: Option<&str>, n_blocks: usize| -> Result<usize> {
            let Some(name) = name else { return Ok(0) };
            let n = count(first.metadata(), architecture, name)?.unwrap_or(0);
            ensure!(
                n < n_blocks,
                "metadata {} is {n}, expected less than the {n_blocks} blocks",
                gguf::Quoted(&self::key(architecture, name))
            );
            Ok(n)
        };
        let n_counted_prediction_blocks = trailing(Some("nextn_predict_layers"), n_blocks)?;
        let n_head_blocks = trailing(head_blocks, n_blocks - n_counted_prediction_blocks)?;
        let prefix = Architecture::find(architecture).map_or(BLOCK_PREFIX, Architecture::block_prefix);
        let tensors = tensors_of(&parts, n_blocks, prefix)?;
        let n_prediction_blocks = match n_head_blocks {
            0 => n_prediction_blocks(&tensors, n_blocks, n_counted_prediction_blocks),
            _ => n_counted_prediction_blocks,
        };
        Ok(Self {
            architecture,
            n_blocks,
            n_prediction_blocks,
            n_counted_prediction_blocks,
            n_head_blocks,
            tensors,
            parts,
        })
    }

    /// The files, one for each part.
    #[must_use]
    pub fn parts(&self) -> &[gguf::File<'a>] {
        &self.parts
    }

    /// The first part, whose metadata is the model's.
    #[must_use]
    pub fn first(&self) -> &gguf::File<'a> {
        &self.parts[0]
    }

    /// The model's metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata<'a> {
        self.first().metadata()
    }

    /// `general.architecture`.
    #[must_use]
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The rules of the architecture, if they are known.
    #[must_use]
    pub fn rules(&self) -> Option<&'static Architecture> {
        Architecture::find(self.architecture)
    }

    /// What the names of a block's tensors begin with, before its number.
    #[must_use]
    pub fn block_prefix(&self) -> &'static str {
        self.rules().map_or(BLOCK_PREFIX, Architecture::block_prefix)
    }

    /// Number of blocks, as `<arch>.block_count` says: trailing blocks included.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// Number of blocks that pass the stream on. Without trailing next-token prediction blocks (MTP) and those of a head.
    #[must_use]
    pub fn n_trunk_blocks(&self) -> usize {
        self.n_blocks - self.n_prediction_blocks - self.n_head_blocks
    }

    /// The trailing next-token prediction blocks (MTP), which an evaluation does not run.
    pub fn prediction_blocks(&self) -> impl Iterator<Item = BlockId> + use<> {
        let first = self.n_trunk_blocks();
        (first..first + self.n_prediction_blocks).map(BlockId::new)
    }

    /// How many of the last blocks the file counts as prediction blocks. Where some of those are blocks as any other, that is
    /// more than there are.
    #[must_use]
    pub fn n_counted_prediction_blocks(&self) -> usize {
        self.n_counted_prediction_blocks
    }

    /// The trailing blocks of a head after the final norm. An evaluation for the stream does not run them.
    pub fn head_blocks(&self) -> impl Iterator<Item = BlockId> + use<> {
        (self.n_blocks - self.n_head_blocks..self.n_blocks).map(BlockId::new)
    }

    /// Whether a block has any tensor.
    #[must_use]
    pub fn has_tensors(&self, block: BlockId) -> bool {
        let mut tensors = self.tensors.iter();
        tensors.any(|tensor| tensor.block.is_some_and(|(of, _)| of == block))
    }

    /// `general.name`, if it is a string. It need not be UTF-8.
    #[must_use]
    pub fn name(&self) -> Option<&'a [u8]> {
        let entry = self.metadata().get("general.name")?;
        entry.value().as_bytes().ok()
    }

    /// All tensors, part after part, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[ModelTensor<'a>] {
        &self.tensors
    }

    /// Number of weights of all tensors.
    #[must_use]
    pub fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.info.n_elements()).sum()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes().len() as u64).sum()
    }

    /// The number under `<arch>.<key>`, if the key is there.
    ///
    /// # Errors
    /// A value that is not a number that fits.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        count(self.metadata(), self.architecture, key)
    }
}

/// Refuses by name what belongs to a model and is none.
fn refuse_companion(file: &gguf::File<'_>) -> Result<()> {
    let entries: Vec<_> = file.metadata().iter().copied().collect();
    let Some(companion) = Companion::of(&entries) else {
        return Ok(());
    };
    let error = anyhow!("{}", companion.sentence());
    Err(match companion.remedy() {
        Some(remedy) => error.context(Hint(remedy.to_owned())),
        None => error,
    })
}

/// The most bytes after the last tensor that are looked at.
const MAX_END_BYTES: usize = 1 << 16;

/// Refuses bytes after the last tensor that may be part of it.
///
/// Its type is then a larger one to whoever wrote the file. Such bytes are at least one for each 256 weights, and not zeros;
/// others belong to nothing.
fn check_end(file: &gguf::File<'_>) -> Result<()> {
    let trailing = file.trailing_bytes();
    let looked_at = &trailing[..trailing.len().min(MAX_END_BYTES)];
    let last = file.tensors().iter().max_by_key(|tensor| tensor.end());
    let Some(last) = last.filter(|last| last.tensor_type().block_size() > 1) else {
        return Ok(());
    };
    let is_rest = trailing.len() as u64 >= last.n_elements() / 256 && looked_at.iter().any(|&byte| byte != 0);
    ensure!(
        !is_rest,
        anyhow!(
            "tensor {} has type {} ({}), {} bytes, but the file goes on for {} bytes after it and its padding",
            gguf::Quoted(last.name()),
            last.tensor_type().id(),
            last.tensor_type(),
            last.n_bytes(),
            trailing.len()
        )
        .context(Hint(gguf::OTHER_TYPES.to_owned()))
    );
    Ok(())
}

/// Why a file is no language model that lacks the metadata `key`.
fn no_model(file: &gguf::File<'_>, architecture: Option<&str>, key: &str) -> anyhow::Error {
    let names = file.tensors().iter().map(TensorInfo::name);
    if let Some(companion) = Companion::of_tensors(names) {
        return anyhow!("{}", companion.sentence());
    }
    let missing = format!("metadata {} is missing", gguf::Quoted(key));
    match architecture {
        Some(name) if Architecture::find(name).is_none() && Architecture::refusal(name).is_none() => {
            anyhow!(
                "{missing}, and {} is no architecture of a language model that llama.cpp knows",
                gguf::Quoted(name)
            )
        }
        _ => anyhow!(missing),
    }
}

/// The key of that name under the architecture's prefix. The architecture is the file's word: quote it in messages.
fn key(architecture: &str, name: &str) -> String {
    format!("{architecture}.{name}")
}

fn count(metadata: &Metadata<'_>, architecture: &str, name: &str) -> Result<Option<usize>> {
    let key = key(architecture, name);
    let Some(entry) = metadata.get(&key) else {
        return Ok(None);
    };
    let value = entry.value().as_u64()?;
    let count = usize::try_from(value)
        .with_context(|| format!("metadata {} is {value}, which is too large", gguf::Quoted(&key)))?;
    Ok(Some(count))
}

/// Number of prediction blocks at the end; the metadata counts `n_counted`.
///
/// In every architecture such a block has the tensor by which llama.cpp looks for it, or is not in the file at all. One that
/// has only others is a block as any other, and its count stayed when the prediction blocks were removed.
fn n_prediction_blocks(tensors: &[ModelTensor<'_>], n_blocks: usize, n_counted: usize) -> usize {
    let (mut is_held, mut predicts) = (vec![false; n_blocks], vec![false; n_blocks]);
    for (block, name) in tensors.iter().filter_map(|tensor| tensor.block) {
        is_held[block.index()] = true;
        predicts[block.index()] |= name == "nextn.eh_proj.weight";
    }
    let counted = (n_blocks - n_counted..n_blocks).rev();
    counted.take_while(|&block| predicts[block] || !is_held[block]).count()
}

fn tensors_of<'a>(parts: &[gguf::File<'a>], n_blocks: usize, prefix: &str) -> Result<Vec<ModelTensor<'a>>> {
    let mut tensors = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (part, file) in parts.iter().enumerate() {
        for info in file.tensors().iter() {
            let name = info.name();
            if parts.len() > 1 && !names.insert(name) {
                bail!("tensor {} is in two parts of the model", gguf::Quoted(name));
            }
            let block = block_of(name, prefix);
            if let Some((block, _)) = block {
                ensure!(
                    block.index() < n_blocks,
                    "tensor {} belongs to block {block}, but the model has {n_blocks} blocks, 0 to {}",
                    gguf::Quoted(name),
                    n_blocks - 1
                );
            }
            tensors.push(ModelTensor { info: *info, part, block });
        }
    }
    Ok(tensors)
}
