//! Steps of training, whatever they are cut into.

use std::path::Path;

use qvac_ft::ggml::{self, Device};
use qvac_ft::model::Hparams;
use qvac_ft::train::{MicroBatch, Recompute};

use super::common::device::{cpu, vulkan};
use super::common::numeric::{engine, lora, rows, samples, Setup};
use super::each_model;

const SEQ_LEN: usize = 32;
const ROWS_PER_STEP: usize = 4;
const STEPS: usize = 3;

/// What some steps leave: the losses of all targets, parameters and both moments as bits, and the adapter's file.
#[derive(PartialEq)]
pub struct Left {
    pub losses: Vec<u32>,
    pub state: Vec<u32>,
    pub file: Vec<u8>,
}

/// Trains a fresh adapter. Some samples share a row, and one row ends in padding.
pub fn train(model: &Path, device: &Device, threads: usize, n_rows: usize, recompute: Recompute) -> Left {
    ggml::set_exact(true);
    let samples = samples(31, &[32, 7, 21, 30, 12, 9, 28, 32, 17, 5, 26, 31, 14, 11]);
    let rows = rows(&samples, SEQ_LEN);
    assert!(rows.len() >= 2 * ROWS_PER_STEP, "{} rows", rows.len());
    let setup = Setup { threads, recompute: Some(recompute), ..Setup::training(device, SEQ_LEN, n_rows) };
    let engine = engine(model, &setup);
    let lora = lora(&engine);
    lora.init(5).unwrap();
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let rows: Vec<_> =
            (0..ROWS_PER_STEP).map(|i| rows[(ROWS_PER_STEP * step + i) % rows.len()].clone()).collect();
        let trained: usize = rows.iter().map(|r| r.n_targets()).sum();
        engine.zero_grad().unwrap();
        for rows in rows.chunks(n_rows) {
            let batch = MicroBatch::new(rows, n_rows, SEQ_LEN);
            let found = engine.accumulate(&batch, 1.0 / trained as f32).unwrap();
            losses.extend(found.iter().map(|l| l.to_bits()));
        }
        let norm = engine.apply(step as u64, 5e-3).unwrap();
        assert!(norm.is_finite() && norm > 0.0);
    }
    let training = lora.training.as_ref().unwrap();
    let flat = [&lora.params, &training.m, &training.v];
    let state = flat.iter().flat_map(|t| t.download::<f32>().unwrap()).map(f32::to_bits).collect();
    let path = model.with_extension("adapter.gguf");
    lora.to_file(&Hparams::from_path(model).unwrap(), None).unwrap().write(&path).unwrap();
    Left { losses, state, file: std::fs::read(&path).unwrap() }
}

#[track_caller]
fn assert_same(case: &str, found: &Left, expected: &Left) {
    let differing = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert_eq!(differing(&found.losses, &expected.losses), 0, "{case}: losses of {}", expected.losses.len());
    assert_eq!(differing(&found.state, &expected.state), 0, "{case}: values of {}", expected.state.len());
    assert!(found == expected, "{case}: the files differ");
}

#[test]
fn threads_micro_batches_and_recompute_change_no_bit() {
    each_model(|name, model| {
        let expected = train(model, &cpu(), 1, 1, Recompute::On);
        assert!(expected.state.iter().filter(|&&bits| bits != 0).count() > expected.state.len() / 2);
        for (threads, n_rows, recompute) in [
            (1, 2, Recompute::Off),
            // Three does not divide four: the last micro-batch is filled up.
            (2, 3, Recompute::On),
            (1, 4, Recompute::On),
        ] {
            let case = format!("{name}, {threads} threads, {n_rows} rows at a time, {recompute:?}");
            assert_same(&case, &train(model, &cpu(), threads, n_rows, recompute), &expected);
        }
    });
}

#[test]
fn vulkan_leaves_the_same_adapter() {
    let Some(vulkan) = vulkan() else { return };
    each_model(|name, model| {
        let expected = train(model, &cpu(), 2, 4, Recompute::On);
        for (n_rows, recompute) in [(1, Recompute::Off), (4, Recompute::On)] {
            let case = format!("{name} on {}, {n_rows} rows at a time, {recompute:?}", vulkan.name());
            assert_same(&case, &train(model, &vulkan, 1, n_rows, recompute), &expected);
        }
    });
}
