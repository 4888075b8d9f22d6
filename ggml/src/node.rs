//! One node of a compute graph while it is evaluated.

use std::ffi::CStr;
use std::marker::PhantomData;

use half::slice::HalfFloatSliceExt;
use llama_cpp_sys_2 as sys;

use crate::Error;

/// What a node computes, as far as taps tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A matrix times every row of a tensor (`GGML_OP_MUL_MAT`).
    Product,
    /// A product with the experts selected for each row (`GGML_OP_MUL_MAT_ID`).
    ProductOfExperts,
    /// Anything else.
    Other,
}

/// A tensor of the graph that is being evaluated. Lives only while a callback runs.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    raw: &'a sys::ggml_tensor,
    graph: PhantomData<&'a sys::ggml_cgraph>,
}

impl<'a> Node<'a> {
    /// The node at `raw`, or `None` for a null pointer.
    ///
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

    /// What it computes.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self.raw.op {
            sys::GGML_OP_MUL_MAT => Operation::Product,
            sys::GGML_OP_MUL_MAT_ID => Operation::ProductOfExperts,
            _ => Operation::Other,
        }
    }

    /// Whether its values are F32.
    #[must_use]
    pub fn is_f32(&self) -> bool {
        self.raw.type_ == sys::GGML_TYPE_F32
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

    /// Reads the values into `values`, row after row in logical order. Its old content is lost.
    ///
    /// # Errors
    /// [`Error::Node`] for a type that is not a plain floating-point number.
    pub fn read(&self, values: &mut Vec<f32>) -> Result<(), Error> {
        let [ne0, ne1, ne2, ne3] = self.ne();
        let element_bytes = match self.raw.type_ {
            sys::GGML_TYPE_F32 => 4,
            sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16 => 2,
            _ => return Err(self.wrong_type("f32, f16 or bf16")),
        };
        values.clear();
        values.resize(ne0 * ne1 * ne2 * ne3, 0.0);
        if self.raw.type_ == sys::GGML_TYPE_F32 && self.is_contiguous() {
            self.copy_bytes(0, as_bytes_mut(values));
            return Ok(());
        }
        let mut narrow = vec![0u16; if element_bytes == 2 { ne0 } else { 0 }];
        for (row, offset) in values.chunks_exact_mut(ne0.max(1)).zip(self.row_offsets()) {
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

    /// The values of 32-bit integers, as [`Node::read`] gives numbers.
    ///
    /// # Errors
    /// [`Error::Node`] for another type.
    pub fn read_integers(&self, values: &mut Vec<i32>) -> Result<(), Error> {
        if self.raw.type_ != sys::GGML_TYPE_I32 {
            return Err(self.wrong_type("i32"));
        }
        values.clear();
        let mut row = vec![0; self.ne()[0] * size_of::<i32>()];
        for offset in self.row_offsets() {
            self.copy_bytes(offset, &mut row);
            values.extend(row.as_chunks().0.iter().map(|bytes| i32::from_ne_bytes(*bytes)));
        }
        Ok(())
    }

    /// Where each row begins, in bytes, in logical order.
    fn row_offsets(&self) -> impl Iterator<Item = usize> + use<> {
        let [_, ne1, ne2, ne3] = self.ne();
        let [_, nb1, nb2, nb3] = self.raw.nb;
        (0..ne3).flat_map(move |i3| {
            (0..ne2).flat_map(move |i2| (0..ne1).map(move |i1| i1 * nb1 + i2 * nb2 + i3 * nb3))
        })
    }

    fn wrong_type(&self, expected: &'static str) -> Error {
        let number = crate::enums::number(self.raw.type_);
        Error::Node {
            name: self.name().to_owned(),
            tensor_type: crate::tensor_type::name(number).unwrap_or_else(|| format!("number {number}")),
            expected,
        }
    }

    fn is_contiguous(&self) -> bool {
        // SAFETY: reads the shape of a living tensor.
        unsafe { sys::ggml_is_contiguous(self.raw) }
    }

    /// Copies `out.len()` bytes from byte `offset`, on any device.
    fn copy_bytes(&self, offset: usize, out: &mut [u8]) {
        // SAFETY: reads the shape of a living tensor.
        let n_bytes = unsafe { sys::ggml_nbytes(self.raw) };
        assert!(
            offset.checked_add(out.len()).is_some_and(|end| end <= n_bytes),
            "a row of '{}' ends past its {n_bytes} bytes",
            self.name()
        );
        // SAFETY: the tensor was computed (callbacks hand out computed nodes and their living operands). `out` has room for the
        // bytes asked for, and the range lies inside the tensor as just checked.
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
