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
    /// 8-bit integers that a gradient is cut into before a ternary weight multiplies it.
    pub backward_limbs: i64,
    /// The version of exact arithmetic (docs/exactness.md), if it is used.
    #[serde(default)]
    pub exact: Option<u32>,
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
    /// Older runs do not say.
    #[serde(default)]
    pub build: Option<Build>,
}

/// What computed a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Build {
    pub llama_cpp: String,
    pub patch_hash: String,
    pub driver: Option<String>,
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
        if self.exact.is_some() {
            super::step::check_exact(self.seq_len)?;
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

#[cfg(test)]
mod tests {
    use super::super::schedule::Decay;
    use super::*;

    fn config() -> RunConfig {
        let how = How {
            device: "cpu".into(),
            device_description: "a CPU".into(),
            threads: 2,
            micro_batch_rows: 1,
            recompute: true,
            eval_data: None,
            eval_every: 0,
            save_every: 10,
            build: None,
        };
        RunConfig {
            version: "0.1.0".into(),
            model: "m.gguf".into(),
            model_hash: "ab".into(),
            data: "d.jsonl".into(),
            data_hash: "cd".into(),
            seed: 42,
            epochs: 3,
            schedule: Schedule { lr: 1e-4, decay: Decay::Linear, warmup: 0, total: 30 },
            adamw: AdamW::default(),
            rank: 8,
            alpha: 16.0,
            targets: vec!["attn_q".into()],
            init_adapter: None,
            seq_len: 512,
            backward_limbs: 2,
            exact: None,
            batch_tokens: 1024,
            pack: PackMode::Pack,
            loss_on: LossOn::Assistant,
            chat_template: None,
            template_time: 0,
            how,
        }
    }

    #[test]
    fn it_comes_back_from_its_folder() {
        let run = tempfile::tempdir().unwrap();
        config().save(run.path()).unwrap();
        assert_eq!(RunConfig::load(run.path()).unwrap(), config());
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 1);
        std::fs::write(run.path().join(FILE), "{").unwrap();
        assert!(matches!(RunConfig::load(run.path()), Err(Error::Damaged { .. })));
        assert_eq!(config().rows_per_step(), 2);
    }

    #[test]
    fn what_decides_the_result_makes_another_run() {
        type Edit = fn(&mut RunConfig);
        let edits: [(&str, Edit); 16] = [
            ("model_hash", |c| c.model_hash.push('0')),
            ("data_hash", |c| c.data_hash.push('0')),
            ("seed", |c| c.seed += 1),
            ("epochs", |c| c.epochs += 1),
            ("schedule", |c| c.schedule.lr *= 2.0),
            ("schedule", |c| c.schedule.total += 1),
            ("adamw", |c| c.adamw.clip = 0.0),
            ("rank", |c| c.rank += 1),
            ("alpha", |c| c.alpha += 1.0),
            ("targets", |c| c.targets.push("attn_k".into())),
            ("seq_len", |c| c.seq_len *= 2),
            ("batch_tokens", |c| c.batch_tokens *= 2),
            ("pack", |c| c.pack = PackMode::NoPack),
            ("loss_on", |c| c.loss_on = LossOn::All),
            ("exact", |c| c.exact = Some(1)),
            ("chat_template", |c| c.chat_template = Some("plain".into())),
        ];
        for (expected, edit) in edits {
            let mut asked = config();
            edit(&mut asked);
            match asked.check_same_run(&config(), Path::new("run")) {
                Err(Error::OtherRun { field, stored, asked, .. }) => {
                    assert_eq!(field, expected);
                    assert_ne!(stored, asked);
                }
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn how_and_where_it_is_computed_may_change() {
        let mut asked = config();
        asked.version = "9".into();
        asked.model = "elsewhere.gguf".into();
        asked.data = "elsewhere.jsonl".into();
        asked.how = How { device: "vulkan0".into(), threads: 8, micro_batch_rows: 4, ..asked.how };
        asked.check_same_run(&config(), Path::new("run")).unwrap();
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        type Edit = fn(&mut RunConfig);
        config().validate().unwrap();
        let edits: [(&str, Edit); 6] = [
            ("batch-tokens", |c| c.batch_tokens = 0),
            ("batch-tokens", |c| c.batch_tokens = 700),
            ("lr", |c| c.schedule.lr = 0.0),
            ("lr", |c| c.schedule.lr = f64::NAN),
            ("alpha", |c| c.alpha = f32::INFINITY),
            ("steps", |c| c.schedule.total = 0),
        ];
        for (expected, edit) in edits {
            let mut config = config();
            edit(&mut config);
            assert!(matches!(config.validate(), Err(Error::Config { field, .. }) if field == expected));
        }
    }

    #[test]
    fn exact_rows_are_whole_segments() {
        let exact = |seq_len| RunConfig { exact: Some(1), seq_len, batch_tokens: seq_len, ..config() };
        exact(96).validate().unwrap();
        let error = exact(80).validate().unwrap_err();
        assert!(matches!(error, Error::ExactRow { seq_len: 80 }), "{error}");
        assert_eq!(
            crate::error::Hint::hint(&error).unwrap(),
            "pass `--seq-len 96`, or another multiple of 32"
        );
        RunConfig { exact: None, ..exact(80) }.validate().unwrap();
    }

    #[test]
    fn a_run_of_an_older_version_was_not_exact() {
        let run = tempfile::tempdir().unwrap();
        config().save(run.path()).unwrap();
        let path = run.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap().replace("  \"exact\": null,\n", "");
        assert!(!text.contains("exact"));
        std::fs::write(&path, text).unwrap();
        assert_eq!(RunConfig::load(run.path()).unwrap(), config());
    }
}
