//! The safe layer over llama.cpp and ggml: the only crate of the project that calls C.
//!
//! One wrapper per C object, one `Drop` each, lifetimes for "must not outlive". Nothing here knows of blocks,
//! calibration or the GGUF format; no type of the bindings leaves this crate.
//!
//! In reading order:
//! - [`mapping`]: a read-only memory-mapped file.
//! - `source`: a file that is made while llama.cpp reads it.
//! - [`limits`]: limits of this process, and the memory that it keeps.
//! - [`log`]: what llama.cpp says, captured.
//! - [`fault`]: the end of a process that llama.cpp ends.
//! - `kernels`: what ggml evaluates with on the processor.
//! - [`backend`]: the library, initialised once.
//! - [`rpc`]: other machines that evaluate a part of a model.
//! - [`model`]: a loaded model and its tokenizer.
//! - [`vocabulary`]: the entries of its vocabulary, and what kind of model it is.
//! - [`node`]: one node of a compute graph while it is evaluated.
//! - [`threadpool`]: the threads that evaluate.
//! - [`context`]: evaluation of one window of tokens, tapped or for its logits.
//! - [`decoder`]: evaluation of several sequences, batch after batch, for the logits of chosen tokens.
//! - [`requantize`]: a whole model to another type.
//! - [`tensor_type`]: ggml's own table of tensor types.
//! - [`quantize`]: rounding weights to such a type, and back.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics fails with the reason"))]

pub mod mapping;

pub mod source;

pub mod limits;

pub mod log;

pub mod fault;

mod kernels;

pub mod backend;

pub mod rpc;

pub mod model;

pub mod vocabulary;

pub mod node;

pub mod threadpool;

pub mod context;

pub mod decoder;

pub mod requantize;

pub mod tensor_type;

pub mod quantize;

mod enums;

mod error;
#[cfg(feature = "test-support")]
pub mod testing;

pub use backend::Backend;
pub use context::{Context, ContextOptions, Flow, Tap, WindowInput};
pub use decoder::{Batch, Decoder, DecoderOptions};
pub use error::Error;
pub use mapping::Mapping;
pub use model::{BlockCounts, Model, ModelOptions, Token};
pub use node::{Node, Operation};
pub use requantize::FileType;
pub use threadpool::ThreadPool;
pub use vocabulary::VocabularyEntry;
