//! Positions in a file: the two kinds of offset, alignment, and the layout of a new file.
//!
//! All arithmetic of positions is here, shared by reader and writer, and checked. Does no I/O.

use super::error::{Bug, Error, ErrorKind};
use super::header::{Header, check_version};
use super::metadata::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use super::output::{EntryOut, TensorOut};
use super::place::Place;
use super::tensor::check_name;
use super::value_out::ValueOut;
use super::value_type::ValueType;
use crate::gguf::position::DataOffset;
use crate::gguf::position::FileOffset;
use crate::gguf::position::align_up;
use std::collections::BTreeMap;

/// Every position, length and padding of a new file.
///
/// Entries and tensors come in the given order. The data of each tensor follows the padding of the
/// one before.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    version: u32,
    alignment: u64,
    metadata: Vec<PlannedEntry<'a>>,
    tensors: Vec<PlannedTensor<'a>>,
    head_end: FileOffset,
    data_start: FileOffset,
    file_len: u64,
}

/// A metadata entry with its position.
#[derive(Clone, Debug)]
pub struct PlannedEntry<'a> {
    entry: EntryOut<'a>,
    position: FileOffset,
}

/// A tensor with its positions.
#[derive(Clone, Debug)]
pub struct PlannedTensor<'a> {
    tensor: TensorOut<'a>,
    info_position: FileOffset,
    offset: DataOffset,
    position: FileOffset,
    n_padding: u64,
}

impl<'a> Layout<'a> {
    /// Computes the layout of a file with these entries and tensors.
    ///
    /// `alignment` must be what a reader will take from `metadata`. `pad_end` says whether the last
    /// tensor is followed by its padding; without tensors, whether the tensor infos are.
    ///
    /// # Errors
    ///
    /// If the version is not written. If two keys or names are the same, a key is empty, a name too long, or a position does
    /// not fit in 64 bits. An `alignment` that differs from the one in `metadata` is a bug.
    pub fn new(
        version: u32,
        alignment: u64,
        metadata: Vec<EntryOut<'a>>,
        tensors: Vec<TensorOut<'a>>,
        pad_end: bool,
    ) -> Result<Layout<'a>, Error> {
        check_version(version)?;
        check_keys(&metadata)?;
        check_names(&tensors)?;
        check_alignment(alignment, &metadata)?;

        let mut end = Cursor { position: Header::N_BYTES };
        let metadata = end.plan_entries(metadata)?;
        let info_positions = end.plan_infos(&tensors)?;
        let head_end = FileOffset(end.position);
        if pad_end || !tensors.is_empty() {
            end.align(alignment)?;
        }
        let data_start = FileOffset(end.position);
        let n_tensors = tensors.len();
        let mut planned = Vec::with_capacity(n_tensors);
        for (index, (tensor, info_position)) in tensors.into_iter().zip(info_positions).enumerate() {
            let position = FileOffset(end.advance(tensor.n_bytes())?);
            let is_last = index.saturating_add(1) == n_tensors;
            let n_padding = if is_last && !pad_end { 0 } else { end.align(alignment)? };
            let offset = DataOffset(position.0.saturating_sub(data_start.0));
            planned.push(PlannedTensor { tensor, info_position, offset, position, n_padding });
        }
        let file_len = end.position;
        Ok(Layout { version, alignment, metadata, tensors: planned, head_end, data_start, file_len })
    }

    /// As [`Layout::new`], of a file that llama.cpp can map. An alignment below [`DEFAULT_ALIGNMENT`] is raised to it, in
    /// `metadata` too, so that the length of the head does not matter. It maps tensors only from such addresses
    /// (`ggml-backend.cpp: ggml_backend_cpu_buffer_from_ptr`).
    ///
    /// # Errors
    ///
    /// As [`Layout::new`].
    pub fn mappable(
        version: u32,
        alignment: u64,
        mut metadata: Vec<EntryOut<'a>>,
        tensors: Vec<TensorOut<'a>>,
        pad_end: bool,
    ) -> Result<Layout<'a>, Error> {
        if alignment >= DEFAULT_ALIGNMENT {
            return Layout::new(version, alignment, metadata, tensors, pad_end);
        }
        for entry in &mut metadata {
            if entry.key() == ALIGNMENT_KEY
                && let Some(value) = ValueOut::integer(ValueType::U32, DEFAULT_ALIGNMENT)
            {
                *entry = EntryOut::new(ALIGNMENT_KEY, value);
            }
        }
        Layout::new(version, DEFAULT_ALIGNMENT, metadata, tensors, pad_end)
    }

    /// Version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What data offsets are a multiple of, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata entries, in file order.
    pub fn metadata(&self) -> &[PlannedEntry<'a>] {
        &self.metadata
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[PlannedTensor<'a>] {
        &self.tensors
    }

    /// Where the last tensor info ends.
    pub fn head_end(&self) -> FileOffset {
        self.head_end
    }

    /// Where tensor data starts.
    pub fn data_start(&self) -> FileOffset {
        self.data_start
    }

    /// Bytes in the whole file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }
}

impl<'a> PlannedEntry<'a> {
    /// The entry.
    pub fn entry(&self) -> &EntryOut<'a> {
        &self.entry
    }

    /// Where the entry starts.
    pub fn position(&self) -> FileOffset {
        self.position
    }
}

impl<'a> PlannedTensor<'a> {
    /// The tensor.
    pub fn tensor(&self) -> &TensorOut<'a> {
        &self.tensor
    }

    /// Where the tensor info starts.
    pub fn info_position(&self) -> FileOffset {
        self.info_position
    }

    /// Where the data starts, counted from the data start.
    pub fn offset(&self) -> DataOffset {
        self.offset
    }

    /// Where the data starts, counted from byte 0.
    pub fn position(&self) -> FileOffset {
        self.position
    }

    /// Where the data ends, counted from byte 0, without padding.
    pub fn end(&self) -> FileOffset {
        FileOffset(self.position.0.saturating_add(self.tensor.n_bytes()))
    }

    /// Zero bytes that follow the data.
    pub fn n_padding(&self) -> u64 {
        self.n_padding
    }
}

/// The end of what is planned so far.
struct Cursor {
    position: u64,
}

impl Cursor {
    /// Plans `n_bytes` bytes and returns where they start.
    fn advance(&mut self, n_bytes: u64) -> Result<u64, Error> {
        let start = self.position;
        self.position = start.checked_add(n_bytes).ok_or_else(too_large)?;
        Ok(start)
    }

    /// Plans padding and returns its number of bytes.
    fn align(&mut self, alignment: u64) -> Result<u64, Error> {
        let start = self.position;
        self.position = align_up(start, alignment).ok_or_else(too_large)?;
        Ok(self.position.saturating_sub(start))
    }

    fn plan_entries<'a>(&mut self, entries: Vec<EntryOut<'a>>) -> Result<Vec<PlannedEntry<'a>>, Error> {
        let plan = |entry: EntryOut<'a>| {
            let position = FileOffset(self.advance(entry.n_bytes())?);
            Ok(PlannedEntry { entry, position })
        };
        entries.into_iter().map(plan).collect()
    }

    fn plan_infos(&mut self, tensors: &[TensorOut<'_>]) -> Result<Vec<FileOffset>, Error> {
        tensors.iter().map(|tensor| self.advance(tensor.info_bytes()).map(FileOffset)).collect()
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, Place::File)
}

fn check_keys(metadata: &[EntryOut<'_>]) -> Result<(), Error> {
    let n = metadata.len() as u64;
    if let Some(index) = metadata.iter().position(|entry| entry.key().is_empty()) {
        return Err(Error::new(ErrorKind::EmptyKey, Place::Entry { index: index as u64, n }));
    }
    match find_duplicate(metadata.iter().map(EntryOut::key)) {
        Some((key, kind)) => Err(Error::new(kind, Place::key(key))),
        None => Ok(()),
    }
}

fn check_names(tensors: &[TensorOut<'_>]) -> Result<(), Error> {
    tensors.iter().try_for_each(|tensor| check_name(tensor.name(), Place::tensor(tensor.name())))?;
    match find_duplicate(tensors.iter().map(TensorOut::name)) {
        Some((name, kind)) => Err(Error::new(kind, Place::tensor(name))),
        None => Ok(()),
    }
}

fn find_duplicate<'n>(names: impl Iterator<Item = &'n str>) -> Option<(&'n str, ErrorKind)> {
    let mut seen = BTreeMap::new();
    names.enumerate().find_map(|(second, name)| {
        let first = seen.insert(name, second)?;
        Some((name, ErrorKind::Duplicate { first, second }))
    })
}

/// Checks that readers of the new file will use this alignment.
fn check_alignment(alignment: u64, metadata: &[EntryOut<'_>]) -> Result<(), Error> {
    let place = || Place::key(ALIGNMENT_KEY);
    let small = u32::try_from(alignment).ok().filter(|small| small.is_power_of_two());
    let small = small.ok_or_else(|| Error::new(ErrorKind::BadAlignment { alignment }, place()))?;
    let entry = metadata.iter().find(|entry| entry.key() == ALIGNMENT_KEY);
    let agrees = match entry {
        Some(entry) if entry.value_type() != ValueType::U32 => {
            let kind =
                ErrorKind::WrongType { found: entry.value_type(), expected: ValueType::U32.with_article() };
            return Err(Error::new(kind, place()));
        }
        Some(entry) => entry.value_raw() == ValueOut::u32(small).raw(),
        None => alignment == DEFAULT_ALIGNMENT,
    };
    let bug = ErrorKind::Bug(Bug::OtherAlignment { alignment });
    if agrees { Ok(()) } else { Err(Error::new(bug, place())) }
}

#[cfg(test)]
mod tests {
    use super::super::TensorType;
    use super::*;

    fn tensor(name: &str, n_bytes: u64) -> TensorOut<'_> {
        TensorOut::new(name, &[n_bytes], TensorType::from_id(24).unwrap()).unwrap()
    }

    fn layout_error(alignment: u64, entries: Vec<EntryOut<'_>>, tensors: Vec<TensorOut<'_>>) -> String {
        Layout::new(3, alignment, entries, tensors, true).unwrap_err().to_string()
    }

    #[test]
    fn align_up_is_checked() {
        assert_eq!(align_up(0, 32), Some(0));
        assert_eq!(align_up(1, 32), Some(32));
        assert_eq!(align_up(32, 32), Some(32));
        assert_eq!(align_up(33, 1), Some(33));
        assert_eq!(align_up(u64::MAX - 31, 32), Some(u64::MAX - 31));
        assert_eq!(align_up(u64::MAX - 30, 32), None);
        assert_eq!(align_up(5, 0), None);
    }

    #[test]
    fn positions_follow_from_lengths() {
        // Header 24, entry 8 + 1 + 4 + 4 = 17. Infos 2 x (8 + 1 + 4 + 8 + 4 + 8) = 66, in all 107 bytes.
        let entries = vec![EntryOut::u32("k", 1)];
        let layout = Layout::new(3, 32, entries, vec![tensor("a", 33), tensor("b", 5)], true).unwrap();
        assert_eq!(layout.metadata()[0].position(), FileOffset(24));
        assert_eq!((layout.head_end(), layout.data_start()), (FileOffset(107), FileOffset(128)));
        let [a, b] = layout.tensors() else { panic!("two tensors") };
        assert_eq!((a.info_position(), b.info_position()), (FileOffset(41), FileOffset(74)));
        assert_eq!((a.offset(), a.position(), a.end()), (DataOffset(0), FileOffset(128), FileOffset(161)));
        assert_eq!((b.offset(), b.position(), b.end()), (DataOffset(64), FileOffset(192), FileOffset(197)));
        assert_eq!((a.n_padding(), b.n_padding(), layout.file_len()), (31, 27, 224));
    }

    #[test]
    fn the_last_padding_may_be_left_out() {
        let layout = Layout::new(3, 32, vec![], vec![tensor("a", 33), tensor("b", 5)], false).unwrap();
        assert_eq!((layout.tensors()[0].n_padding(), layout.tensors()[1].n_padding()), (31, 0));
        assert_eq!(layout.file_len(), layout.data_start().0 + 64 + 5);
        let lens =
            [true, false].map(|pad_end| Layout::new(3, 32, vec![], vec![], pad_end).unwrap().file_len());
        assert_eq!(lens, [32, 24]);
    }

    #[test]
    fn names_and_keys_are_unique() {
        let entries = vec![EntryOut::u32("k", 1), EntryOut::bool("k", true)];
        assert_eq!(layout_error(32, entries, vec![]), "metadata 'k' appears twice, as number 1 and number 2");
        let tensors = vec![tensor("a", 1), tensor("b", 1), tensor("a", 2)];
        assert_eq!(layout_error(32, vec![], tensors), "tensor 'a' appears twice, as number 1 and number 3");
        let entries = vec![EntryOut::u32("", 1)];
        assert_eq!(layout_error(32, entries, vec![]), "metadata entry 1 of 1 has an empty key");
    }

    #[test]
    fn a_renamed_tensor_may_not_get_a_long_name() {
        let bytes = super::super::testing::Builder::new().tensor("a", &[1], 24, b"x").build();
        let file = super::super::File::parse(&bytes).unwrap();
        let renamed = TensorOut::rename(file.tensors().get("a").unwrap(), "n".repeat(64));
        let message = format!("tensor '{}' has a name of 64 bytes, expected at most 63", "n".repeat(64));
        assert_eq!(layout_error(32, vec![], vec![renamed]), message);
    }

    #[test]
    fn the_alignment_is_the_one_readers_will_use() {
        let entry = |alignment| vec![EntryOut::u32(ALIGNMENT_KEY, alignment)];
        assert!(Layout::new(3, 64, entry(64), vec![], true).is_ok());
        assert_eq!(
            layout_error(64, vec![], vec![]),
            "bug: layout aligned to 64 bytes, but metadata 'general.alignment' says otherwise"
        );
        assert!(layout_error(32, entry(64), vec![]).starts_with("bug: "));
        assert_eq!(
            layout_error(48, entry(48), vec![]),
            "metadata 'general.alignment' is 48, expected a power of two below 2^32"
        );
        assert_eq!(
            layout_error(32, vec![EntryOut::u64(ALIGNMENT_KEY, 32)], vec![]),
            "metadata 'general.alignment' is a u64, expected a u32"
        );
    }

    #[test]
    fn a_file_that_does_not_fit_in_64_bits_is_refused() {
        let huge = i64::MAX as u64;
        let tensors = vec![tensor("a", huge), tensor("b", huge), tensor("c", huge)];
        assert_eq!(layout_error(32, vec![], tensors), "the file would end after byte 18446744073709551615");
    }

    #[test]
    fn other_versions_are_not_written() {
        let error = Layout::new(4, 32, vec![], vec![], true).unwrap_err();
        assert_eq!(error.to_string(), "GGUF version 4 is not supported, expected version 2 or 3");
    }
}
