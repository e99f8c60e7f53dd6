//! What can keep a measurement from being taken.

use crate::error::Hint;
use crate::{ggml, llama, train};

/// Errors of `bench`.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Train(#[from] train::Error),
    #[error(transparent)]
    Llama(#[from] llama::Error),
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    #[error("step {step}: {what} is not finite")]
    NonFinite { step: usize, what: &'static str },
    #[error("interrupted: nothing was measured to its end")]
    Interrupted,
}

/// Result of `bench`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Train(e) => e.hint(),
            Self::Llama(e) => e.hint(),
            Self::Ggml(e) => e.hint(),
            Self::NonFinite { .. } => Some(
                "figures of a network that computes nonsense mean nothing; try another `--device`".into(),
            ),
            Self::Interrupted => None,
        }
    }
}
