//! The modules of gguf-shorten that read and plan. Without those that do I/O, llama.cpp need not be built again with the
//! instrumentation of a fuzzer. That they compile here shows that they are pure.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "what only the program uses is not fuzzed")]

#[path = "../../src/gguf/mod.rs"]
pub mod gguf;

#[path = "../../src/error.rs"]
pub mod error;

#[path = "../../src/named.rs"]
pub mod named;

/// The model, without what finds and opens its files.
#[path = "../../src/model"]
pub mod model {
    pub mod arch;
    pub mod block;
    pub mod companion;
    pub(crate) mod names;
    pub mod renumbering;
    mod transformer;

    pub use block::BlockId;
    pub(crate) use block::{block_of, leading_block};
    pub use transformer::{MAX_BLOCKS, Model, ModelTensor};
}

#[path = "../../src/plan/mod.rs"]
pub mod plan;

/// What hidden states are.
#[path = "../../src/engine"]
pub mod engine {
    pub mod hidden_state;
}

/// Scores that choose.
#[path = "../../src/measure"]
pub mod measure {
    pub mod importance;
    pub mod mean;
    #[cfg(test)]
    pub mod noise;
}

/// Choosing by them.
#[path = "../../src/choose"]
pub mod choose {
    mod method;
    pub mod removal;
}

// These modules take only the token type from the crate `ggml`.
extern crate self as ggml;

/// As `ggml::Token`.
pub type Token = i32;
