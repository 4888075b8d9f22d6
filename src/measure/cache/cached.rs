//! The scores of a calibration in the cache.

use anyhow::Result;

use crate::engine::outcome::CalibrationReport;
use crate::engine::settings::Calibration;
use crate::engine::text::{Source, Texts};
use crate::measure::cache::{Cache, Entry, Key, Measured, Scored};
use crate::model::input::Input;
use crate::watch::Watch;

/// The version of this program, with its back ends. Each of those rounds in its own way.
fn version() -> String {
    let back_ends = [
        ("cuda", cfg!(feature = "cuda")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("rocm", cfg!(feature = "rocm")),
    ];
    let with = back_ends.into_iter().filter(|(_, is_built)| *is_built);
    let with: Vec<String> = with.map(|(name, _)| format!(" with {name}")).collect();
    env!("GGUF_SHORTEN_VERSION").to_owned() + &with.concat()
}

/// The scores of a calibration, by their place in the cache.
pub(crate) struct CachedScores<'w> {
    cache: Cache<'w>,
    key: Key,
    source: Source,
    found: Option<Entry>,
}

impl<'w> CachedScores<'w> {
    /// Looks it up by the hash of the model's files. Without one nothing is found. `None` where the cache is not to be used, or the
    /// system has no place for one.
    ///
    /// # Errors
    /// A text that cannot be read.
    pub(crate) fn look(
        model: Option<blake3::Hash>,
        options: &Calibration,
        watch: &'w dyn Watch,
        scored: Scored,
    ) -> Result<Option<Self>> {
        let cache = options.cache.then(|| Cache::of_user(watch)).flatten();
        let Some(cache) = cache else {
            return Ok(None);
        };
        let texts = Texts::read(options.source.clone())?;
        let key = Key {
            gguf_shorten: version(),
            llama_cpp: ggml::backend::llama_cpp_version().to_owned(),
            model: model.map(name).unwrap_or_default(),
            texts: texts.fingerprint().to_hex().to_string(),
            tokens: options.tokens,
            window: options.window,
            window_is_default: options.window_is_default,
            gpu_layers: options.gpu_layers,
            rpc: options.rpc.to_string(),
            conversion: options.conversion,
            scored,
        };
        let found = model.and_then(|_| cache.find(&key));
        Ok(Some(Self { cache, key, source: options.source.clone(), found }))
    }

    /// What was found, and the report of it.
    pub(crate) fn found(&self) -> Option<(&Entry, CalibrationReport)> {
        let entry = self.found.as_ref()?;
        let measured = &entry.measured;
        let report = CalibrationReport {
            // The same text may have come from elsewhere then.
            source: self.source.to_string(),
            seed: self.source.seed(),
            blake3: measured.blake3.clone(),
            windows: measured.windows,
            window: measured.window,
            tokens: measured.tokens,
            bos: measured.bos,
            seconds: measured.seconds,
            conversion: measured.conversion,
            cached: true,
            scored: blake3::Hash::from_hex(&self.key.model).ok(),
        };
        Some((entry, report))
    }

    /// Keeps what was measured of the model whose files have this hash.
    pub(crate) fn keep(
        self,
        input: &Input,
        model: blake3::Hash,
        report: &CalibrationReport,
        entry: impl FnOnce(Key, String, Measured) -> Entry,
    ) {
        let measured = Measured {
            windows: report.windows,
            window: report.window,
            tokens: report.tokens,
            bos: report.bos,
            source: report.source.clone(),
            blake3: report.blake3.clone(),
            seconds: report.seconds,
            conversion: report.conversion,
        };
        let path = input.path().display().to_string();
        let key = Key { model: name(model), ..self.key };
        self.cache.keep(&entry(key, path, measured));
    }
}

/// How a key names a model.
fn name(model: blake3::Hash) -> String {
    model.to_hex().to_string()
}
