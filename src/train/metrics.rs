//! `metrics.jsonl`: one JSON object per optimizer step and per evaluation.
//!
//! Lines are appended and flushed as they come. A run that goes on from a checkpoint first drops the lines of later
//! steps, so that the file never holds a step twice.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::tensorboard::Events;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1: steps done.
    pub step: u64,
    pub epoch: u64,
    /// Mean over the step's targets, in nats.
    pub loss: f64,
    pub lr: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Tokens that are not padding.
    pub tokens: u64,
    /// Tokens with a target.
    pub trained_tokens: u64,
    pub seconds: f64,
    /// Tokens that are not padding, per second of this step.
    pub tokens_per_second: f64,
    /// Held on the device, and by the process in main memory, around the end of this step; where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_bytes: Option<u64>,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimizer steps done before it.
    pub step: u64,
    pub eval_loss: f64,
    pub eval_accuracy: Option<f64>,
}

/// What is written of a step or an evaluation.
pub trait Record: Serialize {
    fn step(&self) -> u64;
    /// Its figures under the names that TensorBoard's users expect.
    fn scalars(&self) -> Vec<(&'static str, f64)>;
}

impl Record for StepRecord {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![
            ("train/loss", self.loss),
            ("train/learning_rate", self.lr),
            ("train/grad_norm", self.grad_norm),
            ("train/epoch", self.epoch as f64),
            ("train/tokens_per_second", self.tokens_per_second),
        ];
        scalars.extend(self.device_bytes.map(|n| ("memory/device_bytes", n as f64)));
        scalars.extend(self.host_bytes.map(|n| ("memory/host_bytes", n as f64)));
        scalars
    }
}

impl Record for EvalRecord {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![("eval/loss", self.eval_loss)];
        scalars.extend(self.eval_accuracy.map(|a| ("eval/accuracy", a)));
        scalars
    }
}

/// The open file, and TensorBoard's beside it where that is wished.
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: Option<Events>,
}

impl Metrics {
    /// Opens `path` to append, after dropping what was written for steps after `step`.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let io = |action| move |source| Error::Io { action, path: path.into(), source };
        let mut kept = String::new();
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let line = line.map_err(io("read"))?;
                    let at = serde_json::from_str::<serde_json::Value>(&line)
                        .ok()
                        .and_then(|v| v["step"].as_u64());
                    // A line that a kill cut short has no step.
                    if at.is_some_and(|at| at <= step) {
                        kept.push_str(&line);
                        kept.push('\n');
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io("read")(e)),
        }
        fs::write(path, kept).map_err(io("write"))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io("write"))?;
        Ok(Self { path: path.into(), file, events: None })
    }

    /// Has every record from now on written to TensorBoard's `events`, too.
    pub fn with_events(self, events: Option<Events>) -> Self {
        Self { events, ..self }
    }

    /// Appends one record.
    pub fn write(&mut self, record: &impl Record) -> Result<()> {
        let mut line = serde_json::to_string(record).expect("the fields are plain data");
        line.push('\n');
        let io = |source| Error::Io { action: "write", path: self.path.clone(), source };
        self.file.write_all(line.as_bytes()).map_err(io)?;
        match &mut self.events {
            Some(events) => events.write(record.step(), &record.scalars()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(step: u64) -> EvalRecord {
        EvalRecord { step, eval_loss: 1.5, eval_accuracy: None }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|l| serde_json::from_str::<EvalRecord>(l).unwrap().step).collect()
    }

    #[test]
    fn lines_are_there_as_soon_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=3 {
            metrics.write(&eval(step)).unwrap();
            assert_eq!(steps(&path).len() as u64, step);
        }
    }

    #[test]
    fn going_on_drops_later_steps_and_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (1..=5).for_each(|step| metrics.write(&eval(step)).unwrap());
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\":2,\"eval_lo");
        fs::write(&path, text).unwrap();
        let mut metrics = Metrics::open(&path, 3).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
        metrics.write(&eval(4)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4]);
        Metrics::open(&path, 0).unwrap();
        assert_eq!(steps(&path), [0; 0]);
    }
}
