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
mod map;
mod ops;
mod ops_fused;
mod ops_train;
mod ops_values;
mod replica;
mod stream;
mod tensor;

use std::ffi::CString;
use std::path::Path;
use std::sync::{Once, OnceLock};

pub use context::Context;
pub use device::{Backend, Device, DeviceKind, DeviceLimits};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use exec::{Arena, Executor, Plan};
pub use gguf::{GgufFile, GgufStream, GgufWriter, TensorInfo};
pub use graph::Graph;
pub use host::{free_host_bytes, host_bytes, own_host_bytes, peak_host_bytes, reset_peak_host_bytes};
pub use map::FileMap;
pub use ops::{Rope, RopeKind};
pub use ops_fused::TERNARY_SUM_STEP;
pub use ops_values::{Function, Gated};
pub(crate) use replica::show;
pub use replica::{Operation, Signature, Watch};
pub use tensor::{Element, Tensor};

/// Makes the backends known, once per process. Statically linked ones register themselves; a `portable` build loads its
/// CPU variants from beside the program.
pub(crate) fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        // SAFETY: fills the registry before anything reads it; `Once` keeps threads apart.
        unsafe { llama_sys::ggml_backend_load_all() };
        if let Some(folder) = PIPELINES.get() {
            // SAFETY: the registry is filled; the text is copied.
            unsafe { llama_sys::ggml_backend_set_pipeline_cache(folder.as_ptr()) };
        }
    });
}

/// Changes whenever exact arithmetic gives other bits than before: a run does not go on in another version, and
/// `tests/fixtures/exact/hashes.json` belongs to one.
pub const EXACT_VERSION: u32 = 1;

/// Exact arithmetic for all graphs of this process from here on: the same bits on every device (docs/exactness.md). Not to be
/// changed between a graph's making and its computation.
pub fn set_exact(exact: bool) {
    // SAFETY: sets a flag that graphs' makers and devices read.
    unsafe { llama_sys::ggml_set_exact(exact) }
}

/// Whether [`set_exact`] switched it on.
pub fn is_exact() -> bool {
    // SAFETY: reads a flag.
    unsafe { llama_sys::ggml_is_exact() }
}

static PIPELINES: OnceLock<CString> = OnceLock::new();

/// Keeps compiled GPU pipelines in files in `folder`, which is made when there are some. To be called before a device is
/// asked for; else, and where this is not called, they are compiled again by each process unless the driver keeps them.
pub fn keep_pipelines_in(folder: &Path) {
    // A path that is no text or holds a NUL is one to do without: the cache only saves time.
    if let Some(folder) = folder.to_str().and_then(|f| CString::new(f).ok()) {
        let _ = PIPELINES.set(folder);
    }
}
