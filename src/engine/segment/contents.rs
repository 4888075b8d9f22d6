//! A segment's file, made while it is read: nowhere as a whole.

use std::io;

use ggml::source::Source;

use crate::engine::conversion::Converted;
use crate::gguf::{self, Layout};

/// Where the data of a segment's tensor comes from.
#[derive(Clone, Debug)]
pub enum Data<'a> {
    /// Nothing but zeros.
    Zeros,
    /// These bytes.
    Bytes(&'a [u8]),
    /// Some rows of a tensor, one after another.
    Rows {
        /// The whole tensor.
        bytes: &'a [u8],
        /// Bytes of a row.
        row_bytes: usize,
        /// Numbers of the rows.
        rows: &'a [usize],
    },
    /// A tensor's weights in another type.
    Converted(Converted<'a>),
}

impl Data<'_> {
    /// Fills `out` with the data from `position` on.
    ///
    /// # Errors
    /// A range that is not inside of it.
    fn read_at(&self, position: usize, out: &mut [u8]) -> io::Result<()> {
        let outside = || io::Error::other("bug: bytes outside of a tensor");
        match *self {
            Self::Zeros => out.fill(0),
            Self::Converted(converted) => converted.read_at(position, out)?,
            Self::Bytes(bytes) => {
                let end = position.checked_add(out.len()).ok_or_else(outside)?;
                out.copy_from_slice(bytes.get(position..end).ok_or_else(outside)?);
            }
            Self::Rows { bytes, row_bytes, rows } => {
                let (mut number, mut at) = (position / row_bytes, position % row_bytes);
                let mut rest = out;
                while !rest.is_empty() {
                    let start =
                        rows.get(number).and_then(|row| row.checked_mul(row_bytes)).ok_or_else(outside)?;
                    let row =
                        bytes.get(start..).and_then(|row| row.get(at..row_bytes)).ok_or_else(outside)?;
                    let n = row.len().min(rest.len());
                    let (first, later) = rest.split_at_mut(n);
                    first.copy_from_slice(&row[..n]);
                    (rest, number, at) = (later, number + 1, 0);
                }
            }
        }
        Ok(())
    }
}

/// The bytes of a planned segment.
pub(super) struct Contents<'p> {
    head: Vec<u8>,
    layout: &'p Layout<'p>,
    data: &'p [Data<'p>],
}

impl<'p> Contents<'p> {
    /// Of this layout, with the data of each tensor.
    ///
    /// # Errors
    /// A bug in the layout.
    pub(super) fn new(layout: &'p Layout<'p>, data: &'p [Data<'p>]) -> Result<Self, gguf::Error> {
        let mut head = Vec::new();
        gguf::write_head(layout, &mut head)?;
        Ok(Self { head, layout, data })
    }
}

impl Source for Contents<'_> {
    fn n_bytes(&self) -> u64 {
        self.layout.file_len()
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        let too_far = |_| io::Error::other("bug: a position outside of memory");
        let tensors = self.layout.tensors();
        let (mut position, mut rest) = (position, out);
        while !rest.is_empty() {
            let left = rest.len() as u64;
            // What is there, and how much of it.
            let (n, from) = match self.head.len() as u64 {
                head if position < head => (head - position, None),
                _ => match tensors.partition_point(|tensor| tensor.position().0 <= position).checked_sub(1) {
                    Some(number) if position < tensors[number].end().0 => {
                        (tensors[number].end().0 - position, Some(number))
                    }
                    // Padding up to the next tensor, or the end.
                    number => {
                        let next = number.map_or(0, |number| number + 1);
                        let end = tensors.get(next).map_or(u64::MAX, |tensor| tensor.position().0);
                        (end.saturating_sub(position).max(1), Some(usize::MAX))
                    }
                },
            };
            let n = usize::try_from(n.min(left)).map_err(io::Error::other)?;
            let (first, later) = rest.split_at_mut(n);
            match from {
                None => {
                    let at = usize::try_from(position).map_err(too_far)?;
                    first.copy_from_slice(&self.head[at..at + n]);
                }
                Some(usize::MAX) => first.fill(0),
                Some(number) => {
                    let at = usize::try_from(position - tensors[number].position().0).map_err(too_far)?;
                    self.data[number].read_at(at, first)?;
                }
            }
            position += n as u64;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{EntryOut, TensorOut, TensorType};

    #[test]
    fn any_range_is_that_of_the_file_as_a_whole() {
        let bytes: Vec<u8> = (0..=255).collect();
        let rows = [3, 0, 3];
        let tensor = |name, n: u64| TensorOut::new(name, &[n], TensorType::F32).unwrap();
        let tensors = vec![tensor("a", 9), tensor("b", 6), tensor("c", 5)];
        let entries = vec![EntryOut::u32("general.alignment", 32)];
        let layout = Layout::new(3, 32, entries, tensors, true).unwrap();
        let data = vec![
            Data::Bytes(&bytes[7..43]),
            Data::Rows { bytes: &bytes, row_bytes: 8, rows: &rows },
            Data::Zeros,
        ];
        let mut whole = Vec::new();
        gguf::write(&layout, &mut whole, |i, out| match i {
            0 => out.write_all(&bytes[7..43]),
            1 => [3usize, 0, 3].iter().try_for_each(|row| out.write_all(&bytes[row * 8..row * 8 + 8])),
            _ => out.write_all(&[0; 20]),
        })
        .unwrap();
        let contents = Contents::new(&layout, &data).unwrap();
        assert_eq!(contents.n_bytes(), whole.len() as u64);
        for start in 0..whole.len() {
            for n in [1, 5, 31, 64, whole.len()] {
                let n = n.min(whole.len() - start);
                let mut out = vec![9; n];
                contents.read_at(start as u64, &mut out).unwrap();
                assert_eq!(out, whole[start..start + n], "{start} {n}");
            }
        }
    }
}
