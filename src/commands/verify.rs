//! `verify`: whether a device computes a model as another one does, bit for bit where that is promised.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use clap::ValueEnum;
use serde::Serialize;

use super::bench::report::table;
use super::exact::ExactArg;
use super::provenance::Provenance;
use super::ui::{Interrupt, Outcome, Progress, Ui};
use crate::data::{Dataset, LossOn, Options, Sample};
use crate::ggml::{self, Device, GgufFile};
use crate::llama::{self, ModelParams};
use crate::verify::{self, Check, Config, Kind, Observer, Pair, Place, Status, Tier};

/// Compare two devices on a model: operations, logits, tokens and adapters
///
/// Exits with 1 if something differs that must not, and with 2 if nothing could be compared.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, a GGUF file
    #[arg(short, long, value_name = "GGUF")]
    model: PathBuf,

    /// Text to compare on, `.jsonl` of chats or `.txt`; a few sentences if not given
    #[arg(short, long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// Device to check, as `devices` lists them; the first GPU if not given, else the CPU
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Device to hold it against; a device against itself: the CPU with one thread
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    against: String,

    /// What to hold it to; `t1` if not given, `t2` with --data
    #[arg(long, value_enum, value_name = "TIER")]
    tier: Option<TierArg>,

    /// CPU threads; one for each physical core if not given
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=512))]
    threads: Option<usize>,

    /// Tokens per row of training graphs; a multiple of 32
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = RangedU64ValueParser::<usize>::new().range(4..=1048576))]
    seq_len: usize,

    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1048576))]
    tokens: usize,

    /// Optimizer steps before adapters are compared
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    steps: usize,

    /// Chat template: `chatml`, `llama3`, `gemma`, `zephyr`, `plain`, a Jinja file or its text; the model's own if not given
    #[arg(long, value_name = "TEMPLATE")]
    chat_template: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TierArg {
    /// Products with ternary weights, which are always exact; how far apart the rest is
    T0,
    /// The whole forward, in exact arithmetic
    T1,
    /// And training
    T2,
}

impl From<TierArg> for Tier {
    fn from(arg: TierArg) -> Self {
        match arg {
            TierArg::T0 => Self::T0,
            TierArg::T1 => Self::T1,
            TierArg::T2 => Self::T2,
        }
    }
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    provenance: Provenance,
    model: &'a std::path::Path,
    against: &'a str,
    against_description: &'a str,
    threads: usize,
    tier: Tier,
    pass: usize,
    fail: usize,
    skip: usize,
    checks: &'a [Check],
}

/// Runs `verify`.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    check(&args, ui).with_context(|| format!("cannot verify `{}`", args.model.display()))
}

fn check(args: &Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::install()?;
    let tier = args.tier.map_or(if args.data.is_some() { Tier::T2 } else { Tier::T1 }, Tier::from);
    ggml::set_exact(tier != Tier::T0);
    let device = match &args.device {
        Some(name) => Device::by_name(name)?,
        None => Device::best()?,
    };
    let reference = Device::by_name(&args.against)?;
    let threads = args.threads.unwrap_or_else(|| llama::physical_cores() as usize);
    let file = GgufFile::open(&args.model)?;
    let of_itself = device.name() == reference.name();
    if tier == Tier::T2 {
        ExactArg { exact: true }.check_training(&file, args.seq_len)?;
    }
    let pair = Pair {
        model: &args.model,
        device: Place { device: device.clone(), threads },
        reference: Place { device: reference.clone(), threads: if of_itself { 1 } else { threads } },
        samples: &samples(args, ui)?,
    };
    let config = Config {
        tier,
        seq_len: args.seq_len,
        tokens: args.tokens,
        steps: args.steps,
        seed: 42,
        interrupt: Some(interrupt.flag()),
    };
    let mut stage = Stage { ui, bar: None, stage: String::new(), done: 0 };
    let report = verify::verify(&config, &pair, &mut stage)?;
    drop(stage);

    let [pass, fail, skip] = [Status::Pass, Status::Fail, Status::Skip].map(|s| report.count(s));
    if ui.json() {
        ui.result(&Output {
            provenance: Provenance::new(&device, Some(&file)).seeded(config.seed),
            model: &args.model,
            against: reference.name(),
            against_description: reference.description().trim(),
            threads,
            tier,
            pass,
            fail,
            skip,
            checks: &report.checks,
        })?;
    } else {
        ui.data(rendered(&report.checks))?;
        let (device, reference) = (pair.device.name(), pair.reference.name());
        ui.line(format_args!("{device} against {reference}: {pass} pass, {fail} fail, {skip} skipped"))?;
    }
    Ok(if report.holds() { Outcome::Done } else { Outcome::CheckFailed })
}

/// The data that was given, else the built-in sentences.
fn samples(args: &Args, ui: &Ui) -> anyhow::Result<Vec<Sample>> {
    let spinner = ui.spinner("read");
    let vocab = llama::Model::load(&args.model, &ModelParams::vocab_only())?.vocab()?;
    let Some(path) = &args.data else { return Ok(verify::built_in_samples(&vocab)?) };
    spinner.message(path.display().to_string());
    let own = vocab.chat_template();
    let options = Options {
        chat_template: args.chat_template.as_deref(),
        model_template: own.as_deref(),
        loss_on: LossOn::All,
        seq_len: args.seq_len,
        // The same tokens each time, whatever a template says of the date.
        time: Some(0),
    };
    let set = Dataset::load(path, &vocab, &options)
        .with_context(|| format!("cannot read the data in `{}`", path.display()))?;
    Ok(set.samples)
}

/// Says what goes on.
struct Stage<'u> {
    ui: &'u Ui,
    bar: Option<Progress>,
    stage: String,
    done: usize,
}

impl Observer for Stage<'_> {
    fn stage(&mut self, what: &str) {
        self.ui.detail(what);
        self.stage = what.into();
        let bar = self.ui.spinner("verify");
        bar.message(self.stage.clone());
        self.bar = Some(bar);
    }

    fn check(&mut self, check: &Check) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.message(format!("{}, {} checks done", self.stage, self.done));
        }
        if check.status == Status::Fail {
            self.ui.warn(format_args!("{} {} differs: {}", word(check.kind), check.name, check.what));
        }
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Op => "op",
        Kind::Logits => "logits",
        Kind::Tokens => "tokens",
        Kind::Adapter => "adapter",
    }
}

fn rendered(checks: &[Check]) -> String {
    let row = |c: &Check| {
        let status = match c.status {
            Status::Pass => "Pass",
            Status::Fail => "Fail",
            Status::Skip => "Skip",
        };
        let found = match (&c.note, &c.mismatch, c.nmse) {
            (Some(note), ..) => note.clone(),
            (None, Some(m), Some(nmse)) => format!(
                "{} differ, nmse {nmse:.1e}; at {}: {} and {}",
                c.differing, m.index, m.device, m.reference
            ),
            (None, Some(m), None) => {
                format!("{} differ; at {}: {} and {}", c.differing, m.index, m.device, m.reference)
            }
            (None, None, _) => String::new(),
        };
        vec![
            format!("{} {}", word(c.kind), c.name),
            c.what.clone(),
            c.class.map_or("-".into(), |class| class.to_string()),
            status.into(),
            c.values.to_string(),
            found,
        ]
    };
    table(&["check", "of", "class", "result", "values", "found"], &checks.iter().map(row).collect::<Vec<_>>())
}
