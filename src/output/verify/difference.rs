//! Differences from the plan, as values that say it in one line.

use std::fmt;

use crate::gguf::{Place, Quoted};
use crate::model::BlockId;

/// How many differences are told apart. Of the others only the number is kept.
const HANDFUL: usize = 8;

/// One thing in a file that is not as planned. Positions count from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The parent is another file than the recorded one.
    Parent {
        /// What the file says.
        recorded: blake3::Hash,
        /// What the parent has.
        found: blake3::Hash,
    },
    /// A word that this release never writes.
    Word {
        /// The entry.
        entry: Place,
        /// Its value.
        word: String,
    },
    /// A tensor recorded as healed, of a kind that never is.
    Healed(Place),
    /// A block that an earlier release removed as a supposed prediction block.
    NoPrediction(BlockId),
    /// A number of the header.
    Header {
        /// Which.
        what: &'static str,
        /// What the file has.
        found: u64,
        /// The planned value.
        expected: u64,
    },
    /// A planned entry or tensor that is not there.
    Missing(Place),
    /// An entry or tensor that is not planned.
    Extra(Place),
    /// An entry or tensor that stands elsewhere.
    Order {
        /// The value in the file.
        place: Place,
        /// Its number in the file, from 0.
        found: usize,
        /// Its planned number.
        expected: usize,
    },
    /// Another type or value of a metadata entry.
    Entry {
        /// The entry.
        entry: Place,
        /// Whether it should be the parent's, as it is.
        is_kept: bool,
        /// The first byte that differs, from the start of the entry.
        byte: usize,
        /// Planned bytes of the entry.
        n_bytes: usize,
    },
    /// Another value of a metadata entry.
    Value {
        /// The entry.
        entry: Place,
        /// What the file has.
        found: String,
        /// The planned value.
        expected: String,
    },
    /// Another shape, type or offset of a tensor.
    Info {
        /// The tensor.
        tensor: Place,
        /// Which.
        what: &'static str,
        /// What the file has.
        found: String,
        /// The planned value.
        expected: String,
    },
    /// The data of a tensor.
    Data {
        /// The tensor.
        tensor: Place,
        /// The expected value.
        expected: Whose,
        /// The first byte that differs, from the start of the tensor.
        byte: u64,
        /// Bytes of the tensor.
        n_bytes: u64,
    },
    /// Padding that is not zero.
    Padding {
        /// The tensor that it follows; [`Place::HeadPadding`] stands for itself.
        follows: Place,
        /// The first nonzero byte, from the start of the padding.
        byte: usize,
        /// Its value.
        found: u8,
        /// Bytes of the padding.
        n_bytes: usize,
    },
    /// Something else before the tensor data.
    Head {
        /// The first byte that differs, from the start of the file.
        byte: usize,
        /// Planned bytes before the tensor data.
        n_bytes: usize,
    },
    /// The length of the file.
    Length {
        /// What the file has.
        found: u64,
        /// The planned value.
        expected: u64,
    },
    /// Something in one part of a split model.
    InPart {
        /// Which part, counted from 1.
        number: usize,
        /// How many there are.
        n_parts: usize,
        /// What.
        difference: Box<Difference>,
    },
}

/// What the data of a tensor should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The parent's tensor of that name.
    Parent(String),
    /// Some bytes of the parent's tensor of that name.
    PartOfParent(String),
    /// What the plan makes.
    Plan,
    /// The parent's, rounded to its type again.
    Rounded,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent { recorded, found } => {
                write!(f, "the recorded parent has blake3 {recorded}, but this one has {found}")
            }
            Self::Word { entry, word } => {
                write!(f, "{entry} is {}, which is not known", Quoted(word))
            }
            Self::Healed(place) => {
                write!(f, "{place} is said to have healed weights, which no healing gives it")
            }
            Self::NoPrediction(block) => {
                write!(f, "block {block} was removed as a prediction block, but it is a block as any other")
            }
            Self::Header { what, found, expected } => {
                write!(f, "the header's {what} is {found}, expected {expected}")
            }
            Self::Missing(place) => write!(f, "{place} is missing"),
            Self::Extra(place) => write!(f, "{place} is one too many"),
            Self::Order { place, found, expected } => {
                write!(f, "{place} is number {}, expected number {}", found + 1, expected + 1)
            }
            Self::Entry { entry, is_kept, byte, n_bytes } => {
                let whose = if *is_kept { "parent" } else { "plan" };
                write!(f, "{entry} differs from the {whose}'s at byte {byte} of {n_bytes}")
            }
            Self::Value { entry, found, expected } => match found == expected {
                // Arrays, of which only the length is shown.
                true => write!(f, "{entry} has other values, as {found}"),
                false => write!(f, "{entry} is {found}, expected {expected}"),
            },
            Self::Info { tensor, what, found, expected } => {
                write!(f, "{tensor} has {what} {found}, expected {expected}")
            }
            Self::Data { tensor, expected, byte, n_bytes } => {
                let (whose, parent) = match expected {
                    Whose::Parent(parent) => ("the parent's", Some(parent)),
                    Whose::PartOfParent(parent) => ("the kept parts of the parent's", Some(parent)),
                    Whose::Plan => ("the plan's", None),
                    Whose::Rounded => ("the parent's weights, rounded again,", None),
                };
                write!(f, "{tensor} differs from {whose} ")?;
                if let Some(parent) = parent
                    && *tensor != Place::Tensor(parent.clone())
                {
                    write!(f, "{} ", Quoted(parent))?;
                }
                write!(f, "at byte {byte} of {n_bytes}")
            }
            Self::Padding { follows, byte, found, n_bytes } => {
                match follows {
                    Place::HeadPadding => follows.fmt(f)?,
                    place => write!(f, "the padding after {place}")?,
                }
                write!(f, " has {found} at byte {byte} of {n_bytes}, expected zeros")
            }
            Self::Head { byte, n_bytes } => write!(
                f,
                "what stands before the tensor data differs from the plan at byte {byte} of {n_bytes}"
            ),
            Self::Length { found, expected } => {
                write!(f, "the file has {found} bytes, expected {expected}")
            }
            Self::InPart { number, n_parts, difference } => {
                write!(f, "part {number} of {n_parts}: {difference}")
            }
        }
    }
}

/// The first few differences, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    first: Vec<Difference>,
    n: usize,
}

impl Differences {
    pub(super) fn push(&mut self, difference: Difference) {
        self.n += 1;
        if self.first.len() < HANDFUL {
            self.first.push(difference);
        }
    }

    /// Adds those of part `number`, counted from 0, of `n_parts`. Of a single file as they are.
    pub(super) fn append(&mut self, other: Self, number: usize, n_parts: usize) {
        self.n += other.n;
        let left = HANDFUL.saturating_sub(self.first.len());
        self.first.extend(other.first.into_iter().take(left).map(|difference| {
            if n_parts == 1 {
                return difference;
            }
            Difference::InPart { number: number + 1, n_parts, difference: Box::new(difference) }
        }));
    }

    /// Adds one that explains the others.
    pub(super) fn push_first(&mut self, difference: Difference) {
        self.n += 1;
        self.first.insert(0, difference);
        self.first.truncate(HANDFUL);
    }

    /// The first few.
    #[must_use]
    pub fn first(&self) -> &[Difference] {
        &self.first
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// The first position at which two sequences of bytes differ. The length of the shorter one if it begins the other.
pub(super) fn first_different(a: &[u8], b: &[u8]) -> Option<usize> {
    // Most are equal, and this comparison is fast.
    if a == b {
        return None;
    }
    let common = a.len().min(b.len());
    Some(a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(common))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handful_is_told_apart_and_the_rest_is_counted() {
        let mut differences = Differences::default();
        assert!(differences.is_empty());
        for byte in 0..20 {
            differences.push(Difference::Head { byte, n_bytes: 24 });
        }
        assert_eq!((differences.first().len(), differences.len()), (HANDFUL, 20));
        let length = Difference::Length { found: 1, expected: 2 };
        differences.push_first(length.clone());
        assert_eq!(differences.first()[0], length);
        assert_eq!((differences.first().len(), differences.len()), (HANDFUL, 21));
    }

    #[test]
    fn the_first_different_byte_is_found() {
        assert_eq!(first_different(b"abc", b"abc"), None);
        assert_eq!(first_different(b"abc", b"abd"), Some(2));
        assert_eq!(first_different(b"ab", b"abd"), Some(2));
        assert_eq!(first_different(b"xbc", b"abd"), Some(0));
    }
}
