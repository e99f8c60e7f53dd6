//! Safe wrappers over the ggml graph API, its devices and GGUF files.

pub mod dtype;
mod error;
pub mod gguf;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use gguf::{GgufFile, GgufStream, GgufWriter, TensorInfo};
