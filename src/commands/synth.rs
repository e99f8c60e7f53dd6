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
    /// bitnet-nano, bitnet-tiny, bitnet-125m, bitnet-0.7b, bitnet-1b, bitnet-2.7b, bitnet-7b or bitnet-13b
    #[arg(long, value_name = "NAME")]
    shape: String,
    /// Type of the linear layers: tq1_0, tq2_0, f16, q8_0 or q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "tq2_0")]
    dtype: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Which family's tensors it has
    #[arg(long, value_enum, default_value = "bitnet")]
    arch: Arch,
    /// Seed of the random values
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Key-value heads, for grouped queries [default: as many as heads]
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
    Llama,
}

impl Args {
    fn config(&self) -> synth::Result<synth::Config> {
        Ok(synth::Config {
            family: match self.arch {
                Arch::Bitnet => synth::Family::Bitnet,
                Arch::Llama => synth::Family::Llama,
            },
            n_head_kv: self.n_head_kv,
            scales: self.scales,
            untied: self.untied,
            ..config(&self.shape, &self.dtype, self.seed)?
        })
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
