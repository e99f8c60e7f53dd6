//! Safe wrappers over the ggml graph API, its devices and GGUF files.

mod error;

pub use error::{Error, Result};
