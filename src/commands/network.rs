//! What `train`, `eval` and `bench` share: the flags that say which network runs where on which data, how it is trained,
//! and all of it made ready.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::builder::{RangedI64ValueParser, RangedU64ValueParser};
use clap::ValueEnum;

use super::exact::ExactArg;
use super::memory::{parse_bytes, MicroBatchArg};
use super::ui::{Problem, Ui};
use crate::data::{Dataset, LossOn, Options};
use crate::ggml::{Backend, Device, DeviceKind, GgufFile};
use crate::llama::{self, ModelParams};
use crate::model::{self, LoraConfig, Model, Target};
use crate::train::{AdamW, Engine, Recompute, TrainingConfig};

/// Which network, and where it runs.
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// The model, a GGUF file
    #[arg(short, long, value_name = "GGUF")]
    pub model: PathBuf,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Where a network runs.
#[derive(Debug, Clone, clap::Args)]
pub struct MachineArgs {
    /// Device to run on, as `devices` lists them; the first GPU if not given, else the CPU
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// CPU threads; one for each physical core if not given
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=512))]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub exact: ExactArg,

    /// Compute on the CPU what the device cannot
    #[arg(long)]
    pub allow_cpu_fallback: bool,

    /// Rows run at a time, or `auto`: as many as fit, one on a CPU, which gains nothing from more [default: auto; that
    /// of the run that is resumed]
    #[arg(long, value_name = "ROWS")]
    pub micro_batch: Option<MicroBatchArg>,

    /// Device memory to stay within, such as `6GiB`; what is free if not given
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
}

/// What the adapter is.
#[derive(Debug, clap::Args)]
pub struct LoraArgs {
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = 8)]
    pub rank: usize,

    /// Scale of the adapter: `alpha / rank` multiplies what it adds
    #[arg(long, value_name = "A", default_value_t = 16.0)]
    pub alpha: f32,

    /// Layers to adapt: `all`, or of `attn_q,attn_k,attn_v,attn_output,ffn_gate,ffn_up,ffn_down` (or `q_proj`, ...)
    #[arg(long, value_name = "LIST", default_value = "all", value_delimiter = ',')]
    pub targets: Vec<String>,
}

impl LoraArgs {
    /// The adapter that these flags describe.
    pub fn config(&self) -> Result<LoraConfig, model::Error> {
        let targets = Target::parse_list(&self.targets)?;
        Ok(LoraConfig { rank: self.rank, alpha: self.alpha, targets })
    }
}

/// How the backward is computed.
#[derive(Debug, clap::Args)]
pub struct BackwardArgs {
    /// Compute each block's forward again in the backward: a third more work, memory for one block only; `auto` does where
    /// memory is short [default: on; that of the run that is resumed]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub recompute: Option<RecomputeArg>,

    /// 8-bit integers that a gradient is cut into for the products with ternary weights: 2 keeps 15 bits of it, 1 is
    /// faster
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = RangedI64ValueParser::<i64>::new().range(1..=2))]
    pub backward_limbs: i64,
}

/// `--recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecomputeArg {
    On,
    Off,
    Auto,
}

impl BackwardArgs {
    /// Whether the program chooses.
    pub fn any_recompute(&self) -> bool {
        self.recompute == Some(RecomputeArg::Auto)
    }

    /// What the engine is told; of `auto`, what it falls back to.
    pub fn config(&self, adamw: AdamW) -> TrainingConfig {
        let recompute = match self.recompute {
            None | Some(RecomputeArg::On | RecomputeArg::Auto) => Recompute::On,
            Some(RecomputeArg::Off) => Recompute::Off,
        };
        TrainingConfig { recompute, adamw, backward_limbs: self.backward_limbs }
    }
}

/// 512 tokens per optimizer step, or one row where rows are longer, or as many whole rows as 512 hold where they are
/// shorter.
pub fn default_batch(seq_len: usize) -> usize {
    const TOKENS: usize = 512;
    (TOKENS / seq_len).max(1) * seq_len
}

/// The tokens of an optimizer step that were asked for, or the usual number; whole rows.
pub fn batch_tokens(asked: Option<usize>, seq_len: usize) -> Result<usize, Problem> {
    let tokens = asked.unwrap_or_else(|| default_batch(seq_len));
    if tokens == 0 || tokens % seq_len != 0 {
        let fact = format!("`--batch-tokens {tokens}` is no multiple of `--seq-len {seq_len}`");
        return Err(Problem::new(fact, format!("pass `--batch-tokens {seq_len}`")));
    }
    Ok(tokens)
}

/// How data becomes tokens.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    /// Tokens per row; longer samples lose the beginning of their prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = RangedU64ValueParser::<usize>::new().range(4..=1048576))]
    pub seq_len: usize,

    /// Which tokens count in the loss
    #[arg(long, value_enum, default_value_t)]
    pub loss_on: LossOnArg,

    /// Chat template: `chatml`, `llama3`, `gemma`, `zephyr`, `plain`, a Jinja file or its text; the model's own if not given
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
}

/// `--loss-on`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum LossOnArg {
    /// Every token
    All,
    /// What the assistant writes, with its end of turn
    #[default]
    Assistant,
    /// The last thing the assistant writes
    Last,
}

impl From<LossOnArg> for LossOn {
    fn from(arg: LossOnArg) -> Self {
        match arg {
            LossOnArg::All => Self::All,
            LossOnArg::Assistant => Self::Assistant,
            LossOnArg::Last => Self::Last,
        }
    }
}

/// A device opened for the network, and the CPU beside it where it may step in.
pub struct Machine {
    pub backend: Backend,
    pub threads: usize,
    fallback: Option<Backend>,
}

impl Machine {
    /// The CPU, where it may step in.
    pub fn fallback(&self) -> Option<&Backend> {
        self.fallback.as_ref()
    }

    /// Whether graphs may be split between two devices.
    pub fn splits(&self) -> bool {
        self.fallback.is_some()
    }
}

impl MachineArgs {
    /// Opens the device.
    pub fn open(&self) -> anyhow::Result<Machine> {
        self.exact.apply();
        let device = match &self.device {
            Some(name) => Device::by_name(name)?,
            None => Device::best()?,
        };
        let threads = self.threads.unwrap_or_else(|| llama::physical_cores() as usize);
        let backend = Backend::new(&device, threads)?;
        let fallback = match self.allow_cpu_fallback && device.kind() != DeviceKind::Cpu {
            true => Some(Backend::new(&Device::by_name("cpu")?, threads)?),
            false => None,
        };
        Ok(Machine { backend, threads, fallback })
    }

    /// Loads the weights of `file`, the model, onto the device; refuses rows longer than the model's context.
    pub fn load(&self, file: &GgufFile, seq_len: usize, machine: &Machine, ui: &Ui) -> anyhow::Result<Model> {
        let bar = ui.progress_bytes("load", 0);
        let model = Model::load(file, &machine.backend, &mut |done, total| {
            bar.set_len(total);
            bar.set(done);
        })?;
        check_context(&model, file.path(), seq_len)?;
        Ok(model)
    }
}

impl DataArgs {
    /// Reads data sets with the model's vocabulary and template; `time` is what a template that writes the date is told,
    /// in seconds since 1970.
    pub fn load(
        &self,
        model: &Path,
        paths: &[&Path],
        time: Option<i64>,
        ui: &Ui,
    ) -> anyhow::Result<Vec<Dataset>> {
        let spinner = ui.spinner("read");
        let vocab = llama::Model::load(model, &ModelParams::vocab_only())?.vocab()?;
        let own = vocab.chat_template();
        let options = Options {
            chat_template: self.chat_template.as_deref(),
            model_template: own.as_deref(),
            loss_on: self.loss_on.into(),
            seq_len: self.seq_len,
            time,
        };
        let mut sets = Vec::with_capacity(paths.len());
        for path in paths {
            spinner.message(path.display().to_string());
            let set = Dataset::load(path, &vocab, &options)
                .with_context(|| format!("cannot read the data in `{}`", path.display()))?;
            if set.stats.truncated > 0 {
                ui.warn(format_args!(
                    "`{}`: {} of {} samples are longer than `--seq-len {}` and were cut ({} lost the end of their answer)",
                    path.display(), set.stats.truncated, set.stats.samples, self.seq_len, set.stats.answers_cut,
                ));
            }
            sets.push(set);
        }
        Ok(sets)
    }
}

/// Refuses rows longer than the context that the model was trained on.
pub fn check_context(model: &Model, path: &Path, seq_len: usize) -> anyhow::Result<()> {
    if seq_len > model.hp.n_ctx_train {
        return Err(Problem::new(
            format!(
                "`--seq-len {seq_len}` is longer than the context of `{}`, {}",
                path.display(),
                model.hp.n_ctx_train
            ),
            format!("pass `--seq-len {}` or less", model.hp.n_ctx_train),
        )
        .into());
    }
    Ok(())
}

/// The most memory the device was seen to hold for this process: what the engine allocated, or, on a GPU that tells, by
/// how much its free memory fell since `free_before`.
pub fn device_bytes(engine: &Engine, device: &Device, free_before: usize) -> usize {
    let fell = match device.is_gpu() {
        true => free_before.saturating_sub(device.memory().0),
        false => 0,
    };
    fell.max(engine.device_bytes())
}

/// The memory that the run holds on its device, asked for twice a second at most: a driver takes its time to answer.
pub struct Held<'a> {
    engine: &'a Engine,
    device: &'a Device,
    free_before: usize,
    last: Cell<Option<(Instant, usize)>>,
    peak: Cell<usize>,
}

impl<'a> Held<'a> {
    pub fn new(engine: &'a Engine, device: &'a Device, free_before: usize) -> Self {
        Self { engine, device, free_before, last: Cell::new(None), peak: Cell::new(0) }
    }

    /// What it holds, or held half a second ago.
    pub fn now(&self) -> u64 {
        const EVERY: Duration = Duration::from_millis(500);
        if let Some((_, bytes)) = self.last.get().filter(|(at, _)| at.elapsed() < EVERY) {
            return bytes as u64;
        }
        self.ask() as u64
    }

    fn ask(&self) -> usize {
        let bytes = device_bytes(self.engine, self.device, self.free_before);
        self.last.set(Some((Instant::now(), bytes)));
        self.peak.set(bytes.max(self.peak.get()));
        bytes
    }

    /// The most that was seen.
    pub fn peak(&self) -> usize {
        self.ask().max(self.peak.get())
    }
}
