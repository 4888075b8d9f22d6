//! ggml's own table of tensor types, against which the project's is tested.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

use crate::enums::{number, value};

/// Number of type ids that the bundled ggml knows, removed ones included.
pub const COUNT: u32 = number(sys::GGML_TYPE_COUNT);

/// What ggml calls type `id`. `None` for an id that is unknown or was removed.
#[must_use]
pub fn name(id: u32) -> Option<String> {
    if id >= COUNT || block_size(id) == 0 {
        return None;
    }
    // SAFETY: `id` is below the number of types.
    let name = unsafe { sys::ggml_type_name(value(id)) };
    if name.is_null() {
        return None;
    }
    // SAFETY: a string literal of the library, NUL-terminated, not null.
    let name = unsafe { CStr::from_ptr(name) };
    Some(name.to_string_lossy().into_owned())
}

/// Elements per quantisation block of type `id`. 0 for an unknown or removed type.
#[must_use]
pub fn block_size(id: u32) -> u64 {
    if id >= COUNT {
        return 0;
    }
    // SAFETY: `id` is below the number of types.
    u64::try_from(unsafe { sys::ggml_blck_size(value(id)) }).unwrap_or(0)
}

/// Bytes per quantisation block of type `id`. 0 for an unknown or removed type.
#[must_use]
pub fn block_bytes(id: u32) -> u64 {
    if id >= COUNT {
        return 0;
    }
    // SAFETY: `id` is below the number of types.
    unsafe { sys::ggml_type_size(value(id)) as u64 }
}
