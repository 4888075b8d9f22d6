//! One node of a compute graph while it is evaluated.

use std::ffi::CStr;
use std::marker::PhantomData;

use half::slice::HalfFloatSliceExt;
use llama_cpp_sys_2 as sys;

use crate::Error;

/// A tensor of the graph that is being evaluated. Lives only while a callback runs.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    raw: &'a sys::ggml_tensor,
    graph: PhantomData<&'a sys::ggml_cgraph>,
}

impl<'a> Node<'a> {
    /// # Safety
    /// `raw` must point to a tensor of a living graph that nothing changes during `'a`.
    pub(crate) unsafe fn from_raw(raw: *const sys::ggml_tensor) -> Option<Self> {
        // SAFETY: the caller's promise; a null pointer becomes `None`.
        let raw = unsafe { raw.as_ref() }?;
        Some(Self { raw, graph: PhantomData })
    }

    /// The name that llama.cpp gave the tensor, such as `l_out-3` or `blk.3.attn_q.weight`.
    #[must_use]
    pub fn name(&self) -> &'a str {
        // SAFETY: `name` is an array that ggml always terminates, and it lives as long as the tensor.
        let name = unsafe { CStr::from_ptr(self.raw.name.as_ptr()) };
        name.to_str().unwrap_or("")
    }

    /// The `i`-th operand, if there is one.
    #[must_use]
    pub fn operand(&self, i: usize) -> Option<Node<'a>> {
        let raw = *self.raw.src.get(i)?;
        // SAFETY: operands belong to the same graph and live as long as it does.
        unsafe { Node::from_raw(raw) }
    }

    /// Elements of each dimension, fastest first: `[n_embd, n_tokens, 1, 1]` for a hidden state.
    #[must_use]
    pub fn ne(&self) -> [usize; 4] {
        self.raw.ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// The values, row after row in logical order, in place of what `values` held.
    ///
    /// # Errors
    /// [`Error::Node`] for a type that is not a plain floating-point number.
    pub fn read(&self, values: &mut Vec<f32>) -> Result<(), Error> {
        let [ne0, ne1, ne2, ne3] = self.ne();
        let element_bytes = match self.raw.type_ {
            sys::GGML_TYPE_F32 => 4,
            sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16 => 2,
            other => {
                return Err(Error::Node {
                    name: self.name().to_owned(),
                    tensor_type: crate::tensor_type::name(other).unwrap_or_else(|| format!("number {other}")),
                });
            }
        };
        values.clear();
        values.resize(ne0 * ne1 * ne2 * ne3, 0.0);
        if self.raw.type_ == sys::GGML_TYPE_F32 && self.is_contiguous() {
            self.copy_bytes(0, as_bytes_mut(values));
            return Ok(());
        }
        let [_, nb1, nb2, nb3] = self.raw.nb;
        let mut narrow = vec![0u16; if element_bytes == 2 { ne0 } else { 0 }];
        let rows = (0..ne3).flat_map(|i3| {
            (0..ne2).flat_map(move |i2| (0..ne1).map(move |i1| i1 * nb1 + i2 * nb2 + i3 * nb3))
        });
        for (row, offset) in values.chunks_exact_mut(ne0.max(1)).zip(rows) {
            match self.raw.type_ {
                sys::GGML_TYPE_F32 => self.copy_bytes(offset, as_bytes_mut(row)),
                sys::GGML_TYPE_F16 => {
                    self.copy_bytes(offset, narrow_bytes_mut(&mut narrow));
                    half::slice::HalfBitsSliceExt::reinterpret_cast::<half::f16>(&narrow[..])
                        .convert_to_f32_slice(row);
                }
                _ => {
                    self.copy_bytes(offset, narrow_bytes_mut(&mut narrow));
                    half::slice::HalfBitsSliceExt::reinterpret_cast::<half::bf16>(&narrow[..])
                        .convert_to_f32_slice(row);
                }
            }
        }
        Ok(())
    }

    fn is_contiguous(&self) -> bool {
        // SAFETY: reads the shape of a living tensor.
        unsafe { sys::ggml_is_contiguous(self.raw) }
    }

    /// Copies `out.len()` bytes of the tensor's data from byte `offset`, from whatever device holds them.
    fn copy_bytes(&self, offset: usize, out: &mut [u8]) {
        // SAFETY: reads the shape of a living tensor.
        let n_bytes = unsafe { sys::ggml_nbytes(self.raw) };
        assert!(
            offset.checked_add(out.len()).is_some_and(|end| end <= n_bytes),
            "a row of '{}' ends past its {n_bytes} bytes",
            self.name()
        );
        // SAFETY: the tensor was computed (callbacks hand out computed nodes and their living operands), `out` has
        // room for the bytes asked for, and the range lies inside the tensor as just checked.
        unsafe {
            sys::ggml_backend_tensor_get(self.raw, out.as_mut_ptr().cast(), offset, out.len());
        }
    }
}

fn as_bytes_mut(values: &mut [f32]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: the same memory, whose every byte is initialised; any bytes are a valid f32; u8 has no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

fn narrow_bytes_mut(values: &mut [u16]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: the same memory, whose every byte is initialised; any bytes are a valid u16; u8 has no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}
