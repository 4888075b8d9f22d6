//! Plan: which blocks go, and what every entry and tensor of the output will be. Pure: no I/O.
//!
//! In reading order: [`kinds`] says what each block is, [`counts`] how many may stay, [`constraints`] what may be removed.
//! `tensors` decides every tensor, whose data is a [`data::TensorData`]. `metadata` decides every entry, with what it `names`
//! and what it says of the model's `size`. [`attention`] leaves out the attention of blocks that stay, [`experts`] some of
//! their experts. [`healing`] gives tensors other weights, of those by which blocks write to the stream ([`writers`]), and
//! [`requantized`] other types. [`parts`] cuts the output into files.

pub mod method;

pub mod provenance;

pub mod cut;

pub mod imatrix;

pub mod kinds;

pub mod counts;

pub mod constraints;

pub mod data;

mod metadata;

pub(crate) mod names;

mod size;

mod tensors;

pub mod attention;

pub mod experts;

pub mod healing;

pub mod requantized;

pub mod writers;

pub mod parts;

use crate::gguf::{ALIGNMENT_KEY, EntryOut, Layout, TensorOut};
use crate::model::Model;
use crate::model::block::BlockSet;
use crate::model::renumbering::Renumbering;
pub use crate::plan::method::{Basis, Budget, ChosenBy, Method};
pub use crate::plan::provenance::Provenance;
use anyhow::Result;
pub use attention::AttentionCut;
pub use constraints::Constraints;
pub use cut::Cut;
pub use data::{ChangeKind, ChangedTensor, ChangedTensors, Runs, TensorChange, TensorData, Tensors};
pub use experts::ExpertCut;
pub use healing::{HealMethod, Healing};
pub use metadata::segment_entries;
pub use parts::Splitting;
pub use requantized::Requantized;
use std::collections::BTreeSet;

/// The output, planned to the byte.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The blocks that go.
    pub removed: BlockSet,
    /// The blocks that stay without their attention.
    pub attention_removed: BlockSet,
    /// The experts that stay, where some go.
    pub experts: Option<ExpertCut>,
    /// The blocks that stay, and their new numbers.
    pub renumbering: Renumbering,
    /// Every position of the output.
    pub layout: Layout<'a>,
    /// For each tensor of the layout, what its data is.
    pub data: Vec<TensorData<'a>>,
    /// Tensors that differ from the model's, in the order of the layout. After them come those that are left out though they
    /// belong to no removed block.
    pub changes: Vec<TensorChange>,
    /// Number of weights of the output.
    pub n_parameters: u64,
    /// What a user should know of the metadata.
    pub notes: Vec<String>,
    /// What the output says about where it comes from.
    pub provenance: Provenance,
}

impl<'a> Plan<'a> {
    /// Plans `model` with `cut`, which `constraints` must allow. The blocks that are dropped with any cut go, too.
    /// `parent_blake3` is the hash of its files, which the output names.
    ///
    /// # Errors
    /// A set that is not allowed; blocks that may not lose their attention; experts that cannot be removed. A metadata entry or a
    /// tensor that cannot be
    /// shortened; replaced weights of a tensor that is not in the output.
    pub fn new(
        model: &Model<'a>,
        constraints: &Constraints,
        cut: &Cut,
        parent_blake3: blake3::Hash,
    ) -> Result<Self> {
        let provenance = &Provenance { parent_blake3, method: cut.method.clone(), heal: cut.heal.clone() };
        let mut removed = cut.blocks.clone();
        removed.extend(&constraints.dropped);
        constraints.check(&removed)?;
        let renumbering = Renumbering::new(model.n_blocks(), &removed);
        let mut tensors = tensors::decide(model, constraints, &renumbering)?;
        if let Some(cut) = &cut.attention {
            attention::check(model, &removed, &cut.blocks)?;
            attention::leave_out(model, &mut tensors, cut);
        }
        if let Some(cut) = &cut.experts {
            cut.apply(model, &removed, &mut tensors)?;
        }
        let (mut entries, notes) = metadata::decide(model, constraints, &renumbering, &tensors, provenance)?;
        if let Some(cut) = &cut.attention {
            entries = attention::convert(model, entries, &renumbering, cut)?;
        }
        if let Some(cut) = &cut.experts {
            entries = cut.convert(model, entries, &renumbering)?;
        }
        if let Some(healing) = &cut.healing {
            let why = format!("makes up for removed blocks ({})", cut.heal);
            tensors.change(model, &healing.tensors, &why)?;
            entries.extend(healing.entries(model, &cut.heal)?);
        }
        if let Some(types) = &cut.types {
            tensors.change(model, &types.tensors, "in another type")?;
            entries = types.entries(model, &renumbering, cut.attention.as_ref(), entries, &tensors)?;
        }
        let entries = size::set(entries, &tensors);
        let mut plan = Self::of(model, removed, entries, tensors, provenance)?;
        plan.attention_removed = cut.attention.as_ref().map(|cut| cut.blocks.clone()).unwrap_or_default();
        if let Some(cut) = &cut.experts {
            plan.notes.extend(cut.note(model)?);
            plan.experts = Some(cut.clone());
        }
        plan.notes.extend(notes);
        Ok(plan)
    }

    /// The plan of a file that is evaluated but not kept. It is as long as the one that would be written, with zeros as the
    /// parent's hash.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn draft(model: &Model<'a>, constraints: &Constraints, cut: &Cut) -> Result<Self> {
        Self::new(model, constraints, cut, Provenance::DRAFT)
    }

    /// The plan of these entries and tensors for `model` without `removed`.
    ///
    /// # Errors
    /// Entries or tensors that cannot stand in one file; data that is not as long as its tensor, which is a bug.
    pub fn of(
        model: &Model<'a>,
        removed: BlockSet,
        entries: Vec<EntryOut<'a>>,
        tensors: Tensors<'a>,
        provenance: &Provenance,
    ) -> Result<Self> {
        let changes = tensors.changes(model)?;
        let first = model.first();
        let last = model.parts().last().unwrap_or(first);
        let (tensors, data): (Vec<_>, Vec<_>) = tensors.planned.into_iter().unzip();
        let n_parameters = tensors.iter().map(TensorOut::n_elements).sum();
        let layout = Layout::mappable(
            first.header().version,
            first.alignment(),
            entries,
            tensors,
            last.ends_padded(),
        )?;
        Ok(Self {
            renumbering: Renumbering::new(model.n_blocks(), &removed),
            removed,
            attention_removed: BTreeSet::new(),
            experts: None,
            data,
            changes,
            n_parameters,
            notes: raised(first.alignment(), &layout).into_iter().collect(),
            layout,
            provenance: provenance.clone(),
        })
    }
}

/// What to say where the layout has another alignment than the input.
fn raised(alignment: u64, layout: &Layout<'_>) -> Option<String> {
    (layout.alignment() != alignment).then(|| {
        format!(
            "metadata '{ALIGNMENT_KEY}' is raised from {alignment} to {}: llama.cpp may not map a file with less",
            layout.alignment()
        )
    })
}
