//! What a network is: its hyperparameters, its weights by role, its blocks as graphs, and adapters of it.
//!
//! Nothing here knows of data, losses or steps. A new architecture is one file in `arch/` and one line in its slice.

pub mod adapter;
mod arch;
mod block;
mod error;
mod exact;
pub mod hparams;
mod linear;
mod lora;
mod spec;
pub mod survey;
mod weights;

use crate::ggml::{Backend, GgufFile, Tensor};

pub use adapter::AdapterFile;
pub use arch::ARCHITECTURES;
pub use block::{Forward, Net, Place};
pub use error::{Error, Result};
pub use exact::{check_exact_inference, check_exact_training};
pub use hparams::Hparams;
pub use lora::{Group, Lora, LoraConfig, Param, Slot, FLAT_ALIGN};
pub use spec::{Activation, Architecture, BlockSpec, Target};
pub use weights::{Layer, Linear, Weights, WEIGHT_TYPES};

/// A model on a device, ready to be put into graphs.
pub struct Model {
    /// `general.name`, for people.
    pub name: Option<String>,
    pub arch: &'static Architecture,
    pub hp: Hparams,
    pub weights: Weights,
}

impl Model {
    /// Loads an open GGUF file; `progress` is told the bytes copied so far and in all.
    pub fn load(file: &GgufFile, backend: &Backend, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let (arch, hp) = Self::described(file)?;
        let weights = Weights::load(file, arch, &hp, backend, progress)?;
        Ok(Self { name: file.get_str("general.name")?.map(Into::into), arch, hp, weights })
    }

    /// The first `n_layer` layers of a model and its head, each tensor filled by `fill`: to measure what the whole would
    /// take, without its weights.
    pub fn shallow(
        file: &GgufFile,
        backend: &Backend,
        n_layer: usize,
        fill: &dyn Fn(&Tensor) -> crate::ggml::Result<()>,
    ) -> Result<Self> {
        let (arch, mut hp) = Self::described(file)?;
        hp.n_layer = n_layer.min(hp.n_layer);
        let (weights, tensors) = Weights::laid_out(file, arch, &hp, backend, false)?;
        tensors.iter().try_for_each(|(_, tensor)| fill(tensor))?;
        Ok(Self { name: None, arch, hp, weights })
    }

    fn described(file: &GgufFile) -> Result<(&'static Architecture, Hparams)> {
        // First: of an architecture that is not known, no key's absence is the news.
        let name = file.require_str("general.architecture")?;
        let arch = arch::find(name).ok_or_else(|| Error::Architecture {
            path: file.path().into(),
            found: name.into(),
            supported: ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
        })?;
        Ok((arch, Hparams::from_gguf(file)?))
    }
}
