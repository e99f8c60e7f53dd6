//! `qvac-ft export` and `qvac-ft export merge`: an adapter in other forms.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _};
use serde_json::json;

use super::ui::{Outcome, Problem, Ui};
use crate::export::{self, MergeConfig, OutputType};
use crate::ggml::{Dtype, GgufFile};
use crate::model::adapter::Heads;
use crate::model::{AdapterFile, Hparams};
use crate::parallel;

/// Convert an adapter between GGUF and PEFT, or merge it into its model
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(flatten)]
    convert: Option<ConvertArgs>,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    Merge(MergeArgs),
}

#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// The adapter: a GGUF file, or a PEFT folder
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// What to make of it
    #[arg(long, value_enum)]
    format: Format,
    /// Where to write it: a folder for peft, a file for gguf
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    /// The model the adapter belongs to; needed to read PEFT
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// `adapter_config.json` and `adapter_model.safetensors`
    Peft,
    /// llama.cpp's, in f16
    Gguf,
}

/// Write a model that has an adapter in its weights
#[derive(Debug, clap::Args)]
struct MergeArgs {
    /// The model the adapter was trained on
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// The adapter
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Type of the changed weights: keep (ternary ones become f16), or f32, f16, q8_0, q6_K, q4_0 and others
    #[arg(long = "type", value_name = "TYPE", default_value = "keep")]
    dtype: String,
}

/// Converts or merges an adapter.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    match (args.command, args.convert) {
        (Some(Sub::Merge(args)), _) => run_merge(args, ui),
        (None, Some(args)) => run_convert(args, ui),
        // clap asks for the adapter where there is no subcommand.
        (None, None) => bail!("no adapter was given"),
    }
}

fn run_convert(args: ConvertArgs, ui: &Ui) -> anyhow::Result<Outcome> {
    let adapter = convert(&args).with_context(|| format!("cannot export `{}`", args.adapter.display()))?;
    if ui.json() {
        ui.result(&json!({
            "path": args.out,
            "format": if args.format == Format::Peft { "peft" } else { "gguf" },
            "rank": adapter.rank(),
            "alpha": adapter.alpha,
            "n_pairs": adapter.pairs.len(),
        }))?;
    } else {
        ui.info(format_args!("wrote `{}`: {} adapted layers", args.out.display(), adapter.pairs.len()));
    }
    Ok(Outcome::Done)
}

fn convert(args: &ConvertArgs) -> anyhow::Result<AdapterFile> {
    let base = args.model.as_ref().map(GgufFile::open).transpose()?;
    let adapter = read(&args.adapter, base.as_ref())?;
    match args.format {
        Format::Peft => {
            let heads = match &base {
                None => None,
                Some(file) => {
                    let hp = Hparams::from_gguf(file)?;
                    Some(Heads { n_head: hp.n_head, n_head_kv: hp.n_head_kv })
                }
            };
            export::write_peft(&adapter, heads, &args.out)?;
        }
        Format::Gguf => {
            if args.out.canonicalize().is_ok_and(|out| args.adapter.canonicalize().is_ok_and(|a| a == out)) {
                return Err(export::Error::Overwrite { path: args.out.clone(), input: "adapter" }.into());
            }
            adapter.write(&args.out)?;
        }
    }
    Ok(adapter)
}

fn read(path: &Path, base: Option<&GgufFile>) -> anyhow::Result<AdapterFile> {
    if path.is_dir() {
        let Some(base) = base else {
            let fact = "a PEFT folder does not hold the sizes of its model";
            return Err(Problem::new(fact, "pass the model it belongs to with `--model`").into());
        };
        return Ok(export::read_peft(path, base)?);
    }
    let adapter = AdapterFile::read(path)?;
    if let Some(base) = base {
        adapter.check_against(base)?;
    }
    Ok(adapter)
}

fn run_merge(args: MergeArgs, ui: &Ui) -> anyhow::Result<Outcome> {
    let context = || format!("cannot merge `{}` into `{}`", args.adapter.display(), args.model.display());
    let output_type = match Dtype::from_name(&args.dtype) {
        Some(dtype) => OutputType::Fixed(dtype),
        None if args.dtype == "keep" => OutputType::Keep,
        None => {
            let fact = format!("no type is called `{}`", args.dtype);
            return Err(Problem::new(fact, "pass `keep`, or a type such as `f16` or `q8_0`").into());
        }
    };
    let config = MergeConfig {
        model: args.model.clone(),
        adapter: args.adapter.clone(),
        out: args.out.clone(),
        output_type,
        threads: parallel::available(),
    };
    let bar = ui.progress_bytes("merge", 0);
    let merged = export::merge(&config, &mut |done, total| {
        bar.set_len(total);
        bar.set(done);
    })
    .with_context(context)?;
    drop(bar);
    for (from, to, n) in merged.retyped.iter().filter(|(from, ..)| from.is_ternary()) {
        ui.info(format_args!(
            "{n} {from} matrices are {to} now: a weight with an adapter in it is not -1, 0 and 1 times a scale any more"
        ));
    }
    if ui.json() {
        let retyped: Vec<_> = merged
            .retyped
            .iter()
            .map(|(from, to, n)| json!({ "from": from.name(), "to": to.name(), "n_tensors": n }))
            .collect();
        ui.result(&json!({
            "path": args.out,
            "n_changed": merged.n_changed,
            "retyped": retyped,
            "bytes": merged.bytes,
        }))?;
    } else {
        ui.info(format_args!(
            "wrote `{}`: {} changed tensors, {:.1} MB",
            args.out.display(),
            merged.n_changed,
            merged.bytes as f64 / 1e6
        ));
    }
    Ok(Outcome::Done)
}
