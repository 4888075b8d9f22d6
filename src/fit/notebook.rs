//! Measured losses, kept for later fits. A fit that was interrupted, or one for another size, does not measure them again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::files::cache;
use crate::files::records::Records;
use crate::measure::cache::FITS;
use crate::measure::loss::Loss;
use crate::watch::Watch;

/// Losses are on disk at the latest after so long.
const AFTER: Duration = Duration::from_secs(5);

/// All that a loss depends on beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ground {
    pub(super) program: String,
    pub(super) llama_cpp: String,
    pub(super) parent: String,
    pub(super) imatrix: Option<String>,
    /// Hash of the windows.
    pub(super) windows: String,
    pub(super) gpu_layers: Option<i32>,
}

/// The content on disk.
#[derive(Default, Serialize, Deserialize)]
struct Content {
    ground: Option<Ground>,
    losses: BTreeMap<String, Loss>,
}

/// The losses on one ground, by what was evaluated.
pub(super) struct Notebook<'w> {
    records: Option<(Records<'w>, PathBuf)>,
    content: Content,
    written: Instant,
    is_new: bool,
    /// Losses that were there before.
    pub(super) n_known: usize,
}

impl<'w> Notebook<'w> {
    /// In `folder`. Without one in the system's for caches, or if not `with_cache` in memory alone.
    pub(super) fn open(
        ground: Ground,
        folder: Option<&Path>,
        with_cache: bool,
        watch: &'w dyn Watch,
    ) -> Self {
        let of_system = || cache::folder().ok().filter(|_| with_cache);
        let folder = folder.map(Path::to_owned).or_else(of_system);
        let records = folder.map(|folder| {
            let records = Records::in_folder(folder, watch);
            let path = records.path(FITS, &ground);
            (records, path)
        });
        let found = records.as_ref().and_then(|(records, path)| records.read::<Content>(path));
        let found = found.filter(|found| found.ground.as_ref() == Some(&ground));
        let content = found.unwrap_or_else(|| Content { ground: Some(ground), ..Content::default() });
        let n_known = content.losses.len();
        Self { records, content, written: Instant::now(), is_new: false, n_known }
    }

    /// The loss of `what`, if it is known.
    pub(super) fn get(&self, what: &str) -> Option<Loss> {
        self.content.losses.get(what).copied()
    }

    /// Keeps the loss of `what`.
    pub(super) fn add(&mut self, what: String, loss: Loss) {
        self.content.losses.insert(what, loss);
        self.is_new = true;
        if self.written.elapsed() >= AFTER {
            self.write();
        }
    }

    /// Brings all to the disk.
    pub(super) fn write(&mut self) {
        if let (true, Some((records, path))) = (self.is_new, &self.records) {
            records.write(path, &self.content);
        }
        (self.is_new, self.written) = (false, Instant::now());
    }
}

impl Drop for Notebook<'_> {
    fn drop(&mut self) {
        self.write();
    }
}
