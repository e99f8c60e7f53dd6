//! What a network is: its sizes, its weights, its adapter.

mod error;
pub mod hparams;

pub use error::{Error, Result};
pub use hparams::Hparams;
