//! gguf-shorten: removes the least influential blocks of a quantized GGUF model, byte-exactly.
//!
//! # Data flow
//!
//! ```text
//! path -> Input (ggml::Mapping) -> &[u8] -> gguf::File { Header, Metadata, TensorTable } -> Model -> Constraints --+
//!                                                                                                                  +-> Plan -> save
//! text -> CalibrationSet -> HiddenStates -> Importance ------------------------------------------------------------+
//! removed blocks, CalibrationSet -> Healer -> Healing -> Plan
//! text -> CalibrationSet -> ScoredLogits -> Quality ----------------------------------------------------> Report
//! Quality of several models -> comparison (front, verdict) -------------------------------------------> Report
//! tasks -> Task -> Accuracy ----------------------------------------------------------------------------> Report
//! Importance -> Sample -> Edge: which blocks another text could move over the edge of the set ---------> Report
//! Importance, Plan -> Report -> table, JSON
//! output, parent -> verify (bytes), oracle (logits) -> Report
//! JSON of Reports -> Saved -> Collection -> pages (HTML, SVG, Markdown, CSV)
//! metadata, Plan, Report of an evaluation -> Card
//! ```
//!
//! Each type is made once, by a function of the types before it, and not changed afterwards. Only `commands`, `input`,
//! `llama`, `healer`, `evaluator`, `own_text`, `cache_folder`, `calibration::Texts`, `segment`, `search::journal`, `scratch`, `room`, `commit`, `save`, `beside`,
//! `oracle`, `stamp` and `batch` do I/O; planning and verifying are pure. A [`batch`] runs this program again for each of many
//! models.
//!
//! # Invariants
//!
//! - A kept tensor is byte-identical to the input's, and a metadata entry that is not edited is copied, not encoded again.
//!   A tensor that is cut or changed is listed with the reason ([`plan::TensorChange`]).
//! - What the output computes is the input without the removed blocks, but for tensors that healing changes; a removal for which that is not known is refused.
//! - [`model::BlockId`] is a block's number in the input. Numbers of the output exist only in [`plan::Renumbering`].
//! - Hostile input gets an error: every length, count and offset of a file is checked before it is used.
//! - On failure nothing is left behind and nothing existing is touched.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        reason = "a test that panics fails with the reason"
    )
)]

pub mod cli;

pub mod options;

pub mod commands;

pub mod part_name;

pub mod stamp;

pub mod input;

pub mod gguf;

pub mod companion;

pub mod model;

pub mod arch;

pub mod calibration;

pub mod own_text;

pub mod cache_folder;

pub mod hidden_state;

pub mod recoded;

pub mod llama;

pub mod evaluator;

pub mod importance;

pub mod quality;

pub mod comparison;

pub mod tasks;

pub mod stability;

pub mod angular;

pub mod pairs;

pub mod segment;

pub mod search;

pub mod heal;

pub mod healer;

pub mod plan;

pub mod imatrix;

pub mod scratch;

pub mod room;

pub mod commit;

pub mod save;

pub mod beside;

pub mod verify;

pub mod oracle;

pub mod batch;

pub mod report;

pub mod saved;

pub mod pages;

pub mod card;

pub mod progress;

pub mod error;
