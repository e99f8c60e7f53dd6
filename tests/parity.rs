//! Our graph against libllama's, on the same file and the same tokens.
//!
//! Every architecture of `ARCHITECTURES` and every type that `synth` makes, with and without an adapter that libllama loads
//! from the file that we wrote. The rows that we compute are packed: libllama sees each sample alone.

mod common;

use std::path::Path;

use common::device::cpu;
use common::numeric::{
    engine, float_context, lora, micro_batch, nano, norm, randomize, rewritten, rows, samples, scales,
    write_model, Extra, Setup, FAMILIES,
};
use qvac_ft::data::Sample;
use qvac_ft::ggml::Dtype;
use qvac_ft::llama::{self, Batch, LoraAdapter, ModelParams};
use qvac_ft::model::{Hparams, ARCHITECTURES};
use qvac_ft::synth::{Family, TYPES};
use qvac_ft::train::Prediction;

// The largest error of a log-probability, over the deviation of the logits.

/// f32 weights: both sides add the same f32 products, in another order.
const F32_TOLERANCE: f64 = 5e-5;
/// f16 weights, or an adapter in f16: libllama's kernels round activations to f16 where ours may keep f32.
const F16_TOLERANCE: f64 = 2e-2;
/// Activations are rounded to 8 bits, 1/127 of the largest of a block. libllama repacks such weights for kernels of their
/// own, and an adapter's f16 noise moves about one rounding in ten by a whole step; what is left is noise of that size.
const INT8_TOLERANCE: f64 = 0.3;

const SEQ_LEN: usize = 32;
/// One full row; two samples and one token of padding in the other.
const LENGTHS: [usize; 3] = [32, 13, 18];
/// Labels looked at after each token; after a sample's last token, all of them.
const LABELS_PER_TOKEN: usize = 8;

/// libllama's log-probabilities after each token of each sample.
fn theirs(model: &Path, adapter: Option<&Path>, samples: &[Sample]) -> Vec<Vec<Vec<f64>>> {
    let model = llama::Model::load(model, &ModelParams::on(Some("cpu"))).unwrap();
    let mut context = llama::Context::new(&model, &float_context()).unwrap();
    if let Some(path) = adapter {
        context.set_adapters(&[(LoraAdapter::load(&model, path).unwrap(), 1.0)]).unwrap();
    }
    let mut after = |sample: &Sample| -> Vec<Vec<f64>> {
        context.clear();
        let mut batch = Batch::new();
        for (pos, &token) in sample.tokens.iter().enumerate() {
            batch.push(token, pos as i32, 0, true);
        }
        context.decode(&mut batch).unwrap();
        (0..sample.len()).map(|row| log_softmax(context.logits(row).unwrap())).collect()
    };
    samples.iter().map(&mut after).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(l.into()));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
}

/// The labels to look at after token `at` of a sample of `n`.
fn labels(at: usize, n: usize) -> Vec<usize> {
    if at + 1 == n {
        return (0..common::N_VOCAB).collect();
    }
    (0..LABELS_PER_TOKEN).map(|i| (at * 131 + i * 67) % common::N_VOCAB).collect()
}

/// Largest difference over the deviation of `b`.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    largest / deviation(b)
}

/// Compares both graphs on the file `model`: bare at the first tolerance, with an adapter in f16 at the second, and
/// with one in f32 at the first again where the weights are f32.
fn check(case: &str, model: &Path, bare: f64, with_f16: f64) {
    let samples = samples(5, &LENGTHS);
    let rows = rows(&samples, SEQ_LEN);
    assert_eq!(rows.len(), 2, "the last two samples share a row");
    let batch = micro_batch(&rows);
    let mut targets = Vec::new();
    let mut places = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        for (at, &segment) in row.segments.iter().enumerate().filter(|(_, s)| **s >= 0) {
            let (sample, pos) = (row.samples[segment as usize], row.positions[at] as usize);
            for label in labels(pos, samples[sample].len()) {
                targets.push(Prediction { at: (r * SEQ_LEN + at) as u32, label: label as i32 });
                places.push((sample, pos, label));
            }
        }
    }
    let setup = Setup { recompute: None, ..Setup::training(&cpu(), SEQ_LEN, rows.len()) };
    let engine = engine(model, &setup);
    let ours =
        || -> Vec<f64> { engine.losses(&batch, &targets).unwrap().iter().map(|&l| -f64::from(l)).collect() };
    let compared = |what: &str, adapter: Option<&Path>, tolerance: f64| {
        let (ours, theirs) = (ours(), theirs(model, adapter, &samples));
        let theirs: Vec<f64> = places.iter().map(|&(s, pos, label)| theirs[s][pos][label]).collect();
        let error = difference(&ours, &theirs);
        eprintln!("{case}, {what}: {error:.1e}");
        assert!(error <= tolerance, "{case}, {what}: log-probabilities differ by {error:.1e} deviations");
        ours
    };

    let before = compared("bare", None, bare);
    randomize(lora(&engine), 3);
    let file = lora(&engine).to_file(&Hparams::from_path(model).unwrap(), None).unwrap();
    let adapter = model.with_extension("adapter.gguf");
    file.write(&adapter).unwrap();
    let after = compared("f16 adapter", Some(&adapter), with_f16);
    let moved = difference(&after, &before);
    assert!(moved > 1.0, "{case}: the adapter moves no log-probability by more than {moved:.1e} deviations");
    if bare == F32_TOLERANCE {
        file.write_as(&adapter, Dtype::F32).unwrap();
        compared("f32 adapter", Some(&adapter), bare);
    }
}

fn deviation(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    norm(x.iter().map(|x| x - mean)) / (x.len() as f64).sqrt()
}

fn family(architecture: &str) -> Family {
    let found = FAMILIES.into_iter().find(|f| f.architecture() == architecture);
    found.unwrap_or_else(|| panic!("`synth` cannot make a model of architecture `{architecture}`"))
}

fn check_type(case: &str, model: &Path, dtype: Dtype) {
    let tolerance = if dtype == Dtype::F16 { F16_TOLERANCE } else { INT8_TOLERANCE };
    check(&format!("{case} {dtype}"), model, tolerance, tolerance);
    if dtype == Dtype::F16 {
        check(&format!("{case} f32"), &rewritten(model, true, &[]), F32_TOLERANCE, F16_TOLERANCE);
    }
}

#[test]
fn plain_models() {
    for arch in ARCHITECTURES {
        for dtype in TYPES {
            let dir = tempfile::tempdir().unwrap();
            let model = write_model(&nano(family(arch.name), dtype), dir.path());
            check_type(arch.name, &model, dtype);
        }
    }
}

/// Grouped queries, and everything that is optional: a scale for each layer, and for `llama` an output matrix.
#[test]
fn grouped_queries_and_scales() {
    for arch in ARCHITECTURES {
        for dtype in TYPES {
            let dir = tempfile::tempdir().unwrap();
            let mut config = nano(family(arch.name), dtype);
            config.n_head_kv = Some(2);
            config.untied = config.family == Family::Llama;
            let plain = write_model(&config, dir.path());
            let model = rewritten(&plain, false, &scales(config.shape.n_layer));
            check_type(&format!("{}, grouped, scaled,", arch.name), &model, dtype);
        }
    }
}

/// `llama` files may also have biases, and factors of the rotary frequencies (Llama 3).
#[test]
fn biases_and_rope_factors() {
    let dir = tempfile::tempdir().unwrap();
    let config = nano(Family::Llama, Dtype::F16);
    let shape = config.shape;
    let plain = write_model(&config, dir.path());
    let ramp = |n: usize, step: f32| (0..n).map(|i| step * ((i * 37 % 19) as f32 - 9.0)).collect::<Vec<_>>();
    let mut extra = scales(shape.n_layer);
    for il in 0..shape.n_layer {
        for (name, n) in [
            ("attn_q", shape.n_embd),
            ("attn_k", shape.n_embd),
            ("attn_v", shape.n_embd),
            ("attn_output", shape.n_embd),
            ("ffn_gate", shape.n_ff),
            ("ffn_up", shape.n_ff),
            ("ffn_down", shape.n_embd),
        ] {
            extra.push(Extra { name: format!("blk.{il}.{name}.bias"), values: ramp(n, 0.1) });
        }
    }
    let n_freqs = shape.n_embd / shape.n_head / 2;
    let factors = (0..n_freqs).map(|i| 1.0 + i as f32 / 4.0).collect();
    extra.push(Extra { name: "rope_freqs.weight".into(), values: factors });
    let model = rewritten(&plain, true, &extra);
    check("llama f32, biases and rope factors", &model, F32_TOLERANCE, F16_TOLERANCE);
}
