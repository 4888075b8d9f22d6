//! Many models in one run. Which, with which options, what of them is done already, and a process for each.
//!
//! ```text
//! PATH... -> find -> models -> share of this task -> flags (command line, then TOML tables) -> Job --+
//!                                                                                                    +-> child -> Record -> Results
//! results of earlier runs -> Record: done, if input, options, versions and output are the same ------+
//! ```
//!
//! `commands::batch` puts these together.

pub mod settings;

pub mod find;

pub mod share;

pub mod tables;

pub mod job;

pub mod record;

pub mod results;

pub mod earlier;

pub mod child;

pub mod memory;

pub mod screen;
