//! Model: from a name or path to a checked model.
//!
//! Takes a name ([`stores`]) or path, gives an [`input::Input`], its mapped files, and a [`Model`], the transformer's view of
//! them, with the rules of its architecture ([`arch`]). Files of Ollama's own layouts are read under stock names
//! ([`convert`]). Uses `files` and the rooms before it.

pub(crate) mod names;

pub mod renumbering;

pub mod part;

pub mod temporary;

pub mod place;

pub mod hashes;

pub mod block;

pub mod outcome;

pub mod arch;

pub mod companion;

pub mod input;

pub mod convert;

pub mod stores;

pub mod warning;

mod transformer;

pub use crate::model::block::BlockId;
pub(crate) use crate::model::block::{block_of, leading_block};
pub use transformer::{MAX_BLOCKS, Model, ModelTensor};
