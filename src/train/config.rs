//! What a run is: everything that decides its result, as `config.json` in its folder stores it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::{LossOn, PackMode};

use super::error::{Error, Result};
use super::optimizer::AdamW;
use super::schedule::Schedule;

/// The settings of a run. What only decides how fast it goes (device, threads, micro-batch, recompute) is kept for
/// the record under `how`, and may change when the run goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// The program's version that wrote this.
    pub version: String,
    pub model: PathBuf,
    /// Hash of the model file's metadata and tensor table, and its length.
    pub model_hash: String,
    pub data: PathBuf,
    /// Hash of the samples' tokens and masks.
    pub data_hash: String,
    pub seed: u64,
    pub epochs: u64,
    pub schedule: Schedule,
    pub adamw: AdamW,
    pub rank: usize,
    pub alpha: f32,
    pub targets: Vec<String>,
    /// The adapter that training started from.
    pub init_adapter: Option<PathBuf>,
    pub seq_len: usize,
    /// Tokens per optimizer step; a multiple of `seq_len`.
    pub batch_tokens: usize,
    pub pack: PackMode,
    pub loss_on: LossOn,
    pub chat_template: Option<String>,
    pub how: How,
}

/// How a run is computed; changes nothing but its speed and its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct How {
    pub device: String,
    pub device_description: String,
    pub threads: usize,
    pub micro_batch_rows: usize,
    pub recompute: bool,
    pub eval_data: Option<PathBuf>,
    pub eval_every: u64,
    pub save_every: u64,
}

/// Fields that may differ between a run and its continuation: where files lie does not matter, what is in them does.
const FREE: &[&str] = &["version", "model", "data", "init_adapter", "how"];

impl RunConfig {
    /// Rows per optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_tokens / self.seq_len
    }

    /// Checks what flags alone cannot promise.
    pub fn validate(&self) -> Result<()> {
        let config = |field, found: String, expected: &str| {
            Err(Error::Config { field, found, expected: expected.into() })
        };
        if self.batch_tokens == 0 || self.batch_tokens % self.seq_len != 0 {
            let expected = format!("a multiple of the sequence length, {}", self.seq_len);
            return config("batch-tokens", self.batch_tokens.to_string(), &expected);
        }
        if !(self.schedule.lr.is_finite() && self.schedule.lr > 0.0) {
            return config("lr", self.schedule.lr.to_string(), "a positive number");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return config("alpha", self.alpha.to_string(), "a positive number");
        }
        if self.schedule.total == 0 {
            return config("steps", "0".into(), "at least one step");
        }
        Ok(())
    }

    /// The same run, so that `stored` can be gone on with? If not, the first field that differs.
    pub fn check_same_run(&self, stored: &Self, path: &Path) -> Result<()> {
        let (Value::Object(asked), Value::Object(stored)) = (to_value(self), to_value(stored)) else {
            unreachable!("a struct serialises to an object");
        };
        for (field, asked) in asked.iter().filter(|(field, _)| !FREE.contains(&field.as_str())) {
            let stored = stored.get(field).cloned().unwrap_or(Value::Null);
            if stored != *asked {
                let (stored, asked) = (stored.to_string(), asked.to_string());
                return Err(Error::OtherRun { path: path.into(), field: field.clone(), stored, asked });
            }
        }
        Ok(())
    }
}

fn to_value(config: &RunConfig) -> Value {
    serde_json::to_value(config).expect("the fields are plain data")
}
