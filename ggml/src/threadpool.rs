//! The threads that evaluate graphs on the CPU.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::kernels::Kernels;
use crate::{Backend, Error};

/// Polling level of idle threads, 0 to 100 (`ggml-cpu.c: ggml_graph_compute_poll_for_work`). A tap cuts a graph into one part
/// for each block, and the pause between two parts is shorter than waking a thread.
const POLL: u32 = 100;

/// CPU threads that live as long as a context. Without them ggml starts and ends a thread for each part of a graph.
pub struct ThreadPool {
    kernels: Kernels,
    /// Evaluates nothing: what it is told to use no longer is paused.
    idle: NonNull<sys::ggml_backend>,
    raw: NonNull<sys::ggml_threadpool>,
    n_threads: i32,
    /// Held while they evaluate a graph: they work at one only.
    turn: Mutex<()>,
}

// SAFETY: the C objects belong to no thread. Of the functions that change them, one runs at a time: those called here, and
// an evaluation, hold `turn`.
unsafe impl Send for ThreadPool {}
// SAFETY: as above.
unsafe impl Sync for ThreadPool {}

impl ThreadPool {
    /// Starts `n_threads - 1` threads, which work together with the caller's.
    ///
    /// # Errors
    /// [`Error::Context`] if they cannot be started, [`Error::Kernels`] where there is nothing that they could run.
    pub fn new(n_threads: usize) -> Result<Self, Error> {
        let failed = || Error::Context { reason: format!("{n_threads} threads cannot be started") };
        let kernels = Backend::init().kernels()?;
        let n_threads = i32::try_from(n_threads).map_err(|_| failed())?;
        // SAFETY: a device of the registry lives as long as the process; no parameters. A failure is a null pointer.
        let idle = unsafe { sys::ggml_backend_dev_init(kernels.device, std::ptr::null()) };
        let idle = NonNull::new(idle).ok_or_else(failed)?;
        // SAFETY: no pointers are passed.
        let mut params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        params.poll = POLL;
        // SAFETY: `params` is initialised and is copied by the call. A failure is a null pointer, checked below.
        let raw = unsafe { (kernels.new_pool)(&raw mut params) };
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: made above, freed once.
            unsafe { sys::ggml_backend_free(idle.as_ptr()) };
            return Err(failed());
        };
        Ok(Self { kernels, idle, raw, n_threads, turn: Mutex::new(()) })
    }

    /// How many threads work together, the caller's included.
    pub(crate) fn n_threads(&self) -> i32 {
        self.n_threads
    }

    /// The C object, alive as long as `self`.
    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_threadpool {
        self.raw.as_ptr()
    }

    /// Waits until they work at nothing, and keeps them from it.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the threads sleep. The next graph wakes them (`ggml-cpu.c: ggml_graph_compute_kickoff`).
    ///
    /// `ggml_threadpool_pause` is none of the functions that a module gives, but a back end calls it when it is told to use
    /// another pool (`ggml-cpu.cpp: ggml_backend_cpu_set_threadpool`).
    pub fn pause(&self) {
        let _turn = self.turn();
        for pool in [self.as_ptr(), std::ptr::null_mut()] {
            // SAFETY: back end and pool are alive; pausing takes the pool's lock.
            unsafe { (self.kernels.use_pool)(self.idle.as_ptr(), pool) };
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_dev_init`, freed once.
        unsafe { sys::ggml_backend_free(self.idle.as_ptr()) };
        // SAFETY: made by `new_pool`, freed once; the context that used it is gone.
        unsafe { (self.kernels.free_pool)(self.raw.as_ptr()) };
    }
}
