//! Named: values that are words, in flags, results and written files.
//!
//! `named!` makes an enum of such values: each is a variant, its word, and the line of help that is its documentation. May use
//! no room.

use std::fmt;

/// A value that is a word.
pub trait Named: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Every value with its word and its line of help.
    const NAMES: &'static [(Self, &'static str, &'static str)];

    /// Its word.
    fn word(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(value, ..)| *value == self);
        found.map_or("", |(_, word, _)| word)
    }

    /// The value of that word.
    fn of_word(word: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(_, other, _)| *other == word);
        found.map(|(value, ..)| *value)
    }
}

/// An enum whose values are words: `Variant = "word"`, with the line of help as its documentation.
macro_rules! named {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[doc = $help:literal])+ $value:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $help])+ $value,)+ }

        impl $crate::named::Named for $name {
            const NAMES: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$value, $word, concat!($($help),+))),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad($crate::named::Named::word(*self))
            }
        }
    };
}

pub(crate) use named;
