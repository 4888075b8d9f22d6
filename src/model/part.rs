//! One mapped file of a model.

use crate::files::stamp::Stamp;
use ggml::Mapping;
use std::path::PathBuf;

/// One mapped file.
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub mapping: Mapping,
    /// What it was when it was opened.
    pub stamp: Stamp,
}
