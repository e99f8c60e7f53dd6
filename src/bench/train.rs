//! Optimizer steps, timed: the engine does in each what the trainer has it do.
//!
//! Every step sees the same random tokens, so that the loss falls where training works. In full rows each position has a
//! target: the most work that a step of this many tokens can be. Packed and padded rows hold samples of a real data
//! set's lengths.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::data::{epoch_rows, Origin, PackMode, Row, Sample};
use crate::ggml::Backend;
use crate::train::{Engine, MicroBatch};

use super::{Error, Result, Spread};

/// Learning rate of the measured steps: what `train` starts with.
const LR: f64 = 2e-4;

/// What to measure.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Size of the vocabulary that tokens are drawn from.
    pub n_vocab: usize,
    /// Rows of the engine's length per optimizer step.
    pub n_rows: usize,
    pub layout: Layout,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before them that are not: pipelines are compiled in the first.
    pub warmup: usize,
    /// Steps taken apart afterwards, for [`Parts`].
    pub parts: usize,
    pub seed: u64,
}

/// How samples lie in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One sample of a row's length in each, all of it trained.
    Full,
    /// As many samples to a row as fit.
    Packed,
    /// One sample to a row, padded.
    Padded,
}

/// Samples of packed and padded rows, as many as the published run has, ...
const SAMPLES: usize = 297;
/// ... and as long: 61 tokens on average, of which the last third is the answer.
const SAMPLE_TOKENS: std::ops::RangeInclusive<usize> = 31..=91;

/// What came out.
#[derive(Clone, Debug)]
pub struct TrainFigures {
    /// Tokens of a step that are a sample's, and those of them that are trained.
    pub useful_tokens: usize,
    pub trained_tokens: usize,
    /// Rows that all samples make; none where rows are full.
    pub epoch_rows: Option<usize>,
    /// Seconds of one step on the host's clock: from laying out the rows to the end of the update on the device, the
    /// loss and the gradient's norm read back.
    pub seconds: Spread,
    /// Seconds of the very first step, warm-up or not.
    pub first_seconds: f64,
    /// Mean loss of the first step (of the warm-up, if there was one) and of the last that was timed.
    pub first_loss: f64,
    pub last_loss: f64,
    /// None where no step was taken apart.
    pub parts: Option<Parts>,
}

/// Where a step's time goes, in seconds: medians of steps that were stopped between their parts, which a timed step never
/// is. Head and backward are differences of two runs, with and without the other. The sum is a little more than a timed
/// step: there the host prepares the next part while the device computes this one.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Parts {
    /// The host lays out tokens, positions, mask and targets.
    pub layout: f64,
    /// Embedding and all blocks.
    pub forward: f64,
    /// The output matrix and the loss, with the gradient of the last hidden states.
    pub head: f64,
    /// All blocks in reverse, with what they compute again.
    pub backward: f64,
    /// Gradients to zero, their norm, and the update.
    pub optimizer: f64,
}

/// Measures steps of `engine` on `backend`, the one it runs on. `progress` is told after each step how many are done, the
/// warm-up's among them, and the loss.
pub fn train(
    engine: &Engine,
    backend: &Backend,
    config: &TrainConfig,
    interrupt: &AtomicBool,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<TrainFigures> {
    let (rows, epoch_rows) = rows(config, engine.config().seq_len)?;
    let bench = Bench { engine, backend, rows };
    let mut seconds = Vec::with_capacity(config.warmup + config.steps);
    let mut losses = Vec::with_capacity(seconds.capacity());
    for step in 0..config.warmup + config.steps {
        check(interrupt)?;
        let start = Instant::now();
        let loss = bench.step(step)?;
        backend.wait()?;
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(loss);
        progress(step + 1, loss);
    }
    let mut parts = Vec::with_capacity(config.parts);
    for i in 0..config.parts {
        check(interrupt)?;
        parts.push(bench.parts(losses.len() + i)?);
    }
    Ok(TrainFigures {
        useful_tokens: bench.rows.iter().map(Row::n_used).sum(),
        trained_tokens: bench.n_targets(),
        epoch_rows,
        first_seconds: seconds.first().copied().unwrap_or_default(),
        first_loss: losses.first().copied().unwrap_or_default(),
        last_loss: losses.last().copied().unwrap_or_default(),
        seconds: Spread::of(seconds.into_iter().skip(config.warmup)),
        parts: (!parts.is_empty()).then(|| Parts::median(&parts)),
    })
}

fn check(interrupt: &AtomicBool) -> Result<()> {
    match interrupt.load(Ordering::SeqCst) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}

/// The rows of a step, and how many an epoch has, if rows hold samples.
fn rows(config: &TrainConfig, seq_len: usize) -> Result<(Vec<Row>, Option<usize>)> {
    let mode = match config.layout {
        Layout::Full => return Ok((random_rows(config.n_rows, seq_len, config.n_vocab, config.seed), None)),
        Layout::Packed => PackMode::Pack,
        Layout::Padded => PackMode::NoPack,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let sample = |line| {
        let n = rng.random_range(SAMPLE_TOKENS).min(seq_len);
        let answer = n - n.div_ceil(3);
        Sample {
            tokens: (0..n).map(|_| rng.random_range(0..config.n_vocab) as i32).collect(),
            train: (0..n).map(|i| i >= answer).collect(),
            origin: Origin { file: Path::new("random").into(), line },
            label: None,
            answer_start: answer,
            answer_end: n,
            truncated: None,
        }
    };
    let samples: Vec<Sample> = (1..=SAMPLES).map(sample).collect();
    let all = epoch_rows(&samples, seq_len, config.seed, 0, mode).map_err(crate::train::Error::from)?;
    Ok((all.iter().cycle().take(config.n_rows).cloned().collect(), Some(all.len())))
}

/// `n` rows of one sample each that fills them, every position a target.
pub fn random_rows(n: usize, seq_len: usize, n_vocab: usize, seed: u64) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let row = |i| {
        let mut tokens: Vec<i32> = (0..=seq_len).map(|_| rng.random_range(0..n_vocab) as i32).collect();
        let targets = tokens[1..].to_vec();
        tokens.truncate(seq_len);
        let positions = (0..seq_len as i32).collect();
        Row { tokens, positions, targets, segments: vec![0; seq_len], samples: vec![i] }
    };
    (0..n).map(row).collect()
}

struct Bench<'a> {
    engine: &'a Engine,
    backend: &'a Backend,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn n_targets(&self) -> usize {
        self.rows.iter().map(Row::n_targets).sum()
    }

    /// One optimizer step; as `Trainer` takes it, but for the learning rate, which stays. The result is the mean loss.
    fn step(&self, step: usize) -> Result<f64> {
        let engine = self.engine;
        engine.zero_grad()?;
        let mut sum = 0.0;
        for rows in self.rows.chunks(engine.config().n_rows) {
            self.accumulate(&self.layout(rows))?.into_iter().for_each(|l| sum += f64::from(l));
        }
        let norm = engine.apply(step as u64, LR)?;
        let finite = |x: f64, what| match x.is_finite() {
            true => Ok(x),
            false => Err(Error::NonFinite { step: step + 1, what }),
        };
        finite(norm, "the gradient")?;
        finite(sum / self.n_targets() as f64, "the loss")
    }

    fn layout(&self, rows: &[Row]) -> MicroBatch {
        let config = self.engine.config();
        MicroBatch::new(rows, config.n_rows, config.seq_len)
    }

    fn accumulate(&self, batch: &MicroBatch) -> Result<Vec<f32>> {
        Ok(self.engine.accumulate(batch, 1.0 / self.n_targets() as f32)?)
    }

    /// A step in pieces, the device idle before and after each.
    fn parts(&self, step: usize) -> Result<Parts> {
        let engine = self.engine;
        let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
            self.backend.wait()?;
            let start = Instant::now();
            work()?;
            self.backend.wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let mut batches = Vec::new();
        let layout = timed(&mut || {
            batches = self.rows.chunks(engine.config().n_rows).map(|rows| self.layout(rows)).collect();
            Ok(())
        })?;
        let headless: Vec<MicroBatch> = self
            .rows
            .chunks(engine.config().n_rows)
            .map(|rows| {
                let mut batch = self.layout(rows);
                batch.targets.clear();
                batch
            })
            .collect();
        let forward =
            timed(&mut || headless.iter().try_for_each(|b| Ok(engine.losses(b, &[]).map(drop)?)))?;
        let without_head = timed(&mut || headless.iter().try_for_each(|b| self.accumulate(b).map(drop)))?;
        let zero = timed(&mut || Ok(engine.zero_grad()?))?;
        let all = timed(&mut || batches.iter().try_for_each(|b| self.accumulate(b).map(drop)))?;
        let update = timed(&mut || Ok(engine.apply(step as u64, LR).map(drop)?))?;
        Ok(Parts {
            layout,
            forward,
            head: (all - without_head).max(0.0),
            backward: (without_head - forward).max(0.0),
            optimizer: zero + update,
        })
    }
}

impl Parts {
    fn median(all: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| Spread::of(all.iter().map(part)).median;
        Self {
            layout: of(|p| p.layout),
            forward: of(|p| p.forward),
            head: of(|p| p.head),
            backward: of(|p| p.backward),
            optimizer: of(|p| p.optimizer),
        }
    }

    /// Each part with its name, in the order of a step.
    pub fn named(&self) -> [(&'static str, f64); 5] {
        [
            ("layout", self.layout),
            ("forward", self.forward),
            ("head", self.head),
            ("backward", self.backward),
            ("optimizer", self.optimizer),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_rows_hold_what_padded_rows_waste() {
        let rows = |layout, n_rows| {
            let config = TrainConfig { n_vocab: 50, n_rows, layout, steps: 1, warmup: 0, parts: 0, seed: 7 };
            rows(&config, 512).unwrap()
        };
        let (padded, in_all) = rows(Layout::Padded, 400);
        assert_eq!((padded.len(), in_all), (400, Some(SAMPLES)));
        assert!(padded.iter().all(|row| row.samples.len() == 1 && row.n_used() <= 91));
        let (packed, in_all) = rows(Layout::Packed, 2);
        assert!(in_all.is_some_and(|n| n < SAMPLES / 7), "{in_all:?}");
        for row in &packed {
            assert!(row.n_used() > 400 && row.n_targets() > 100 && row.n_targets() < row.n_used() / 2);
        }
    }

    #[test]
    fn rows_are_full_seeded_and_all_target() {
        let rows = random_rows(3, 16, 50, 7);
        assert_eq!(rows, random_rows(3, 16, 50, 7));
        assert_ne!(rows, random_rows(3, 16, 50, 8));
        assert_eq!(rows.len(), 3);
        for row in &rows {
            assert_eq!((row.n_used(), row.n_targets()), (16, 16));
            assert_eq!(row.targets[..15], row.tokens[1..]);
            assert!(row.tokens.iter().chain(&row.targets).all(|t| (0..50).contains(t)));
        }
    }
}
