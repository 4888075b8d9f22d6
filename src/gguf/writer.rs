//! Writes a layout.
//!
//! Decides nothing: every position is in the [`Layout`]. Each step compares the position of the
//! writer with the planned one, in release builds too, and stops with a bug error when they differ.

use std::io::{self, Read, Write};

use super::error::{Bug, Error, ErrorKind};
use super::header::MAGIC;
use super::layout::{Layout, PlannedTensor};
use super::place::Place;
use crate::gguf::position::FileOffset;

/// Writes everything before the tensor data: header, metadata, tensor infos and padding. Returns
/// the data start, which is the number of bytes written.
///
/// Writes in small pieces and holds none of them, so `writer` should be buffered. It is not
/// flushed.
///
/// # Errors
///
/// If `writer` fails, or on a bug.
pub fn write_head<W: Write>(layout: &Layout<'_>, writer: &mut W) -> Result<FileOffset, Error> {
    let mut out = Counting { writer, position: 0 };
    put_head(layout, &mut out)?;
    Ok(out.offset())
}

/// Writes a whole file. `tensor_data` is called for each tensor with its index in the layout and
/// must write exactly the bytes of the tensor; padding is added here. Returns the number of bytes
/// written.
///
/// `writer` should be buffered. It is not flushed.
///
/// # Errors
///
/// If `writer` or `tensor_data` fails, or on a bug: in the layout, or in `tensor_data` when it
/// writes too much or too little.
pub fn write<W: Write>(
    layout: &Layout<'_>,
    writer: &mut W,
    mut tensor_data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<u64, Error> {
    let mut out = Counting { writer, position: 0 };
    put_head(layout, &mut out)?;
    for (index, planned) in layout.tensors().iter().enumerate() {
        let place = || Place::tensor(planned.tensor().name());
        out.expect_start(planned.position(), place)?;
        tensor_data(index, &mut out).map_err(|error| out.io_error(error, place))?;
        out.expect_end(planned.end(), place)?;
        out.pad(planned.n_padding(), place)?;
    }
    out.expect_end(FileOffset(layout.file_len()), || Place::File)?;
    Ok(out.position)
}

fn put_head<W: Write>(layout: &Layout<'_>, out: &mut Counting<'_, W>) -> Result<(), Error> {
    let header = || Place::Header;
    out.put(&MAGIC, header)?;
    out.put(&layout.version().to_le_bytes(), header)?;
    out.put(&(layout.tensors().len() as u64).to_le_bytes(), header)?;
    out.put(&(layout.metadata().len() as u64).to_le_bytes(), header)?;

    for planned in layout.metadata() {
        let place = || Place::key(planned.entry().key());
        out.expect_start(planned.position(), place)?;
        planned.entry().pieces().try_for_each(|piece| out.put(&piece, place))?;
    }
    for planned in layout.tensors() {
        let place = || Place::tensor(planned.tensor().name());
        out.expect_start(planned.info_position(), place)?;
        put_info(planned, out, place)?;
    }

    let padding = || Place::HeadPadding;
    out.expect_start(layout.head_end(), padding)?;
    out.pad(layout.data_start().0.saturating_sub(layout.head_end().0), padding)?;
    out.expect_end(layout.data_start(), padding)
}

fn put_info<W: Write>(
    planned: &PlannedTensor<'_>,
    out: &mut Counting<'_, W>,
    place: impl Fn() -> Place + Copy,
) -> Result<(), Error> {
    let tensor = planned.tensor();
    out.put(&(tensor.name().len() as u64).to_le_bytes(), place)?;
    out.put(tensor.name().as_bytes(), place)?;
    out.put(&u32::try_from(tensor.n_dims()).unwrap_or(u32::MAX).to_le_bytes(), place)?;
    for dim in tensor.dims().iter().take(tensor.n_dims()) {
        out.put(&dim.to_le_bytes(), place)?;
    }
    out.put(&tensor.tensor_type().id().to_le_bytes(), place)?;
    out.put(&planned.offset().0.to_le_bytes(), place)
}

/// A writer that knows its position. Places are made only for errors.
struct Counting<'w, W> {
    writer: &'w mut W,
    position: u64,
}

impl<W: Write> Counting<'_, W> {
    fn offset(&self) -> FileOffset {
        FileOffset(self.position)
    }

    fn put(&mut self, bytes: &[u8], place: impl Fn() -> Place) -> Result<(), Error> {
        self.write_all(bytes).map_err(|error| self.io_error(error, place))
    }

    /// Writes `n_bytes` zeros.
    fn pad(&mut self, n_bytes: u64, place: impl Fn() -> Place) -> Result<(), Error> {
        let copied = io::copy(&mut io::repeat(0).take(n_bytes), self);
        copied.map(drop).map_err(|error| self.io_error(error, place))
    }

    fn expect_start(&self, planned: FileOffset, place: impl Fn() -> Place) -> Result<(), Error> {
        let actual = self.offset();
        if actual == planned {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Bug(Bug::WrongStart { planned, actual }), place()))
    }

    fn expect_end(&self, planned: FileOffset, place: impl Fn() -> Place) -> Result<(), Error> {
        let actual = self.offset();
        if actual == planned {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Bug(Bug::WrongEnd { planned, actual }), place()))
    }

    fn io_error(&self, error: io::Error, place: impl Fn() -> Place) -> Error {
        Error::new(ErrorKind::Io(error), place()).at(self.offset())
    }
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_bytes = self.writer.write(bytes)?;
        self.position = self.position.saturating_add(n_bytes as u64);
        Ok(n_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Builder;
    use super::super::{EntryOut, File, TensorInfo, TensorOut};
    use super::*;

    fn unchanged<'a>(file: &File<'a>) -> Layout<'a> {
        let metadata = file.metadata().iter().map(EntryOut::keep).collect();
        let tensors = file.tensors().iter().map(TensorOut::keep).collect();
        let version = file.header().version;
        Layout::new(version, file.alignment(), metadata, tensors, file.ends_padded()).unwrap()
    }

    fn rewrite(file: &File<'_>) -> Vec<u8> {
        let data: Vec<&[u8]> = file.tensors().iter().map(TensorInfo::bytes).collect();
        let mut bytes = Vec::new();
        let layout = unchanged(file);
        let n_bytes = write(&layout, &mut bytes, |index, out| out.write_all(data[index])).unwrap();
        assert_eq!((n_bytes, layout.file_len()), (bytes.len() as u64, bytes.len() as u64));
        bytes
    }

    fn builder() -> Builder {
        Builder::new()
            .u32("a", 1)
            .strings("b", &[b"x", b"\xff"])
            .tensor("t", &[2, 3], 24, b"012345")
            .tensor("none", &[0], 24, b"")
            .tensor("q", &[32, 2], 3, &[7; 40])
    }

    #[test]
    fn an_unchanged_file_is_written_byte_for_byte() {
        let files = [
            builder(),
            builder().without_end_padding(),
            builder().align(4).u32("general.alignment", 4),
            builder().align(1).u32("general.alignment", 1),
            Builder::new(),
            Builder::new().u32("a", 1),
            Builder::new().u32("general.alignment", 64).align(1),
        ];
        for bytes in files.map(|builder| builder.build()) {
            let mut version_2 = bytes.clone();
            version_2[4] = 2;
            for bytes in [bytes, version_2] {
                assert_eq!(rewrite(&File::parse(&bytes).unwrap()), bytes);
            }
        }
    }

    #[test]
    fn the_head_ends_at_the_data_start() {
        let bytes = builder().build();
        let file = File::parse(&bytes).unwrap();
        let mut head = Vec::new();
        let end = write_head(&unchanged(&file), &mut head).unwrap();
        assert_eq!(end, file.data_start());
        assert_eq!(head, builder().head());
    }

    #[test]
    fn new_entries_and_names_are_read_back() {
        let bytes = builder().build();
        let file = File::parse(&bytes).unwrap();
        let metadata = vec![EntryOut::i32("n", -5), EntryOut::keep(file.metadata().get("b").unwrap())];
        let tensor = file.tensors().get("q").unwrap();
        let tensors = vec![TensorOut::rename(tensor, "renamed")];
        let layout = Layout::new(3, 32, metadata, tensors, false).unwrap();
        let mut out = Vec::new();
        write(&layout, &mut out, |_, out| out.write_all(tensor.bytes())).unwrap();

        let file = File::parse(&out).unwrap();
        assert_eq!(file.metadata().require("n").unwrap().as_i64().unwrap(), -5);
        assert_eq!(file.metadata().require("b").unwrap().as_array().unwrap().len(), 2);
        assert_eq!(file.tensors().get("renamed").unwrap().bytes(), tensor.bytes());
        assert!(!file.ends_padded());
    }

    #[test]
    fn too_much_or_too_little_data_is_a_bug() {
        let bytes = builder().build();
        let file = File::parse(&bytes).unwrap();
        let start = file.data_start().0;
        for n_bytes in [5u8, 7] {
            let data = vec![0; n_bytes.into()];
            let error = write(&unchanged(&file), &mut Vec::new(), |_, out| out.write_all(&data)).unwrap_err();
            let (planned, actual) = (start + 6, start + u64::from(n_bytes));
            let message = format!("bug: tensor 't' planned to end at byte {planned}, writer is at {actual}");
            assert_eq!(error.to_string(), message);
            assert!(error.is_bug());
        }
    }

    #[test]
    fn a_full_disk_is_an_error_at_every_byte() {
        let bytes = builder().build();
        let file = File::parse(&bytes).unwrap();
        let data: Vec<&[u8]> = file.tensors().iter().map(TensorInfo::bytes).collect();
        for room in 0..bytes.len() {
            let mut disk = vec![0; room];
            let mut writer = disk.as_mut_slice();
            let error = write(&unchanged(&file), &mut writer, |index, out| out.write_all(data[index]));
            assert!(matches!(error.unwrap_err().kind(), ErrorKind::Io(_)), "room for {room} bytes");
            assert_eq!(disk, bytes[..room]);
        }
    }
}
