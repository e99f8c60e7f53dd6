//! `bench infer`: prompts and generated tokens through libllama.

use clap::builder::RangedU64ValueParser;
use serde_json::json;

use super::protocol::{self, Plan};
use super::report::{report, table, Subject};
use super::session::{How, Session};
use super::source::SourceArgs;
use crate::bench::{self, Test};
use crate::commands::exact::ExactArg;
use crate::commands::ui::{Interrupt, Outcome, Problem, Ui};
use crate::ggml::{peak_host_bytes, Device};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Device to run on, as `devices` lists them; the first GPU if not given, else the CPU
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    #[command(flatten)]
    exact: ExactArg,

    /// CPU threads; if not given one for each physical core, or a few beside a GPU
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=512))]
    threads: Option<u32>,

    /// Models to measure one after the other: GGUF files, or SHAPE:TYPE (see `synth`)
    #[arg(value_name = "MODEL", conflicts_with_all = ["prompt", "generate", "model", "shape"])]
    models: Vec<String>,

    /// Devices to measure one after the other, and to compare
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["device", "prompt", "generate"])]
    devices: Vec<String>,

    /// Instead of answers by the published protocol: tokens of a prompt, computed at once; may be repeated, 0 leaves it out
    #[arg(short, long, value_name = "N")]
    prompt: Vec<usize>,

    /// The same for generation: tokens behind a prompt of 13; may be repeated, 0 leaves it out
    #[arg(short = 'n', long, value_name = "N")]
    generate: Vec<usize>,

    /// Repetitions that are timed, after one that is not (on a GPU, after a second of them)
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    reps: usize,

    /// Seed of the tokens
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

impl Args {
    /// What is measured, for errors.
    pub fn source(&self) -> String {
        match self.models.as_slice() {
            [] => self.source.what(),
            models => models.join(", "),
        }
    }

    fn how(&self) -> How {
        How { threads: self.threads, reps: self.reps, seed: self.seed, exact: self.exact }
    }
}

/// Runs `bench infer`.
pub fn run(args: &Args, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    if args.prompt.is_empty() && args.generate.is_empty() {
        return protocol(args, interrupt, ui);
    }
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
    let source = args.source.ready(ui)?;
    let session = Session::open(&source, &device, args.how(), interrupt, ui)?;
    let bar = ui.progress("test", (tests.len() * (1 + args.reps)) as u64);
    let (mut reports, mut rows) = (Vec::new(), Vec::new());
    for test in tests {
        bar.message(test.name());
        let figures = bench::infer(&session.model, test, &session.config, &mut || {
            bar.inc(1);
            session.look();
        })?;
        let speed = figures.seconds.map(|s| test.n_tokens() as f64 / s);
        reports.push(json!({
            "test": test.name(),
            "reps": args.reps,
            "tokens_per_second": speed,
            "first_seconds": figures.first_seconds,
            "peak_device_bytes": session.peak_device_bytes(),
            "peak_host_bytes": peak_host_bytes(),
        }));
        let mut row = session.subject.cells();
        row.push(test.name());
        row.extend([speed.median, speed.min, speed.max].map(|s| format!("{s:.1}")));
        rows.push(row);
    }
    drop(bar);
    if ui.json() {
        return report(ui, &session.subject, reports);
    }
    let mut headers = Subject::HEADERS.to_vec();
    headers.extend(["test", "tok/s", "min", "max"]);
    ui.data(table(&headers, &rows))?;
    Ok(Outcome::Done)
}

/// The published protocol, on all models and devices.
fn protocol(args: &Args, interrupt: Interrupt, ui: &Ui) -> anyhow::Result<Outcome> {
    let source = args.models.is_empty().then(|| args.source.ready(ui)).transpose()?;
    let models = match &source {
        Some(source) => vec![source.path().display().to_string()],
        None => args.models.clone(),
    };
    let devices = match &args.device {
        Some(device) => vec![device.clone()],
        None => args.devices.clone(),
    };
    protocol::run(&Plan { models: &models, devices: &devices, how: args.how() }, interrupt, ui)
}
