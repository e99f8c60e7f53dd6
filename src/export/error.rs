//! What can keep an adapter from being converted or merged.

use std::path::PathBuf;

use crate::error::Hint;
use crate::{ggml, model};

/// Errors of `export`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("`{}`: cannot {action}", .path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("`{}` is not valid JSON", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("`{}` is not a safetensors file", .path.display())]
    Safetensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("`{}`: `{field}` is {found}, expected {expected}", .path.display())]
    Config { path: PathBuf, field: &'static str, found: String, expected: &'static str },
    #[error("`{}`: tensor `{tensor}`: expected {expected}, found {found}", .path.display())]
    Tensor { path: PathBuf, tensor: String, expected: String, found: String },
    #[error("architecture `{found}` has no Hugging Face names here (known: {known})")]
    Architecture { found: String, known: String },
    #[error("`{}`: layer `{tensor}` has no Hugging Face name", .path.display())]
    NoName { path: PathBuf, tensor: String },
    #[error("`{}` does not say how many heads its model has, and `{tensor}` is ordered by heads", .path.display())]
    HeadsUnknown { path: PathBuf, tensor: String },
    #[error("`{tensor}`: {n_rows} rows are no {n_head} heads of an even size")]
    HeadRows { tensor: String, n_rows: usize, n_head: usize },
    #[error("`{}` exists already", .path.display())]
    Exists { path: PathBuf },
    #[error("`{}` would be written over: it is the {input}", .path.display())]
    Overwrite { path: PathBuf, input: &'static str },
    #[error("tensor `{tensor}` cannot be written as {dtype}")]
    OutputType { tensor: String, dtype: &'static str },
}

/// Result of `export`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ggml(e) => e.hint(),
            Self::Model(e) => e.hint(),
            Self::HeadsUnknown { .. } => Some("pass the model it was trained on with `--model`".into()),
            Self::Exists { .. } | Self::Overwrite { .. } => Some("choose another name with `--out`".into()),
            Self::OutputType { .. } => Some("pass `--type f16`".into()),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("free some space, or write to another disk".into())
            }
            _ => None,
        }
    }
}
