//! Output: from a plan to files, and the check of what was written.
//!
//! Takes a [`crate::plan::Plan`], gives its files in their places ([`save`]), with all others of a run or not at all
//! ([`outputs`]). The others are an importance matrix ([`imatrix_file`]), a model of Ollama's (`ollama`), a card. Proves that
//! they are the plan and nothing else ([`verify`]). Uses `plan` and the rooms before it; it does not see `engine`.

mod parent;

pub mod outcome;

pub mod imatrix_file;

pub(crate) mod ollama;

pub mod rounding;

pub mod save;

pub mod outputs;

pub mod modelfile;

pub mod verify;

pub use parent::Parent;
