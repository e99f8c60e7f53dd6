//! What can go wrong at the graph API and at GGUF files.

use std::path::PathBuf;

use crate::error::Hint;

/// Errors of the `ggml` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no device named `{name}` (found: {})", .found.join(", "))]
    NoSuchDevice { name: String, found: Vec<String> },
    #[error("device `{device}` could not be initialised")]
    DeviceInit { device: String },
    #[error("device `{device}` is out of memory: {what} needs {bytes} bytes")]
    OutOfDeviceMemory { device: String, what: String, bytes: usize },
    #[error("tensor `{tensor}`: {op} expected {expected}, found {found}")]
    Shape { tensor: String, op: &'static str, expected: String, found: String },
    #[error("tensor `{tensor}`: device `{device}` cannot compute {op} on {types}")]
    Unsupported { tensor: String, op: String, types: String, device: String },
    #[error("device `{device}` failed to compute a graph: {reason}")]
    Compute { device: String, reason: String },
    #[error("`{}`: {reason}", .path.display())]
    Gguf { path: PathBuf, reason: String },
}

/// Result of the `ggml` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchDevice { .. } => Some("`qvac-ft devices` lists what this machine has".into()),
            Self::OutOfDeviceMemory { .. } => {
                Some("pass a smaller `--micro-batch` or `--seq-len`, or choose another `--device`".into())
            }
            Self::Unsupported { .. } => {
                Some("pass `--allow-cpu-fallback`, or choose another `--device`".into())
            }
            _ => None,
        }
    }
}
