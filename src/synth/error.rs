//! What can keep a synthetic model from being made.

use crate::error::Hint;
use crate::ggml;

/// Errors of `synth`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("no shape is called `{found}` (known: {known})")]
    Shape { found: String, known: String },
    #[error("{found} key-value heads do not divide {n_head} heads")]
    Heads { n_head: usize, found: usize },
    #[error("weights of type {found} are not made (known: {known})")]
    WeightType { found: String, known: String },
    #[error("{what} exist in BitNet's architectures only")]
    BitnetOnly { what: &'static str },
}

/// Result of `synth`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ggml(e) => e.hint(),
            Self::BitnetOnly { .. } => Some("pass `--arch bitnet`".into()),
            _ => None,
        }
    }
}
