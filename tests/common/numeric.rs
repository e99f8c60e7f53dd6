//! Small engines over synthetic models, and what the numerical tests feed them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qvac_ft::data::{ordered_rows, Origin, PackMode, Row, Sample};
use qvac_ft::ggml::{Backend, Device, Dtype, Executor, GgufFile, GgufWriter};
use qvac_ft::llama::{ContextParams, FlashAttention, KvType};
use qvac_ft::model::{Lora, LoraConfig, Model, Target};
use qvac_ft::synth::{self, Family, Shape};
use qvac_ft::train::{Engine, EngineConfig, MicroBatch, Recompute, TrainingConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Every family that synthetic models can be made of.
pub const FAMILIES: [Family; 3] = [Family::Llama, Family::Bitnet, Family::BitnetB158];

/// Every family with either ternary type.
pub fn ternary_models() -> impl Iterator<Item = synth::Config> {
    FAMILIES.into_iter().flat_map(|family| [Dtype::TQ1_0, Dtype::TQ2_0].map(|dtype| nano(family, dtype)))
}

/// The nano shape: the smallest whose rows are whole blocks of the ternary types.
pub fn nano(family: Family, dtype: Dtype) -> synth::Config {
    let shape = synth::find_shape("bitnet-nano").expect("the shape for tests is there");
    synth::Config { family, threads: 1, ..synth::Config::new(*shape, dtype, 7) }
}

/// A shape for f32 weights that is computed in a moment: three blocks, grouped queries.
pub fn pico(family: Family) -> synth::Config {
    let (n_embd, n_layer, n_head, n_head_kv, n_embd_head, n_ff, n_vocab) = (64, 3, 4, 2, 16, 96, 512);
    let shape =
        Shape { name: "pico", family, n_embd, n_layer, n_head, n_head_kv, n_embd_head, n_ff, n_vocab };
    synth::Config { threads: 1, ..synth::Config::new(shape, Dtype::F16, 11) }
}

/// Writes the model of `config` to `dir`.
pub fn write_model(config: &synth::Config, dir: &Path) -> PathBuf {
    let path = dir.join("model.gguf");
    synth::write(config, &path, &mut |_, _| {}).expect("writes the model");
    path
}

/// A tensor for [`rewritten`] to add.
pub struct Extra {
    pub name: String,
    pub values: Vec<f32>,
}

/// The same model once more, all in f32 if `f32`, with f32 vectors of its own added.
pub fn rewritten(model: &Path, f32: bool, extra: &[Extra]) -> PathBuf {
    let file = GgufFile::open(model).expect("opens");
    let mut w = GgufWriter::new();
    w.copy_metadata(&file);
    for t in file.tensors() {
        let ne: Vec<i64> = t.ne[..t.n_dims].to_vec();
        w.add_tensor(&t.name, &ne, if f32 { Dtype::F32 } else { t.dtype }).expect("fits");
    }
    for e in extra {
        w.add_tensor(&e.name, &[e.values.len() as i64], Dtype::F32).expect("fits");
    }
    let path = model.with_extension("rewritten.gguf");
    let mut stream = w.create(&path).expect("creates");
    for t in file.tensors() {
        match f32 {
            true => stream.write(&bytes(&file.read_f32(t).expect("reads"))).expect("writes"),
            false => stream.write(file.bytes(t)).expect("writes"),
        }
    }
    for e in extra {
        stream.write(&bytes(&e.values)).expect("writes");
    }
    stream.finish().expect("finishes");
    path
}

/// A `scale` for each linear layer of `n_layer` blocks, all different and none 1.
pub fn scales(n_layer: usize) -> Vec<Extra> {
    let layers = (0..n_layer).flat_map(|il| Target::ALL.map(|t| (il, t)));
    let extra = layers.enumerate().map(|(i, (il, t))| Extra {
        name: format!("blk.{il}.{}.scale", t.name()),
        values: vec![0.7 + 0.05 * i as f32],
    });
    extra.collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// What [`engine`] is to make.
#[derive(Clone)]
pub struct Setup {
    pub device: Device,
    pub threads: usize,
    pub seq_len: usize,
    pub n_rows: usize,
    pub lora: Option<LoraConfig>,
    pub recompute: Option<Recompute>,
}

impl Setup {
    /// A training engine with all targets, on one thread.
    pub fn training(device: &Device, seq_len: usize, n_rows: usize) -> Self {
        let lora = LoraConfig { rank: 4, alpha: 8.0, targets: Target::ALL.to_vec() };
        let recompute = Some(Recompute::On);
        Self { device: device.clone(), threads: 1, seq_len, n_rows, lora: Some(lora), recompute }
    }
}

/// libllama in floats wherever it lets one choose, in one order of sums.
pub fn float_context() -> ContextParams {
    ContextParams {
        n_ctx: NonZeroU32::new(64),
        n_batch: 64,
        n_ubatch: 64,
        n_threads: NonZeroU32::new(1),
        flash_attention: FlashAttention::Off,
        kv_type: KvType::F32,
        ..ContextParams::default()
    }
}

/// An engine for `model`, its adapter all zero.
pub fn engine(model: &Path, setup: &Setup) -> Engine {
    let backend = Backend::new(&setup.device, setup.threads).expect("the device opens");
    let model = Model::load(&GgufFile::open(model).expect("a GGUF file"), &backend, &mut |_, _| {})
        .expect("the model loads");
    let config = EngineConfig {
        seq_len: setup.seq_len,
        n_rows: setup.n_rows,
        lora: setup.lora.clone(),
        training: setup.recompute.map(|recompute| TrainingConfig {
            recompute,
            adamw: Default::default(),
            backward_limbs: 2,
        }),
    };
    Engine::new(&model, Executor::new(&backend, None), config).expect("the engine is built")
}

pub fn lora(engine: &Engine) -> &Lora {
    engine.lora().expect("the engine has an adapter")
}

/// Fills A and B with noise that f16 holds exactly and that weighs about as much as the layer itself.
pub fn randomize(lora: &Lora, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut params = vec![0f32; lora.params.n_elements()];
    for slot in &lora.slots {
        let bound = 1.0 / (slot.ne[0] as f32).sqrt();
        for p in &mut params[slot.range()] {
            *p = half::f16::from_f32(rng.random_range(-bound..bound)).to_f32();
        }
    }
    lora.params.upload(&params).expect("uploads");
}

/// Samples of random tokens of those lengths, about half of them trained, the last always.
pub fn samples(seed: u64, lengths: &[usize]) -> Vec<Sample> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let file: Arc<Path> = Path::new("made.jsonl").into();
    let mut sample = |(i, &n): (usize, &usize)| Sample {
        tokens: (0..n).map(|_| rng.random_range(4..super::N_VOCAB as i32)).collect(),
        train: (0..n).map(|i| i + 1 == n || rng.random_bool(0.5)).collect(),
        origin: Origin { file: file.clone(), line: i + 1 },
        label: None,
        answer_start: 1,
        answer_end: n,
        truncated: None,
    };
    lengths.iter().enumerate().map(&mut sample).collect()
}

/// Rows of `seq_len` with `samples` in their order.
pub fn rows(samples: &[Sample], seq_len: usize) -> Vec<Row> {
    ordered_rows(samples, seq_len, PackMode::Pack).expect("they fit")
}

/// One micro-batch of all `rows`.
pub fn micro_batch(rows: &[Row]) -> MicroBatch {
    MicroBatch::new(rows, rows.len(), rows[0].tokens.len())
}

/// The sum of the losses of all targets, in f64.
pub fn loss(engine: &Engine, batch: &MicroBatch) -> f64 {
    engine.losses(batch, &batch.targets).expect("computes").iter().map(|&l| f64::from(l)).sum()
}

/// The adapter's gradients of `weight` times the sum of the losses.
pub fn gradients(engine: &Engine, batch: &MicroBatch, weight: f32) -> Vec<f32> {
    engine.zero_grad().expect("zeroes");
    engine.accumulate(batch, weight).expect("computes");
    grad(engine)
}

/// The gradients accumulated so far.
pub fn grad(engine: &Engine) -> Vec<f32> {
    lora(engine).training.as_ref().expect("a training engine").grad.download().expect("downloads")
}

pub fn norm(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `|a - b| / |b|`, in the Euclidean norm.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let wide = |x: &f32| f64::from(*x);
    norm(a.iter().zip(b).map(|(a, b)| wide(a) - wide(b))) / norm(b.iter().map(wide))
}
