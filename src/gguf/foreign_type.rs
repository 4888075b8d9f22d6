//! Tensor types that the bundled ggml does not read. Some were removed from it, others are of other programs.
//!
//! Sources: `enum ggml_type` in `ggml/include/ggml.h` of llama.cpp, of ikawrakow/ik_llama.cpp and of the llama.cpp in
//! microsoft/BitNet; `fs/ggml/type.go` of Ollama's releases of August 2025.

use std::fmt;

/// A tensor type that the bundled ggml does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignType {
    name: &'static str,
    origin: Origin,
}

/// Who wrote a type that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// llama.cpp, which has removed it.
    Removed,
    /// llama.cpp, which now repacks Q4_0 to it while loading.
    Repacked,
    /// Ollama, before it took over llama.cpp's number.
    Ollama,
    /// bitnet.cpp; in brackets what the number was in llama.cpp.
    BitNet(&'static str),
    /// `ik_llama.cpp`, which has removed it.
    Ik,
}

impl ForeignType {
    /// The unread type with this id, if it is known.
    pub fn from_id(id: u32) -> Option<ForeignType> {
        let (name, origin) = match id {
            4 => ("MXFP4", Origin::Ollama),
            5 => ("Q4_3", Origin::Removed),
            31 => ("Q4_0_4_4", Origin::Repacked),
            32 => ("Q4_0_4_8", Origin::Repacked),
            33 => ("Q4_0_8_8", Origin::Repacked),
            36 => ("I2_S", Origin::BitNet("IQ4_NL_4_4")),
            37 => ("I8_S", Origin::BitNet("IQ4_NL_4_8")),
            38 => ("TL1", Origin::BitNet("IQ4_NL_8_8")),
            142 => ("IQ2_TN", Origin::Ik),
            143 => ("IQ1_TN", Origin::Ik),
            _ => return None,
        };
        Some(ForeignType { name, origin })
    }

    /// What the user can do.
    pub(super) fn hint(self) -> &'static str {
        match self.origin {
            Origin::Removed => "convert or quantize the model again with a current llama.cpp",
            Origin::Repacked => "quantize the model again to Q4_0, which llama.cpp repacks while it loads",
            Origin::Ollama => {
                "'ollama pull' of the model fetches a file that has llama.cpp's number for MXFP4"
            }
            Origin::BitNet(_) => {
                "convert the original model again with llama.cpp, to TQ2_0 or TQ1_0 where its weights are ternary"
            }
            Origin::Ik => "quantize the model again with llama.cpp, to a type that both have",
        }
    }
}

/// With its name in quotes, and whose it is.
impl fmt::Display for ForeignType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.origin {
            Origin::Removed | Origin::Repacked => {
                write!(f, "'{name}', which llama.cpp no longer supports")
            }
            Origin::Ollama => {
                write!(f, "which early releases of Ollama wrote for '{name}' and llama.cpp does not read")
            }
            Origin::BitNet(once) => write!(
                f,
                "'{name}' of bitnet.cpp (once '{once}' of llama.cpp), which llama.cpp does not read"
            ),
            Origin::Ik => write!(f, "'{name}', which ik_llama.cpp no longer supports"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tensor_type::TensorType;
    use super::*;

    #[test]
    fn no_type_is_both_read_and_foreign() {
        for id in 0..1000 {
            let read = TensorType::from_id(id).is_some();
            assert!(!read || ForeignType::from_id(id).is_none(), "id {id}");
        }
        assert_eq!(ForeignType::from_id(43), None);
        assert_eq!(ForeignType::from_id(u32::MAX), None);
    }
}
