//! Tensor types: how many bytes a run of elements takes.
//!
//! One table for every type id of the bundled ggml (those of `ik_llama.cpp` are in `ik_type`), from `type_traits` in `ggml/src/ggml.c` and the
//! block structs in `ggml/src/ggml-common.h`. Knows nothing of how the elements are encoded inside
//! a quantisation block.

use std::fmt;

use super::ik_type::IK;

/// The type of a tensor's elements.
///
/// Elements are stored in quantisation blocks of a fixed number of elements and bytes; a plain type
/// such as F32 has blocks of one element. A row is a whole number of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    id: u32,
    name: &'static str,
    block_size: u32,
    block_bytes: u32,
    /// Bytes in front of each row.
    row_bytes: u32,
}

/// Every type, in order of id.
const ALL: [TensorType; 35] = [
    TensorType::F32,
    TensorType::F16,
    row(2, "Q4_0", 32, 18),
    row(3, "Q4_1", 32, 20),
    row(6, "Q5_0", 32, 22),
    row(7, "Q5_1", 32, 24),
    TensorType::Q8_0,
    row(9, "Q8_1", 32, 36),
    row(10, "Q2_K", 256, 84),
    row(11, "Q3_K", 256, 110),
    row(12, "Q4_K", 256, 144),
    row(13, "Q5_K", 256, 176),
    row(14, "Q6_K", 256, 210),
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    TensorType::BF16,
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
    row(40, "NVFP4", 64, 36),
    row(41, "Q1_0", 128, 18),
    row(42, "Q2_0", 64, 18),
];

impl TensorType {
    /// 32-bit floats.
    pub const F32: TensorType = row(0, "F32", 1, 4);
    /// 16-bit floats, IEEE 754.
    pub const F16: TensorType = row(1, "F16", 1, 2);
    /// Integers of eight bits, each 32 with a scale.
    pub const Q8_0: TensorType = row(8, "Q8_0", 32, 34);
    /// 16-bit floats, the upper half of an F32.
    pub const BF16: TensorType = row(30, "BF16", 1, 2);

    /// The type with this id, or `None` if neither ggml nor `ik_llama.cpp` has it.
    pub fn from_id(id: u32) -> Option<TensorType> {
        let read = ALL.into_iter().find(|tensor_type| tensor_type.id == id);
        read.or_else(|| {
            let &(id, name, block_size, block_bytes, row_bytes) = IK.iter().find(|(ik, ..)| *ik == id)?;
            Some(TensorType { id, name, block_size, block_bytes, row_bytes })
        })
    }

    /// Whether the bundled ggml reads the type. Those of `ik_llama.cpp` are copied alone.
    pub fn is_read(self) -> bool {
        ALL.contains(&self)
    }

    /// Every type that the bundled ggml reads, in order of id.
    pub fn all() -> impl Iterator<Item = TensorType> {
        ALL.into_iter()
    }

    /// The id that tensor infos store.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The name in upper case, as `gguf-dump` and model pages print it: `Q4_K`. The C function
    /// `ggml_type_name` prints the same letters, mostly in lower case: `q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Elements in one quantisation block.
    pub fn block_size(self) -> u64 {
        u64::from(self.block_size)
    }

    /// Bytes of one quantisation block.
    pub fn block_bytes(self) -> u64 {
        u64::from(self.block_bytes)
    }

    /// Bytes of a row of `n_elements` elements. `None` if that is not a whole number of quantisation blocks or does not fit.
    pub fn row_bytes(self, n_elements: u64) -> Option<u64> {
        if !n_elements.is_multiple_of(self.block_size()) {
            return None;
        }
        let blocks = n_elements.checked_div(self.block_size())?.checked_mul(self.block_bytes())?;
        blocks.checked_add(u64::from(self.row_bytes))
    }
}

const fn row(id: u32, name: &'static str, block_size: u32, block_bytes: u32) -> TensorType {
    TensorType { id, name, block_size, block_bytes, row_bytes: 0 }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::foreign_type::ForeignType;
    use super::*;

    #[test]
    fn every_id_of_the_bundled_ggml_is_known_or_foreign() {
        for id in 0..=42 {
            let known = TensorType::from_id(id).is_some();
            assert_ne!(known, ForeignType::from_id(id).is_some(), "id {id}");
        }
        assert_eq!(TensorType::from_id(43), None);
        assert_eq!(TensorType::from_id(u32::MAX), None);
    }

    #[test]
    fn ids_rise_and_names_are_unique() {
        let all: Vec<TensorType> = TensorType::all().collect();
        for pair in all.windows(2) {
            assert!(pair[0].id() < pair[1].id(), "{} before {}", pair[0], pair[1]);
        }
        let names: std::collections::BTreeSet<&str> = all.iter().map(|t| t.name()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|t| t.block_size() > 0 && t.block_bytes() > 0));
    }

    #[test]
    fn rows_are_whole_blocks() {
        let q4_k = TensorType::from_id(12).unwrap();
        assert_eq!(q4_k.row_bytes(512), Some(288));
        assert_eq!(q4_k.row_bytes(511), None);
        assert_eq!(q4_k.row_bytes(0), Some(0));
        assert_eq!(TensorType::F32.row_bytes(3), Some(12));
        assert_eq!(TensorType::F32.row_bytes(u64::MAX), None);
        assert_eq!(format!("{q4_k:>6}"), "  Q4_K");
    }

    #[test]
    fn rows_of_ik_types_have_the_bits_per_weight_that_their_authors_state() {
        // As in the descriptions of the pull requests that added them: 4.25 and 5.25 bits and a float for each row, and so on.
        for (id, name, row_bytes, bytes_of_512) in [
            (137, "IQ2_K", 0, 512 * 19 / 64),
            (138, "IQ3_K", 0, 512 * 55 / 128),
            (139, "IQ4_K", 0, 512 * 9 / 16),
            (140, "IQ5_K", 0, 512 * 11 / 16),
            (144, "IQ4_KS", 4, 512 * 17 / 32),
            (152, "IQ5_KS", 4, 512 * 21 / 32),
            (146, "IQ4_KSS", 4, 512 / 2),
            (145, "IQ2_KS", 2, 512 * 35 / 128),
            (135, "IQ2_BN", 4, 512 / 4),
            (133, "Q6_0", 0, 512 * 13 / 16),
        ] {
            let found = TensorType::from_id(id).unwrap();
            assert_eq!((found.name(), found.row_bytes(512)), (name, Some(row_bytes + bytes_of_512)), "{id}");
            assert_eq!(found.row_bytes(513), None);
            assert!(!found.is_read() && TensorType::F32.is_read());
        }
        for pair in IK.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{pair:?}");
        }
    }
}
