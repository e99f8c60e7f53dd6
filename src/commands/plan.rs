//! `plan`: whether training fits and how long it takes, before anything is loaded.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::bench::source::SourceArgs;
use super::memory::{advice, held_bytes, size};
use super::network::{batch_tokens, check_context, BackwardArgs, DataArgs, LoraArgs, Machine, MachineArgs};
use super::provenance::Provenance;
use super::ui::{Outcome, Problem, Ui};
use crate::data::{epoch_rows, PackMode, Row};
use crate::ggml::GgufFile;
use crate::plan::{self, calibrate, Calibration, Fit, Pace, Planner, Request, Room, Times};
use crate::train::{AdamW, EngineConfig};

/// Say whether training fits into memory, what it takes, and how long it lasts
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    machine: MachineArgs,

    /// The data to train on, for the length of an epoch; without it, of 1000 rows
    #[arg(short, long, value_name = "FILE", requires = "model")]
    data: Option<PathBuf>,

    #[command(flatten)]
    tokens: DataArgs,

    /// One sample per row, padded, instead of as many as fit
    #[arg(long)]
    no_pack: bool,

    /// Tokens per optimizer step, a multiple of `--seq-len`
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,

    #[command(flatten)]
    lora: LoraArgs,

    #[command(flatten)]
    backward: BackwardArgs,

    /// How long to measure the device, on a few layers of the model; 0 does not
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    calibrate: f64,

    /// Also allocate all of it, take steps on zeros for as long as `--calibrate` says, and compare peak and time with the
    /// prediction; exits with 1 if the peaks are more than 5% apart
    #[arg(long)]
    measure: bool,
}

/// Rows of an epoch where no data is given.
const ROWS: usize = 1000;
/// How far a prediction may be off.
const TOLERANCE: f64 = 0.05;

/// Growth of a process that is not looked at.
const NOISE: u64 = 128 << 20;

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(n) if (0.0..=3600.0).contains(&n) => Ok(n),
        _ => Err("expected seconds, from 0 to 3600".into()),
    }
}

#[derive(Debug, Serialize)]
struct Output {
    #[serde(flatten)]
    provenance: Provenance,
    model: Option<PathBuf>,
    name: String,
    threads: usize,
    batch_tokens: usize,
    targets: Vec<&'static str>,
    fits: bool,
    #[serde(flatten)]
    room: Room,
    /// What was chosen; where nothing fits, the least that was asked for.
    #[serde(flatten)]
    fit: Fit,
    /// Memory and what the driver takes.
    peak_bytes: u64,
    would_fit: Vec<Fit>,
    calibration: Option<Calibration>,
    epoch: Option<Pace>,
    measured: Option<Measured>,
}

/// What really was taken.
#[derive(Debug, Serialize)]
struct Measured {
    /// What the engine was given.
    allocated_bytes: u64,
    /// By how much the device's free memory fell or, where the device uses main memory, this process grew.
    peak_bytes: Option<u64>,
    /// Prediction over measurement.
    ratio: f64,
    /// An epoch's time by the whole model's pace.
    epoch_seconds: f64,
    /// Prediction over measurement, of an epoch's time; null where none was predicted.
    time_ratio: Option<f64>,
}

/// Runs `plan`.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    make(&args, ui).with_context(|| format!("cannot plan training of `{}`", args.source.what()))
}

fn make(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let seq_len = args.tokens.seq_len;
    let batch_tokens = batch_tokens(args.batch_tokens, seq_len)?;
    let lora = args.lora.config()?;
    let source = args.source.table()?;
    let file = source.open()?;
    let rows = rows(args, ui)?;
    let machine = args.machine.open()?;
    if machine.splits() {
        let fact = "what a network takes that is split between two devices cannot be foreseen";
        return Err(Problem::new(fact, "leave out `--allow-cpu-fallback`").into());
    }
    let device = machine.backend.device().clone();
    let request = args.machine.with_rows(
        Request {
            seq_len,
            rows_per_step: batch_tokens / seq_len,
            n_rows: None,
            lora: Some(lora),
            training: Some(args.backward.config(AdamW::default())),
            any_recompute: args.backward.any_recompute(),
        },
        &machine,
    );
    let planner = Planner::new(&file, &machine.backend)?;
    check_context(planner.model(), file.path(), seq_len)?;
    let room = Room::of(&device, args.machine.memory);
    let chosen = planner.choose(&request, &room)?;
    let mut output = Output {
        // A shape's file is a table without weights.
        provenance: Provenance::new(&device, source.is_kept().then_some(&file)),
        model: args.source.model().map(Into::into),
        name: planner.model().name.clone().unwrap_or_else(|| args.source.what()),
        threads: machine.threads,
        batch_tokens,
        targets: request.lora.iter().flat_map(|l| &l.targets).map(|t| t.name()).collect(),
        fits: chosen.is_some(),
        room,
        peak_bytes: 0,
        would_fit: match chosen {
            Some(_) => Vec::new(),
            None => planner.remedies(&request, &room)?,
        },
        fit: chosen.map_or_else(|| planner.least(&request), Ok)?,
        calibration: None,
        epoch: None,
        measured: None,
    };
    let config = config(&request, &output.fit);
    let mut held = held_bytes(&device);
    let time = Duration::from_secs_f64(args.calibrate);
    let n_rows = if args.data.is_some() { rows.len() } else { ROWS };
    let pace = |times: &Times| times.pace(n_rows, request.rows_per_step, config.n_rows);
    if args.calibrate > 0.0 && output.fits {
        let spinner = ui.spinner("measure");
        spinner.message("a few layers");
        let calibration = calibrate(&file, &machine.backend, &config, &rows, time)?;
        output.epoch = Some(pace(&calibration.times));
        output.calibration = Some(calibration);
    }
    if !device.is_gpu() {
        // A GPU's driver keeps the programs that the calibration loaded, and they count; a process keeps scraps.
        held = held_bytes(&device);
    }
    let driver = output.calibration.and_then(|c| c.driver_bytes).unwrap_or_default();
    output.peak_bytes = output.fit.memory.total() as u64 + driver;
    if args.measure && output.fits {
        output.measured = Some(measure((&file, &machine, &config), (&rows, time), held, &output, &pace)?);
    }
    if ui.json() {
        ui.result(&output)?;
    } else {
        ui.data(text(&output, &request))?;
    }
    let agrees = output.measured.as_ref().is_none_or(|m| (m.ratio - 1.0).abs() <= TOLERANCE);
    Ok(if output.fits && agrees { Outcome::Done } else { Outcome::CheckFailed })
}

/// The rows of the first epoch, if there is data.
fn rows(args: &Args, ui: &Ui) -> anyhow::Result<Vec<Row>> {
    let (Some(data), Some(model)) = (&args.data, args.source.model()) else { return Ok(Vec::new()) };
    let set = args.tokens.load(model, &[data], None, ui)?.remove(0);
    let mode = if args.no_pack { PackMode::NoPack } else { PackMode::Pack };
    Ok(epoch_rows(&set.samples, args.tokens.seq_len, 42, 0, mode)?)
}

fn config(request: &Request, fit: &Fit) -> EngineConfig {
    let mut training = request.training.clone();
    if let (Some(training), Some(recompute)) = (&mut training, fit.recompute) {
        training.recompute = recompute;
    }
    EngineConfig { seq_len: request.seq_len, n_rows: fit.n_rows, lora: request.lora.clone(), training }
}

fn measure(
    (file, machine, config): (&GgufFile, &Machine, &EngineConfig),
    (rows, time): (&[Row], Duration),
    before: Option<u64>,
    predicted: &Output,
    pace: &dyn Fn(&Times) -> Pace,
) -> anyhow::Result<Measured> {
    let device = machine.backend.device();
    let held = &mut || held_bytes(device).unwrap_or_default();
    let whole = plan::measure(file, &machine.backend, config, true, (rows, time), held)?;
    // A process also holds what is no tensor's: where those are small, its growth says nothing of them.
    let least = if device.is_gpu() { 1 } else { NOISE };
    let peak_bytes = before.and_then(|b| whole.held.checked_sub(b)).filter(|&n| n >= least);
    let epoch_seconds = pace(&whole.times).seconds;
    Ok(Measured {
        allocated_bytes: whole.bytes,
        peak_bytes,
        ratio: predicted.peak_bytes as f64 / peak_bytes.unwrap_or(whole.bytes) as f64,
        epoch_seconds,
        time_ratio: predicted.epoch.map(|e| e.seconds / epoch_seconds),
    })
}

fn text(o: &Output, request: &Request) -> String {
    let fit = &o.fit;
    let m = &fit.memory;
    let recompute = fit.recompute.map_or(String::new(), |r| format!(", recompute {r:?}").to_lowercase());
    let plural = if fit.n_rows == 1 { "row" } else { "rows" };
    let mut text = format!(
        "{} on {}\n{} {plural} of {} tokens at a time, {} tokens a step{recompute}, rank {}\n\n",
        o.name,
        o.provenance.described(),
        fit.n_rows,
        fit.seq_len,
        o.batch_tokens,
        fit.rank
    );
    let mut line = |what: &str, bytes: usize, note: String| {
        text += format!("{what:<24}{:>12}  {note}", size(bytes as u64)).trim_end();
        text += "\n";
    };
    line("weights", m.weights, String::new());
    line("adapter", m.adapter, String::new());
    line("gradients and moments", m.gradients_and_moments, String::new());
    line("boundaries", m.boundaries, "hidden states between the blocks".into());
    line("inputs", m.inputs, String::new());
    let (block, attention, head) = (size(m.block as u64), size(m.attention as u64), size(m.head as u64));
    line(
        "computing",
        m.compute,
        format!("a block takes {block}, {attention} of it attention; the head {head}"),
    );
    if let Some(driver) = o.calibration.and_then(|c| c.driver_bytes) {
        line("driver", driver as usize, "measured".into());
    }
    line("peak", o.peak_bytes as usize, String::new());
    let room = o.room.usable_bytes.map_or("unknown".into(), size);
    text += &match o.fits {
        true => format!("\nfits: {room} may be used\n"),
        false => format!("\ndoes not fit: {room} may be used; {}\n", advice(&o.would_fit, request)),
    };
    if let (Some(c), Some(e)) = (&o.calibration, &o.epoch) {
        text += &format!(
            "an epoch of {} rows, {} steps: {} ({:.1} ms a micro-batch, {:.1} ms an update)\n",
            e.rows,
            e.steps,
            duration(e.seconds),
            1e3 * c.times.micro_batch_seconds,
            1e3 * c.times.update_seconds
        );
    }
    if let Some(m) = &o.measured {
        let took = size(m.peak_bytes.unwrap_or(m.allocated_bytes));
        text += &format!("measured: {took}; the prediction is {:.1}% of it\n", 100.0 * m.ratio);
        if let Some(ratio) = m.time_ratio {
            let epoch = duration(m.epoch_seconds);
            text += &format!("measured: {epoch} an epoch; the prediction is {:.1}% of it\n", 100.0 * ratio);
        }
    }
    text
}

/// `2 h 5 min`, `3 min 20 s`, `4.2 s`.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        3600.. => format!("{} h {} min", s / 3600, s % 3600 / 60),
        60.. => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{seconds:.1} s"),
    }
}
