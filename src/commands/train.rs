//! `train`: a LoRA adapter for a model, from a file of chats.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use clap::ValueEnum;
use serde::Serialize;

use super::network::{batch_tokens, BackwardArgs, DataArgs, Held, LoraArgs, Machine, NetworkArgs};
use super::provenance::{Provenance, LLAMA_CPP, PATCH_HASH};
use super::report;
use super::ui::{Interrupt, Outcome, Progress, Ui};
use crate::data::{Dataset, PackMode};
use crate::ggml::{peak_host_bytes, GgufFile, EXACT_VERSION};
use crate::llama::DeviceFacts;
use crate::model::adapter::AdapterFile;
use crate::model::{LoraConfig, Model};
use crate::plan::Request;
use crate::train::{
    data_hash, latest_checkpoint, model_hash, steps_in, AdamW, Build, Checkpoint, Cursor, Decay, Engine,
    EvalRecord, How, Observer, Recompute, Report, RunConfig, Schedule, StepRecord, Stop, Trainer, Watch,
};

/// Train a LoRA adapter on a file of chats
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,

    /// The data to train on: `.jsonl` of chats, or `.txt`
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,

    /// Folder for the run: adapter, checkpoints, metrics
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,

    /// Go on with the run in `--out` from its newest checkpoint
    #[arg(long)]
    resume: bool,

    /// Data to evaluate on, at the end and every `--eval-every` steps
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,

    /// Steps between evaluations; 0 evaluates at the end only
    #[arg(long, value_name = "STEPS", default_value_t = 0, requires = "eval_data")]
    eval_every: u64,

    /// Steps between checkpoints; 0 saves at the end only
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    save_every: u64,

    /// Adapter to go on training; its rank, alpha and targets are kept
    #[arg(long, value_name = "GGUF", conflicts_with_all = ["rank", "alpha", "targets"])]
    adapter: Option<PathBuf>,

    /// Write TensorBoard's event files, too; to this folder, or `tensorboard` in that of the run
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    tensorboard: Option<Option<PathBuf>>,

    #[command(flatten)]
    tokens: DataArgs,

    /// One sample per row, padded, instead of as many as fit
    #[arg(long)]
    no_pack: bool,

    #[command(flatten)]
    optim: OptimArgs,

    /// Seed of the adapter's first values and of the order of the data
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,

    #[command(flatten)]
    backward: BackwardArgs,
}

/// What the adapter is and how it is optimised.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Optimisation")]
struct OptimArgs {
    /// Times to go through the data
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    epochs: u64,

    /// Optimizer steps, instead of `--epochs`
    #[arg(long, value_name = "N", conflicts_with = "epochs", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    steps: Option<u64>,

    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 2e-4)]
    lr: f64,

    /// How the learning rate falls
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    lr_schedule: DecayArg,

    /// Steps over which the learning rate rises from zero
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    warmup: u64,

    /// Tokens per optimizer step, a multiple of `--seq-len`
    #[arg(long, value_name = "TOKENS")]
    batch_tokens: Option<usize>,

    #[command(flatten)]
    lora: LoraArgs,

    /// AdamW's weight decay
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    weight_decay: f32,

    /// Largest global norm of the gradients; 0 does not clip
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    clip: f32,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DecayArg {
    #[default]
    Linear,
    Cosine,
    Constant,
}

#[derive(Debug, Serialize)]
struct Output<'a> {
    final_loss: Option<f64>,
    eval_loss: Option<f64>,
    eval_accuracy: Option<f64>,
    steps: u64,
    finished: bool,
    tokens_per_second: f64,
    seconds: f64,
    peak_device_bytes: usize,
    peak_host_bytes: Option<u64>,
    n_params: usize,
    #[serde(flatten)]
    provenance: Provenance,
    /// Null where the run was stopped before its end.
    adapter: Option<&'a Path>,
    run: &'a Path,
    /// The page that shows how it went.
    report: Option<PathBuf>,
}

/// Runs `train`.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    train(&args, ui).with_context(|| format!("cannot train on `{}`", args.data.display()))
}

fn train(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::install()?;
    let file = GgufFile::open(&args.network.model)?;
    args.network.machine.exact.check_training(&file, args.tokens.seq_len)?;
    let init = args.adapter.as_ref().map(AdapterFile::read).transpose()?;
    init.as_ref().map_or(Ok(()), |a| a.check_against(&file))?;
    let lora = lora_config(args, init.as_ref())?;
    let checkpoint = prepare_folder(args)?;
    let paths: Vec<&Path> = [args.data.as_path()].into_iter().chain(args.eval_data.as_deref()).collect();
    let stored = checkpoint.as_ref().map(|_| RunConfig::load(&args.out)).transpose()?;
    let time = stored.as_ref().map_or_else(now, |c| c.template_time);
    let mut sets = args.tokens.load(&args.network.model, &paths, Some(time), ui)?;
    let eval = (sets.len() > 1).then(|| sets.remove(1));
    let data = sets.remove(0);

    let machine = args.network.machine.open()?;
    let free_before = machine.backend.device().memory().0;
    let mut config = run_config(args, &lora, &file, &data, &machine, time)?;
    stored.as_ref().map_or(Ok(()), |stored| config.check_same_run(stored, &args.out))?;
    let request = request(args, &config, lora, stored.as_ref());
    let (model, engine) = args.network.machine.ready(&file, &machine, &request, ui)?;
    let chosen = engine.config();
    config.how.micro_batch_rows = chosen.n_rows;
    config.how.recompute = chosen.training.as_ref().is_some_and(|t| t.recompute == Recompute::On);
    let cursor = start(args, &engine, &config, init.as_ref(), checkpoint.as_deref())?;
    describe(ui, args, &config, &data, &engine, cursor);

    let tensorboard =
        args.tensorboard.as_ref().map(|dir| dir.clone().unwrap_or_else(|| args.out.join("tensorboard")));
    let held = Held::new(&engine, machine.backend.device(), free_before);
    let mut trainer = Trainer {
        config: &config,
        engine: &engine,
        train: &data,
        eval: eval.as_ref(),
        out: args.out.clone(),
        cursor,
        watch: Watch { device_bytes: Some(&|| held.now()), tensorboard: tensorboard.as_deref() },
    };
    let mut bar = Bar::new(ui, config.schedule.total, cursor.step, engine.device_bytes());
    let report = trainer.run(&mut bar, interrupt.flag())?;
    drop(bar);

    let adapter = finish(args, &engine, &model, &report)?;
    // The work is done and kept: a page that cannot be written is no reason to fail.
    let page = report::write_beside(&args.out);
    if let Err(error) = &page {
        ui.warn(format_args!("no `{}` was written: {error:#}", report::FILE));
    }
    let output = Output {
        final_loss: report.final_loss,
        eval_loss: report.evaluation.as_ref().map(|e| e.loss),
        eval_accuracy: report.evaluation.as_ref().and_then(|e| e.accuracy.as_ref()).map(|a| a.share()),
        steps: report.steps,
        finished: report.stop == Stop::Finished,
        tokens_per_second: report.tokens_per_second(),
        seconds: report.seconds,
        peak_device_bytes: held.peak(),
        peak_host_bytes: peak_host_bytes(),
        n_params: engine.lora().map_or(0, |l| l.n_params()),
        provenance: Provenance::new(machine.backend.device(), Some(&file)).seeded(args.seed),
        adapter: adapter.as_deref(),
        run: &args.out,
        report: page.ok(),
    };
    if ui.json() {
        ui.result(&output)?;
    } else {
        summary(ui, args, &output)?;
    }
    Ok(Outcome::Done)
}

fn lora_config(args: &Args, init: Option<&AdapterFile>) -> anyhow::Result<LoraConfig> {
    if let Some(file) = init {
        return Ok(LoraConfig::of_file(file)?);
    }
    Ok(args.optim.lora.config()?)
}

/// Makes the run's folder, or finds the checkpoint to go on from. Refuses a folder that holds another run, and a
/// folder that cannot be written to before hours of work are lost to it.
fn prepare_folder(args: &Args) -> anyhow::Result<Option<PathBuf>> {
    let config = args.out.join("config.json");
    if args.resume {
        let found = latest_checkpoint(&args.out)?;
        return found
            .map(Some)
            .ok_or_else(|| crate::train::Error::NoCheckpoint { path: args.out.clone() }.into());
    }
    if config.exists() {
        return Err(crate::train::Error::RunExists { path: args.out.clone() }.into());
    }
    let io = |action| {
        let path = args.out.clone();
        move |source| crate::train::Error::Io { action, path, source }
    };
    std::fs::create_dir_all(&args.out).map_err(io("create"))?;
    tempfile::tempfile_in(&args.out).map_err(io("write to"))?;
    Ok(None)
}

fn run_config(
    args: &Args,
    lora: &LoraConfig,
    file: &GgufFile,
    data: &Dataset,
    machine: &Machine,
    time: i64,
) -> anyhow::Result<RunConfig> {
    let o = &args.optim;
    let device = machine.backend.device();
    let decay = match o.lr_schedule {
        DecayArg::Linear => Decay::Linear,
        DecayArg::Cosine => Decay::Cosine,
        DecayArg::Constant => Decay::Constant,
    };
    let mut config = RunConfig {
        version: env!("CARGO_PKG_VERSION").into(),
        model: args.network.model.clone(),
        model_hash: model_hash(file),
        data: args.data.clone(),
        data_hash: data_hash(data),
        seed: args.seed,
        epochs: o.epochs,
        schedule: Schedule { lr: o.lr, decay, warmup: o.warmup, total: 1 },
        adamw: AdamW { weight_decay: o.weight_decay, clip: o.clip, ..AdamW::default() },
        rank: lora.rank,
        alpha: lora.alpha,
        targets: lora.targets.iter().map(|t| t.name().into()).collect(),
        init_adapter: args.adapter.clone(),
        seq_len: args.tokens.seq_len,
        backward_limbs: args.backward.backward_limbs,
        exact: args.network.machine.exact.exact.then_some(EXACT_VERSION),
        batch_tokens: batch_tokens(o.batch_tokens, args.tokens.seq_len)?,
        pack: if args.no_pack { PackMode::NoPack } else { PackMode::Pack },
        loss_on: args.tokens.loss_on.into(),
        chat_template: args.tokens.chat_template.clone(),
        template_time: time,
        how: How {
            device: device.name().into(),
            device_description: device.description().into(),
            threads: machine.threads,
            micro_batch_rows: 0,
            recompute: false,
            eval_data: args.eval_data.clone(),
            eval_every: args.eval_every,
            save_every: args.save_every,
            build: Some(Build {
                llama_cpp: LLAMA_CPP.into(),
                patch_hash: PATCH_HASH.into(),
                driver: DeviceFacts::of(device).driver,
            }),
        },
    };
    config.validate()?;
    config.schedule.total = match o.steps {
        Some(steps) => steps,
        None => steps_in(&config, data)?,
    };
    Ok(config)
}

/// What the engine is to be built for. A run that is gone on with keeps its micro-batch and its recompute,
/// unless the flag is given.
fn request(args: &Args, config: &RunConfig, lora: LoraConfig, stored: Option<&RunConfig>) -> Request {
    let kept = stored.filter(|_| args.network.machine.micro_batch.is_none()).map(|s| s.how.micro_batch_rows);
    let mut training = args.backward.config(config.adamw.clone());
    if let Some(stored) = stored.filter(|_| args.backward.recompute.is_none()) {
        training.recompute = if stored.how.recompute { Recompute::On } else { Recompute::Off };
    }
    Request {
        seq_len: config.seq_len,
        rows_per_step: config.rows_per_step(),
        n_rows: kept.filter(|&n| n > 0),
        lora: Some(lora),
        training: Some(training),
        any_recompute: args.backward.any_recompute(),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Gives the adapter its first values, or those of the checkpoint, and stores the run's settings.
fn start(
    args: &Args,
    engine: &Engine,
    config: &RunConfig,
    init: Option<&AdapterFile>,
    checkpoint: Option<&Path>,
) -> anyhow::Result<Cursor> {
    let lora = engine.lora().context("the engine has no adapter")?;
    if let Some(path) = checkpoint {
        let checkpoint = Checkpoint::load(path)?;
        checkpoint.restore(lora, path)?;
        return Ok(checkpoint.cursor);
    }
    match init {
        Some(file) => lora.load(file)?,
        None => lora.init(config.seed)?,
    }
    config.save(&args.out)?;
    Ok(Cursor { step: 0, epoch: 0, row: 0 })
}

fn describe(ui: &Ui, args: &Args, config: &RunConfig, data: &Dataset, engine: &Engine, cursor: Cursor) {
    let stats = &data.stats;
    ui.info(format_args!(
        "{} samples, {} tokens, {} of them trained; rank {} on {}: {} parameters",
        stats.samples,
        stats.tokens,
        stats.trained_tokens,
        config.rank,
        config.targets.join(", "),
        engine.lora().map_or(0, |l| l.n_params()),
    ));
    ui.info(format_args!(
        "{} steps of {} tokens, {} rows at a time, recompute {}, on {} ({}), {:.2} GB",
        config.schedule.total,
        config.batch_tokens,
        config.how.micro_batch_rows,
        if config.how.recompute { "on" } else { "off" },
        config.how.device,
        config.how.device_description,
        engine.device_bytes() as f64 / 1e9,
    ));
    if cursor.step > 0 {
        ui.info(format_args!("going on with `{}` after step {}", args.out.display(), cursor.step));
    }
}

/// Writes the adapter, if all steps are done.
fn finish(args: &Args, engine: &Engine, model: &Model, report: &Report) -> anyhow::Result<Option<PathBuf>> {
    if report.stop == Stop::Interrupted {
        return Ok(None);
    }
    let path = args.out.join("adapter.gguf");
    let lora = engine.lora().context("the engine has no adapter")?;
    lora.to_file(&model.hp, model.name.clone())?.write(&path)?;
    Ok(Some(path))
}

fn summary(ui: &Ui, args: &Args, output: &Output) -> anyhow::Result<()> {
    let loss = output.final_loss.map_or(String::new(), |l| format!("loss {l:.4}, "));
    let eval = match (output.eval_loss, output.eval_accuracy) {
        (Some(loss), Some(accuracy)) => format!("eval loss {loss:.4}, accuracy {:.1}%, ", 100.0 * accuracy),
        (Some(loss), None) => format!("eval loss {loss:.4}, "),
        _ => String::new(),
    };
    let speed = match output.seconds > 0.0 {
        true => format!("{:.0} tokens/s", output.tokens_per_second),
        false => "no step left to do".into(),
    };
    let gigabytes = output.peak_device_bytes as f64 / 1e9;
    ui.line(format_args!(
        "step {}: {loss}{eval}{speed}, {gigabytes:.2} GB on {}",
        output.steps,
        output.provenance.device()
    ))?;
    match output.adapter {
        Some(adapter) => ui.line(adapter.display()),
        None => {
            ui.info(format_args!("stopped and saved; the same command with `--resume` goes on from here"));
            ui.line(args.out.display())
        }
    }
}

/// The progress bar, and a line per evaluation.
struct Bar<'u> {
    ui: &'u Ui,
    bar: Progress,
    gigabytes: f64,
    start: Instant,
    tokens: u64,
}

impl<'u> Bar<'u> {
    fn new(ui: &'u Ui, total: u64, done: u64, device_bytes: usize) -> Self {
        let bar = ui.progress("train", total);
        bar.set(done);
        Self { ui, bar, gigabytes: device_bytes as f64 / 1e9, start: Instant::now(), tokens: 0 }
    }
}

impl Observer for Bar<'_> {
    fn step(&mut self, record: &StepRecord, _total: u64) {
        self.tokens += record.tokens;
        let rate = self.tokens as f64 / self.start.elapsed().as_secs_f64();
        self.bar.set(record.step);
        self.bar.message(format!("loss {:.4}  {rate:.0} tok/s  {:.2} GB", record.loss, self.gigabytes));
        self.ui.detail(format_args!(
            "step {}: loss {:.4}, lr {:.2e}, gradient norm {:.3}, {:.2} s",
            record.step, record.loss, record.lr, record.grad_norm, record.seconds
        ));
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        let accuracy =
            record.eval_accuracy.map_or(String::new(), |a| format!(", accuracy {:.1}%", 100.0 * a));
        self.ui.info(format_args!("step {}: eval loss {:.4}{accuracy}", record.step, record.eval_loss));
    }
}
