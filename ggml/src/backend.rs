//! The library, initialised once per process.

use std::ffi::{CStr, c_char};
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::log;

/// What is written before the reason when llama.cpp gives up: program and file.
static ABORT_PREFIX: Mutex<String> = Mutex::new(String::new());

/// Called before the process ends because llama.cpp gave up; set by [`Backend::on_abort`].
static ABORT_CLEANUP: OnceLock<fn()> = OnceLock::new();

/// Proof that llama.cpp is initialised and its log captured.
pub struct Backend {
    _private: (),
}

impl Backend {
    /// Initialises llama.cpp on the first call; later calls return the same proof.
    pub fn init() -> &'static Self {
        static BACKEND: OnceLock<Backend> = OnceLock::new();
        BACKEND.get_or_init(|| {
            // SAFETY: `capture` has the signature of `ggml_log_callback`, may be called from any thread, and uses
            // no user data.
            unsafe { sys::llama_log_set(Some(log::capture), std::ptr::null_mut()) };
            // SAFETY: `on_abort` has the signature of `ggml_abort_callback_t` and does not return.
            unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
            // SAFETY: called once, before any other function of llama.cpp.
            unsafe { sys::llama_backend_init() };
            Self { _private: () }
        })
    }

    /// Says what one line on stderr begins with, and what is run, if a failed check inside llama.cpp ends the
    /// process. Such a check (`GGML_ASSERT`) cannot be survived; the process then ends with status 1.
    pub fn on_abort(&self, prefix: String, cleanup: fn()) {
        *ABORT_PREFIX.lock().unwrap_or_else(PoisonError::into_inner) = prefix;
        // Only the first one counts: it is the same function in every call of a program.
        ABORT_CLEANUP.get_or_init(|| cleanup);
    }

    /// Whether a back end other than the CPU was built in.
    #[must_use]
    pub fn supports_gpu_offload(&self) -> bool {
        // SAFETY: no arguments; the library is initialised.
        unsafe { sys::llama_supports_gpu_offload() }
    }
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

/// Writes one line and ends the process: the caller inside ggml would call `abort` next.
unsafe extern "C" fn on_abort(message: *const c_char) {
    if let Some(cleanup) = ABORT_CLEANUP.get() {
        cleanup();
    }
    let reason = if message.is_null() {
        "no reason given".into()
    } else {
        // SAFETY: ggml passes a NUL-terminated buffer that lives until this function returns, and it is not null.
        unsafe { CStr::from_ptr(message) }.to_string_lossy()
    };
    // `/long/path/of/the/build/llama-model.cpp:1330: text` -> `llama-model.cpp:1330: text`
    let reason = match reason.split_once(": ") {
        Some((place, text)) => {
            let file = place.rsplit(['/', '\\']).next().unwrap_or(place);
            format!("{text} ({file})")
        }
        None => reason.into_owned(),
    };
    let prefix = ABORT_PREFIX.lock().unwrap_or_else(PoisonError::into_inner);
    // Nothing can be done where even stderr fails.
    let _ = writeln!(
        std::io::stderr(),
        "{prefix}llama.cpp gave up on this model: {}",
        reason.trim()
    );
    // SAFETY: ends the process at once, without the exit handlers, which other threads may be in the middle of.
    unsafe { libc::_exit(1) }
}
