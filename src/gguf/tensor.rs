//! The tensor table: name, shape, type and place of every tensor.
//!
//! Owns the checks that make a tensor's bytes safe to hand out. Knows nothing of what names mean.

use super::error::{Bug, Error, ErrorKind};
use super::foreign_type::ForeignType;
use super::place::Place;
use super::reader::Reader;
use super::tensor_type::TensorType;
use crate::gguf::place::MAX_NAME_BYTES;
use crate::gguf::position::{DataOffset, FileOffset};
use std::collections::BTreeMap;
use std::fmt;

/// The most dimensions of a tensor, `GGML_MAX_DIMS`.
pub const MAX_DIMS: usize = 4;

/// The smallest tensor info: an empty name, no dimensions.
const MIN_INFO_BYTES: u64 = 8 + 4 + 4 + 8;

/// The tensors of a file, in file order, with unique names.
#[derive(Clone, Debug)]
pub struct TensorTable<'a> {
    tensors: Vec<TensorInfo<'a>>,
    by_name: BTreeMap<&'a str, usize>,
}

/// One tensor: its description and its bytes.
#[derive(Clone, Copy)]
pub struct TensorInfo<'a> {
    info: RawInfo<'a>,
    position: FileOffset,
    bytes: &'a [u8],
}

/// A tensor info that is right in itself. Whether its data lies inside the file is not checked yet.
#[derive(Clone, Copy)]
pub(super) struct RawInfo<'a> {
    name: &'a str,
    dims: [u64; MAX_DIMS],
    n_dims: usize,
    tensor_type: TensorType,
    offset: DataOffset,
    n_bytes: u64,
}

impl<'a> TensorTable<'a> {
    /// All of them, in file order.
    pub(super) fn as_slice(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    /// Checks the names and places of tensors. Names are unique; data is aligned, inside the file, not shared and without gaps.
    pub(super) fn check(
        infos: Vec<RawInfo<'a>>,
        bytes: &'a [u8],
        alignment: u64,
        data_start: FileOffset,
    ) -> Result<TensorTable<'a>, Error> {
        let table = Self::of(infos, |_, info| info.locate(bytes, alignment, data_start))?;
        Ok(table)
    }

    /// A table of unique names, made by `tensor` from numbers and infos.
    fn of(
        infos: Vec<RawInfo<'a>>,
        tensor: impl Fn(usize, RawInfo<'a>) -> Result<TensorInfo<'a>, Error>,
    ) -> Result<TensorTable<'a>, Error> {
        let mut by_name = BTreeMap::new();
        let mut tensors = Vec::with_capacity(infos.len());
        for (second, info) in infos.into_iter().enumerate() {
            if let Some(first) = by_name.insert(info.name, second) {
                return Err(info.error(ErrorKind::Duplicate { first, second }));
            }
            tensors.push(tensor(second, info)?);
        }
        Ok(TensorTable { tensors, by_name })
    }

    /// Tensors of this table under other names: `infos[i]` describes tensor `sources[i]`.
    pub(super) fn under(&self, infos: Vec<RawInfo<'a>>, sources: &[usize]) -> Result<TensorTable<'a>, Error> {
        Self::of(infos, |number, info| {
            let source = sources.get(number).and_then(|&i| self.tensors.get(i));
            let same = source.filter(|source| {
                let of = |info: &RawInfo<'_>| (info.dims, info.tensor_type, info.n_bytes);
                of(&source.info) == of(&info)
            });
            let Some(source) = same else {
                return Err(info.error(ErrorKind::Bug(Bug::OtherData)));
            };
            let offset = source.info.offset;
            Ok(TensorInfo { info: RawInfo { offset, ..info }, ..*source })
        })
    }

    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.by_name.get(name).and_then(|index| self.tensors.get(*index))
    }

    /// The tensors, in file order.
    pub fn iter(&self) -> std::slice::Iter<'_, TensorInfo<'a>> {
        self.tensors.iter()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True if there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

impl<'t, 'a> IntoIterator for &'t TensorTable<'a> {
    type Item = &'t TensorInfo<'a>;
    type IntoIter = std::slice::Iter<'t, TensorInfo<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> TensorInfo<'a> {
    /// The name, at most [`MAX_NAME_BYTES`] bytes, unique in its file.
    pub fn name(&self) -> &'a str {
        self.info.name
    }

    /// Elements in each dimension, row length (`ne[0]`) first as in the file. Those from
    /// [`TensorInfo::n_dims`] on are 1.
    pub fn dims(&self) -> [u64; MAX_DIMS] {
        self.info.dims
    }

    /// Number of dimensions that the file stores, at most [`MAX_DIMS`].
    pub fn n_dims(&self) -> usize {
        self.info.n_dims
    }

    /// The type of the elements.
    pub fn tensor_type(&self) -> TensorType {
        self.info.tensor_type
    }

    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        // Cannot overflow: checked when the file was read.
        self.info.dims.iter().fold(1, |n, dim| n.saturating_mul(*dim))
    }

    /// Where the data starts, counted from the data start, as stored.
    pub fn offset(&self) -> DataOffset {
        self.info.offset
    }

    /// Where the data starts, counted from byte 0.
    pub fn position(&self) -> FileOffset {
        self.position
    }

    /// Where the data ends, counted from byte 0, without padding.
    pub fn end(&self) -> FileOffset {
        FileOffset(self.position.0.saturating_add(self.info.n_bytes))
    }

    /// Bytes of data, without padding.
    pub fn n_bytes(&self) -> u64 {
        self.info.n_bytes
    }

    /// The data, without padding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// An error about this tensor.
    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        self.info.error(kind)
    }
}

impl fmt::Debug for TensorInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorInfo")
            .field("name", &self.name())
            .field("dims", &self.dims())
            .field("tensor_type", &self.tensor_type())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Reads `n` tensor infos.
pub(super) fn read_infos<'a>(reader: &mut Reader<'a>, n: u64) -> Result<Vec<RawInfo<'a>>, Error> {
    let n_bytes_left = reader.n_left();
    if n > n_bytes_left / MIN_INFO_BYTES {
        return Err(Error::new(ErrorKind::Count { what: "tensors", count: n, n_bytes_left }, Place::Header));
    }
    // Grows with the infos that were read, not with the count.
    let mut infos = Vec::new();
    for index in 0..n {
        reader.enter(Place::Info { index, n });
        infos.push(RawInfo::read(reader)?);
    }
    Ok(infos)
}

impl<'a> RawInfo<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<RawInfo<'a>, Error> {
        let name = reader.text("name")?;
        check_name(name, reader.place())?;
        let n_stored = reader.u32()?;
        let n_dims = usize::try_from(n_stored).ok().filter(|n| *n <= MAX_DIMS).ok_or_else(|| {
            let kind = ErrorKind::TooManyDims { n_dims: n_stored.into() };
            Error::new(kind, Place::tensor(name))
        })?;
        let mut dims = [1; MAX_DIMS];
        for dim in dims.iter_mut().take(n_dims) {
            *dim = reader.u64()?;
        }
        let tensor_type = read_type(reader, name)?;
        let offset = DataOffset(reader.u64()?);
        let n_bytes = n_bytes(tensor_type, dims).map_err(|kind| Error::new(kind, Place::tensor(name)))?;
        Ok(RawInfo { name, dims, n_dims, tensor_type, offset, n_bytes })
    }

    /// Finds the data. Checks that it is aligned and inside the file.
    fn locate(
        self,
        bytes: &'a [u8],
        alignment: u64,
        data_start: FileOffset,
    ) -> Result<TensorInfo<'a>, Error> {
        if !self.offset.0.is_multiple_of(alignment) {
            return Err(self.error(ErrorKind::Misaligned { offset: self.offset.0, alignment }));
        }
        let found = data_start.0.checked_add(self.offset.0).and_then(|start| {
            let end = usize::try_from(start.checked_add(self.n_bytes)?).ok()?;
            Some((FileOffset(start), bytes.get(usize::try_from(start).ok()?..end)?))
        });
        let (position, bytes) = found.ok_or_else(|| {
            let end = [data_start.0, self.offset.0, self.n_bytes].into_iter().map(u128::from).sum();
            self.error(ErrorKind::PastEnd { end, file_len: bytes.len() as u64 })
        })?;
        Ok(TensorInfo { info: self, position, bytes })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, Place::tensor(self.name))
    }
}

/// Checks the length of a tensor name.
pub(super) fn check_name(name: &str, place: Place) -> Result<(), Error> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::new(ErrorKind::NameTooLong { n_bytes: name.len() as u64 }, place));
    }
    Ok(())
}

/// Bytes of a tensor of this type and shape, without padding.
pub(super) fn n_bytes(tensor_type: TensorType, dims: [u64; MAX_DIMS]) -> Result<u64, ErrorKind> {
    let [n_elements, rest @ ..] = dims;
    if !n_elements.is_multiple_of(tensor_type.block_size()) {
        return Err(ErrorKind::PartialBlock { n_elements, tensor_type });
    }
    // ggml counts elements and bytes in signed numbers. Every dimension is one, even beside a dimension of 0.
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let product = |first: u64| rest.into_iter().try_fold(first, u64::checked_mul).filter(fits);
    let n_bytes = tensor_type.row_bytes(n_elements).and_then(product);
    n_bytes
        .filter(|_| dims.iter().all(fits) && product(n_elements).is_some())
        .ok_or(ErrorKind::TooManyElements { dims })
}

fn read_type(reader: &mut Reader<'_>, name: &str) -> Result<TensorType, Error> {
    let id = reader.u32()?;
    TensorType::from_id(id).ok_or_else(|| {
        let kind = match ForeignType::from_id(id) {
            Some(foreign) => ErrorKind::ForeignTensorType { id, foreign },
            None => ErrorKind::UnknownTensorType { id },
        };
        Error::new(kind, Place::tensor(name))
    })
}

#[cfg(test)]
mod tests {
    use super::super::File;
    use super::super::testing::Builder;
    use super::*;

    fn parse_error(builder: &Builder) -> String {
        File::parse(&builder.build()).unwrap_err().to_string()
    }

    #[test]
    fn tensors_keep_order_shape_and_bytes() {
        let builder = Builder::new().tensor("b", &[4, 2], 24, b"01234567").tensor("a", &[], 24, b"x");
        let bytes = builder.build();
        let file = File::parse(&bytes).unwrap();
        let names: Vec<&str> = file.tensors().iter().map(TensorInfo::name).collect();
        assert_eq!(names, ["b", "a"]);
        let tensor = file.tensors().get("b").unwrap();
        assert_eq!((tensor.dims(), tensor.n_dims(), tensor.n_elements()), ([4, 2, 1, 1], 2, 8));
        assert_eq!((tensor.offset(), tensor.position()), (DataOffset(0), file.data_start()));
        assert_eq!(file.tensor_bytes(tensor), b"01234567");
        let scalar = file.tensors().get("a").unwrap();
        assert_eq!((scalar.dims(), scalar.n_dims(), scalar.n_bytes()), ([1; 4], 0, 1));
        assert_eq!((scalar.offset(), scalar.bytes()), (DataOffset(32), &b"x"[..]));
        assert!(file.tensors().get("c").is_none());
    }

    #[test]
    fn a_name_is_utf8_of_at_most_63_bytes() {
        let name = "n".repeat(63);
        let bytes = Builder::new().tensor(&name, &[1], 24, b"x").build();
        assert!(File::parse(&bytes).unwrap().tensors().get(&name).is_some());
        let builder = Builder::new().tensor(&"n".repeat(64), &[1], 24, b"x");
        assert_eq!(parse_error(&builder), "tensor info 1 of 1 has a name of 64 bytes, expected at most 63");
        let builder = Builder::new().raw_tensor(b"\xff", &[1], 24, None, b"x");
        assert_eq!(parse_error(&builder), "the name of tensor info 1 of 1 is not UTF-8, at byte 24");
    }

    #[test]
    fn a_name_twice_is_refused() {
        let builder = Builder::new().tensor("a", &[1], 24, b"x").tensor("a", &[1], 24, b"y");
        assert_eq!(parse_error(&builder), "tensor 'a' appears twice, as number 1 and number 2");
    }

    #[test]
    fn more_than_four_dimensions_are_refused() {
        let builder = Builder::new().tensor("a", &[1, 1, 1, 1, 1], 24, b"x");
        assert_eq!(parse_error(&builder), "tensor 'a' has 5 dimensions, expected at most 4");
    }

    #[test]
    fn unknown_and_removed_types_are_refused() {
        let refuse = |type_id| parse_error(&Builder::new().tensor("a", &[32], type_id, &[0; 32]));
        assert_eq!(refuse(43), "tensor 'a' has unknown tensor type 43");
        assert_eq!(refuse(u32::MAX), "tensor 'a' has unknown tensor type 4294967295");
        let removed = "tensor 'a' has tensor type 31, 'Q4_0_4_4', which llama.cpp no longer supports";
        assert_eq!(refuse(31), removed);
        for (id, what) in [
            (4, "which early releases of Ollama wrote for 'MXFP4' and llama.cpp does not read"),
            (5, "'Q4_3', which llama.cpp no longer supports"),
            (36, "'I2_S' of bitnet.cpp (once 'IQ4_NL_4_4' of llama.cpp), which llama.cpp does not read"),
            (142, "'IQ2_TN', which ik_llama.cpp no longer supports"),
        ] {
            assert_eq!(refuse(id), format!("tensor 'a' has tensor type {id}, {what}"));
        }
    }

    #[test]
    fn a_row_is_a_whole_number_of_blocks() {
        let builder = Builder::new().tensor("a", &[33, 2], 3, &[0; 64]);
        let message = "tensor 'a' has 33 elements per row, expected a multiple of 32, the block size of Q4_1";
        assert_eq!(parse_error(&builder), message);
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let max = i64::MAX as u64;
        for dims in [
            [max, 2, 1, 1],
            [1 << 32, 1 << 32, 0, 1],
            [u64::MAX, 1, 1, 1],
            [0, max + 1, 1, 1],
            [max / 2, 1, 1, 1],
        ] {
            let builder = Builder::new().tensor("a", &dims, 0, &[]);
            let [a, b, c, d] = dims;
            let message =
                format!("tensor 'a' has dimensions {a} x {b} x {c} x {d}, more than fit in 63 bits");
            assert_eq!(parse_error(&builder), message);
        }
    }

    #[test]
    fn an_offset_is_aligned() {
        let builder = Builder::new().tensor("a", &[1], 24, b"x").tensor_at("b", 8, b"y");
        let message = "tensor 'b' has data offset 8, expected a multiple of the alignment 32";
        assert_eq!(parse_error(&builder), message);
    }

    #[test]
    fn a_tensor_ends_inside_the_file() {
        let builder = Builder::new().tensor("blk.3.ffn_down.weight", &[5, 8], 24, &[0; 40]);
        let bytes = builder.build();
        let short = &bytes[..bytes.len() - 25];
        let (end, file_len) = (bytes.len() - 24, short.len());
        let message =
            format!("tensor 'blk.3.ffn_down.weight' ends at byte {end}, but the file has {file_len} bytes");
        let error = File::parse(short).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.hint(), Some("the download may be incomplete"));

        // The sum is more than 64 bits: 64 bytes of head, then the offset and a byte.
        let bytes = Builder::new().tensor_at("a", u64::MAX - 31, b"x").build();
        let message = "tensor 'a' ends at byte 18446744073709551649, but the file has 96 bytes";
        assert_eq!(File::parse(&bytes).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_count_that_cannot_be_true_is_refused() {
        for count in [2, u64::MAX] {
            let mut bytes = Builder::new().tensor("abc", &[1], 24, b"x").build();
            bytes.truncate(24 + 35);
            bytes[8..16].copy_from_slice(&count.to_le_bytes());
            let message =
                format!("the header counts {count} tensors, but only 35 bytes of the file are left");
            assert_eq!(File::parse(&bytes).unwrap_err().to_string(), message);
        }
    }
}
