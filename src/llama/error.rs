//! What can go wrong at libllama: facts only; what C would assert is named here before C sees it.

use std::path::PathBuf;

use super::Token;
use crate::error::Hint;
use crate::ggml;

/// Errors of the `llama` layer.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("`{}`: a path with a NUL byte cannot be opened", .path.display())]
    NulInPath { path: PathBuf },
    #[error("libllama cannot load `{}`: {reason}", .path.display())]
    ModelLoad { path: PathBuf, reason: String },
    #[error("`{}` was opened for its vocabulary only, its weights are not loaded", .path.display())]
    VocabOnly { path: PathBuf },
    #[error("`{}` has no tokenizer", .path.display())]
    NoVocab { path: PathBuf },
    #[error("a text of {len} bytes is too long to tokenize, at most {max} are possible")]
    TextTooLong { len: usize, max: usize },
    #[error("token {token} is outside of the vocabulary of {n_vocab}")]
    NoSuchToken { token: Token, n_vocab: usize },
    #[error("libllama failed in `{function}`: {reason}")]
    Exception { function: &'static str, reason: String },
    #[error("cannot make a context of {n_ctx} tokens for `{}`: {reason}", .model.display())]
    ContextCreate { model: PathBuf, n_ctx: u32, reason: String },
    #[error("context parameter `{name}` must be {expected}, found {found}")]
    ContextParam { name: &'static str, expected: &'static str, found: u32 },
    #[error("a batch of {n_tokens} tokens is larger than the context's `n_batch` of {n_batch}")]
    BatchTooLarge { n_tokens: usize, n_batch: usize },
    #[error("a batch without tokens cannot be decoded")]
    EmptyBatch,
    #[error("sequence {seq} does not exist, the context was made for {n_seq_max}")]
    NoSuchSequence { seq: i32, n_seq_max: u32 },
    #[error("sequence {seq} goes on at position {expected}, found {found}")]
    Position { seq: i32, expected: i32, found: i32 },
    #[error("the context of {n_ctx} tokens is full: {n_past} are in it, {n_tokens} more do not fit")]
    ContextFull { n_ctx: u32, n_past: usize, n_tokens: usize },
    #[error("libllama failed to decode {n_tokens} tokens (code {code}): {reason}")]
    Decode { n_tokens: usize, code: i32, reason: String },
    #[error("the device failed while decoding: {reason}")]
    Device { reason: String },
    #[error("interrupted while decoding")]
    Interrupted,
    #[error("sequence {seq} cannot be cut at {n_past}, it was dropped")]
    Truncate { seq: i32, n_past: i32 },
    #[error("row {row} of the last batch has no logits")]
    NoLogits { row: usize },
    #[error("the logits of row {row} contain NaN")]
    NanLogits { row: usize },
    #[error("sampling parameter `{name}` must be {expected}, found {found}")]
    SamplerParam { name: &'static str, expected: &'static str, found: f32 },
    #[error("`{}` is not a LoRA adapter: expected `{key}` to be `{expected}`, found {found}", .path.display())]
    NotAnAdapter { path: PathBuf, key: &'static str, expected: &'static str, found: String },
    #[error(
        "`{}` is an adapter of another model: its architecture is `{found}`, that of `{}` is `{expected}`",
        .path.display(), .model.display()
    )]
    AdapterArchitecture { path: PathBuf, model: PathBuf, expected: String, found: String },
    #[error(
        "`{}` is an adapter of another model: tensor `{tensor}` expected {expected} in `{}`, found {found}",
        .path.display(), .model.display()
    )]
    AdapterTensor { path: PathBuf, model: PathBuf, tensor: String, expected: String, found: String },
    #[error("`{}`: adapter tensor `{tensor}` {problem}", .path.display())]
    AdapterMalformed { path: PathBuf, tensor: String, problem: String },
    #[error("libllama cannot load the adapter `{}`: {reason}", .path.display())]
    AdapterLoad { path: PathBuf, reason: String },
    #[error("the adapter `{}` was loaded for another model than the context's", .path.display())]
    AdapterOfAnotherLoad { path: PathBuf },
}

/// Result of the `llama` layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ggml(source) => source.hint(),
            Self::ContextCreate { .. } => {
                Some("pass a smaller `--ctx-size`, or choose another `--device`".into())
            }
            Self::ContextFull { .. } => Some("pass a larger `--ctx-size`, or a shorter prompt".into()),
            Self::NotAnAdapter { .. } => {
                Some("pass the model with `--model` and the `adapter.gguf` of a run with `--adapter`".into())
            }
            Self::AdapterArchitecture { .. } | Self::AdapterTensor { .. } => {
                Some("pass the model that the adapter was trained on with `--model`".into())
            }
            Self::ModelLoad { .. } | Self::AdapterLoad { .. } | Self::Decode { .. } => {
                Some("`-v` shows every line that libllama logs".into())
            }
            _ => None,
        }
    }
}
