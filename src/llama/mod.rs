//! Safe wrappers over libllama: the tokenizer, and inference with and without adapters.
//!
//! What C would assert is checked here first; what C reports through its log is cited in the error. Training, and the
//! weights it reads, go through `ggml` instead. To wrap another C object: a file of its own with one owner and its `Drop`.

mod adapter;
mod backend;
mod batch;
mod context;
mod device;
mod error;
mod ffi;
mod generate;
pub mod log;
mod model;
mod sampler;
mod threads;
mod vocab;
mod watch;

pub use adapter::LoraAdapter;
pub use backend::Backend;
pub use batch::Batch;
pub use context::{Context, ContextParams, FlashAttention, KvType};
pub use device::DeviceFacts;
pub use error::{Error, Result};
pub use generate::{generate, Generated, Stop};
pub use model::{Model, ModelParams};
pub use sampler::{Sampler, SamplerParams};
pub use threads::{default_threads, physical_cores};
pub use vocab::Vocab;

/// Number of a token in its vocabulary.
pub type Token = llama_sys::llama_token;

/// Place of a token in its sequence.
pub type Pos = llama_sys::llama_pos;
