//! How long a micro-batch takes, measured on the first layers of the model with random weights.
//!
//! A step of one layer and one of a few are timed; a layer's share is their difference, and the rest (embedding, head,
//! the host's part) is what remains. So no weights are read, and a model that is larger than the memory can be timed.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bench::{self, Spread};
use crate::data::Row;
use crate::ggml::{Backend, DeviceKind, Executor, GgufFile};
use crate::model::Model;
use crate::train::{self, Engine, EngineConfig, MicroBatch};

/// Layers of the deeper of the two models.
const DEEP: usize = 4;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Seconds of the whole model, forward and backward, for one micro-batch.
    pub micro_batch_seconds: f64,
    /// Seconds of one update of the adapter.
    pub update_seconds: f64,
    /// What the device's driver took beyond the engine's allocations; `None` where the device does not tell.
    pub driver_bytes: Option<u64>,
}

/// How an epoch divides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    pub rows: usize,
    pub steps: usize,
    pub seconds: f64,
}

impl Calibration {
    /// What `rows` rows take in steps of `per_step`, `n_rows` of them at a time.
    pub fn pace(&self, rows: usize, per_step: usize, n_rows: usize) -> Pace {
        let micro_batches = |rows: usize| rows.div_ceil(n_rows);
        let (full, rest) = (rows / per_step, rows % per_step);
        let steps = full + usize::from(rest > 0);
        let n = full * micro_batches(per_step) + micro_batches(rest);
        let seconds = n as f64 * self.micro_batch_seconds + steps as f64 * self.update_seconds;
        Pace { rows, steps, seconds }
    }
}

/// Measures for about `time`, longer where the device needs longer for a few steps. `rows` are what a micro-batch holds;
/// random tokens where there are none.
pub fn calibrate(
    file: &GgufFile,
    backend: &Backend,
    config: &EngineConfig,
    rows: &[Row],
    time: Duration,
) -> bench::Result<Calibration> {
    let device = backend.device();
    let free_before = device.memory().0;
    // The deep one first: it brings an idle device up to speed, and compiles what there is to compile.
    let deep = Timed::of(file, backend, config, rows, DEEP, time * 2 / 3)?;
    let fell = free_before.saturating_sub(device.memory().0);
    let tells = matches!(device.kind(), DeviceKind::Gpu | DeviceKind::Igpu) && fell > 0;
    let driver_bytes = tells.then(|| fell.saturating_sub(deep.device_bytes) as u64);
    let (n_deep, n_layer) = (deep.n_layer, deep.whole);
    let mut calibration = Calibration {
        micro_batch_seconds: deep.micro_batch,
        // The update's time goes by the adapter's size.
        update_seconds: deep.update * n_layer as f64 / n_deep as f64,
        driver_bytes,
    };
    drop(deep.engine);
    if n_layer > n_deep {
        let flat = Timed::of(file, backend, config, rows, 1, time / 3)?;
        let layer = ((deep.micro_batch - flat.micro_batch) / (n_deep - 1) as f64).max(0.0);
        calibration.micro_batch_seconds = deep.micro_batch + layer * (n_layer - n_deep) as f64;
    }
    Ok(calibration)
}

/// An engine of a few layers, timed.
struct Timed {
    engine: Engine,
    n_layer: usize,
    /// Layers of the whole model.
    whole: usize,
    micro_batch: f64,
    update: f64,
    device_bytes: usize,
}

impl Timed {
    fn of(
        file: &GgufFile,
        backend: &Backend,
        config: &EngineConfig,
        rows: &[Row],
        n_layer: usize,
        time: Duration,
    ) -> bench::Result<Self> {
        let whole = crate::model::Hparams::from_gguf(file).map_err(train::Error::from)?.n_layer;
        let model = Model::shallow(file, backend, n_layer, &bench::fill).map_err(train::Error::from)?;
        let n_layer = model.hp.n_layer;
        let engine = Engine::new(&model, Executor::new(backend, None), config.clone())?;
        engine.lora().map_or(Ok(()), |l| l.init(1)).map_err(train::Error::from)?;
        let random;
        let rows = match rows {
            [] => {
                random = bench::random_rows(config.n_rows, config.seq_len, model.hp.n_vocab, 1);
                random.as_slice()
            }
            rows => &rows[..config.n_rows.min(rows.len())],
        };
        let batch = MicroBatch::new(rows, config.n_rows, config.seq_len);
        let weight = 1.0 / batch.targets.len().max(1) as f32;
        let (mut micro_batches, mut updates) = (Vec::new(), Vec::new());
        let began = Instant::now();
        // The first compiles, and the second may still meet an idle clock.
        while micro_batches.len() < 3 || began.elapsed() < time {
            let start = Instant::now();
            engine.zero_grad()?;
            engine.accumulate(&batch, weight)?;
            backend.wait()?;
            micro_batches.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            engine.apply(micro_batches.len() as u64, 1e-4)?;
            backend.wait()?;
            updates.push(start.elapsed().as_secs_f64());
            if micro_batches.len() == 2 && began.elapsed() > time {
                break;
            }
        }
        // The second half: an idle device's clock rises only after a while of work.
        let late = |all: &[f64]| Spread::of(all[all.len() / 2..].iter().copied()).median;
        Ok(Self {
            device_bytes: engine.device_bytes(),
            engine,
            n_layer,
            whole,
            micro_batch: late(&micro_batches),
            update: late(&updates),
        })
    }
}

/// What an engine was given, and what the caller saw to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    pub bytes: u64,
    /// What `held` said when all was computed.
    pub held: u64,
}

/// Allocates the whole of `config`, with zeros for weights or with those of the file, takes two steps, and asks `held`.
pub fn measure(
    file: &GgufFile,
    backend: &Backend,
    config: &EngineConfig,
    zeros: bool,
    held: &mut dyn FnMut() -> u64,
) -> train::Result<Allocated> {
    let model = match zeros {
        true => Model::shallow(file, backend, usize::MAX, &|t| t.zero())?,
        false => Model::load(file, backend, &mut |_, _| ())?,
    };
    let engine = Engine::new(&model, Executor::new(backend, None), config.clone())?;
    let rows = bench::random_rows(config.n_rows, config.seq_len, model.hp.n_vocab, 1);
    let batch = MicroBatch::new(&rows, config.n_rows, config.seq_len);
    for step in 0..2 {
        engine.zero_grad()?;
        engine.accumulate(&batch, 1.0)?;
        engine.apply(step, 1e-4)?;
    }
    backend.wait()?;
    Ok(Allocated { bytes: engine.device_bytes() as u64, held: held() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_micro_batches_that_are_not_full() {
        let c = Calibration { micro_batch_seconds: 1.0, update_seconds: 0.5, driver_bytes: None };
        // Ten rows: two steps of four rows and one of two; three rows at a time.
        assert_eq!(c.pace(10, 4, 3), Pace { rows: 10, steps: 3, seconds: 5.0 + 1.5 });
        assert_eq!(c.pace(8, 4, 4), Pace { rows: 8, steps: 2, seconds: 3.0 });
        assert_eq!(c.pace(0, 4, 4), Pace { rows: 0, steps: 0, seconds: 0.0 });
    }
}
