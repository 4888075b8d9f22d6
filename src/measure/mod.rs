//! Measure: numbers about a model.
//!
//! Takes hidden states, logits and tasks from `engine`. Gives the importance of blocks ([`calibrate`], [`importance`]), the
//! quality of predictions ([`quality`], [`answers`]), the loss of removals ([`loss`]) and how files compare ([`comparison`]).
//! [`cache`] keeps what was measured. Formulas stand alone and cite their source. Uses `engine`, `output` and the rooms before.

pub mod calibrate;

pub(crate) mod blockwise;

pub mod scored_model;

pub mod answers;

pub mod outcome;

pub mod angular;

pub mod cache;

pub mod comparison;

pub mod experts;

pub mod importance;

pub mod mean;

#[cfg(test)]
pub(crate) mod noise;

pub mod oracle;

pub mod pairs;

pub mod quality;

pub mod loss;

pub mod tasks;
