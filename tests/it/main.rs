//! Tests of the whole program, on tiny models built in code.
//!
//! No llama.cpp run is needed here: blocks are chosen by hand or by their number. In reading order: what a test stands on,
//! then one module for each thing that is promised.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails, and its numbers are small"
)]

mod make;
mod ollama_layouts;
mod random;
mod util;

mod show;

mod devices;

mod shorten;

mod attention;

mod names;

mod entries;
mod experts;

mod places;

mod taken;

mod rooms;

mod rules;

mod kinds;

mod prediction;

mod portable;

mod trust;

mod counts;

mod parts;

mod split;

mod split_output;

mod imatrix;

mod companions;

mod report;

mod help;

mod ik_types;

mod manners;

mod pages;

mod card;

mod save;

mod verify;

mod weights;

mod earlier;

mod stores;

mod warnings;

mod raw_names;

mod modelfile;

mod cache;

mod data;

mod eval;

mod batch;

mod batch_paths;

mod batch_stop;

mod goals;

mod compare;

mod heal;

mod own_text;

mod rpc;

mod stability;

mod hostile;

mod fuzz;

mod properties;

mod second_reader;

mod type_table;
