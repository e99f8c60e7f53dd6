//! Safe wrappers over the ggml graph API, its devices and GGUF files.
//!
//! With `llama` the only room that may use `unsafe`. What ggml would assert is checked here first and comes back as an
//! [`Error`] that names the tensor; what C++ would throw is caught in the shim of `llama-sys`.

mod context;
mod device;
pub mod dtype;
mod error;
mod exec;
pub(crate) mod ffi;
pub mod gguf;
mod graph;
mod host;
mod ops;
mod ops_fused;
mod ops_train;
mod stream;
mod tensor;

use std::sync::Once;

pub use context::Context;
pub use device::{Backend, Device, DeviceKind};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use exec::{Arena, Executor, Plan};
pub use gguf::{GgufFile, GgufStream, GgufWriter, TensorInfo};
pub use graph::Graph;
pub use host::peak_host_bytes;
pub use ops::{Rope, RopeKind};
pub use tensor::{Element, Tensor};

/// Makes the backends known, once per process. Statically linked ones register themselves; a `portable` build loads its
/// CPU variants from beside the program.
pub(crate) fn init() {
    static INIT: Once = Once::new();
    // SAFETY: fills the registry before anything reads it; `Once` keeps threads apart.
    INIT.call_once(|| unsafe {
        llama_sys::ggml_backend_load_all();
    });
}
