//! `qvac-ft quantize`: a GGUF file's linear layers into a ternary type.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::convert::dtype;
use super::ui::{Interrupt, Outcome, Ui};
use crate::convert::{self, QuantizeConfig, Quantized};
use crate::parallel;

/// Requantize a GGUF model whose weights are ternary to TQ1_0 or TQ2_0
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// tq1_0 or tq2_0
    #[arg(long = "type", value_name = "TYPE")]
    dtype: String,
    /// Also make ternary what is not; the model will hardly work
    #[arg(long)]
    force: bool,
    /// CPU threads [default: all]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

/// Requantizes and says how far off the result is.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let context = || format!("cannot quantize `{}`", args.model.display());
    let config = QuantizeConfig {
        model: args.model.clone(),
        out: args.out.clone(),
        dtype: dtype(&args.dtype)?,
        force: args.force,
        threads: args.threads.unwrap_or_else(parallel::available),
    };
    let interrupt = Interrupt::install()?;
    let bar = ui.progress_bytes("quantize", 0);
    let done = convert::quantize(&config, interrupt.flag(), &mut |done, total| {
        bar.set_len(total);
        bar.set(done);
    })
    .with_context(context)?;
    drop(bar);
    if ui.json() {
        let tensors = done.tensors.iter().map(
            |t| json!({ "tensor": t.name, "from": t.from.name(), "max_error": t.max, "rms_error": t.rms }),
        );
        ui.result(&json!({
            "path": args.out,
            "type": config.dtype.name(),
            "n_changed": done.tensors.len(),
            "tensors": tensors.collect::<Vec<_>>(),
            "kept": done.kept,
            "bytes": done.bytes,
        }))?;
    } else {
        say(&args, &done, ui);
    }
    Ok(Outcome::Done)
}

fn say(args: &Args, done: &Quantized, ui: &Ui) {
    for t in done.tensors.iter().filter(|t| t.max > 0.0) {
        let (max, rms) = (t.max, t.rms);
        ui.info(format_args!("{}: largest error {max:.1e}, rms {rms:.1e}", t.name));
    }
    if let Some(first) = done.kept.first() {
        let n = done.kept.len();
        ui.warn(format_args!(
            "{n} matrices kept their type, such as `{first}`: their rows are no whole blocks"
        ));
    }
    ui.info(format_args!(
        "wrote `{}`: {} matrices changed, {:.1} MB",
        args.out.display(),
        done.tensors.len(),
        done.bytes as f64 / 1e6
    ));
}
