//! Adapters out of and into other forms: PEFT folders, and models that have the adapter in their weights.
//!
//! GGUF and PEFT name the same matrices differently and, for `llama`, order the rows of queries and keys differently;
//! `names` knows both. `peft` reads and writes folders, `merge` writes models. Nothing here needs a device.

mod error;
mod merge;
mod names;
mod peft;

pub use error::{Error, Result};
pub use merge::{merge, MergeConfig, Merged, OutputType};
pub use peft::{read as read_peft, write as write_peft};

#[cfg(test)]
mod tests;
