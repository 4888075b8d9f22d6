//! The command line: arguments, checked settings, and one short file for each command.
//!
//! Takes what a person types ([`args`], [`options`]), calls the library, and prints ([`commands`]); [`batch`] runs the program
//! again for each of many models. The only room that knows clap and prints. Uses all others.

pub mod batch;

pub mod args;

pub mod colour;

pub mod commands;

pub mod help;

pub mod options;

pub mod progress;

pub mod usage;
