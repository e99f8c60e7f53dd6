//! `bench memory`: what models take at inference and in training, side by side.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::report::table;
use super::source::Source;
use crate::bench::{self, Loaded};
use crate::commands::memory::{held_bytes, size};
use crate::commands::network::{default_batch, BackwardArgs, LoraArgs, Machine, MachineArgs};
use crate::commands::provenance::Provenance;
use crate::commands::ui::{Interrupt, Outcome, Ui};
use crate::ggml::GgufFile;
use crate::model::survey;
use crate::plan::{self, Planner, Request, Room};
use crate::train::{model_hash, AdamW, EngineConfig};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Models to measure: GGUF files, or SHAPE:TYPE (see `synth`), which are loaded with zeros for weights; BitNet beside
    /// models in F16 and Q4_0 if none is given
    #[arg(value_name = "MODEL")]
    models: Vec<String>,

    #[command(flatten)]
    machine: MachineArgs,

    /// Tokens of the cache at inference
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = RangedU64ValueParser::<u32>::new().range(16..))]
    context: u32,

    /// Tokens per row in training
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = RangedU64ValueParser::<usize>::new().range(4..=1048576))]
    seq_len: usize,

    #[command(flatten)]
    lora: LoraArgs,

    #[command(flatten)]
    backward: BackwardArgs,
}

/// The published comparison: BitNet's shapes in both ternary types, beside ones of Gemma's and Qwen's sizes.
const PUBLISHED: &[&str] = &[
    "bitnet-1b:tq1_0",
    "bitnet-1b:tq2_0",
    "bitnet-2.7b:tq1_0",
    "bitnet-2.7b:tq2_0",
    "bitnet-7b:tq1_0",
    "bitnet-7b:tq2_0",
    "bitnet-13b:tq1_0",
    "bitnet-13b:tq2_0",
    "gemma-3-1b-like:q4_0",
    "gemma-3-1b-like:f16",
    "qwen3-1.7b-like:q4_0",
    "qwen3-1.7b-like:f16",
    "gemma-3-4b-like:q4_0",
    "gemma-3-4b-like:f16",
    "qwen3-4b-like:q4_0",
    "qwen3-4b-like:f16",
];

#[derive(Debug, Serialize)]
struct Output {
    #[serde(flatten)]
    provenance: Provenance,
    /// Tokens of the cache.
    context: u32,
    seq_len: usize,
    rank: usize,
    models: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    model: String,
    /// Null where the weights are zeros.
    model_hash: Option<String>,
    #[serde(rename = "type")]
    dtype: &'static str,
    n_params: u64,
    file_bytes: u64,
    inference: Option<Loaded>,
    training: Option<Training>,
    /// Why something could not be measured.
    failed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Training {
    micro_batch_rows: usize,
    allocated_bytes: u64,
    /// By how much the device's free memory fell, or this process grew.
    peak_bytes: Option<u64>,
    /// What `plan` says.
    predicted_bytes: u64,
}

/// Runs `bench memory`.
pub fn run(args: &Args, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let machine = args.machine.open()?;
    let device = machine.backend.device();
    let models: Vec<String> = match args.models.as_slice() {
        [] => PUBLISHED.iter().map(|&m| m.into()).collect(),
        some => some.to_vec(),
    };
    let bar = ui.progress("model", models.len() as u64);
    let mut rows = Vec::new();
    for model in &models {
        if interrupt.requested() {
            return Err(bench::Error::Interrupted.into());
        }
        bar.message(model.clone());
        rows.push(measure(model, args, &machine)?);
        bar.inc(1);
    }
    drop(bar);
    let failed = rows.iter().any(|row| !row.failed.is_empty());
    for row in &rows {
        row.failed.iter().for_each(|why| ui.warn(format_args!("`{}`: {why}", row.model)));
    }
    if ui.json() {
        ui.result(&Output {
            provenance: Provenance::new(device, None),
            context: args.context,
            seq_len: args.seq_len,
            rank: args.lora.rank,
            models: rows,
        })?;
    } else {
        ui.data(text(&rows))?;
    }
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

fn measure(model: &str, args: &Args, machine: &Machine) -> anyhow::Result<Row> {
    let source = Source::named_empty(model)?;
    let (path, file) = (source.path(), source.open()?);
    let types = survey::types(&file);
    let mut row = Row {
        model: model.into(),
        model_hash: source.is_kept().then(|| model_hash(&file)),
        dtype: types.iter().max_by_key(|t| t.n_params).map_or("none", |t| t.name),
        n_params: types.iter().map(|t| t.n_params).sum(),
        file_bytes: file.len(),
        inference: None,
        training: None,
        failed: Vec::new(),
    };
    let device = machine.backend.device();
    let held = || held_bytes(device);
    let n_threads = args.machine.threads.and_then(|n| NonZeroU32::new(n as u32));
    match bench::loaded(path, device.name(), args.context, 128, n_threads, &held) {
        Ok(loaded) => row.inference = Some(loaded),
        Err(e) => row.failed.push(e.to_string()),
    }
    match training(&file, args, machine, &held) {
        Ok(training) => row.training = Some(training),
        Err(e) => row.failed.push(format!("{e:#}")),
    }
    Ok(row)
}

fn training(
    file: &GgufFile,
    args: &Args,
    machine: &Machine,
    held: &dyn Fn() -> Option<u64>,
) -> anyhow::Result<Training> {
    let request = args.machine.with_rows(
        Request {
            seq_len: args.seq_len,
            rows_per_step: default_batch(args.seq_len) / args.seq_len,
            n_rows: None,
            lora: Some(args.lora.config()?),
            training: Some(args.backward.config(AdamW::default())),
            any_recompute: args.backward.any_recompute(),
        },
        machine,
    );
    let planner = Planner::new(file, &machine.backend)?;
    let room = Room::of(machine.backend.device(), args.machine.memory);
    let Some(fit) = planner.choose(&request, &room)? else {
        let least = planner.least(&request)?.memory.total() as u64;
        anyhow::bail!(
            "training takes {}, and {} may be used",
            size(least),
            room.usable_bytes.map_or("?".into(), size)
        );
    };
    drop(planner);
    let config = EngineConfig {
        seq_len: args.seq_len,
        n_rows: fit.n_rows,
        lora: request.lora,
        training: request.training,
    };
    let before = held();
    let held_now = &mut || held().unwrap_or_default();
    let took = plan::measure(file, &machine.backend, &config, false, (&[], Duration::ZERO), held_now)?;
    Ok(Training {
        micro_batch_rows: fit.n_rows,
        allocated_bytes: took.bytes,
        peak_bytes: before.and_then(|b| took.held.checked_sub(b)).filter(|&n| n > 0),
        predicted_bytes: fit.memory.total() as u64,
    })
}

fn text(rows: &[Row]) -> String {
    let mega = |n: u64| format!("{:.0}", n as f64 / 1e6);
    let or_dash = |n: Option<u64>| n.map_or("-".into(), mega);
    let headers =
        ["model", "type", "params M", "file MB", "weights", "KV", "compute", "inference MB", "training MB"];
    let cells = |row: &Row| {
        let i = row.inference.as_ref();
        vec![
            row.model.clone(),
            row.dtype.into(),
            mega(row.n_params),
            mega(row.file_bytes),
            or_dash(i.map(|i| i.weights)),
            i.map_or("-".into(), |i| format!("{:.1}", i.kv as f64 / 1e6)),
            or_dash(i.map(|i| i.compute)),
            or_dash(i.map(Loaded::total)),
            or_dash(row.training.as_ref().map(|t| t.allocated_bytes)),
        ]
    };
    table(&headers, &rows.iter().map(cells).collect::<Vec<_>>())
}
