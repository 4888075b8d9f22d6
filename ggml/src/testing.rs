//! Test support: which tensors an architecture has, and llama.cpp's own removal of layers for comparison.

use std::ffi::{CStr, CString, c_void};
use std::path::Path;

use llama_cpp_sys_2 as sys;

use crate::error::c_path;
use crate::requantize::run as run_quantize;
use crate::{Backend, Error, ModelOptions, log};

/// Signals by which a process dies, with their names.
#[cfg(unix)]
pub const DEADLY: [(&str, i32); 7] = [
    ("SIGFPE", libc::SIGFPE),
    ("SIGSEGV", libc::SIGSEGV),
    ("SIGBUS", libc::SIGBUS),
    ("SIGTRAP", libc::SIGTRAP),
    ("SIGSYS", libc::SIGSYS),
    ("SIGILL", libc::SIGILL),
    ("SIGABRT", libc::SIGABRT),
];

/// Sends a signal to this thread.
#[cfg(unix)]
pub fn raise(signal: i32) {
    // SAFETY: any number may be passed; what is no signal is an error.
    unsafe { libc::raise(signal) };
}

/// Fails a check as llama.cpp does.
pub fn fail_check() {
    // SAFETY: all are NUL-terminated, and the text asks for no argument.
    unsafe { sys::ggml_abort(c"/where/it/was/built/x.cpp".as_ptr(), 7, c"a check".as_ptr()) };
}

/// Has llama.cpp say something, then runs `run` with its log locked.
pub fn with_log_locked(run: impl FnOnce()) {
    // SAFETY: the text is NUL-terminated and outlives the call; no user data is read.
    unsafe {
        log::capture(sys::GGML_LOG_LEVEL_WARN, c"a_function: words\n".as_ptr(), std::ptr::null_mut());
    };
    let _lines = log::lines();
    run();
}

/// A tensor that llama.cpp would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Its name.
    pub name: String,
    /// Elements of each dimension, fastest first.
    pub ne: [u64; 4],
}

/// The tensors that llama.cpp asks for, given the metadata at `path`. The file has none itself. They are all that llama.cpp
/// knows for the architecture, optional ones too, in the order in which it makes them.
///
/// # Errors
/// [`Error::Load`] with llama.cpp's reason.
pub fn tensor_shapes(_backend: &Backend, path: &Path) -> Result<Vec<TensorShape>, Error> {
    let path = c_path(path)?;
    let init = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
    log::clear();
    // SAFETY: the path is NUL-terminated and outlives the call; a failure is a null pointer, checked.
    let metadata = unsafe { sys::gguf_init_from_file(path.as_ptr(), init) };
    if metadata.is_null() {
        return Err(Error::Load { reason: log::last_error().unwrap_or_default() });
    }
    let mut shapes: Vec<TensorShape> = Vec::new();
    let model = ModelOptions::default().load_with(|mut params| {
        // Tensors of prediction blocks are asked for only where they are loaded.
        params.load_mtp = true;
        // SAFETY: the callback is given the vector that `shapes` is, which outlives the call.
        unsafe {
            sys::llama_model_init_from_user(
                metadata,
                Some(record_tensor),
                std::ptr::from_mut(&mut shapes).cast(),
                params,
            )
        }
    });
    // SAFETY: made above, freed once; the model has copied what it needs.
    unsafe { sys::gguf_free(metadata) };
    model.map(|_| shapes)
}

unsafe extern "C" fn record_tensor(tensor: *mut sys::ggml_tensor, shapes: *mut c_void) {
    // SAFETY: `shapes` is what `tensor_shapes` passed, and only this callback uses it meanwhile.
    let shapes = unsafe { &mut *shapes.cast::<Vec<TensorShape>>() };
    // SAFETY: llama.cpp passes a living tensor.
    let tensor = unsafe { &*tensor };
    // SAFETY: a name is always terminated and lives as long as the tensor.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) };
    shapes.push(TensorShape {
        name: name.to_string_lossy().into_owned(),
        ne: tensor.ne.map(|n| u64::try_from(n).unwrap_or(0)),
    });
}

/// Quantizes the model at `input` with llama.cpp's own routine. `ftype` is its number of the file type.
///
/// # Errors
/// [`Error::Quantize`] with llama.cpp's reason.
pub fn quantize(_backend: &Backend, input: &Path, output: &Path, ftype: u32) -> Result<(), Error> {
    // SAFETY: no arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = 1;
    params.ftype = ftype;
    params.allow_requantize = true;
    run_quantize(input, output, &params)
}

/// As [`quantize`], with an importance matrix. For each weight its mean squared inputs. `is_pure` gives every tensor the same
/// type in place of the mixture's.
///
/// # Errors
/// [`Error::Path`] for a name with a NUL; [`Error::Quantize`] with llama.cpp's reason.
pub fn quantize_with_imatrix(
    _backend: &Backend,
    input: &Path,
    output: &Path,
    ftype: u32,
    imatrix: &[(String, Vec<f32>)],
    is_pure: bool,
) -> Result<(), Error> {
    let names: Vec<CString> = imatrix
        .iter()
        .map(|(name, _)| CString::new(name.as_str()).map_err(|_| Error::Path))
        .collect::<Result<_, _>>()?;
    let mut data: Vec<sys::llama_model_imatrix_data> = names
        .iter()
        .zip(imatrix)
        .map(|(name, (_, values))| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    // The list ends with a name that is null.
    data.push(sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
    // SAFETY: no arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = 1;
    params.ftype = ftype;
    params.pure_ = is_pure;
    params.imatrix = data.as_ptr();
    run_quantize(input, output, &params)
}

/// Removes layers with llama.cpp's own `prune_layers`, without quantizing anything: what `llama-quantize
/// --prune-layers ... copy` does.
///
/// # Errors
/// [`Error::Quantize`] with llama.cpp's reason.
pub fn prune_layers(_backend: &Backend, input: &Path, output: &Path, layers: &[i32]) -> Result<(), Error> {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    // The list ends with -1.
    layers.push(-1);
    // SAFETY: no arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = 1;
    params.only_copy = true;
    params.prune_layers = layers.as_ptr();
    run_quantize(input, output, &params)
}
