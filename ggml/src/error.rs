//! What can go wrong on the C side.

use std::ffi::CString;
use std::fmt;
use std::path::Path;

/// A failure of llama.cpp, with its own words where it gave any.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There are no functions that evaluate on this processor.
    Kernels {
        /// What is missing where.
        reason: String,
    },
    /// The model could not be loaded.
    Load {
        /// llama.cpp's reason.
        reason: String,
    },
    /// No context could be made for the model.
    Context {
        /// llama.cpp's reason.
        reason: String,
    },
    /// The text could not be turned into tokens.
    Tokenize {
        /// What was wrong.
        reason: String,
    },
    /// A window could not be evaluated.
    Evaluate {
        /// What `llama_decode` returned.
        status: i32,
        /// llama.cpp's reason.
        reason: String,
    },
    /// A model could not be quantized.
    Quantize {
        /// llama.cpp's reason.
        reason: String,
    },
    /// A server that cannot evaluate anything.
    Rpc {
        /// Where it should be.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A path that cannot be passed to C. It has a NUL byte, or is not text on a system that wants text.
    Path,
    /// A graph node whose values cannot be read as numbers.
    Node {
        /// The node's name.
        name: String,
        /// Its ggml type.
        tensor_type: String,
        /// The types that can be read.
        expected: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernels { reason } => write!(f, "llama.cpp has no kernels for this machine: {reason}"),
            Self::Load { reason } => write!(f, "llama.cpp could not load the model: {reason}"),
            Self::Context { reason } => {
                write!(f, "llama.cpp could not set up the evaluation: {reason}")
            }
            Self::Tokenize { reason } => write!(f, "llama.cpp could not tokenize: {reason}"),
            Self::Evaluate { status, reason } => {
                write!(f, "llama.cpp could not evaluate a window (status {status}): {reason}")
            }
            Self::Quantize { reason } => write!(f, "llama.cpp could not quantize: {reason}"),
            Self::Rpc { endpoint, reason } => write!(f, "RPC server {endpoint}: {reason}"),
            Self::Path => f.write_str("the path has a NUL byte or is not valid text"),
            Self::Node { name, tensor_type, expected } => {
                write!(f, "graph node '{name}' has type {tensor_type}, expected {expected}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// The path as C takes it. Its bytes as they are where the system has bytes, else as text.
///
/// # Errors
/// [`Error::Path`].
pub(crate) fn c_path(path: &Path) -> Result<CString, Error> {
    #[cfg(unix)]
    let bytes = Some(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    #[cfg(not(unix))]
    let bytes = path.to_str();
    bytes.and_then(|bytes| CString::new(bytes).ok()).ok_or(Error::Path)
}
