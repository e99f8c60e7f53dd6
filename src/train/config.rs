//! What a run is: everything that decides its result, as `config.json` in its folder stores it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::data::{Dataset, LossOn, PackMode};
use crate::ggml::GgufFile;

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
    /// What a template that writes the date was told, in seconds since 1970.
    pub template_time: i64,
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

const FILE: &str = "config.json";

/// Fields that may differ between a run and its continuation: where files lie does not matter, what is in them does.
const FREE: &[&str] = &["version", "model", "data", "init_adapter", "how"];

impl RunConfig {
    /// Reads `config.json` from a run's folder.
    pub fn load(run: &Path) -> Result<Self> {
        let path = run.join(FILE);
        let text = std::fs::read(&path).map_err(|source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|e| Error::Damaged { path, reason: e.to_string() })
    }

    /// Writes `config.json` into a run's folder, whole or not at all.
    pub fn save(&self, run: &Path) -> Result<()> {
        let path = run.join(FILE);
        let io = |source| Error::Io { action: "write", path: path.clone(), source };
        let text = serde_json::to_string_pretty(self).expect("the fields are plain data");
        let mut file = tempfile::NamedTempFile::new_in(run).map_err(io)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io)?;
        file.persist(&path).map_err(|e| io(e.error))?;
        Ok(())
    }

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

/// A fingerprint of a model file: all of its metadata and tensor table, its length, and evenly spaced samples of the
/// weights, so that it costs no more for a large model.
pub fn model_hash(file: &GgufFile) -> String {
    const SAMPLES: usize = 256;
    const SAMPLE: usize = 64 << 10;
    let (head, data) = file.halves();
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update((data.len() as u64).to_le_bytes());
    for i in 0..SAMPLES {
        let start = data.len() / SAMPLES * i;
        hash.update(&data[start..data.len().min(start + SAMPLE)]);
    }
    hex(&hash.finalize())
}

/// A fingerprint of what a data set trains on: every token and whether it counts.
pub fn data_hash(data: &Dataset) -> String {
    let mut hash = Sha256::new();
    for sample in &data.samples {
        hash.update((sample.len() as u64).to_le_bytes());
        for (token, train) in sample.tokens.iter().zip(&sample.train) {
            hash.update(token.to_le_bytes());
            hash.update([u8::from(*train)]);
        }
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn to_value(config: &RunConfig) -> Value {
    serde_json::to_value(config).expect("the fields are plain data")
}
