//! The library, initialised once per process.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::kernels::Kernels;
use crate::{Error, fault, limits, log};

/// Proof that llama.cpp is initialised and its log captured.
pub struct Backend {
    /// What evaluates on the processor, or why nothing does.
    kernels: Result<Kernels, String>,
}

/// A part of ggml that evaluates on devices of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackEnd {
    /// Such as `CPU` or `CUDA`.
    pub name: String,
    /// Those that it found.
    pub devices: Vec<Device>,
}

/// What a back end evaluates on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Such as `CUDA0`.
    pub name: String,
    /// What its maker calls it.
    pub description: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes of its memory; 0 if it does not say.
    pub memory: u64,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor of this machine.
    Cpu,
    /// A graphics processor, to which blocks go. Also one that shares the machine's memory.
    Gpu,
    /// Works beside the processor, and holds no blocks.
    Accelerator,
}

/// GPU back ends of this build, by ggml's names.
const GPU_BACK_ENDS: &[(bool, &str)] = &[
    (cfg!(feature = "cuda"), "CUDA"),
    (cfg!(feature = "rocm"), "ROCm"),
    (cfg!(feature = "metal"), "MTL"),
    (cfg!(feature = "vulkan"), "Vulkan"),
];

impl Backend {
    /// Initialises llama.cpp on the first call; later calls return the same proof.
    pub fn init() -> &'static Self {
        static BACKEND: OnceLock<Backend> = OnceLock::new();
        BACKEND.get_or_init(|| {
            limits::give_back_large_allocations();
            // SAFETY: `capture` has the signature of `ggml_log_callback`, may be called from any thread, and uses
            // no user data.
            unsafe { sys::llama_log_set(Some(log::capture), std::ptr::null_mut()) };
            // SAFETY: `on_abort` has the signature of `ggml_abort_callback_t` and does not return.
            unsafe { sys::ggml_set_abort_callback(Some(fault::on_abort)) };
            let kernels = Kernels::load();
            // Without any back end llama.cpp would look for one in the current folder.
            if kernels.is_ok() {
                // SAFETY: called once, before any other function of llama.cpp that needs it.
                unsafe { sys::llama_backend_init() };
            }
            Self { kernels }
        })
    }

    /// What evaluates on the processor.
    ///
    /// # Errors
    /// [`Error::Kernels`] where nothing does, in which case llama.cpp must not be asked for anything that evaluates.
    pub(crate) fn kernels(&self) -> Result<Kernels, Error> {
        self.kernels.clone().map_err(|reason| Error::Kernels { reason })
    }

    /// The file whose kernels were loaded, the best for this processor. `None` where they are built in.
    #[must_use]
    pub fn kernels_file(&self) -> Option<PathBuf> {
        self.kernels.as_ref().ok()?.module()
    }

    /// Sets how the line on stderr begins if llama.cpp ends the process. It does so by a check that fails (`GGML_ASSERT`),
    /// which cannot be survived, or by a signal, where [`fault::install`] was called. The process then ends with status 1,
    /// without what is [to be removed](fault::RemovedOnDeath).
    pub fn on_abort(&self, prefix: &str) {
        fault::set_prefix(prefix);
    }

    /// Whether a back end other than the CPU was built in.
    #[must_use]
    pub fn supports_gpu_offload(&self) -> bool {
        // SAFETY: no arguments; the library is initialised.
        self.kernels.is_ok() && unsafe { sys::llama_supports_gpu_offload() }
    }

    /// What can evaluate here, in the order in which llama.cpp prefers it. A back end that was built in but does not work on
    /// this machine has no devices. Those of servers are not among them.
    #[must_use]
    pub fn back_ends(&self) -> Vec<BackEnd> {
        // SAFETY: no arguments; the library is initialised.
        let n = unsafe { sys::ggml_backend_reg_count() };
        let mut all: Vec<BackEnd> = (0..n)
            .map(|i| {
                // SAFETY: `i` is less than their number.
                BackEnd::of(unsafe { sys::ggml_backend_reg_get(i) })
            })
            .collect();
        // Vulkan is not registered where there is no driver.
        for &(_, name) in GPU_BACK_ENDS.iter().filter(|(is_built, _)| *is_built) {
            if !all.iter().any(|one| one.name == name) {
                all.push(BackEnd { name: name.to_owned(), devices: Vec::new() });
            }
        }
        all
    }
}

impl BackEnd {
    /// That of a registry, which lives as long as the process.
    fn of(registry: sys::ggml_backend_reg_t) -> Self {
        // SAFETY: a registry of ggml's own list is never freed.
        let name = unsafe { sys::ggml_backend_reg_name(registry) };
        // SAFETY: as above.
        let n = unsafe { sys::ggml_backend_reg_dev_count(registry) };
        let device = |i| {
            // SAFETY: as above, and `i` is less than the number of its devices.
            Device::of(unsafe { sys::ggml_backend_reg_dev_get(registry, i) })
        };
        Self { name: text(name), devices: (0..n).map(device).collect() }
    }
}

impl Device {
    /// One of a registry, which lives as long as the process.
    fn of(device: sys::ggml_backend_dev_t) -> Self {
        // SAFETY: a device of a registry is never freed.
        let name = unsafe { sys::ggml_backend_dev_name(device) };
        // SAFETY: as above.
        let description = unsafe { sys::ggml_backend_dev_description(device) };
        // SAFETY: as above.
        let kind = unsafe { sys::ggml_backend_dev_type(device) };
        let (mut free, mut total) = (0, 0);
        // SAFETY: as above; both numbers outlive the call.
        unsafe { sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total) };
        Self {
            name: text(name),
            description: text(description),
            kind: match kind {
                sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
                sys::GGML_BACKEND_DEVICE_TYPE_GPU | sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Gpu,
                _ => DeviceKind::Accelerator,
            },
            memory: total as u64,
        }
    }
}

/// A name that ggml gives.
fn text(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: ggml's names are NUL-terminated and live as long as the process, and this one is not null.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

/// The version of the bundled llama.cpp, such as `0.6.0`.
#[must_use]
pub fn llama_cpp_version() -> &'static str {
    // SAFETY: returns a string literal of the library, NUL-terminated, never freed.
    let version = unsafe { sys::llama_version() };
    // SAFETY: as above.
    let version = unsafe { CStr::from_ptr(version) };
    version.to_str().unwrap_or("unknown")
}
