//! Seeded random models with exactly the shapes of real ones, written as a stream.
//!
//! For tests and measurements: the arithmetic, memory and files are those of a trained model, the text is not. Activations
//! keep about unit variance through the layers and the loss starts near ln(n_vocab). The file depends on the
//! configuration alone, not on the machine or its threads.
//! To add a shape: one line in `SHAPES`.

mod error;
mod shapes;
mod tensors;
mod tokenizer;

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::ggml::gguf::{GgufWriter, Value};
use crate::ggml::Dtype;
use crate::parallel;

pub use error::{Error, Result};
pub use shapes::{find as find_shape, Shape, SHAPES};
pub use tokenizer::{Vocabulary, CHAT_TEMPLATE};

use tensors::Plan;

/// Types the linear layers can have.
pub const TYPES: [Dtype; 5] = [Dtype::TQ1_0, Dtype::TQ2_0, Dtype::F16, Dtype::Q8_0, Dtype::Q4_0];

const RMS_EPS: f32 = 1e-5;
/// Values made in one go; one stream of random numbers each.
const CHUNK: usize = 1 << 20;

/// Which family's tensors the file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Norms before the output projections; tied head; ternary values whatever the type.
    Bitnet,
    /// The same names, with a squared ReLU at the gate: bitnet-b1.58-2B-4T.
    BitnetB158,
    /// Without those norms; values are ternary in ternary types and bell-shaped in others.
    Llama,
}

impl Family {
    /// `general.architecture`
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Bitnet => "bitnet",
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Llama => "llama",
        }
    }

    /// Whether norms stand before the output projections; such models are ternary whatever their type.
    fn is_bitnet(self) -> bool {
        self != Self::Llama
    }

    /// Context length that the metadata state.
    fn n_ctx(self) -> u32 {
        if self == Self::BitnetB158 {
            4096
        } else {
            2048
        }
    }

    fn rope_base(self) -> f32 {
        if self == Self::BitnetB158 {
            500_000.0
        } else {
            10_000.0
        }
    }
}

/// What to make.
#[derive(Debug, Clone)]
pub struct Config {
    pub shape: Shape,
    pub family: Family,
    /// Type of the linear layers.
    pub dtype: Dtype,
    pub seed: u64,
    /// Heads of keys and values; as many as the shape has if `None`.
    pub n_head_kv: Option<usize>,
    /// Keep each ternary matrix's scale in a tensor of its own, as some BitNet files do.
    pub scales: bool,
    /// Give a `llama` model an output matrix of its own.
    pub untied: bool,
    pub threads: usize,
}

impl Config {
    /// Shape, type and seed; the rest as most uses want it.
    pub fn new(shape: Shape, dtype: Dtype, seed: u64) -> Self {
        let threads = parallel::available();
        Self {
            shape,
            family: shape.family,
            dtype,
            seed,
            n_head_kv: None,
            scales: false,
            untied: false,
            threads,
        }
    }

    /// `general.name` of the file.
    pub fn name(&self) -> String {
        format!("synthetic {} ({}, seed {})", self.shape.name, self.dtype, self.seed)
    }

    fn check(&self) -> Result<()> {
        if !TYPES.contains(&self.dtype) {
            let known = TYPES.map(Dtype::name).join(", ");
            return Err(Error::WeightType { found: self.dtype.name().into(), known });
        }
        if let Some(found) = self.n_head_kv.filter(|&n| n == 0 || self.shape.n_head % n != 0) {
            return Err(Error::Heads { n_head: self.shape.n_head, found });
        }
        if self.scales && !self.family.is_bitnet() {
            return Err(Error::BitnetOnly { what: "tensors of scales" });
        }
        Ok(())
    }

    fn n_head_kv(&self) -> usize {
        self.n_head_kv.unwrap_or(self.shape.n_head_kv)
    }

    /// Whether the linear layers hold -1, 0 and 1 times a scale.
    fn ternary(&self) -> bool {
        self.family.is_bitnet() || self.dtype.is_ternary()
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub n_params: u64,
    pub bytes: u64,
}

/// Writes the model; `progress` is told the bytes of tensor data written so far and in all.
pub fn write(config: &Config, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Summary> {
    let (plans, writer) = table(config)?;
    let n_params = plans.iter().map(|p| p.n_rows() as u64 * p.n_per_row() as u64).sum();
    let total = writer.data_size();
    let mut stream = writer.create(path)?;
    let mut done = 0;
    // Random tensors are numbered among themselves: with and without scales of their own they hold the same values.
    let mut stream_number = 0u64;
    for plan in &plans {
        let rows_per_chunk = (CHUNK / plan.n_per_row()).max(1);
        let n_chunks = plan.n_rows().div_ceil(rows_per_chunk);
        let make = |chunk: usize| -> Result<Vec<u8>> {
            let rows = rows_per_chunk.min(plan.n_rows() - chunk * rows_per_chunk);
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            rng.set_stream(stream_number << 32 | chunk as u64);
            rows_of(plan, rows, &mut rng)
        };
        parallel::in_order(n_chunks, config.threads, make, |bytes| {
            stream.write(&bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        })?;
        stream_number += u64::from(plan.values.is_random());
    }
    let bytes = stream.finish()?;
    Ok(Summary { n_params, bytes })
}

/// Writes the model's file with zeros for values, which take no room where the file system can leave holes: what there is
/// to know of a model before it is made.
pub fn write_empty(config: &Config, path: &Path) -> Result<u64> {
    let (_, writer) = table(config)?;
    Ok(writer.create(path)?.finish_empty()?)
}

/// The model's tensors, and a file that begins with its metadata and their table.
fn table(config: &Config) -> Result<(Vec<Plan>, GgufWriter)> {
    config.check()?;
    let plans = tensors::plan(config);
    let mut writer = GgufWriter::new();
    metadata(config, &mut writer);
    for plan in &plans {
        writer.add_tensor(&plan.name, &plan.ne, plan.dtype)?;
    }
    Ok((plans, writer))
}

fn rows_of(plan: &Plan, rows: usize, rng: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let mut values = vec![0f32; rows * plan.n_per_row()];
    plan.values.fill(&mut values, rng);
    let mut bytes = Vec::new();
    plan.dtype.quantize(&values, plan.n_per_row(), &mut bytes)?;
    Ok(bytes)
}

/// `llama_ftype` of a file whose linear layers have this type.
fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q8_0 => 7,
        Dtype::TQ1_0 => 36,
        _ => 37,
    }
}

fn metadata(config: &Config, w: &mut GgufWriter) {
    let Shape { n_embd, n_layer, n_head, n_embd_head, n_ff, n_vocab, .. } = config.shape;
    let arch = config.family.architecture();
    w.set("general.architecture", arch)
        .set("general.type", "model")
        .set("general.name", config.name())
        .set("general.quantization_version", 2u32)
        .set("general.file_type", file_type(config.dtype));
    let mut set = |key: &str, value: Value| {
        w.set(&format!("{arch}.{key}"), value);
    };
    set("vocab_size", (n_vocab as u32).into());
    set("context_length", config.family.n_ctx().into());
    set("embedding_length", (n_embd as u32).into());
    set("block_count", (n_layer as u32).into());
    set("feed_forward_length", (n_ff as u32).into());
    set("attention.head_count", (n_head as u32).into());
    set("attention.head_count_kv", (config.n_head_kv() as u32).into());
    set("attention.layer_norm_rms_epsilon", RMS_EPS.into());
    if config.shape.n_embd_q() != n_embd {
        set("attention.key_length", (n_embd_head as u32).into());
        set("attention.value_length", (n_embd_head as u32).into());
    }
    set("rope.dimension_count", (n_embd_head as u32).into());
    set("rope.freq_base", config.family.rope_base().into());

    let vocabulary = Vocabulary::new(n_vocab);
    w.set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "qwen2")
        .set("tokenizer.ggml.tokens", vocabulary.tokens)
        .set("tokenizer.ggml.token_type", vocabulary.types)
        .set("tokenizer.ggml.merges", vocabulary.merges)
        .set("tokenizer.ggml.bos_token_id", tokenizer::BOS)
        .set("tokenizer.ggml.eos_token_id", tokenizer::EOS)
        .set("tokenizer.ggml.eot_token_id", tokenizer::EOT)
        .set("tokenizer.ggml.padding_token_id", tokenizer::EOS)
        .set("tokenizer.ggml.add_bos_token", false)
        .set("tokenizer.chat_template", CHAT_TEMPLATE);
}

#[cfg(test)]
mod tests;
