//! The modules of gguf-shorten that read and plan: without those that do I/O, llama.cpp need not be built again with the
//! instrumentation of a fuzzer. That they compile here shows that they are pure.
#![forbid(unsafe_code)]

#[path = "../../src/gguf/mod.rs"]
pub mod gguf;

#[path = "../../src/model.rs"]
pub mod model;

#[path = "../../src/companion.rs"]
pub mod companion;

#[path = "../../src/arch/mod.rs"]
pub mod arch;

#[path = "../../src/hidden_state.rs"]
pub mod hidden_state;

#[path = "../../src/importance/mod.rs"]
pub mod importance;

#[path = "../../src/plan/mod.rs"]
pub mod plan;

#[path = "../../src/imatrix.rs"]
pub mod imatrix;

#[path = "../../src/error.rs"]
pub mod error;

// All that these modules take from the crate `ggml` is the type of a token.
extern crate self as ggml;

/// As `ggml::Token`.
pub type Token = i32;
