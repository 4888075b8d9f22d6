//! Output: from a plan to files, and the check of what was written.
//!
//! Takes a [`crate::plan::Plan`], gives its files in their places ([`save`]) with an importance matrix ([`imatrix_file`]) and a
//! model of Ollama's (`ollama`), and proves that they are the plan and nothing else ([`verify`]). Uses `plan` and the rooms
//! before it; it does not see `engine`.

pub mod outcome;

pub mod imatrix_file;

pub(crate) mod ollama;

pub mod save;

pub mod modelfile;

pub mod verify;
