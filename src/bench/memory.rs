//! What libllama allocates to run a model: measured by loading it and computing with it.

use std::num::NonZeroU32;
use std::path::Path;

use serde::Serialize;

use crate::llama::log::{take_buffers, Buffer};
use crate::llama::{Context, ContextParams, FlashAttention, Model, ModelParams, Token};

use super::Result;

/// Bytes of buffers, wherever they lie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Loaded {
    pub weights: u64,
    /// Of `weights`, what lies in main memory although the model runs on another device (the embedding).
    pub weights_on_host: u64,
    /// Keys and values of all tokens of the context.
    pub kv: u64,
    /// Intermediate results and logits.
    pub compute: u64,
    /// By how much the caller's `held` grew.
    pub held: Option<u64>,
}

impl Loaded {
    /// All buffers.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.compute
    }
}

/// Loads the model in `path` onto `device`, makes a context of `n_ctx` tokens, computes a prompt of `n_prompt` and one
/// token more. `held` tells what the device or the process holds now, if anyone knows.
pub fn loaded(
    path: &Path,
    device: &str,
    n_ctx: u32,
    n_prompt: usize,
    n_threads: Option<NonZeroU32>,
    held: &dyn Fn() -> Option<u64>,
) -> Result<Loaded> {
    drop(take_buffers());
    let before = held();
    let model = Model::load(path, &ModelParams::on(Some(device)))?;
    let params = ContextParams {
        n_ctx: NonZeroU32::new(n_ctx),
        n_threads,
        flash_attention: FlashAttention::Off,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params)?;
    let n_prompt = n_prompt.min(n_ctx as usize - 1);
    context.feed(&vec![1 as Token; n_prompt])?;
    context.feed(&[1])?;
    let grew = before.zip(held()).map(|(before, now)| now.saturating_sub(before));
    Ok(Loaded { held: grew, ..sums(&take_buffers(), device) })
}

fn sums(buffers: &[Buffer], device: &str) -> Loaded {
    let mut sums = Loaded::default();
    for buffer in buffers {
        match buffer.what.as_str() {
            "model" => {
                sums.weights += buffer.bytes;
                if !buffer.place.to_lowercase().starts_with(&device.to_lowercase()) {
                    sums.weights_on_host += buffer.bytes;
                }
            }
            "KV" => sums.kv += buffer.bytes,
            "compute" | "output" => sums.compute += buffer.bytes,
            _ => {}
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_added_up_by_what_they_hold() {
        let buffer =
            |what: &str, place: &str, bytes| Buffer { what: what.into(), place: place.into(), bytes };
        let buffers = [
            buffer("model", "Vulkan0", 100),
            buffer("model", "CPU_Mapped", 10),
            buffer("KV", "Vulkan0", 20),
            buffer("compute", "Vulkan0", 5),
            buffer("output", "Vulkan_Host", 1),
        ];
        let sums = sums(&buffers, "vulkan0");
        assert_eq!((sums.weights, sums.weights_on_host, sums.kv, sums.compute), (110, 10, 20, 6));
        assert_eq!(sums.total(), 136);
    }
}
