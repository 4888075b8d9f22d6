//! gguf-shorten: removes the least influential blocks of a quantized GGUF model, byte-exactly.
//!
//! # Data flow
//!
//! ```text
//! name -> stores -> path -> Input (ggml::Mapping) -> &[u8] -> gguf::File { Header, Metadata, TensorTable }
//! gguf::File -> restate (a layout of Ollama's) -> gguf::File under stock names
//! gguf::File -> Model -> Constraints --------------------------------------------+
//!                                                                                +-> Plan -> save
//! text -> CalibrationSet -> HiddenStates -> Importance (or cache) ---------------+
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
//! Each type is made once, by a function of the types before it, and not changed afterwards. Only `commands`, `stores`, `input`,
//! `temporary`, `cache`, `cache_folder`, `llama`, `healer`, `evaluator`, `own_text`, `calibration::Texts`, `segment`,
//! `search::journal`, `scratch`, `room`, `commit`, `save`, `beside`, `oracle`, `stamp` and `batch` do I/O; planning and verifying
//! are pure. A [`batch`] runs this program again for each of many models.
//!
//! # The steps, as a program has them
//!
//! Open a model, score its blocks, plan what goes, write the rest, and prove that it is the rest:
//!
//! ```
//! use std::collections::BTreeSet;
//!
//! use gguf_shorten::input::Input;
//! use gguf_shorten::model::Model;
//! use gguf_shorten::options::Calibration;
//! use gguf_shorten::plan::{Constraints, Method, Plan, Provenance, removal};
//! use gguf_shorten::save::Target;
//! use gguf_shorten::score::score;
//! use gguf_shorten::verify::verify;
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/tiny_model.rs"));
//! # fn main() -> anyhow::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let [path, out] = ["model.gguf", "short.gguf"].map(|name| folder.path().join(name));
//! # save_tiny_model(&path, 6)?;
//! // A path, or a model of a store such as `ollama:llama3.2`. The file is mapped, and checked before anything is believed.
//! let input = Input::open(&path)?;
//! let model = Model::new(input.parse()?)?;
//! let constraints = Constraints::of(&model)?;
//!
//! // llama.cpp evaluates the built-in text.
//! let calibration = Calibration { tokens: 128, window: 32, threads: 1, ..Calibration::default() };
//! let importance = score(&model, &constraints, &input, &calibration)?;
//! assert_eq!(importance.blocks.len(), model.n_trunk_blocks());
//!
//! // The two blocks with the lowest Block Influence, of those sets that the architecture allows.
//! let keep = BTreeSet::new();
//! let removed = removal::choose(&constraints, Method::Bi, Some(&importance), &keep, 2)?;
//!
//! // Written beside its place, and renamed when it is complete.
//! let plan = |parent_blake3| {
//!     let provenance =
//!         Provenance { parent_blake3, method: "bi".to_owned(), heal: "none".to_owned() };
//!     Plan::new(&model, &constraints, removed.clone(), &provenance)
//! };
//! let target = Target::new(&out, &input, false)?;
//! let plan = target.save(&input, &model, &plan, &mut |_n_bytes| {})?;
//! assert_eq!(plan.renumbering.kept().len(), 4);
//!
//! // Every byte is compared with what the parent makes it.
//! let written = Input::open_file(&out)?;
//! let verification = verify(&model, &constraints, &written.parse()?, &|_n_bytes| {})?;
//! assert!(verification.differences.is_empty());
//! assert_eq!(verification.removed, removed);
//! # Ok(())
//! # }
//! ```
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

pub mod stores;

pub mod stamp;

pub mod input;

pub mod temporary;

pub mod gguf;

pub mod restate;

pub mod companion;

pub mod model;

pub mod warning;

pub mod arch;

pub mod calibration;

pub mod own_text;

pub mod cache_folder;

pub mod hidden_state;

pub mod recoded;

pub mod llama;

pub mod evaluator;

pub mod importance;

pub mod cache;

pub mod score;

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
