//! Engine: runs a model with llama.cpp, whole or block by block.
//!
//! Takes a model and text, gives tokens ([`text`]), hidden states ([`hidden_state`], [`llama`]), logits ([`scored`],
//! [`logits`]) and sums of what weights multiply ([`imatrix`]) and of what experts do ([`experts`]). [`segment`] evaluates some blocks alone, [`blockwise`] a
//! whole text block by block, and [`load`] is the only place where a model is loaded. Uses `plan` and the rooms before it; it does not see `output`.

pub mod settings;

pub mod load;

pub mod order;

pub mod outcome;

pub mod scored;

pub mod text;

pub mod logits;

pub mod hidden_state;

pub mod imatrix;

pub mod experts;

pub mod llama;

pub mod openings;
pub mod own_text;

pub(crate) mod memory_file;

pub mod conversion;

pub mod recoded;

pub mod segment;

pub mod blockwise;
