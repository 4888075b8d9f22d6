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
    /// `ik_llama.cpp`.
    Ik,
}

/// The types of `ik_llama.cpp` alone, in order of id.
const IK: &[(u32, &str)] = &[
    (97, "Q8_0_X4"),
    (98, "Q8_1_X4"),
    (99, "Q8_2_X4"),
    (133, "Q6_0"),
    (134, "IQ1_BN"),
    (135, "IQ2_BN"),
    (136, "Q8_K64"),
    (137, "IQ2_K"),
    (138, "IQ3_K"),
    (139, "IQ4_K"),
    (140, "IQ5_K"),
    (141, "IQ6_K"),
    (142, "IQ2_TN"),
    (143, "IQ1_TN"),
    (144, "IQ4_KS"),
    (145, "IQ2_KS"),
    (146, "IQ4_KSS"),
    (147, "Q8_K16"),
    (148, "Q8_K32"),
    (149, "Q8_KR8"),
    (150, "Q8_K128"),
    (151, "Q8_KV"),
    (152, "IQ5_KS"),
    (153, "IQ2_KT"),
    (154, "IQ3_KT"),
    (155, "IQ4_KT"),
    (156, "IQ3_KS"),
    (157, "IQ2_KL"),
    (158, "IQ1_KT"),
    (202, "Q4_0_R8"),
    (206, "Q5_0_R4"),
    (208, "Q8_0_R8"),
    (210, "Q2_K_R4"),
    (211, "Q3_K_R4"),
    (212, "Q4_K_R4"),
    (213, "Q5_K_R4"),
    (214, "Q6_K_R4"),
    (216, "IQ2_XXS_R4"),
    (217, "IQ2_XS_R4"),
    (218, "IQ3_XXS_R4"),
    (219, "IQ1_S_R4"),
    (220, "IQ4_NL_R4"),
    (221, "IQ3_S_R4"),
    (222, "IQ2_S_R4"),
    (223, "IQ4_XS_R8"),
    (229, "IQ1_M_R4"),
    (230, "BF16_R16"),
    (233, "Q6_0_R4"),
    (335, "IQ2_BN_R4"),
    (337, "IQ2_K_R4"),
    (338, "IQ3_K_R4"),
    (339, "IQ4_K_R4"),
    (340, "IQ5_K_R4"),
    (344, "IQ4_KS_R4"),
    (352, "IQ5_KS_R4"),
    (353, "MXFP4_R8"),
    (397, "Q8_K_R16"),
    (398, "Q8_KV_R8"),
    (399, "Q8_K_R8"),
];

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
            _ => {
                let (_, name) = IK.iter().find(|(ik, _)| *ik == id)?;
                (*name, Origin::Ik)
            }
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
            Origin::Ik => write!(f, "'{name}' of ik_llama.cpp, which llama.cpp does not read"),
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
        for pair in IK.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{pair:?}");
        }
        assert_eq!(ForeignType::from_id(43), None);
        assert_eq!(ForeignType::from_id(u32::MAX), None);
    }
}
