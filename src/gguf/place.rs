//! Places of errors in a file, and names as messages show them.
//!
//! Keeps messages to one short line: names are shortened, control characters escaped.

use std::fmt;

/// The most characters of a name that a message shows. No valid tensor name is longer.
const MAX_SHOWN_CHARS: usize = 64;

/// The part of a file that an [`Error`](super::Error) is about. Indices count from 0; messages count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Magic, version and counts.
    Header,
    /// A metadata entry whose key is not known yet.
    Entry {
        /// Index of the entry.
        index: u64,
        /// Entries in the file.
        n: u64,
    },
    /// The metadata entry with this key, shortened.
    Key(String),
    /// A tensor info whose name is not known yet.
    Info {
        /// Index of the tensor.
        index: u64,
        /// Tensors in the file.
        n: u64,
    },
    /// The tensor with this name, shortened.
    Tensor(String),
    /// The padding between the last tensor info and the tensor data.
    HeadPadding,
    /// The file as a whole.
    File,
}

/// A name as messages show it: in single quotes, shortened, control characters and quotes escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl Place {
    /// The metadata entry with this key.
    pub(super) fn key(key: &str) -> Place {
        Place::Key(shortened(key))
    }

    /// The tensor with this name.
    pub(super) fn tensor(name: &str) -> Place {
        Place::Tensor(shortened(name))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => write!(f, "the header"),
            Place::Entry { index, n } => {
                write!(f, "metadata entry {} of {n}", index.saturating_add(1))
            }
            Place::Key(key) => write!(f, "metadata {}", Quoted(key)),
            Place::Info { index, n } => write!(f, "tensor info {} of {n}", index.saturating_add(1)),
            Place::Tensor(name) => write!(f, "tensor {}", Quoted(name)),
            Place::HeadPadding => write!(f, "the padding before the tensor data"),
            Place::File => write!(f, "the file"),
        }
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'")?;
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(MAX_SHOWN_CHARS) {
            match c {
                '"' => f.write_str("\"")?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        if chars.next().is_some() {
            f.write_str("…")?;
        }
        f.write_str("'")
    }
}

/// The start of `name` for a message. So errors stay small.
pub(super) fn shortened(name: &str) -> String {
    // One character over the limit tells `Quoted` that the name goes on.
    name.chars().take(MAX_SHOWN_CHARS + 1).collect()
}

/// The longest tensor name, in bytes: `GGML_MAX_NAME` without its closing zero.
pub const MAX_NAME_BYTES: usize = 63;

#[cfg(test)]
mod tests {
    use super::super::MAX_NAME_BYTES;
    use super::*;

    #[test]
    fn a_hostile_name_stays_one_short_line() {
        let name = format!("a\n\u{1b}[31m\u{202e}'{}", "x".repeat(100_000));
        let place = Place::tensor(&name);
        let text = place.to_string();
        assert!(text.starts_with(r"tensor 'a\n\u{1b}[31m\u{202e}\'xxx"), "{text}");
        assert!(text.ends_with("xxx…'"), "{text}");
        assert!(text.len() < 200);
        assert!(!text.chars().any(char::is_control));
    }

    #[test]
    fn a_name_of_63_bytes_is_shown_whole() {
        let name = "n".repeat(MAX_NAME_BYTES);
        assert_eq!(Place::tensor(&name).to_string(), format!("tensor '{name}'"));
    }
}
