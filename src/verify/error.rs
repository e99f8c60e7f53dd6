//! What can keep two devices from being compared.

use crate::error::Hint;
use crate::{data, ggml, llama, model, train};

/// Errors of `verify`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Train(#[from] train::Error),
    #[error(transparent)]
    Llama(#[from] llama::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("nothing was compared: {skipped} checks were skipped")]
    NothingCompared { skipped: usize },
    #[error("there is no text of at least two tokens to compare on")]
    NoText,
    #[error("interrupted: the comparison is not complete")]
    Interrupted,
}

/// Result of `verify`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Train(e) => e.hint(),
            Self::Llama(e) => e.hint(),
            Self::Model(e) => e.hint(),
            Self::Data(e) => e.hint(),
            Self::Ggml(e) => e.hint(),
            Self::NothingCompared { .. } => {
                Some("choose another `--device`, or `--tier`; `--json` says why each was skipped".into())
            }
            Self::NoText => Some("pass text with `--data`".into()),
            Self::Interrupted => None,
        }
    }
}
