//! gguf-shorten: removes the least influential blocks of a quantized GGUF model, byte-exactly.
//!
//! # The house
//!
//! Rooms in order; each uses only those above it, `output` and `engine` do not see each other, nor do `heal` and `choose` or `fit`
//! (`tests/it/rooms.rs`).
//!
//! | room | takes | gives |
//! | --- | --- | --- |
//! | [`gguf`] | bytes | a checked view of a file; the layout and bytes of a new one |
//! | [`error`], [`named`], [`watch`] | | hints and usage errors; words of flags and files; how the library speaks |
//! | [`files`] | paths | files in their places, complete or not there; the machine's memory and disk |
//! | [`model`] | a name or path | a mapped, checked model with the rules of its architecture |
//! | [`plan`] | a model and a cut | every entry and tensor of the new file, to the byte; no I/O |
//! | [`output`] | a plan | the files, and the proof of what was written |
//! | [`engine`] | a model and text | hidden states and logits by llama.cpp, whole or block by block |
//! | [`measure`] | states and logits | importance, quality, loss, comparisons |
//! | [`choose`] | scores or losses | the blocks to remove |
//! | [`heal`] | a cut | other weights for kept tensors |
//! | [`fit`] | a model and a size | the types and blocks that cost least |
//! | [`report`] | results | text, JSON, pages |
//! | [`cli`] | arguments | calls of all that, printed |
//!
//! ```text
//! name -> model -> plan -----------------------> output -> verify
//!           |        ^
//!           v        | cut
//! text -> engine -> measure -> choose -> heal
//! ```
//!
//! Each type is made once, by a function of the types before it, and not changed afterwards. A [`cli::batch`] runs this program
//! again for each of many models. The pages of help are in [`cli::help`].
//!
//! # The steps, as a program has them
//!
//! Open a model, score its blocks, plan the rest, write it, and prove that it is the rest. By search or for a goal blocks are
//! chosen by [`choose::selection::select`], and [`heal::run::heal`] makes up for them.
//!
//! ```
//! use gguf_shorten::choose::removal;
//! use gguf_shorten::engine::settings::Calibration;
//! use gguf_shorten::measure::calibrate::score;
//! use gguf_shorten::model::Model;
//! use gguf_shorten::model::block::BlockSet;
//! use gguf_shorten::model::input::Input;
//! use gguf_shorten::output::save::Target;
//! use gguf_shorten::output::verify::verify;
//! use gguf_shorten::output::Parent;
//! use gguf_shorten::plan::{Constraints, Cut, Method, Plan};
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
//! let parent = Parent { input: &input, model: &model, constraints: &constraints };
//!
//! // llama.cpp evaluates the built-in text.
//! let calibration = Calibration { tokens: 128, window: 32, threads: 1, ..Calibration::default() };
//! let importance = score(parent, &calibration)?;
//! assert_eq!(importance.blocks.len(), model.n_trunk_blocks());
//!
//! // The two blocks with the lowest Block Influence, of those sets that the architecture allows.
//! let removed = removal::choose(&constraints, Method::Bi, Some(&importance), &BlockSet::new(), 2)?;
//!
//! // Written beside its place, and renamed when it is complete.
//! let cut = Cut::new(removed, "bi");
//! let plan = |parent_blake3| Plan::new(&model, &constraints, &cut, parent_blake3);
//! let target = Target::new(&out, &input, false)?;
//! let plan = target.save(parent, &plan, &mut |_n_bytes| {})?;
//! assert_eq!(plan.renumbering.kept().len(), 4);
//!
//! // Every byte is compared with what the parent makes it.
//! let written = Input::open_file(&out)?;
//! let verification = verify(&model, &constraints, &written.parse()?, &|_n_bytes| {})?;
//! assert!(verification.differences.is_empty());
//! assert_eq!(verification.removed, cut.blocks);
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! - A kept tensor is byte-identical to the input's, and a metadata entry that is not edited is copied, not encoded again.
//!   A tensor that is cut or changed is listed with the reason ([`plan::TensorChange`]).
//! - What the output computes is the input without the removed blocks, but for tensors that healing changes; a removal for which that is not known is refused.
//! - [`model::BlockId`] is a block's number in the input. Numbers of the output exist only in [`model::renumbering::Renumbering`].
//! - Hostile input gets an error: every length, count and offset of a file is checked before it is used.
//! - On failure nothing is left behind and nothing existing is touched.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics fails with the reason"))]

pub mod choose;
pub mod cli;
pub mod engine;
pub mod error;
pub mod files;
pub mod fit;
pub mod gguf;
pub mod heal;
pub mod measure;
pub mod model;
pub mod named;
pub mod output;
pub mod plan;
pub mod report;
pub mod watch;
