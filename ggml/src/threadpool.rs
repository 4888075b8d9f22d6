//! The threads that evaluate graphs on the CPU.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::Error;

/// Polling level of idle threads, 0 to 100 (`ggml-cpu.c: ggml_graph_compute_poll_for_work`). A tap cuts a graph into one part
/// for each block, and the pause between two parts is shorter than waking a thread.
const POLL: u32 = 100;

/// CPU threads that live as long as a context. Without them ggml starts and ends a thread for each part of a graph.
pub struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    n_threads: i32,
}

impl ThreadPool {
    /// Starts `n_threads - 1` threads, which work together with the caller's.
    ///
    /// # Errors
    /// [`Error::Context`] if they cannot be started.
    pub fn new(n_threads: usize) -> Result<Self, Error> {
        let failed = || Error::Context { reason: format!("{n_threads} threads cannot be started") };
        let n_threads = i32::try_from(n_threads).map_err(|_| failed())?;
        // SAFETY: no pointers are passed.
        let mut params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        params.poll = POLL;
        // SAFETY: `params` is initialised and is copied by the call. A failure is a null pointer, checked below.
        let raw = unsafe { sys::ggml_threadpool_new(&raw mut params) };
        let raw = NonNull::new(raw).ok_or_else(failed)?;
        Ok(Self { raw, n_threads })
    }

    /// How many threads work together, the caller's included.
    pub(crate) fn n_threads(&self) -> i32 {
        self.n_threads
    }

    /// The C object, alive as long as `self`.
    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_threadpool {
        self.raw.as_ptr()
    }

    /// Lets the threads sleep. The next graph wakes them (`ggml-cpu.c: ggml_graph_compute_kickoff`).
    pub fn pause(&self) {
        // SAFETY: the pool is alive; the call takes its lock.
        unsafe { sys::ggml_threadpool_pause(self.as_ptr()) };
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_threadpool_new`, freed once; the context that used it is gone.
        unsafe { sys::ggml_threadpool_free(self.raw.as_ptr()) };
    }
}
