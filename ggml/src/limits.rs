//! Limits that the system sets on this process.

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
