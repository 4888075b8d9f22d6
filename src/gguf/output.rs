//! What a new file will hold: its metadata entries and its tensors, without their positions.
//!
//! An entry that is kept is its bytes in the input and is not encoded again.

use std::borrow::Cow;

use super::error::{Error, ErrorKind};
use super::metadata::Entry;
use super::place::Place;
use super::tensor::{self, MAX_DIMS, TensorInfo, check_name};
use super::tensor_type::TensorType;
use super::value::Value;
use super::value_out::ValueOut;
use super::value_type::ValueType;

/// A metadata entry of a new file.
#[derive(Clone, Debug)]
pub struct EntryOut<'a>(Source<'a>);

#[derive(Clone, Debug)]
enum Source<'a> {
    Kept(Entry<'a>),
    New { key: Cow<'a, str>, value: ValueOut },
}

/// A tensor of a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorOut<'a> {
    name: Cow<'a, str>,
    dims: [u64; MAX_DIMS],
    n_dims: usize,
    tensor_type: TensorType,
    n_bytes: u64,
}

impl<'a> EntryOut<'a> {
    /// An entry of the input, byte for byte.
    pub fn keep(entry: &Entry<'a>) -> EntryOut<'a> {
        EntryOut(Source::Kept(*entry))
    }

    /// A new entry, or one whose value is replaced.
    pub fn new(key: impl Into<Cow<'a, str>>, value: ValueOut) -> EntryOut<'a> {
        EntryOut(Source::New { key: key.into(), value })
    }

    /// A new `u32` entry.
    pub fn u32(key: impl Into<Cow<'a, str>>, value: u32) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::u32(value))
    }

    /// A new `i32` entry.
    pub fn i32(key: impl Into<Cow<'a, str>>, value: i32) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::i32(value))
    }

    /// A new `u64` entry.
    pub fn u64(key: impl Into<Cow<'a, str>>, value: u64) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::u64(value))
    }

    /// A new `f32` entry.
    pub fn f32(key: impl Into<Cow<'a, str>>, value: f32) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::f32(value))
    }

    /// A new bool entry.
    pub fn bool(key: impl Into<Cow<'a, str>>, value: bool) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::bool(value))
    }

    /// A new string entry, which need not be text.
    pub fn string<S: AsRef<[u8]> + ?Sized>(key: impl Into<Cow<'a, str>>, value: &S) -> EntryOut<'a> {
        EntryOut::new(key, ValueOut::string(value))
    }

    /// The entry under another key.
    pub fn renamed(self, key: impl Into<Cow<'a, str>>) -> EntryOut<'a> {
        let value = match self.0 {
            Source::Kept(entry) => ValueOut::copied(entry.value().value_type(), entry.value().raw()),
            Source::New { value, .. } => value,
        };
        EntryOut::new(key, value)
    }

    /// The key.
    pub fn key(&self) -> &str {
        match &self.0 {
            Source::Kept(entry) => entry.key(),
            Source::New { key, .. } => key,
        }
    }

    /// The type of the value.
    pub fn value_type(&self) -> ValueType {
        match &self.0 {
            Source::Kept(entry) => entry.value().value_type(),
            Source::New { value, .. } => value.value_type(),
        }
    }

    /// The value as a reader will see it.
    pub fn value(&self) -> Value<'_> {
        match &self.0 {
            Source::Kept(entry) => entry.value(),
            Source::New { key, value } => Value::encoded(key, value.value_type(), value.raw()),
        }
    }

    /// The bytes of the value as they will be stored.
    pub fn value_raw(&self) -> &[u8] {
        match &self.0 {
            Source::Kept(entry) => entry.value().raw(),
            Source::New { value, .. } => value.raw(),
        }
    }

    /// True if the entry is copied from the input.
    pub fn is_kept(&self) -> bool {
        matches!(self.0, Source::Kept(_))
    }

    /// Bytes of the whole entry.
    pub fn n_bytes(&self) -> u64 {
        match &self.0 {
            Source::Kept(entry) => entry.raw().len() as u64,
            // Length of the key, the key, value type, value: all in memory, so the sum is far from
            // overflow.
            Source::New { key, value } => {
                (8 + 4u64).saturating_add(key.len() as u64).saturating_add(value.raw().len() as u64)
            }
        }
    }

    /// The bytes of the whole entry, in the pieces they are in.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let pieces: [Cow<'_, [u8]>; 4] = match &self.0 {
            Source::Kept(entry) => [entry.raw().into(), Cow::default(), Cow::default(), Cow::default()],
            Source::New { key, value } => [
                (key.len() as u64).to_le_bytes().to_vec().into(),
                key.as_bytes().into(),
                value.value_type().id().to_le_bytes().to_vec().into(),
                value.raw().into(),
            ],
        };
        pieces.into_iter()
    }
}

impl<'a> TensorOut<'a> {
    /// A tensor of this name, shape and type. `dims` has the row length first and is stored as it
    /// is.
    ///
    /// # Errors
    ///
    /// If the name is too long, there are more than [`MAX_DIMS`] dimensions, rows are not whole
    /// quantisation blocks, or the number of bytes does not fit.
    pub fn new(
        name: impl Into<Cow<'a, str>>,
        dims: &[u64],
        tensor_type: TensorType,
    ) -> Result<TensorOut<'a>, Error> {
        let name = name.into();
        check_name(&name, Place::tensor(&name))?;
        let fail = |kind| Error::new(kind, Place::tensor(&name));
        let n_dims = dims.len();
        if n_dims > MAX_DIMS {
            return Err(fail(ErrorKind::TooManyDims { n_dims: n_dims as u64 }));
        }
        let mut padded = [1; MAX_DIMS];
        padded.iter_mut().zip(dims).for_each(|(to, from)| *to = *from);
        let n_bytes = tensor::n_bytes(tensor_type, padded).map_err(fail)?;
        Ok(TensorOut { name, dims: padded, n_dims, tensor_type, n_bytes })
    }

    /// A tensor of the input.
    pub fn keep(tensor: &TensorInfo<'a>) -> TensorOut<'a> {
        TensorOut {
            name: tensor.name().into(),
            dims: tensor.dims(),
            n_dims: tensor.n_dims(),
            tensor_type: tensor.tensor_type(),
            n_bytes: tensor.n_bytes(),
        }
    }

    /// A tensor of the input under another name. [`Layout::new`](super::Layout::new) checks the
    /// name.
    pub fn rename(tensor: &TensorInfo<'a>, name: impl Into<Cow<'a, str>>) -> TensorOut<'a> {
        TensorOut { name: name.into(), ..TensorOut::keep(tensor) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Elements in each dimension, row length first. Those from [`TensorOut::n_dims`] on are 1.
    pub fn dims(&self) -> [u64; MAX_DIMS] {
        self.dims
    }

    /// Number of dimensions that are stored.
    pub fn n_dims(&self) -> usize {
        self.n_dims
    }

    /// The type of the elements.
    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        // Cannot overflow: checked when the tensor was made.
        self.dims.iter().fold(1, |n, dim| n.saturating_mul(*dim))
    }

    /// Bytes of data, without padding.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Bytes of the tensor info: name, number of dimensions, dimensions, type and data offset.
    pub(super) fn info_bytes(&self) -> u64 {
        let fixed = 8 + 4 + 4 + 8u64;
        let dims = (self.n_dims as u64).saturating_mul(8);
        fixed.saturating_add(dims).saturating_add(self.name.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::File;
    use super::super::testing::Builder;
    use super::*;

    fn bytes_of(entry: &EntryOut<'_>) -> Vec<u8> {
        let bytes = entry.pieces().collect::<Vec<_>>().concat();
        assert_eq!(bytes.len() as u64, entry.n_bytes());
        bytes
    }

    #[test]
    fn a_kept_entry_is_its_bytes() {
        let bytes = Builder::new().string("k", "text").build();
        let file = File::parse(&bytes).unwrap();
        let entry = file.metadata().get("k").unwrap();
        let kept = EntryOut::keep(entry);
        assert!(kept.is_kept());
        assert_eq!(bytes_of(&kept), entry.raw());
        assert_eq!(bytes_of(&EntryOut::string("k", "text")), entry.raw());
    }

    #[test]
    fn a_tensor_out_is_checked_like_a_tensor_of_a_file() {
        let new = |name: &str, dims: &[u64], type_id| {
            let tensor_type = TensorType::from_id(type_id).unwrap();
            let tensor = TensorOut::new(name.to_owned(), dims, tensor_type);
            tensor.map(|tensor| tensor.n_bytes()).map_err(|error| error.to_string())
        };
        assert_eq!(new("a", &[256, 3], 12), Ok(432));
        assert_eq!(new("a", &[], 0), Ok(4));
        assert!(new("a", &[255], 12).unwrap_err().contains("255 elements per row"));
        assert!(new("a", &[1; 5], 0).unwrap_err().contains("5 dimensions"));
        assert!(new("a", &[u64::MAX], 0).unwrap_err().contains("63 bits"));
        assert!(new(&"a".repeat(64), &[1], 0).unwrap_err().contains("64 bytes"));
    }

    #[test]
    fn a_renamed_tensor_keeps_shape_and_type() {
        let bytes = Builder::new().tensor("a", &[1], 24, b"x").build();
        let file = File::parse(&bytes).unwrap();
        let tensor = file.tensors().get("a").unwrap();
        let renamed = TensorOut::rename(tensor, "b");
        assert_eq!(renamed, TensorOut::new("b", &[1], tensor.tensor_type()).unwrap());
    }
}
