//! The loop: epochs of packed rows, optimizer steps, evaluation, checkpoints.
//!
//! Everything that decides the result is a function of the configuration and the cursor; where a run was stopped and
//! gone on with leaves no trace in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::data::{epoch_rows, Dataset, Origin, Row};
use crate::ggml::host_bytes;

use super::batch::MicroBatch;
use super::checkpoint::{Checkpoint, Cursor};
use super::config::RunConfig;
use super::error::{Error, Result};
use super::eval::{evaluate, Evaluation};
use super::metrics::{EvalRecord, Metrics, StepRecord};
use super::step::Engine;
use super::tensorboard::Events;

/// What a run tells while it goes on.
pub trait Observer {
    /// A step was done; `total` is the number of steps in the run.
    fn step(&mut self, record: &StepRecord, total: u64);
    /// The evaluation set was gone through.
    fn evaluation(&mut self, record: &EvalRecord);
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All steps are done.
    Finished,
    /// It was asked to stop; a checkpoint is saved.
    Interrupted,
}

/// What came of a run, or of the part of it that this process did.
#[derive(Clone, Debug)]
pub struct Report {
    pub stop: Stop,
    /// Steps done since the beginning of the run.
    pub steps: u64,
    /// Mean loss of the last step.
    pub final_loss: Option<f64>,
    pub evaluation: Option<Evaluation>,
    /// Tokens that are not padding, and seconds spent on them, in this process.
    pub tokens: u64,
    pub seconds: f64,
}

impl Report {
    /// Throughput of this process's part of the run.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.tokens as f64 / self.seconds
        } else {
            0.0
        }
    }
}

/// Steps in `epochs` epochs. Rows per epoch differ a little, since packing follows the shuffle.
pub fn steps_in(config: &RunConfig, data: &Dataset) -> Result<u64> {
    let mut steps = 0;
    for epoch in 0..config.epochs {
        let rows = epoch_rows(&data.samples, config.seq_len, config.seed, epoch, config.pack)?;
        steps += rows.len().div_ceil(config.rows_per_step()) as u64;
    }
    Ok(steps)
}

/// A run in progress.
pub struct Trainer<'a> {
    pub config: &'a RunConfig,
    pub engine: &'a Engine,
    pub train: &'a Dataset,
    pub eval: Option<&'a Dataset>,
    /// The run's folder.
    pub out: PathBuf,
    pub cursor: Cursor,
    pub watch: Watch<'a>,
}

/// What is written down besides.
#[derive(Clone, Copy, Default)]
pub struct Watch<'a> {
    /// The bytes that the run holds on its device.
    pub device_bytes: Option<&'a dyn Fn() -> u64>,
    /// Where TensorBoard's event files go.
    pub tensorboard: Option<&'a Path>,
}

impl Trainer<'_> {
    /// Trains to the end, or until `interrupt` is set.
    pub fn run(&mut self, observer: &mut dyn Observer, interrupt: &AtomicBool) -> Result<Report> {
        let events = self.watch.tensorboard.map(|dir| Events::create(dir, self.cursor.step)).transpose()?;
        let mut metrics =
            Metrics::open(&self.out.join("metrics.jsonl"), self.cursor.step)?.with_events(events);
        let total = self.config.schedule.total;
        let how = &self.config.how;
        let mut report = Report {
            stop: Stop::Finished,
            steps: self.cursor.step,
            final_loss: None,
            evaluation: None,
            tokens: 0,
            seconds: 0.0,
        };
        let mut rows = self.epoch()?;
        let mut saved = None;
        let due = |every: u64, step: u64| every > 0 && step % every == 0;
        while self.cursor.step < total {
            let taken = (self.cursor.row + self.config.rows_per_step()).min(rows.len());
            let record = self.step(&rows[self.cursor.row..taken])?;
            self.cursor.step += 1;
            self.cursor.row = taken;
            if taken == rows.len() {
                self.cursor = Cursor { epoch: self.cursor.epoch + 1, row: 0, ..self.cursor };
                rows = self.epoch()?;
            }
            let step = self.cursor.step;
            metrics.write(&record)?;
            observer.step(&record, total);
            report.steps = step;
            report.final_loss = Some(record.loss);
            report.tokens += record.tokens;
            report.seconds += record.seconds;

            if due(how.eval_every, step) || step == total {
                if let Some(eval) = self.eval {
                    let evaluation = evaluate(self.engine, eval, &mut |_, _| {})?;
                    let record = EvalRecord {
                        step,
                        eval_loss: evaluation.loss,
                        eval_accuracy: evaluation.accuracy.as_ref().map(|a| a.share()),
                    };
                    metrics.write(&record)?;
                    observer.evaluation(&record);
                    report.evaluation = Some(evaluation);
                }
            }
            if due(how.save_every, step) {
                self.save()?;
                saved = Some(step);
            }
            if interrupt.load(Ordering::SeqCst) && step < total {
                report.stop = Stop::Interrupted;
                break;
            }
        }
        if saved != Some(self.cursor.step) {
            self.save()?;
        }
        Ok(report)
    }

    fn save(&self) -> Result<()> {
        let lora = self.engine.lora().ok_or(Error::NotTraining)?;
        Checkpoint::capture(lora, self.cursor)?.save(&self.out).map(drop)
    }

    fn epoch(&self) -> Result<Vec<Row>> {
        let c = self.config;
        Ok(epoch_rows(&self.train.samples, c.seq_len, c.seed, self.cursor.epoch, c.pack)?)
    }

    /// One optimizer step over `rows`.
    fn step(&self, rows: &[Row]) -> Result<StepRecord> {
        let start = Instant::now();
        let engine_config = self.engine.config();
        let step = self.cursor.step;
        let trained: usize = rows.iter().map(Row::n_targets).sum();
        if trained == 0 {
            return Err(Error::NothingTrained { step: Some(step + 1), records: self.origins(rows) });
        }
        self.engine.zero_grad()?;
        let mut sum = 0.0;
        for rows in rows.chunks(engine_config.n_rows) {
            let batch = MicroBatch::new(rows, engine_config.n_rows, engine_config.seq_len);
            if batch.targets.is_empty() {
                continue;
            }
            let losses = self.engine.accumulate(&batch, 1.0 / trained as f32)?;
            if let Some(bad) = losses.iter().position(|l| !l.is_finite()) {
                let records = vec![self.origin_of(rows, batch.targets[bad].at as usize)];
                return Err(Error::NonFinite { step: Some(step + 1), what: "the loss", records });
            }
            // One by one in the order of the rows, whatever the micro-batches.
            losses.iter().for_each(|&l| sum += f64::from(l));
        }
        let lr = self.config.schedule.lr_at(step);
        let grad_norm = self.engine.apply(step, lr)?;
        if !grad_norm.is_finite() {
            return Err(Error::NonFinite {
                step: Some(step + 1),
                what: "the gradient",
                records: self.origins(rows),
            });
        }
        let tokens = rows.iter().map(Row::n_used).sum::<usize>() as u64;
        let seconds = start.elapsed().as_secs_f64();
        Ok(StepRecord {
            step: step + 1,
            epoch: self.cursor.epoch,
            loss: sum / trained as f64,
            lr,
            grad_norm,
            tokens,
            trained_tokens: trained as u64,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            device_bytes: self.watch.device_bytes.map(|held| held()),
            host_bytes: host_bytes(),
        })
    }

    fn origins(&self, rows: &[Row]) -> Vec<Origin> {
        rows.iter().flat_map(|r| &r.samples).map(|&s| self.train.samples[s].origin.clone()).collect()
    }

    /// The record that token `at` of a micro-batch came from.
    fn origin_of(&self, rows: &[Row], at: usize) -> Origin {
        let row = &rows[at / self.config.seq_len];
        let segment = row.segments[at % self.config.seq_len] as usize;
        self.train.samples[row.samples[segment]].origin.clone()
    }
}
