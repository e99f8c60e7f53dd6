//! `qvac-ft convert`: a Hugging Face folder into a GGUF file.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::ui::{Interrupt, Outcome, Problem, Ui};
use crate::convert::{self, ConvertConfig, Converted};
use crate::ggml::Dtype;
use crate::parallel;

/// Convert a Hugging Face folder (BitNet, Falcon 1.58bit, TriLM, Llama) into a GGUF file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder with `config.json`, the weights and the tokenizer
    #[arg(value_name = "HF_DIR")]
    dir: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Type of the linear layers: tq1_0, tq2_0, f16 or q8_0
    #[arg(long = "type", value_name = "TYPE", default_value = "tq2_0")]
    dtype: String,
    /// Type of the embedding and the head: q6_k, f16 or q8_0 [default: q6_k with ternary layers, else theirs]
    #[arg(long, value_name = "TYPE")]
    embed: Option<String>,
    /// Round float weights to ternary as BitNet does, although nothing says that they are a BitNet's masters
    #[arg(long)]
    ternarize: bool,
    /// libllama's name of the pre-tokenizer, where it is not found out
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// CPU threads [default: all]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

/// The type of that name.
pub(super) fn dtype(name: &str) -> anyhow::Result<Dtype> {
    Dtype::from_name(name).ok_or_else(|| {
        let fact = format!("no type is called `{name}`");
        Problem::new(fact, "types are called as in `tq2_0`, `q8_0` and `f16`").into()
    })
}

/// Converts and says what came out.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let context = || format!("cannot convert `{}`", args.dir.display());
    let config = ConvertConfig {
        dir: args.dir.clone(),
        out: args.out.clone(),
        dtype: dtype(&args.dtype)?,
        embed: args.embed.as_deref().map(dtype).transpose()?,
        ternarize: args.ternarize,
        pre: args.pre.clone(),
        threads: args.threads.unwrap_or_else(parallel::available),
    };
    let interrupt = Interrupt::install()?;
    let bar = ui.progress_bytes("convert", 0);
    let done = convert::convert(&config, interrupt.flag(), &mut |done, total| {
        bar.set_len(total);
        bar.set(done);
    })
    .with_context(context)?;
    drop(bar);
    if ui.json() {
        ui.result(&as_json(&args, &done))?;
    } else {
        say(&args, &done, ui);
    }
    Ok(Outcome::Done)
}

fn as_json(args: &Args, done: &Converted) -> serde_json::Value {
    let padded = done.padded.iter().map(|p| json!({ "what": p.what, "from": p.from, "to": p.to }));
    let fallbacks = done.fallbacks.iter().map(|(name, to)| json!({ "tensor": name, "type": to.name() }));
    let rounded = done.rounded.as_ref().map(|(name, error)| json!({ "tensor": name, "max_error": error }));
    json!({
        "path": args.out,
        "name": done.name,
        "architecture": done.architecture,
        "type": args.dtype.to_lowercase(),
        "n_params": done.n_params,
        "n_tensors": done.n_tensors,
        "bytes": done.bytes,
        "zeros": done.zeros,
        "n_scales": done.n_scales,
        "padded": padded.collect::<Vec<_>>(),
        "fallbacks": fallbacks.collect::<Vec<_>>(),
        "rounded_scale": rounded,
        "tokenizer": { "model": done.tokenizer, "pre": done.pre, "n_tokens": done.n_vocab },
    })
}

fn say(args: &Args, done: &Converted, ui: &Ui) {
    for p in &done.padded {
        ui.info(format_args!(
            "{} is {} instead of {}: filled up with zeros, the same network",
            p.what, p.to, p.from
        ));
    }
    if let Some((first, to)) = done.fallbacks.first() {
        let others = match done.fallbacks.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} others"),
        };
        ui.warn(format_args!("`{first}`{others} cannot be what was asked for, and became {to}"));
    }
    if let Some((tensor, error)) = &done.rounded {
        ui.info(format_args!("scales are rounded to f16: by at most {error:.1e}, in `{tensor}`"));
    }
    let zeros = done.zeros.map_or(String::new(), |z| format!(", {:.1} % of the ternary values 0", z * 100.0));
    ui.info(format_args!(
        "wrote `{}`: {} ({}), {:.1} M parameters, {:.1} MB{zeros}",
        args.out.display(),
        done.name,
        done.architecture,
        done.n_params as f64 / 1e6,
        done.bytes as f64 / 1e6,
    ));
}
