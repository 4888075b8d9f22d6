//! Limits of this process: what the system sets, and what it keeps of memory.

/// Makes a write past the file size limit (`ulimit -f`) an error. By default it raises a signal that ends the process, which
/// then could not remove the file that it was writing.
pub fn report_file_size_limit() {
    #[cfg(unix)]
    {
        // SAFETY: the signal is only ignored, so no handler runs. Only this process's own writes raise it, and they
        // then fail with `EFBIG`.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
}

/// Allocations from this size on go back to the system when they are freed, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 4 << 20;

/// Has large allocations go back to the system when they are freed.
///
/// By default glibc keeps those of up to 32 MB, in each thread its own: buffers of one block after the other, in no order.
pub(crate) fn give_back_large_allocations() {
    // SAFETY: it only sets a number of the allocator.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
