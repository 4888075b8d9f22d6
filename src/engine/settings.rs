//! How a model is calibrated or evaluated, before the model is known.

use crate::engine::conversion::Conversion;
use crate::engine::text::{DEFAULT_TOKENS, DEFAULT_WINDOW, Source};
use ggml::rpc::Endpoints;
use std::path::PathBuf;

/// How a model is calibrated, before the model is known.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// The text.
    pub source: Source,
    /// At most this many tokens.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Whether a model with a shorter context may have shorter windows.
    pub window_is_default: bool,
    /// CPU threads.
    pub threads: usize,
    /// As in llama.cpp; `None` is its default.
    pub gpu_layers: Option<i32>,
    /// Servers that evaluate blocks, too.
    pub rpc: Endpoints,
    /// Whether scores may come from the cache, and go there.
    pub cache: bool,
    /// What weights of blocks are converted to for scores. `None` for what is fastest.
    pub conversion: Option<Conversion>,
    /// Memory that an evaluation may take, in bytes. `None` for what is free.
    pub memory: Option<u64>,
    /// The folder for states and progress of an evaluation block by block. `None` to keep them in memory.
    pub scratch: Option<PathBuf>,
}

/// What a user gets who says nothing, but without the cache.
impl Default for Calibration {
    fn default() -> Self {
        Self {
            source: Source::BuiltIn,
            tokens: DEFAULT_TOKENS,
            window: DEFAULT_WINDOW,
            window_is_default: true,
            threads: default_threads(),
            gpu_layers: None,
            rpc: Endpoints::default(),
            cache: false,
            conversion: None,
            memory: None,
            scratch: None,
        }
    }
}

/// One thread for each physical core that this process may use.
///
/// Two threads of a core slow each other down, and more threads than cores wait at every barrier of ggml.
pub(crate) fn default_threads() -> usize {
    num_cpus::get_physical().min(num_cpus::get()).max(1)
}
