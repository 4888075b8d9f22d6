//! Memory for models that are evaluated at the same time. Another one waits until there is room for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::files::free_memory;

/// Bytes that a process needs besides the weights, about: text, logits, buffers of llama.cpp.
const BESIDES: u64 = 512 << 20;

/// The memory of this machine that is free at the start.
#[derive(Debug)]
pub struct Memory {
    budget: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

/// Memory for one model; given back when dropped.
#[derive(Debug)]
pub struct Held<'m>(&'m Memory, u64);

impl Memory {
    /// Four fifths of what is free now. Without a limit where that is not known.
    #[must_use]
    pub fn free_now() -> Self {
        Self::new(free_memory::available().map_or(u64::MAX, |bytes| bytes / 5 * 4))
    }

    fn new(budget: u64) -> Self {
        Self { budget, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until there is room for a model whose files have `n_bytes`. One that is too large is let through alone: it is
    /// mapped, and may run all the same, slowly.
    pub fn hold(&self, n_bytes: u64) -> Held<'_> {
        let needed = n_bytes.saturating_add(BESIDES);
        let used = self.used();
        let waits = |used: &mut u64| *used > 0 && used.saturating_add(needed) > self.budget;
        let waited = self.freed.wait_while(used, waits);
        let mut used = waited.unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_add(needed);
        Held(self, needed)
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut used = self.0.used();
        *used = used.saturating_sub(self.1);
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn no_more_models_run_than_there_is_room_for() {
        let memory = Memory::new(3 * BESIDES);
        let now = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let held = memory.hold(BESIDES / 4);
                    let n = now.fetch_add(1, Ordering::SeqCst) + 1;
                    assert!(n <= 2, "{n} at a time");
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                });
            }
        });
        // One that is too large runs alone.
        let _held = memory.hold(u64::MAX);
    }
}
