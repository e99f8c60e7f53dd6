//! The graphs of a training step, and what some steps leave.

use std::rc::Rc;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::ops::Watcher;
use super::{Check, Class, Comparison, Kind, Place, Result, Session, Tier};
use crate::data::{ordered_rows, PackMode, Row, Sample};
use crate::ggml::{Backend, Dtype, Executor, GgufFile};
use crate::model::{Lora, LoraConfig, Model, Target};
use crate::train::{
    AdamW, Decay, Engine, EngineConfig, Error as TrainError, MicroBatch, Recompute, Schedule, TrainingConfig,
};

/// Rows of an optimizer step: the reference takes them one by one, the device both at once.
const ROWS_PER_STEP: usize = 2;
const LR: f64 = 1e-3;

/// Compares the operations of one step: forward only for [`Tier::T1`], of which the backward is no part.
pub(super) fn ops(session: &mut Session, file: &GgufFile) -> Result<()> {
    let trains = session.config.tier != Tier::T1;
    session.observer.stage(if trains { "operations of a training step" } else { "operations of a forward" });
    let backend = session.pair.reference.backend()?;
    let watcher = Rc::new(Watcher::new(session)?);
    watcher.graph("training");
    // A norm that is always too large: the gradient is scaled down, too.
    let adamw = AdamW { clip: 1e-6, weight_decay: 0.01, ..AdamW::default() };
    let model = Model::load(file, &backend, &mut |_, _| {})?;
    let exec = Executor::new(&backend, None).watched(watcher.clone());
    let engine = engine(session, &model, exec, 1, trains.then_some(adamw))?;
    randomize(lora(&engine)?, session.config.seed)?;
    let rows = rows(session)?;
    let batch = MicroBatch::new(&rows[..1], 1, session.config.seq_len);
    if trains {
        engine.zero_grad()?;
        engine.accumulate(&batch, 1.0 / batch.targets.len().max(1) as f32)?;
        engine.apply(0, LR)?;
    } else {
        engine.losses(&batch, &batch.targets)?;
    }
    watcher.report(session)
}

/// Trains on both devices, and compares losses, parameters, moments and the adapter's file.
pub(super) fn adapters(session: &mut Session, file: &GgufFile) -> Result<()> {
    session.observer.stage("adapters");
    let rows = rows(session)?;
    let reference = Trained::new(session, file, &session.pair.reference, 1, &rows)?;
    session.go_on()?;
    let device = Trained::new(session, file, &session.pair.device, ROWS_PER_STEP, &rows)?;
    let what = format!(
        "{} steps of {ROWS_PER_STEP} rows of {} tokens, {ROWS_PER_STEP} at once against 1",
        session.config.steps, session.config.seq_len
    );
    let parts = [
        ("losses", Comparison::of_floats(&device.losses, &reference.losses)),
        ("parameters", Comparison::of_floats(&device.params, &reference.params)),
        ("moments", Comparison::of_floats(&device.moments, &reference.moments)),
        ("adapter.gguf", Comparison::of(Dtype::I8, &device.file, &reference.file)),
    ];
    parts.into_iter().try_for_each(|(name, found)| {
        session.add(Check::held(Kind::Adapter, name, what.clone(), Class::Exact, found))
    })
}

/// What is left after some steps.
struct Trained {
    /// Of each target of each step.
    losses: Vec<f32>,
    params: Vec<f32>,
    /// The first moments, then the second.
    moments: Vec<f32>,
    file: Vec<u8>,
}

impl Trained {
    fn new(session: &Session, file: &GgufFile, place: &Place, n_rows: usize, rows: &[Row]) -> Result<Self> {
        let config = session.config;
        let backend: Backend = place.backend()?;
        let model = Model::load(file, &backend, &mut |_, _| {})?;
        let engine = engine(session, &model, Executor::new(&backend, None), n_rows, Some(AdamW::default()))?;
        let lora = lora(&engine)?;
        lora.init(config.seed)?;
        let schedule = Schedule { lr: LR, decay: Decay::Linear, warmup: 0, total: config.steps as u64 };
        let mut losses = Vec::new();
        for step in 0..config.steps {
            session.go_on()?;
            let rows: Vec<Row> =
                (0..ROWS_PER_STEP).map(|i| rows[(ROWS_PER_STEP * step + i) % rows.len()].clone()).collect();
            let trained: usize = rows.iter().map(Row::n_targets).sum();
            engine.zero_grad()?;
            for rows in rows.chunks(n_rows) {
                let batch = MicroBatch::new(rows, n_rows, config.seq_len);
                losses.extend(engine.accumulate(&batch, 1.0 / trained.max(1) as f32)?);
            }
            engine.apply(step as u64, schedule.lr_at(step as u64))?;
        }
        let training = lora.training.as_ref().ok_or(TrainError::NotTraining)?;
        let mut moments: Vec<f32> = training.m.download()?;
        moments.extend(training.v.download::<f32>()?);
        let path = tempfile::Builder::new()
            .prefix("qvac-ft-verify-")
            .tempfile()
            .map_err(|source| TrainError::Io { action: "write to", path: std::env::temp_dir(), source })?
            .into_temp_path();
        lora.to_file(&model.hp, model.name.clone())?.write(&path)?;
        let file = std::fs::read(&path).map_err(|source| TrainError::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self { losses, params: lora.params.download()?, moments, file })
    }
}

fn engine(
    session: &Session,
    model: &Model,
    exec: Executor,
    n_rows: usize,
    adamw: Option<AdamW>,
) -> Result<Engine> {
    let lora = LoraConfig { rank: 8, alpha: 16.0, targets: Target::ALL.to_vec() };
    let training = adamw.map(|adamw| TrainingConfig { recompute: Recompute::On, adamw, backward_limbs: 2 });
    let config = EngineConfig { seq_len: session.config.seq_len, n_rows, lora: Some(lora), training };
    Ok(Engine::new(model, exec, config)?)
}

fn lora(engine: &Engine) -> Result<&Lora> {
    Ok(engine.lora().ok_or(TrainError::NotTraining)?)
}

/// Noise in A and B: the gradients of an adapter that is still zero are zero in part.
fn randomize(lora: &Lora, seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut params = vec![0f32; lora.params.n_elements()];
    for slot in &lora.slots {
        let bound = 1.0 / (slot.ne[0] as f32).sqrt();
        params[slot.range()].iter_mut().for_each(|p| *p = rng.random_range(-bound..bound));
    }
    Ok(lora.params.upload(&params)?)
}

/// The samples in rows; what does not fit is cut.
fn rows(session: &Session) -> Result<Vec<Row>> {
    let seq_len = session.config.seq_len;
    let cut = session.pair.samples.iter().map(|sample| {
        let mut sample = sample.clone();
        sample.tokens.truncate(seq_len);
        sample.train.truncate(seq_len);
        sample
    });
    let samples: Vec<Sample> = cut.filter(|s| s.n_targets() > 0).collect();
    let rows = ordered_rows(&samples, seq_len, PackMode::Pack)?;
    match rows.is_empty() {
        true => Err(TrainError::NothingTrained { step: None, records: Vec::new() }.into()),
        false => Ok(rows),
    }
}
