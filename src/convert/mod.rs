//! Checkpoints of Hugging Face into GGUF, and GGUF into the ternary types.
//!
//! `convert` reads a folder (`config` the network, `checkpoint` its weights, `tokenizer` its vocabulary), plans every
//! tensor (`layout` widths, `plan` names and kinds), and streams them in pieces (`stream`, `ternary`): memory stays at
//! some megabytes whatever the model. `quantize` does the last part for a file that is GGUF already. What a scale
//! becomes: f16 in the blocks where that is exact, else 1 in the blocks and the f32 in a tensor `*.scale` beside them.
//! Nothing here downloads, and no pickled weights are read.

mod checkpoint;
mod config;
mod error;
mod layout;
mod metadata;
mod plan;
mod quantize;
mod stream;
mod ternary;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::ggml::{Dtype, GgufWriter};

pub use config::Family;
pub use error::{Error, Result};
pub use quantize::{quantize, QuantizeConfig, Quantized, QuantizedTensor};

use checkpoint::Checkpoint;
use config::ModelConfig;
use layout::Layout;
use plan::Wish;
use tokenizer::Tokenizer;

/// Types the linear layers can have.
pub const TYPES: [Dtype; 4] = [Dtype::TQ1_0, Dtype::TQ2_0, Dtype::F16, Dtype::Q8_0];
/// Types the embedding (and the head) can have.
pub const EMBED_TYPES: [Dtype; 3] = [Dtype::Q6_K, Dtype::F16, Dtype::Q8_0];

/// What to make of which folder.
#[derive(Debug, Clone)]
pub struct ConvertConfig {
    pub dir: PathBuf,
    pub out: PathBuf,
    /// Type of the linear layers.
    pub dtype: Dtype,
    /// Type of the embedding; [`default_embed`] if `None`.
    pub embed: Option<Dtype>,
    /// Take float weights for masters of a ternary network where nothing says that they are.
    pub ternarize: bool,
    /// libllama's name of the pre-tokenizer, where it is not found out.
    pub pre: Option<String>,
    pub threads: usize,
}

/// A width before and after padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padded {
    pub what: &'static str,
    pub from: usize,
    pub to: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    pub architecture: &'static str,
    pub name: String,
    /// Values of the checkpoint's own, without padding.
    pub n_params: u64,
    pub n_tensors: usize,
    pub bytes: u64,
    /// Share of zeros in ternary matrices; `None` if there are none.
    pub zeros: Option<f64>,
    /// Scales in tensors of their own.
    pub n_scales: usize,
    pub padded: Vec<Padded>,
    /// Tensors that could not have the type that was asked for, and what they have.
    pub fallbacks: Vec<(String, Dtype)>,
    /// The largest relative error that f16 made of a block's scale, and the tensor it is in.
    pub rounded: Option<(String, f64)>,
    pub tokenizer: &'static str,
    pub pre: String,
    pub n_vocab: usize,
}

/// What the embedding becomes beside such linear layers, as `llama-quantize` has it.
pub fn default_embed(dtype: Dtype) -> Dtype {
    if dtype.is_ternary() {
        Dtype::Q6_K
    } else {
        dtype
    }
}

fn check_type(dtype: Dtype, known: &[Dtype]) -> Result<()> {
    if known.contains(&dtype) {
        return Ok(());
    }
    let known = known.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ");
    Err(Error::OutputType { found: dtype.name().into(), known })
}

/// Converts a folder. `progress` is told the bytes of tensor data written so far and in all; a `stop` ends the work and
/// leaves nothing behind.
pub fn convert(
    config: &ConvertConfig,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Converted> {
    check_type(config.dtype, &TYPES)?;
    let embed = config.embed.unwrap_or(default_embed(config.dtype));
    check_type(embed, &EMBED_TYPES)?;
    let dir: &Path = &config.dir;
    let model = ModelConfig::read(dir)?;
    let tokenizer = Tokenizer::read(dir, &model, config.pre.as_deref())?;
    let checkpoint = Checkpoint::open(dir)?;
    let layout = Layout::new(&model, config.dtype.block_size());
    let wish = Wish { dtype: config.dtype, embed, ternarize: config.ternarize, threads: config.threads };
    let plan = plan::plan(&checkpoint, &model, layout, wish)?;

    let mut writer = GgufWriter::new();
    let name = metadata::name(dir, &model);
    metadata::write(&name, &model, &layout, config.dtype, &mut writer);
    let (kind, pre) = (tokenizer.model(), tokenizer.pre().to_owned());
    tokenizer.write(&mut writer);
    for item in &plan.items {
        writer.add_tensor(&item.name, &item.ne, item.dtype)?;
    }
    let total = writer.data_size();
    let stream = writer.create(&config.out)?;
    let mut writer = stream::Writer { stream, threads: config.threads, total, done: 0, progress, stop };
    let found = stream::write(&plan.items, &mut writer)?;
    let bytes = writer.stream.finish()?;

    let widths = [("n_embd", layout.embd), ("n_ff", layout.ff)];
    let heads = [Padded { what: "n_embd_head", from: model.n_embd_head, to: layout.n_embd_head }];
    let padded = widths.map(|(what, p)| Padded { what, from: p.from(), to: p.to() });
    Ok(Converted {
        architecture: model.family.architecture(),
        name,
        n_params: plan.n_params(),
        n_tensors: plan.items.len(),
        bytes,
        zeros: (found.n_ternary > 0).then(|| found.n_zeros as f64 / found.n_ternary as f64),
        n_scales: plan.n_scales,
        padded: padded.into_iter().chain(heads).filter(|p| p.from != p.to).collect(),
        fallbacks: plan.fallbacks,
        rounded: found.rounded,
        tokenizer: kind,
        pre,
        n_vocab: model.n_vocab,
    })
}
