//! `bench train`: optimizer steps on random tokens.

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use serde_json::json;

use super::report::{report, table, Subject};
use super::source::SourceArgs;
use crate::bench::{self, TrainConfig};
use crate::commands::network::{
    default_batch, device_bytes, BackwardArgs, LoraArgs, MachineArgs, RecomputeArg,
};
use crate::commands::ui::{Interrupt, Outcome, Problem, Ui};
use crate::ggml::peak_host_bytes;
use crate::train::{AdamW, EngineConfig};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    machine: MachineArgs,

    /// Tokens per row
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = RangedU64ValueParser::<usize>::new().range(4..=1048576))]
    seq_len: usize,

    /// Tokens per optimizer step, a multiple of `--seq-len`
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,

    #[command(flatten)]
    lora: LoraArgs,

    #[command(flatten)]
    backward: BackwardArgs,

    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    steps: usize,

    /// Steps before them that are not
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,

    /// Steps afterwards that are stopped between their parts, to say where the time goes; 0 does not
    #[arg(long, value_name = "N", default_value_t = 3)]
    parts: usize,

    /// Seed of the tokens and of the adapter's first values
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

impl Args {
    /// What is measured, for errors.
    pub fn source(&self) -> String {
        self.source.what()
    }
}

/// Runs `bench train`.
pub fn run(args: &Args, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let batch_tokens = args.batch_tokens.unwrap_or_else(|| default_batch(args.seq_len));
    if batch_tokens == 0 || batch_tokens % args.seq_len != 0 {
        let fact = format!("`--batch-tokens {batch_tokens}` is no multiple of `--seq-len {}`", args.seq_len);
        return Err(Problem::new(fact, format!("pass `--batch-tokens {}`", args.seq_len)).into());
    }
    let n_rows = batch_tokens / args.seq_len;
    let lora = args.lora.config()?;
    let machine = args.machine.open()?;
    let device = machine.backend.device();
    let source = args.source.ready(ui)?;
    let file = source.open()?;
    let subject = Subject::new(&source, &file, device, machine.threads).seeded(args.seed);
    let free_before = device.memory().0;
    let model = args.machine.load(&file, args.seq_len, &machine, ui)?;
    let engine = args.machine.engine(
        &model,
        &machine,
        &EngineConfig {
            seq_len: args.seq_len,
            n_rows: 1,
            lora: Some(lora),
            training: Some(args.backward.config(AdamW::default())),
        },
        n_rows,
    )?;
    let lora = engine.lora().context("the engine has no adapter")?;
    lora.init(args.seed)?;

    let config = TrainConfig {
        n_vocab: model.hp.n_vocab,
        n_rows,
        steps: args.steps,
        warmup: args.warmup,
        parts: args.parts,
        seed: args.seed,
    };
    let bar = ui.progress("step", (args.warmup + args.steps) as u64);
    let figures = bench::train(&engine, &machine.backend, &config, interrupt.flag(), &mut |done, loss| {
        bar.set(done as u64);
        bar.message(format!("loss {loss:.4}"));
    })?;
    drop(bar);

    let device_bytes = device_bytes(&engine, device, free_before);
    let host_bytes = peak_host_bytes();
    let ms = |s: f64| 1e3 * s;
    let step = figures.seconds.map(ms);
    let tokens_per_second = figures.seconds.map(|s| batch_tokens as f64 / s);
    let name = format!("train{batch_tokens}");
    if ui.json() {
        let parts = figures.parts.map(|p| p.named().map(|(name, s)| (name, ms(s))));
        let test = json!({
            "test": name,
            "seq_len": args.seq_len,
            "batch_tokens": batch_tokens,
            "micro_batch_rows": engine.config().n_rows,
            "recompute": args.backward.recompute == RecomputeArg::On,
            "backward_limbs": args.backward.backward_limbs,
            "rank": args.lora.rank,
            "targets": args.lora.targets,
            "n_trained": lora.n_params(),
            "steps": args.steps,
            "warmup": args.warmup,
            "step_ms": step,
            "tokens_per_second": tokens_per_second,
            "first_step_seconds": figures.first_seconds,
            "first_loss": figures.first_loss,
            "last_loss": figures.last_loss,
            "peak_device_bytes": device_bytes,
            "peak_host_bytes": host_bytes,
            "parts_ms": parts.map(|p| p.into_iter().collect::<std::collections::BTreeMap<_, _>>()),
        });
        return report(ui, &subject, vec![test]);
    }
    let mut headers = Subject::HEADERS.to_vec();
    headers.extend(["test", "ms/step", "min", "max", "tok/s", "device MB", "host MB"]);
    let mut row = subject.cells();
    let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    row.extend([
        name,
        format!("{:.2}", step.median),
        format!("{:.2}", step.min),
        format!("{:.2}", step.max),
        format!("{:.1}", tokens_per_second.median),
        megabytes(device_bytes as u64),
        host_bytes.map_or("-".into(), megabytes),
    ]);
    ui.data(table(&headers, &[row]))?;
    if let Some(parts) = figures.parts {
        let parts = parts.named().map(|(name, s)| format!("{name} {:.2}", ms(s)));
        ui.info(format_args!("a step in parts, each waited for, in ms: {}", parts.join(", ")));
    }
    ui.info(format_args!(
        "first step {:.2} s; loss {:.4} at first, {:.4} at last",
        figures.first_seconds, figures.first_loss, figures.last_loss
    ));
    Ok(Outcome::Done)
}
