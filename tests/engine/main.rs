//! Tests that run llama.cpp on tiny models: hidden states, scores, and what a shortened file computes.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that panics fails with the reason; sizes of tiny models fit any type"
)]

mod architectures;
mod attention;
mod auto;
mod blockwise;
mod byte_text;
mod card;
mod compare;
mod counts;
mod entries;
mod expert_choice;
mod experts;

#[cfg(unix)]
mod deaths;
mod eval;
mod fit;
mod goals;
mod halves;
mod heal;
mod heal_twins;
mod imatrix;
mod imatrix_out;
mod kinds;

#[cfg(unix)]
mod names;
mod ollama_layouts;
mod own_text;
mod pairs;
mod portable;
mod prediction;
mod program;
mod random_model;
mod recoded;
mod requantize;
#[cfg(feature = "rpc")]
mod rpc;
mod scaled;
mod score_cache;
mod segments;
mod shared;
mod split_output;
mod stability;
mod support;
mod verify_run;
mod warnings;
