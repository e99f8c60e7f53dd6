//! Logits of the converted files, in libllama and in our own graph, against transformers' with its integer activations.

use std::path::Path;
use std::sync::Arc;

use qvac_ft::data::{Origin, Sample};
use qvac_ft::ggml::Dtype;
use qvac_ft::llama::{self, Batch, ModelParams};
use qvac_ft::train::Prediction;

use crate::checkpoint::{Checkpoint, CASES};
use crate::common::device::cpu;
use crate::common::numeric::{engine, float_context, micro_batch, rows, Setup};

// The largest error of a logit over the deviation of its row. The tokens are such that no activation lies where its
// rounding to int8 changes, so that all sides multiply the same integers.

/// f32 in another order.
const OUR_TOLERANCE: f64 = 2e-5;
/// libllama's product with an f16 head rounds the last activations to f16.
const LIBLLAMA_TOLERANCE: f64 = 2e-3;

fn libllama(model: &Path, tokens: &[i32]) -> Vec<Vec<f32>> {
    let model = llama::Model::load(model, &ModelParams::on(Some("cpu"))).unwrap();
    let mut context = llama::Context::new(&model, &float_context()).unwrap();
    let mut batch = Batch::new();
    for (pos, &token) in tokens.iter().enumerate() {
        batch.push(token, pos as i32, 0, true);
    }
    context.decode(&mut batch).unwrap();
    (0..tokens.len()).map(|row| context.logits(row).unwrap().to_vec()).collect()
}

/// Log-probabilities of our own graph.
fn ours(model: &Path, tokens: &[i32], n_vocab: usize) -> Vec<Vec<f32>> {
    let sample = Sample {
        tokens: tokens.to_vec(),
        train: vec![true; tokens.len()],
        origin: Origin { file: Arc::from(Path::new("made.jsonl")), line: 1 },
        label: None,
        answer_start: 1,
        answer_end: tokens.len(),
        truncated: None,
    };
    let rows = rows(&[sample], tokens.len());
    let setup = Setup { lora: None, recompute: None, ..Setup::training(&cpu(), tokens.len(), 1) };
    let engine = engine(model, &setup);
    let all = (0..tokens.len()).flat_map(|at| (0..n_vocab).map(move |label| (at, label)));
    let targets: Vec<Prediction> =
        all.map(|(at, label)| Prediction { at: at as u32, label: label as i32 }).collect();
    let losses = engine.losses(&micro_batch(&rows), &targets).unwrap();
    losses.chunks_exact(n_vocab).map(|row| row.iter().map(|l| -l).collect()).collect()
}

/// The largest error over all rows, each freed of its mean and measured by its deviation. Logits and
/// log-probabilities are the same up to that mean.
fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let centred = |row: &[f32]| -> Vec<f64> {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        row.iter().map(|x| f64::from(*x) - mean).collect()
    };
    let mut worst = 0.0;
    for (a, b) in found.iter().zip(expected) {
        let (a, b) = (centred(a), centred(b));
        assert_eq!(a.len(), b.len());
        let deviation = (b.iter().map(|x| x * x).sum::<f64>() / b.len() as f64).sqrt();
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(deviation > 0.0 && largest.is_finite());
        worst = f64::max(worst, largest / deviation);
    }
    worst
}

#[test]
fn logits_are_those_of_transformers() {
    let mut n = 0;
    for case in CASES {
        let c = Checkpoint::new(case);
        let (tokens, expected) = (c.tokens(), c.logits());
        for dtype in [Dtype::TQ1_0, Dtype::TQ2_0] {
            let (path, done) = c.convert_as(dtype, Dtype::F16);
            let libllama = difference(&libllama(&path, &tokens), &expected);
            let ours = difference(&ours(&path, &tokens, done.n_vocab), &expected);
            eprintln!("{case} {dtype}: libllama {libllama:.1e}, ours {ours:.1e}");
            assert!(ours <= OUR_TOLERANCE, "{case} {dtype}: ours {ours:.1e}");
            assert!(libllama <= LIBLLAMA_TOLERANCE, "{case} {dtype}: libllama {libllama:.1e}");
            n += 1;
        }
    }
    assert!(n >= 16, "{n} comparisons");
}
