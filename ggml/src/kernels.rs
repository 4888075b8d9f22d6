//! The functions by which ggml evaluates on the processor.
//!
//! They are built into the program, for the processor that it was built on. With feature `portable` they are modules in a folder,
//! one for each kind of processor, and the best of those that this one can run is loaded.

use std::ffi::{CStr, c_void};
use std::path::PathBuf;

use llama_cpp_sys_2 as sys;

type NewPool = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut sys::ggml_threadpool);
type UsePool = unsafe extern "C" fn(sys::ggml_backend_t, *mut sys::ggml_threadpool);

/// The processor as a device of ggml, with the functions called here.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) device: sys::ggml_backend_dev_t,
    pub(crate) new_pool: NewPool,
    pub(crate) free_pool: FreePool,
    pub(crate) use_pool: UsePool,
}

// SAFETY: a device and functions live as long as the process, and llama.cpp uses them from several threads.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Those of this process. With feature `portable` they are loaded, so that this is called once.
    pub(crate) fn load() -> Result<Self, String> {
        #[cfg(feature = "portable")]
        modules::load()?;
        // SAFETY: no pointers are passed; null where there is none.
        let device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        if device.is_null() {
            return Err(missing());
        }
        // SAFETY: the type is that of the function with this name (`ggml-cpu.h`).
        let new_pool =
            unsafe { std::mem::transmute::<*mut c_void, NewPool>(function(device, c"ggml_threadpool_new")?) };
        // SAFETY: as above.
        let free_pool = unsafe {
            std::mem::transmute::<*mut c_void, FreePool>(function(device, c"ggml_threadpool_free")?)
        };
        // SAFETY: as above.
        let use_pool = unsafe {
            std::mem::transmute::<*mut c_void, UsePool>(function(device, c"ggml_backend_cpu_set_threadpool")?)
        };
        Ok(Self { device, new_pool, free_pool, use_pool })
    }

    /// The module that was loaded. `None` where the kernels are built in.
    pub(crate) fn module(self) -> Option<PathBuf> {
        #[cfg(feature = "portable")]
        return modules::of(self.new_pool);
        #[cfg(not(feature = "portable"))]
        None
    }
}

/// What is wrong where ggml has no kernels.
fn missing() -> String {
    #[cfg(feature = "portable")]
    return format!(
        "no module {} for this processor in {}, expected beside the program",
        if cfg!(windows) { "ggml-cpu-*.dll" } else { "libggml-cpu-*.so" },
        modules::folder().map_or_else(|error| error, |folder| folder.display().to_string())
    );
    #[cfg(not(feature = "portable"))]
    "this build has none".to_owned()
}

/// A function of the processor's back end. It is never null.
fn function(device: sys::ggml_backend_dev_t, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: a device of the registry lives as long as the process.
    let registry = unsafe { sys::ggml_backend_dev_backend_reg(device) };
    // SAFETY: as above; the name is NUL-terminated.
    let function = unsafe { sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr()) };
    match function.is_null() {
        true => Err(format!("they have no function {}", name.to_string_lossy())),
        false => Ok(function),
    }
}

/// Kernels in files.
#[cfg(feature = "portable")]
mod modules {
    use std::path::{Path, PathBuf};

    use llama_cpp_sys_2 as sys;

    use super::NewPool;
    use crate::error::c_path;

    /// Where they are, from the folder above that of the program. It is where pip puts what is no Python.
    const FOLDER: &str = "lib/gguf-shorten";

    /// The folder of this program's modules, links to it followed.
    pub(super) fn folder() -> Result<PathBuf, String> {
        let program = std::env::current_exe()
            .map_err(|error| format!("the program's own path is not known: {error}"))?;
        let top = program.parent().and_then(Path::parent);
        Ok(top.ok_or_else(|| format!("{} is in no folder", program.display()))?.join(FOLDER))
    }

    /// A variable that names one more module, loaded whatever its version, which other programs may need.
    const MORE: &str = "GGML_BACKEND_PATH";

    /// Loads the best. No other folder is searched: a null path would name the build's and the current one.
    pub(super) fn load() -> Result<(), String> {
        let folder = c_path(&folder()?).map_err(|error| error.to_string())?;
        // SAFETY: threads of Rust read the environment under a lock, and those of C are not there before the kernels.
        unsafe { std::env::remove_var(MORE) };
        // SAFETY: the path is NUL-terminated and outlives the call. It has not run before.
        unsafe { sys::ggml_backend_load_all_from_path(folder.as_ptr()) };
        Ok(())
    }

    /// The file that a function was loaded from.
    #[cfg(unix)]
    pub(super) fn of(function: NewPool) -> Option<PathBuf> {
        use std::ffi::{CStr, OsStr, c_void};
        use std::os::unix::ffi::OsStrExt;
        let mut found = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: any address may be asked about; `found` outlives the call.
        let known = unsafe { libc::dladdr(function as *const c_void, &raw mut found) };
        if known == 0 || found.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the loader's name of a module that is never unloaded, NUL-terminated.
        let name = unsafe { CStr::from_ptr(found.dli_fname) };
        Some(Path::new(OsStr::from_bytes(name.to_bytes())).to_owned())
    }

    /// The file that a function was loaded from. Not known on this system.
    #[cfg(not(unix))]
    pub(super) fn of(_: NewPool) -> Option<PathBuf> {
        None
    }
}
