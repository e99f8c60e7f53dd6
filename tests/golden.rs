//! Two training steps of tiny models against PyTorch: logits, losses, every gradient, clipping and AdamW.
//!
//! `scripts/golden.py` made the numbers, in f64, with the network written down from the papers. Each file carries the
//! checksum of its data and of the script: whoever changes the script has to make the numbers anew.
//! Ternary weights are in no file: the script and this test make the same ones. No activation of the script's lies where
//! f32 might round it to another 8-bit integer, so that the tolerances are those of floats.

mod common;

use std::path::{Path, PathBuf};

use common::device::cpu;
use common::numeric::norm;
use qvac_ft::data::{ordered_rows, Origin, PackMode, Row, Sample};
use qvac_ft::ggml::{Backend, Dtype, Executor, GgufFile, GgufWriter};
use qvac_ft::model::{Lora, LoraConfig, Model, Target, ARCHITECTURES};
use qvac_ft::train::{AdamW, Engine, EngineConfig, MicroBatch, Prediction, Recompute, TrainingConfig};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Largest error of a logit's log-probability and of a loss, which are of order 1 to 20: f32 sums against f64.
const FORWARD: f64 = 1e-4;
/// Error of a gradient in the Euclidean norm, relative to that of its matrix.
const GRADIENT: f64 = 5e-5;
/// The same of the change that a step makes to a matrix. AdamW divides by the root of tiny squares.
const UPDATE: f64 = 1e-4;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One architecture's numbers.
struct Golden {
    bytes: Vec<u8>,
    metadata: std::collections::HashMap<String, String>,
}

impl Golden {
    fn open(architecture: &str, kind: &str) -> Self {
        let path = root().join(format!("tests/fixtures/golden/{architecture}-{kind}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
        let (n, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().expect("metadata");
        assert_eq!(metadata["data_sha256"], hex(&bytes[8 + n..]), "`{}` was changed", path.display());
        let script = std::fs::read(root().join("scripts/golden.py")).expect("the script");
        assert_eq!(
            metadata["generator_sha256"],
            hex(&script),
            "`scripts/golden.py` has changed since it made `{}`: run it",
            path.display()
        );
        assert!(!metadata["torch"].is_empty());
        Self { bytes, metadata }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file")
    }

    fn raw(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
        view.data().chunks_exact(4).map(|c| c.try_into().expect("four bytes")).collect()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.raw(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn i32(&self, name: &str) -> Vec<i32> {
        self.raw(name).into_iter().map(i32::from_le_bytes).collect()
    }

    fn json(&self, key: &str) -> Value {
        serde_json::from_str(&self.metadata[key]).expect("JSON")
    }

    fn number(&self, key: &str) -> f32 {
        self.metadata[key].parse().expect("a number")
    }

    /// The model as a GGUF file, its linear layers of type `dtype`.
    fn write_model(&self, dtype: Dtype, dir: &Path) -> PathBuf {
        let arch = &self.metadata["architecture"];
        let sizes: Vec<u32> = serde_json::from_value(self.json("sizes")).expect("sizes");
        let [n_embd, n_layer, n_head, n_head_kv, n_ff, n_vocab] = sizes[..] else { panic!("six sizes") };
        let mut w = GgufWriter::new();
        w.set("general.architecture", arch.as_str());
        for (key, value) in [
            ("vocab_size", n_vocab),
            ("context_length", 64),
            ("embedding_length", n_embd),
            ("block_count", n_layer),
            ("feed_forward_length", n_ff),
            ("attention.head_count", n_head),
            ("attention.head_count_kv", n_head_kv),
        ] {
            w.set(&format!("{arch}.{key}"), value);
        }
        w.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), self.number("rms_eps"));
        w.set(&format!("{arch}.rope.freq_base"), self.number("rope_base"));
        let tensors = self.tensors();
        let is_weight = |name: &str| {
            name.ends_with(".weight") && !["start.", "grad.", "step"].iter().any(|p| name.starts_with(p))
        };
        let weights: Vec<_> = tensors.iter().filter(|(name, _)| is_weight(name)).collect();
        for (name, view) in &weights {
            // Rows of PyTorch's matrices are outputs, and the last dimension is the fastest.
            let ne: Vec<i64> = view.shape().iter().rev().map(|&n| n as i64).collect();
            w.add_tensor(name, &ne, Dtype::F32).expect("fits");
        }
        let ternary: Vec<_> = match dtype.is_ternary() {
            true => (0..n_layer).flat_map(|il| Target::ALL.map(|t| (il, t))).collect(),
            false => Vec::new(),
        };
        let sizes = |target| match target {
            Target::AttnK | Target::AttnV => (n_embd, n_embd / n_head * n_head_kv),
            Target::FfnGate | Target::FfnUp => (n_embd, n_ff),
            Target::FfnDown => (n_ff, n_embd),
            Target::AttnQ | Target::AttnOutput => (n_embd, n_embd),
        };
        for (il, target) in &ternary {
            let (n_in, n_out) = sizes(*target);
            w.add_tensor(&target.tensor_name(*il as usize), &[n_in.into(), n_out.into()], dtype)
                .expect("fits");
        }
        let path = dir.join("golden.gguf");
        let mut stream = w.create(&path).expect("creates");
        for (_, view) in &weights {
            stream.write(view.data()).expect("writes");
        }
        for (number, (_, target)) in ternary.iter().enumerate() {
            let (n_in, n_out) = sizes(*target);
            let values = trits(number as u32, (n_in * n_out) as usize);
            let mut bytes = Vec::new();
            dtype.quantize(&values, n_in as usize, &mut bytes).expect("whole blocks");
            stream.write(&bytes).expect("writes");
        }
        stream.finish().expect("finishes");
        path
    }

    /// The samples, packed as the script says, and the rows they lie in.
    fn rows(&self, seq_len: usize) -> (Vec<Sample>, Vec<Row>) {
        let rows: Vec<Vec<usize>> = serde_json::from_value(self.json("rows")).expect("rows");
        let (mut tokens, mut train) = (self.i32("tokens").into_iter(), self.i32("train").into_iter());
        let samples: Vec<Sample> = rows
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, &n)| Sample {
                tokens: tokens.by_ref().take(n).collect(),
                train: train.by_ref().take(n).map(|t| t != 0).collect(),
                origin: Origin { file: Path::new("golden").into(), line: i + 1 },
                label: None,
                answer_start: 1,
                answer_end: n,
                truncated: None,
            })
            .collect();
        let packed = ordered_rows(&samples, seq_len, PackMode::Pack).expect("they fit");
        let counts = |row: &Row| row.samples.len();
        assert_eq!(
            packed.iter().map(counts).collect::<Vec<_>>(),
            rows.iter().map(Vec::len).collect::<Vec<_>>()
        );
        (samples, packed)
    }

    /// Every matrix of the adapter, as the tensors whose names begin with `prefix` have it, in the flat layout.
    fn flat(&self, prefix: &str, lora: &Lora) -> Vec<f32> {
        let mut flat = vec![0.0; lora.params.n_elements()];
        for slot in &lora.slots {
            flat[slot.range()].copy_from_slice(&self.f32(&format!("{prefix}.{}", slot.tensor_name())));
        }
        flat
    }
}

/// The script's `make_ternary`.
fn trits(number: u32, n: usize) -> Vec<f32> {
    let scale = (64 + number) as f32 / 1024.0;
    let mut x = number;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 16) % 3) as f32 - 1.0
    };
    (0..n).map(|_| next() * scale).collect()
}

fn largest(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// The worst matrix, by `|found - expected| / |expected - from|`.
fn by_matrix(lora: &Lora, what: &str, found: &[f32], expected: &[f32], from: &[f32], tolerance: f64) {
    let mut worst = 0.0f64;
    for slot in &lora.slots {
        let wide = |x: &[f32], y: &[f32]| norm(x.iter().zip(y).map(|(x, y)| f64::from(x - y)));
        let (found, expected, from) = (&found[slot.range()], &expected[slot.range()], &from[slot.range()]);
        let size = wide(expected, from);
        assert!(size > 0.0, "{what} of `{}` is nothing", slot.tensor_name());
        let error = wide(found, expected) / size;
        worst = worst.max(error);
        assert!(error <= tolerance, "{what} of `{}` differs by {error:.1e}", slot.tensor_name());
    }
    eprintln!("  {what}: {worst:.1e}");
}

fn check(architecture: &str, dtype: Dtype, recompute: Recompute) {
    eprintln!("{architecture} {dtype}, recompute {recompute:?}");
    let golden = Golden::open(architecture, if dtype.is_ternary() { "ternary" } else { "float" });
    let dir = tempfile::tempdir().unwrap();
    let seq_len = golden.number("seq_len") as usize;
    let (samples, rows) = golden.rows(seq_len);
    let batch = MicroBatch::new(&rows, rows.len(), seq_len);

    let adamw = golden.json("adamw");
    let constant = |key: &str| adamw[key].as_f64().expect("a number") as f32;
    let beta = |i: usize| adamw["betas"][i].as_f64().expect("a number") as f32;
    let adamw = AdamW {
        beta1: beta(0),
        beta2: beta(1),
        eps: constant("eps"),
        weight_decay: constant("weight_decay"),
        clip: constant("clip"),
    };
    let lr = golden.json("adamw")["lr"].as_f64().expect("a number");
    let backend = Backend::new(&cpu(), 1).unwrap();
    let model = Model::load(
        &GgufFile::open(golden.write_model(dtype, dir.path())).unwrap(),
        &backend,
        &mut |_, _| {},
    )
    .unwrap();
    let lora = LoraConfig {
        rank: golden.number("rank") as usize,
        alpha: golden.number("alpha"),
        targets: Target::ALL.to_vec(),
    };
    let training = Some(TrainingConfig { recompute, adamw, backward_limbs: 2 });
    let config = EngineConfig { seq_len, n_rows: rows.len(), lora: Some(lora), training };
    let engine = Engine::new(&model, Executor::new(&backend, None), config).unwrap();
    let lora = engine.lora().unwrap();
    let start = golden.flat("start", lora);
    lora.params.upload(&start).unwrap();

    // Every logit: the loss of each label after each token is its log-probability.
    let logits = golden.f32("logits");
    let n_vocab = logits.len() / samples.iter().map(Sample::len).sum::<usize>();
    let mut targets = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        for at in (0..seq_len).filter(|&at| row.segments[at] >= 0) {
            let at = (r * seq_len + at) as u32;
            targets.extend((0..n_vocab as i32).map(|label| Prediction { at, label }));
        }
    }
    let losses = engine.losses(&batch, &targets).unwrap();
    let expected: Vec<f32> = logits
        .chunks(n_vocab)
        .flat_map(|row| {
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            row.iter().map(move |&l| (sum.ln() - f64::from(l)) as f32)
        })
        .collect();
    let error = largest(&losses, &expected);
    eprintln!("  logits: {error:.1e}");
    assert!(error <= FORWARD, "logits differ by {error:.1e}");

    let norms = golden.json("norms");
    let mut before = start.clone();
    for step in [1, 2] {
        engine.zero_grad().unwrap();
        let losses = engine.accumulate(&batch, 1.0 / batch.targets.len() as f32).unwrap();
        let error = largest(&losses, &golden.f32(&format!("losses.{step}")));
        eprintln!("  losses of step {step}: {error:.1e}");
        assert!(error <= FORWARD, "losses of step {step} differ by {error:.1e}");
        if step == 1 {
            let grad: Vec<f32> = lora.training.as_ref().unwrap().grad.download().unwrap();
            let zero = vec![0.0; grad.len()];
            by_matrix(lora, "gradient", &grad, &golden.flat("grad", lora), &zero, GRADIENT);
        }
        let norm = engine.apply(step - 1, lr).unwrap();
        let expected = norms[step as usize - 1].as_f64().unwrap();
        assert!((norm - expected).abs() / expected <= GRADIENT, "norm {norm}, expected {expected}");
        let after: Vec<f32> = lora.params.download().unwrap();
        let expected = golden.flat(&format!("step{step}"), lora);
        by_matrix(lora, &format!("change of step {step}"), &after, &expected, &before, UPDATE);
        if dtype.is_ternary() {
            // What is left over moves some activation past the middle between two integers.
            lora.params.upload(&expected).unwrap();
        }
        before = expected;
    }
}

#[test]
fn two_steps_are_pytorchs() {
    for arch in ARCHITECTURES {
        for dtype in [Dtype::F32, Dtype::TQ1_0, Dtype::TQ2_0] {
            for recompute in [Recompute::On, Recompute::Off] {
                check(arch.name, dtype, recompute);
            }
        }
    }
}
