//! Watch: what the library says while it works, and how far it is.
//!
//! Takes nothing, gives the trait through which every room below `cli` speaks; it may use no other room. The command line
//! implements it for a person at a terminal, [`Silent`] for a program that wants results alone.

use std::borrow::Cow;

/// What a step counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tokens evaluated.
    Tokens,
    /// Losses measured; a total of 0 is one that is not known.
    Losses,
    /// Tensors converted.
    Tensors,
    /// Nothing that could be counted.
    Time,
    /// Bytes written.
    Bytes,
    /// Tasks done.
    Tasks,
}

/// The listener of a run.
pub trait Watch {
    /// Says a line that explains the result.
    fn note(&self, text: &str);

    /// Says a line about what may be wrong.
    fn warn(&self, text: &str);

    /// Begins a step of `total` units. Dropping the progress ends it.
    fn begin(&self, what: Cow<'static, str>, unit: Unit, total: u64) -> Box<dyn Progress>;

    /// Whether nobody listens.
    fn is_quiet(&self) -> bool;

    /// Whether the lines of llama.cpp are shown too.
    fn is_verbose(&self) -> bool;
}

/// How far a step is.
pub trait Progress: Send + Sync {
    /// Adds units that are done.
    fn advance(&self, n: u64);

    /// Sets the units that are done.
    fn set_position(&self, position: u64);

    /// Sets the units in all.
    fn set_total(&self, total: u64);

    /// Says what is done now.
    fn set_message(&self, what: String);
}

/// Nobody: nothing is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watch for Silent {
    fn note(&self, _: &str) {}

    fn warn(&self, _: &str) {}

    fn begin(&self, _: Cow<'static, str>, _: Unit, _: u64) -> Box<dyn Progress> {
        Box::new(Self)
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn is_verbose(&self) -> bool {
        false
    }
}

impl Progress for Silent {
    fn advance(&self, _: u64) {}

    fn set_position(&self, _: u64) {}

    fn set_total(&self, _: u64) {}

    fn set_message(&self, _: String) {}
}
