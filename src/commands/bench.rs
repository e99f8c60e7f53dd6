//! `bench`: how fast this machine trains and answers, on a model or on the shape of one.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use serde_json::json;

use super::network::{default_batch, device_bytes, BackwardArgs, LoraArgs, MachineArgs, RecomputeArg};
use super::ui::{Interrupt, Outcome, Problem, Ui};
use crate::bench::{self, InferConfig, KernelShape, Test, TrainConfig};
use crate::ggml::{peak_host_bytes, Device, DeviceKind, GgufFile};
use crate::llama::{self, DeviceFacts, ModelParams};
use crate::model::survey;
use crate::train::{AdamW, EngineConfig};

/// Measure training steps, or prompts and generation
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Optimizer steps on random tokens: time, tokens per second, memory, and where the time goes
    Train(Box<TrainArgs>),
    /// Prompts and generated tokens through libllama, as llama-bench measures them
    Infer(InferArgs),
    /// Each kernel of a training step by itself, beside what the device can do
    Kernels(KernelsArgs),
}

/// A model, or what to make one of.
#[derive(Debug, clap::Args)]
struct SourceArgs {
    /// The model, a GGUF file; with --shape it is made if it is not there
    #[arg(short, long, value_name = "GGUF", required_unless_present = "shape")]
    model: Option<PathBuf>,

    /// Measure a random model of this shape (see `synth`), in a temporary file if there is no --model
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,

    /// Type of its linear layers
    #[arg(long = "type", value_name = "TYPE", default_value = "tq2_0", requires = "shape")]
    dtype: String,
}

#[derive(Debug, clap::Args)]
struct TrainArgs {
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

#[derive(Debug, clap::Args)]
struct InferArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Device to run on, as `devices` lists them; the first GPU if not given, else the CPU
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// CPU threads; if not given one for each physical core, or a few beside a GPU
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=512))]
    threads: Option<u32>,

    /// Tokens of a prompt; may be repeated, 0 leaves it out
    #[arg(short, long, value_name = "N", default_values_t = [512usize])]
    prompt: Vec<usize>,

    /// Tokens to generate, behind a prompt of 13; may be repeated, 0 leaves it out
    #[arg(short = 'n', long, value_name = "N", default_values_t = [256usize])]
    generate: Vec<usize>,

    /// Repetitions that are timed, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    reps: usize,

    /// Seed of the tokens
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct KernelsArgs {
    /// Shape of the model whose kernels are measured (see `synth`)
    #[arg(long, value_name = "NAME", default_value = "bitnet-1b")]
    shape: String,

    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = RangedU64ValueParser::<u32>::new().range(1..=65536))]
    tokens: u32,

    /// Kernels whose name contains this, instead of all
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,

    /// Times that a kernel is run in one graph
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    reps: usize,

    #[command(flatten)]
    machine: MachineArgs,
}

/// What was measured on what.
#[derive(Debug, Serialize)]
struct Subject {
    version: &'static str,
    /// Where the build was told it, in `QVAC_COMMIT`.
    commit: Option<&'static str>,
    /// Null where the model was made for the measurement.
    model: Option<PathBuf>,
    name: String,
    file_bytes: u64,
    n_params: u64,
    /// Of most of the weights.
    #[serde(rename = "type")]
    dtype: &'static str,
    device: String,
    device_description: String,
    driver: Option<String>,
    threads: usize,
}

impl Subject {
    fn new(source: &Source, file: &GgufFile, device: &Device, threads: usize) -> Self {
        let stem = || source.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let types = survey::types(file);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("QVAC_COMMIT"),
            model: match source {
                Source::Kept(path) => Some(path.clone()),
                Source::Temporary(_) => None,
            },
            name: file.get_str("general.name").ok().flatten().map_or_else(stem, str::to_owned),
            file_bytes: file.len(),
            n_params: types.iter().map(|t| t.n_params).sum(),
            dtype: types.iter().max_by_key(|t| t.n_params).map_or("none", |t| t.name),
            device: device.name().to_owned(),
            device_description: device.description().trim().to_owned(),
            driver: DeviceFacts::of(device).driver,
            threads,
        }
    }

    /// The first cells of a row.
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.dtype.into(),
            format!("{:.2} MB", self.file_bytes as f64 / 1e6),
            format!("{:.2} M", self.n_params as f64 / 1e6),
            self.device.clone(),
        ]
    }

    const HEADERS: [&'static str; 5] = ["model", "type", "size", "params", "device"];
}

/// Runs the subcommand.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::install()?;
    match args.command {
        Command::Train(args) => train(&args, interrupt, ui)
            .with_context(|| format!("cannot measure training of `{}`", args.source.what())),
        Command::Infer(args) => infer(&args, interrupt, ui)
            .with_context(|| format!("cannot measure inference of `{}`", args.source.what())),
        Command::Kernels(args) => {
            kernels(&args, ui).with_context(|| format!("cannot measure the kernels of `{}`", args.shape))
        }
    }
}

/// A model file, which may end with the measurement.
enum Source {
    Kept(PathBuf),
    Temporary(tempfile::TempPath),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(path) => path,
        }
    }

    fn open(&self) -> crate::ggml::Result<GgufFile> {
        GgufFile::open(self.path())
    }
}

impl SourceArgs {
    /// For errors.
    fn what(&self) -> String {
        match (&self.model, &self.shape) {
            (Some(model), _) => model.display().to_string(),
            (None, shape) => shape.clone().unwrap_or_default(),
        }
    }

    /// The model's file, made if that is asked for.
    fn ready(&self, ui: &Ui) -> anyhow::Result<Source> {
        let Some(shape) = &self.shape else {
            return Ok(Source::Kept(self.model.clone().context("clap asks for a model or a shape")?));
        };
        let config = super::synth::config(shape, &self.dtype, 42)?;
        // Whole or not at all: a file of that name is not looked at closely the next time.
        let write = |folder: &Path| -> anyhow::Result<tempfile::TempPath> {
            let file = tempfile::Builder::new().prefix("qvac-ft-bench-").suffix(".gguf").tempfile_in(folder);
            let file =
                file.with_context(|| format!("cannot write to `{}`", folder.display()))?.into_temp_path();
            super::synth::write(&config, &file, ui)?;
            Ok(file)
        };
        let Some(path) = &self.model else {
            return Ok(Source::Temporary(write(&std::env::temp_dir())?));
        };
        if path.exists() {
            let file = GgufFile::open(path)?;
            let (found, expected) = (file.get_str("general.name").ok().flatten(), config.name());
            if found != Some(&expected) {
                let fact = format!(
                    "`{}` is another model: it is called `{}`, expected `{expected}`",
                    path.display(),
                    found.unwrap_or_default()
                );
                return Err(Problem::new(fact, "leave out `--shape`, or give `--model` another name").into());
            }
        } else {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            write(folder)?.persist(path).with_context(|| format!("cannot write to `{}`", path.display()))?;
        }
        Ok(Source::Kept(path.clone()))
    }
}

fn train(args: &TrainArgs, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
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
    let subject = Subject::new(&source, &file, device, machine.threads);
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

fn infer(args: &InferArgs, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let tests: Vec<Test> = (args.prompt.iter().map(|&n| Test::Prompt(n)))
        .chain(args.generate.iter().map(|&n| Test::Generate(n)))
        .filter(|t| t.n_tokens() > 0)
        .collect();
    if tests.is_empty() {
        return Err(Problem::new("nothing is left to measure", "pass `--prompt` or `--generate`").into());
    }
    let device = match &args.device {
        Some(name) => Device::by_name(name)?,
        None => Device::best()?,
    };
    let on_gpu = matches!(device.kind(), DeviceKind::Gpu | DeviceKind::Igpu);
    let n_threads = args.threads.unwrap_or_else(|| llama::default_threads(device.name()));
    let source = args.source.ready(ui)?;
    let path = source.path();
    let subject = Subject::new(&source, &source.open()?, &device, n_threads as usize);
    let free_before = device.memory().0;
    let spinner = ui.spinner("load");
    spinner.message(path.display().to_string());
    let model = llama::Model::load(path, &ModelParams::on(Some(device.name())))?;
    drop(spinner);

    let config = InferConfig {
        reps: args.reps,
        seed: args.seed,
        n_threads: NonZeroU32::new(n_threads),
        interrupt: Some(interrupt.flag()),
    };
    let bar = ui.progress("test", (tests.len() * (1 + args.reps)) as u64);
    let (mut reports, mut rows) = (Vec::new(), Vec::new());
    for test in tests {
        bar.message(test.name());
        let mut device_bytes = 0;
        let figures = bench::infer(&model, test, &config, &mut || {
            bar.inc(1);
            device_bytes = free_before.saturating_sub(device.memory().0).max(device_bytes);
        })?;
        let speed = figures.seconds.map(|s| test.n_tokens() as f64 / s);
        reports.push(json!({
            "test": test.name(),
            "reps": args.reps,
            "tokens_per_second": speed,
            "first_seconds": figures.first_seconds,
            "peak_device_bytes": on_gpu.then_some(device_bytes),
            "peak_host_bytes": peak_host_bytes(),
        }));
        let mut row = subject.cells();
        row.push(test.name());
        row.extend([speed.median, speed.min, speed.max].map(|s| format!("{s:.1}")));
        rows.push(row);
    }
    drop(bar);
    if ui.json() {
        return report(ui, &subject, reports);
    }
    let mut headers = Subject::HEADERS.to_vec();
    headers.extend(["test", "tok/s", "min", "max"]);
    ui.data(table(&headers, &rows))?;
    Ok(Outcome::Done)
}

fn kernels(args: &KernelsArgs, ui: &Ui) -> anyhow::Result<Outcome> {
    let shape = super::synth::config(&args.shape, "tq2_0", 42)?.shape;
    let machine = args.machine.open()?;
    let shape = KernelShape {
        n_embd: shape.n_embd as i64,
        n_head: shape.n_head as i64,
        n_ff: shape.n_ff as i64,
        n_vocab: shape.n_vocab as i64,
        n_tokens: i64::from(args.tokens),
        rank: 8,
    };
    let bar = ui.spinner("measure");
    let figures = bench::kernels(&machine.backend, &shape, &args.filter, args.reps, &mut |figure| {
        bar.message(format!("{} {}", figure.kernel, figure.shape));
    })?;
    drop(bar);
    if ui.json() {
        let device = machine.backend.device();
        ui.result(&json!({
            "shape": args.shape,
            "n_tokens": args.tokens,
            "device": device.name(),
            "device_description": device.description().trim(),
            "kernels": figures,
        }))?;
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|f| {
            let gops = f.gops.map_or("-".into(), |g| format!("{g:.0}"));
            vec![
                f.kernel.clone(),
                f.shape.clone(),
                format!("{:.1}", f.microseconds),
                gops,
                format!("{:.0}", f.gbytes),
            ]
        })
        .collect();
    ui.data(table(&["kernel", "shape", "us", "GOP/s", "GB/s"], &rows))?;
    Ok(Outcome::Done)
}

fn report(ui: &Ui, subject: &Subject, tests: Vec<serde_json::Value>) -> anyhow::Result<Outcome> {
    #[derive(Serialize)]
    struct Report<'a> {
        #[serde(flatten)]
        subject: &'a Subject,
        tests: Vec<serde_json::Value>,
    }
    ui.result(&Report { subject, tests })?;
    Ok(Outcome::Done)
}

/// A Markdown table, its columns aligned for eyes; text to the left, figures (all behind the first two columns) to the right.
fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    const TEXT: usize = 2;
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([headers[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: Vec<&str>| -> String {
        let cells = cells.iter().zip(&widths).enumerate().map(|(i, (cell, w))| match i < TEXT {
            true => format!(" {cell:<w$} |"),
            false => format!(" {cell:>w$} |"),
        });
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = widths.iter().enumerate().map(|(i, &w)| match i < TEXT {
        true => format!(" {} |", "-".repeat(w)),
        false => format!(" {}: |", "-".repeat(w - 1)),
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    line(headers.to_vec()) + &rule + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let rows =
            [vec!["nano".into(), "f16".into(), "1.5".into()], vec!["x".into(), "".into(), "10.5".into()]];
        assert_eq!(
            table(&["model", "type", "ms"], &rows),
            "| model | type |   ms |\n| ----- | ---- | ---: |\n| nano  | f16  |  1.5 |\n| x     |      | 10.5 |\n"
        );
    }
}
