//! Numbers of C enums. Compilers make them signed (MSVC) or unsigned (all others); here they are unsigned.

use llama_cpp_sys_2 as sys;

/// The type that the compiler gives an enum without negative values.
pub(crate) type Enum = sys::ggml_type;

/// The number of a value.
#[allow(clippy::unnecessary_cast, reason = "the type differs between compilers")]
pub(crate) const fn number(value: Enum) -> u32 {
    value as u32
}

/// The value with a number.
#[allow(clippy::unnecessary_cast, reason = "the type differs between compilers")]
pub(crate) const fn value(number: u32) -> Enum {
    number as Enum
}
