//! The architectures that can be trained: one small file each, and one line in [`ARCHITECTURES`].
//!
//! The parity tests go through the slice, so a new architecture is tested against libllama as soon as it is listed.

mod bitnet;
mod bitnet_b158;
mod llama;

use super::spec::Architecture;

/// Every architecture, under the name of GGUF's `general.architecture`.
pub const ARCHITECTURES: &[Architecture] =
    &[llama::ARCHITECTURE, bitnet::ARCHITECTURE, bitnet_b158::ARCHITECTURE];

/// The architecture of that name.
pub fn find(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name)
}
