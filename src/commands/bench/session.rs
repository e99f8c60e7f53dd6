//! A model loaded onto a device, ready to be asked: what both ways of `bench infer` begin with.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use super::report::Subject;
use super::source::Source;
use crate::bench::InferConfig;
use crate::commands::exact::ExactArg;
use crate::commands::ui::{Interrupt, Ui};
use crate::ggml::{reset_peak_host_bytes, Device};
use crate::llama::{default_threads, Model, ModelParams};

/// Before what is timed on a GPU: an idle one runs at a fraction of its clock.
const GPU_WARM_UP: Duration = Duration::from_secs(1);

/// How it is asked.
#[derive(Clone, Copy)]
pub struct How {
    /// If `None`, one for each physical core, or a few beside a GPU.
    pub threads: Option<u32>,
    pub reps: usize,
    pub seed: u64,
    pub exact: ExactArg,
}

/// The model, and what it takes.
pub struct Session {
    pub subject: Subject,
    pub model: Model,
    pub config: InferConfig,
    device: Device,
    free_before: usize,
    peak: Cell<usize>,
}

impl Session {
    /// Loads the model.
    pub fn open(
        source: &Source,
        device: &Device,
        how: How,
        interrupt: Interrupt,
        ui: &Ui,
    ) -> anyhow::Result<Self> {
        let path = source.path();
        how.exact.prepare(path, Some(device.name()), ui)?;
        let threads = how.threads.unwrap_or_else(|| default_threads(device.name()).0);
        let subject = Subject::new(source, &source.open()?, device, threads as usize).seeded(how.seed);
        let free_before = device.memory().0;
        reset_peak_host_bytes();
        let spinner = ui.spinner("load");
        spinner.message(path.display().to_string());
        let model = Model::load(path, &ModelParams::on(Some(device.name())))?;
        let config = InferConfig {
            reps: how.reps,
            warm_up: if device.is_gpu() { GPU_WARM_UP } else { Duration::ZERO },
            seed: how.seed,
            n_threads: how.threads.and_then(NonZeroU32::new),
            interrupt: Some(interrupt.flag()),
        };
        Ok(Self { subject, model, config, device: device.clone(), free_before, peak: Cell::new(0) })
    }

    /// Looks how much the device holds now.
    pub fn look(&self) {
        self.peak.set(self.free_before.saturating_sub(self.device.memory().0).max(self.peak.get()));
    }

    /// The most that was seen since this was asked for last; none where device memory is the host's.
    pub fn peak_device_bytes(&self) -> Option<usize> {
        let peak = self.peak.take();
        self.device.is_gpu().then_some(peak)
    }
}
