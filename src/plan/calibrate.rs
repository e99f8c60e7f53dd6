//! How long a micro-batch takes, measured on the first layers of the model with random weights.
//!
//! A step of one layer and one of a few are timed; a layer's share is their difference, and the rest (embedding, head,
//! the host's part) is what remains. So no weights are read, and a model that is larger than the memory can be timed.

use std::time::Duration;

use serde::Serialize;

use super::pace::Times;
use super::weights::fill;
use crate::bench;
use crate::data::Row;
use crate::ggml::{Backend, Executor, GgufFile};
use crate::model::Model;
use crate::train::{self, Engine, EngineConfig};

/// Layers of the deeper of the two models.
const DEEP: usize = 4;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Of the whole model.
    #[serde(flatten)]
    pub times: Times,
    /// What the device's driver took beyond the engine's allocations; `None` where the device does not tell.
    pub driver_bytes: Option<u64>,
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
    let tells = device.is_gpu() && fell > 0;
    let driver_bytes = tells.then(|| fell.saturating_sub(deep.device_bytes) as u64);
    let (n_deep, n_layer) = (deep.n_layer, deep.whole);
    let mut calibration = Calibration { times: deep.times, driver_bytes };
    drop(deep.engine);
    if n_layer > n_deep {
        let flat = Timed::of(file, backend, config, rows, 1, time / 3)?;
        // A layer's share is what a layer more takes; what is left is the head's and the host's.
        let more = (n_layer - n_deep) as f64 / (n_deep - 1) as f64;
        let stretch = |deep: f64, flat: f64| deep + (deep - flat).max(0.0) * more;
        calibration.times = Times {
            micro_batch_seconds: stretch(deep.times.micro_batch_seconds, flat.times.micro_batch_seconds),
            update_seconds: stretch(deep.times.update_seconds, flat.times.update_seconds),
        };
    }
    Ok(calibration)
}

/// An engine of a few layers, timed.
struct Timed {
    engine: Engine,
    n_layer: usize,
    /// Layers of the whole model.
    whole: usize,
    times: Times,
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
        let model = Model::shallow(file, backend, n_layer, &fill).map_err(train::Error::from)?;
        let n_layer = model.hp.n_layer;
        let engine = Engine::new(&model, Executor::new(backend, None), config.clone())?;
        engine.lora().map_or(Ok(()), |l| l.init(1)).map_err(train::Error::from)?;
        let times = Times::of(&engine, backend, rows, model.hp.n_vocab, time)?;
        Ok(Self { device_bytes: engine.device_bytes(), engine, n_layer, whole, times })
    }
}

/// What a whole engine was given, what the caller saw to be held, and how fast it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whole {
    pub bytes: u64,
    /// What `held` said when all was computed.
    pub held: u64,
    pub times: Times,
}

/// Allocates the whole of `config`, with zeros for weights or with those of the file, takes steps on `rows` for `time`, and
/// asks `held`.
pub fn measure(
    file: &GgufFile,
    backend: &Backend,
    config: &EngineConfig,
    zeros: bool,
    (rows, time): (&[Row], Duration),
    held: &mut dyn FnMut() -> u64,
) -> train::Result<Whole> {
    let model = match zeros {
        true => Model::shallow(file, backend, usize::MAX, &|t| t.zero())?,
        false => Model::load(file, backend, &mut |_, _| ())?,
    };
    let engine = Engine::new(&model, Executor::new(backend, None), config.clone())?;
    let times = Times::of(&engine, backend, rows, model.hp.n_vocab, time)?;
    Ok(Whole { bytes: engine.device_bytes() as u64, held: held(), times })
}
