//! `bench train`: optimizer steps on random tokens.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use clap::ValueEnum;
use serde_json::json;

use super::report::{table, Report, Subject};
use super::source::{Source, SourceArgs};
use crate::bench::{self, Layout, TrainConfig};
use crate::commands::memory::MicroBatchArg;
use crate::commands::network::{batch_tokens, device_bytes, BackwardArgs, LoraArgs, MachineArgs};
use crate::commands::ui::{Interrupt, Outcome, Ui};
use crate::ggml::{peak_host_bytes, reset_peak_host_bytes};
use crate::plan::Request;
use crate::train::{AdamW, Recompute};

fn layout(text: &str) -> Result<Layout, String> {
    match text {
        "full" => Ok(Layout::Full),
        "packed" => Ok(Layout::Packed),
        "padded" => Ok(Layout::Padded),
        _ => Err("expected `full`, `packed` or `padded`".into()),
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Models to measure one after the other: GGUF files, or SHAPE:TYPE (see `synth`)
    #[arg(value_name = "MODEL", conflicts_with_all = ["model", "shape"])]
    models: Vec<String>,

    #[command(flatten)]
    machine: MachineArgs,

    /// Devices to measure one after the other
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "device")]
    devices: Vec<String>,

    /// Numbers of rows run at a time to measure one after the other
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "micro_batch")]
    micro_batches: Vec<MicroBatchArg>,

    /// How samples lie in rows: `full` rows are all trained, `packed` and `padded` ones hold 297 samples of 61 tokens
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = layout)]
    layout: Vec<Layout>,

    /// The published protocol: rows of 512 tokens with one padded sample each
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["layout", "seq_len"])]
    protocol: Option<ProtocolArg>,

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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProtocolArg {
    Qvac,
}

impl Args {
    /// What is measured, for errors.
    pub fn source(&self) -> String {
        match self.models.as_slice() {
            [] => self.source.what(),
            models => models.join(", "),
        }
    }

    /// The machine's flags with another device and micro-batch.
    fn on(&self, device: Option<&str>, micro_batch: Option<MicroBatchArg>) -> MachineArgs {
        MachineArgs { device: device.map(str::to_owned), micro_batch, ..self.machine.clone() }
    }
}

/// One measurement among several.
struct Case<'a> {
    source: &'a Source,
    device: Option<&'a str>,
    layout: Layout,
    micro_batch: Option<MicroBatchArg>,
}

/// What a case gave.
struct Measured {
    subject: Subject,
    test: serde_json::Value,
    cells: Vec<String>,
    notes: Vec<String>,
}

/// Runs `bench train`.
pub fn run(args: &Args, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let batch_tokens = batch_tokens(args.batch_tokens, args.seq_len)?;
    args.lora.config()?;
    let devices: Vec<Option<&str>> = match args.devices.as_slice() {
        [] => vec![args.machine.device.as_deref()],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    for &device in &devices {
        args.on(device, None).open()?;
    }
    let layouts: &[Layout] = match (args.protocol, args.layout.as_slice()) {
        (Some(ProtocolArg::Qvac), _) => &[Layout::Padded],
        (None, []) => &[Layout::Full],
        (None, some) => some,
    };
    let micro_batches: Vec<Option<MicroBatchArg>> = match args.micro_batches.as_slice() {
        [] => vec![args.machine.micro_batch],
        some => some.iter().map(|&n| Some(n)).collect(),
    };
    let mut measured = Vec::new();
    let n_models = args.models.len().max(1);
    for i in 0..n_models {
        let source = match args.models.get(i) {
            Some(model) => Source::named(model, ui)?,
            None => args.source.ready(ui)?,
        };
        for &device in &devices {
            for &layout in layouts {
                for &micro_batch in &micro_batches {
                    let case = Case { source: &source, device, layout, micro_batch };
                    measured.push(measure(args, &case, batch_tokens, interrupt, ui)?);
                }
            }
        }
    }
    if ui.json() {
        let mut reports = measured.into_iter().map(|m| Report { subject: m.subject, tests: vec![m.test] });
        match reports.len() {
            1 => ui.result(&reports.next())?,
            _ => ui.result(&json!({ "runs": reports.collect::<Vec<_>>() }))?,
        }
        return Ok(Outcome::Done);
    }
    let mut headers = Subject::HEADERS.to_vec();
    headers.extend(["test", "rows", "ms/step", "min", "max", "tok/s", "useful/s", "trained/s", "epoch s"]);
    headers.extend(["device MB", "host MB"]);
    ui.data(table(&headers, &measured.iter().map(|m| m.cells.clone()).collect::<Vec<_>>()))?;
    measured.iter().flat_map(|m| &m.notes).for_each(|note| ui.info(note));
    Ok(Outcome::Done)
}

fn measure(
    args: &Args,
    case: &Case,
    batch_tokens: usize,
    interrupt: Interrupt,
    ui: &Ui,
) -> anyhow::Result<Measured> {
    let n_rows = batch_tokens / args.seq_len;
    let flags = args.on(case.device, case.micro_batch);
    let machine = flags.open()?;
    let device = machine.backend.device();
    let file = case.source.open()?;
    flags.exact.check_training(&file, args.seq_len)?;
    let subject = Subject::new(case.source, &file, device, machine.threads).seeded(args.seed);
    let free_before = device.memory().0;
    reset_peak_host_bytes();
    let request = Request {
        seq_len: args.seq_len,
        rows_per_step: n_rows,
        n_rows: None,
        lora: Some(args.lora.config()?),
        training: Some(args.backward.config(AdamW::default())),
        any_recompute: args.backward.any_recompute(),
    };
    let (model, engine) = flags.ready(&file, &machine, &request, ui)?;
    let lora = engine.lora().context("the engine has no adapter")?;
    lora.init(args.seed)?;

    let config = TrainConfig {
        n_vocab: model.hp.n_vocab,
        n_rows,
        layout: case.layout,
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
    let per_second = |tokens: usize| figures.seconds.map(|s| tokens as f64 / s);
    let (useful, trained) = (per_second(figures.useful_tokens), per_second(figures.trained_tokens));
    let epoch = figures.epoch_rows.map(|rows| rows.div_ceil(n_rows) as f64 * figures.seconds.median);
    let parts = figures.parts.map(|p| p.named().map(|(name, s)| (name, ms(s))));
    let test = json!({
        "test": name,
        "layout": case.layout,
        "seq_len": args.seq_len,
        "batch_tokens": batch_tokens,
        "micro_batch_rows": engine.config().n_rows,
        "recompute": engine.config().training.as_ref().is_some_and(|t| t.recompute == Recompute::On),
        "backward_limbs": args.backward.backward_limbs,
        "rank": args.lora.rank,
        "targets": args.lora.targets,
        "n_trained": lora.n_params(),
        "steps": args.steps,
        "warmup": args.warmup,
        "step_ms": step,
        "tokens_per_second": tokens_per_second,
        "useful_tokens_per_second": useful,
        "trained_tokens_per_second": trained,
        "epoch_rows": figures.epoch_rows,
        "epoch_seconds": epoch,
        "first_step_seconds": figures.first_seconds,
        "first_loss": figures.first_loss,
        "last_loss": figures.last_loss,
        "peak_device_bytes": device_bytes,
        "peak_host_bytes": host_bytes,
        "parts_ms": parts.as_ref().map(|p| p.iter().copied().collect::<BTreeMap<_, _>>()),
    });
    let mut cells = subject.cells();
    let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    cells.extend([
        name,
        format!("{:?}, {}", case.layout, engine.config().n_rows).to_lowercase(),
        format!("{:.2}", step.median),
        format!("{:.2}", step.min),
        format!("{:.2}", step.max),
        format!("{:.1}", tokens_per_second.median),
        format!("{:.1}", useful.median),
        format!("{:.1}", trained.median),
        epoch.map_or("-".into(), |s| format!("{s:.1}")),
        megabytes(device_bytes as u64),
        host_bytes.map_or("-".into(), megabytes),
    ]);
    let mut notes = Vec::new();
    if let Some(parts) = parts {
        let parts = parts.map(|(name, ms)| format!("{name} {ms:.2}"));
        notes.push(format!("a step in parts, each waited for, in ms: {}", parts.join(", ")));
    }
    notes.push(format!(
        "first step {:.2} s; loss {:.4} at first, {:.4} at last",
        figures.first_seconds, figures.first_loss, figures.last_loss
    ));
    Ok(Measured { subject, test, cells, notes })
}
