//! `--exact`, for every command that computes.

use std::path::Path;

use super::ui::Ui;
use crate::ggml::{self, Device, GgufFile};
use crate::{model, train};

/// Which arithmetic.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ExactArg {
    /// Exact arithmetic: the same bits on every device, with any threads and batches; slower
    #[arg(long)]
    pub exact: bool,
}

impl ExactArg {
    /// To be called before a device is used.
    pub fn apply(self) {
        ggml::set_exact(self.exact);
    }

    /// Refuses what cannot be trained on exactly.
    pub fn check_training(self, file: &GgufFile, seq_len: usize) -> anyhow::Result<()> {
        if self.exact {
            train::check_exact(seq_len)?;
            model::check_exact_training(file)?;
        }
        Ok(())
    }

    /// [`Self::apply`], for a model that libllama is to compute on `device` (the best, if none is named). Refuses here what libllama
    /// would end the process for, and tells what it will move to the CPU.
    pub fn prepare(self, model: &Path, device: Option<&str>, ui: &Ui) -> anyhow::Result<()> {
        self.apply();
        if !self.exact {
            return Ok(());
        }
        let device = match device {
            Some(name) => Device::by_name(name)?,
            None => Device::best()?,
        };
        let on_cpu = model::check_exact_inference(&GgufFile::open(model)?, &device)?;
        if !on_cpu.is_empty() {
            ui.warn(format_args!(
                "device `{}` has no exact kernel for {}: the CPU computes that, with the same bits",
                device.name(),
                on_cpu.join(" and "),
            ));
        }
        Ok(())
    }
}
