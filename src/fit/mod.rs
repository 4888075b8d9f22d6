//! Fit: a model within a number of bytes, at the least measured damage.
//!
//! Takes a model and a size or a divergence ([`settings`]), gives a cut of types and blocks, with how it was found
//! ([`outcome`]). In reading order: `reach` refuses sizes that nothing reaches, `rungs` says what each tensor may become, and how
//! far its weights are then off, `alone` measures what a rung costs, [`knapsack`] chooses within the bytes, `whole` measures a
//! choice as it is shipped, `corrected` changes it as long as that helps, and [`run`] is the entry. A [`recipe`] is a choice as a
//! file. Uses `choose` for the blocks to remove, and the rooms before it; it does not see `heal`.
//! [`mixture`] has nothing measured: it gives a cut the types of `llama-quantize`.

pub mod knapsack;

pub mod outcome;

pub mod recipe;

pub mod run;

pub mod settings;

mod alone;

mod candidate;

mod corrected;

mod maker;

mod matrix;

pub mod mixture;

mod notebook;

mod reach;

mod removal;

mod removed;

mod report;

mod rungs;

mod whole;
