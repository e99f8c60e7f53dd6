//! `qvac-ft synth`: a seeded random model of a real one's shape.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use super::ui::{Outcome, Ui};
use crate::ggml::Dtype;
use crate::synth;

/// Write a seeded random model with exactly the shape of a real one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bitnet-nano, bitnet-tiny, bitnet-125m, bitnet-0.7b, bitnet-1b, bitnet-2.7b, bitnet-7b, bitnet-13b,
    /// bitnet-b1.58-tiny, bitnet-b1.58-2b-4t, or of Llama's architecture gemma-3-1b-like, gemma-3-4b-like, qwen3-1.7b-like
    /// or qwen3-4b-like
    #[arg(long, value_name = "NAME")]
    shape: String,
    /// Type of the linear layers: tq1_0, tq2_0, f16, q8_0 or q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "tq2_0")]
    dtype: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Which family's tensors it has [default: that of the shape]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Seed of the random values
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Key-value heads, for grouped queries [default: as many as the shape has]
    #[arg(long, value_name = "N")]
    n_head_kv: Option<usize>,
    /// Keep each matrix's scale in a tensor of its own (bitnet)
    #[arg(long)]
    scales: bool,
    /// Give the model an output matrix of its own (llama)
    #[arg(long)]
    untied: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Arch {
    Bitnet,
    #[value(name = "bitnet-b1.58")]
    BitnetB158,
    Llama,
}

impl Args {
    fn config(&self) -> synth::Result<synth::Config> {
        let config = config(&self.shape, &self.dtype, self.seed)?;
        let family = match self.arch {
            None => config.family,
            Some(Arch::Bitnet) => synth::Family::Bitnet,
            Some(Arch::BitnetB158) => synth::Family::BitnetB158,
            Some(Arch::Llama) => synth::Family::Llama,
        };
        let (n_head_kv, scales, untied) = (self.n_head_kv, self.scales, self.untied);
        Ok(synth::Config { family, n_head_kv, scales, untied, ..config })
    }
}

/// The model of that shape and type, the rest as most uses want it.
pub fn config(shape: &str, dtype: &str, seed: u64) -> synth::Result<synth::Config> {
    let list = |names: &[&str]| names.join(", ");
    let known = synth::find_shape(shape).ok_or_else(|| synth::Error::Shape {
        found: shape.into(),
        known: list(&synth::SHAPES.iter().map(|s| s.name).collect::<Vec<_>>()),
    })?;
    let dtype = Dtype::from_name(dtype).ok_or_else(|| synth::Error::WeightType {
        found: dtype.into(),
        known: list(&synth::TYPES.map(Dtype::name)),
    })?;
    Ok(synth::Config::new(*known, dtype, seed))
}

/// Writes a model with a bar on screen.
pub fn write(config: &synth::Config, path: &Path, ui: &Ui) -> synth::Result<synth::Summary> {
    let bar = ui.progress_bytes("write", 0);
    synth::write(config, path, &mut |done, total| {
        bar.set_len(total);
        bar.set(done);
    })
}

/// Makes the model and says what it is.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let context = || format!("cannot make `{}`", args.out.display());
    let config = args.config().with_context(context)?;
    let summary = write(&config, &args.out, ui).with_context(context)?;
    if ui.json() {
        ui.result(&json!({
            "path": args.out,
            "shape": config.shape.name,
            "architecture": config.family.architecture(),
            "type": config.dtype.name(),
            "seed": config.seed,
            "n_params": summary.n_params,
            "bytes": summary.bytes,
        }))?;
    } else {
        ui.info(format_args!(
            "wrote `{}`: {} ({}), {:.1} M parameters, {:.1} MB",
            args.out.display(),
            config.shape.name,
            config.dtype,
            summary.n_params as f64 / 1e6,
            summary.bytes as f64 / 1e6,
        ));
    }
    Ok(Outcome::Done)
}
