//! Workers that evaluate several windows at the same time.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use ggml::ThreadPool;
use rayon::prelude::*;

use crate::engine::llama::Halves;
use crate::engine::segment::{BlockSegment, Evaluated};

/// Threads, and for each of them those of ggml that work with it.
pub(super) struct Workers {
    threads: rayon::ThreadPool,
    pools: Vec<Arc<ThreadPool>>,
}

impl Workers {
    /// `n` of them, which share `n_threads`.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub(super) fn start(n: usize, n_threads: usize) -> Result<Self> {
        let share = |worker| n_threads / n + usize::from(worker < n_threads % n);
        Ok(Self {
            threads: rayon::ThreadPoolBuilder::new().num_threads(n).build()?,
            pools: (0..n)
                .map(|worker| Ok(Arc::new(ThreadPool::new(share(worker))?)))
                .collect::<Result<_>>()?,
        })
    }

    /// The threads of each.
    pub(super) fn pools(&self) -> &[Arc<ThreadPool>] {
        &self.pools
    }

    /// What [`BlockSegment::run_collecting`] says of each of `states`. As many as segments at most.
    ///
    /// # Errors
    /// As there.
    pub(super) fn evaluate(
        &self,
        segments: &mut [BlockSegment],
        states: &[Cow<'_, [f32]>],
        halves: Option<&Halves>,
    ) -> Result<Vec<Evaluated>> {
        self.threads.install(|| {
            let pairs = segments.par_iter_mut().zip(states);
            pairs.map(|(segment, state)| segment.run_collecting(state, halves, None)).collect()
        })
    }
}
