//! The adapter's gradients: on the CPU against finite differences of the engine's own loss, on Vulkan against the CPU's.
//!
//! Finite differences need a smooth forward, so the weights are f32: every kernel then keeps f32 throughout. Each matrix
//! of each block is tried on its own, so that a wrong gradient is named.

mod common;

use std::path::Path;

use common::device::{cpu, vulkan};
use common::numeric::{
    distance, engine, gradients, lora, loss, micro_batch, nano, norm, pico, randomize, rewritten, rows,
    samples, scales, ternary_models, write_model, Setup, FAMILIES,
};
use qvac_ft::ggml::{DeviceKind, Dtype};
use qvac_ft::synth::{self, Family};
use qvac_ft::train::{Engine, MicroBatch, Recompute};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest error of a directional derivative, over the norm of the gradient of that matrix. The loss is a sum of some 20
/// f32 numbers near 6, known to 1e-6 each, and a step changes it by [`CHANGE`]: the quotient is good to a few 1e-4.
const DIFFERENCES: f64 = 2e-3;
/// How much a step is to change the loss: little, for a squared ReLU bends where a gate is 0.
const CHANGE: f64 = 0.01;
/// Random directions per matrix, beside the gradient's own.
const DIRECTIONS: usize = 2;

/// Both ways of keeping a block's insides run the same operations on the same numbers.
const RECOMPUTE: f64 = 0.0;

/// Vulkan against the CPU, relative to a matrix's gradient. Upstream's Vulkan products round both operands to f16 where the
/// device has f16, 5e-4 at most each; the pico and nano models, with an adapter as heavy as the layers, make of that some
/// 1e-2 of a gradient, much the same for every matrix.
const VULKAN: f64 = 3e-2;
/// The same with ternary weights, whose products are the same integers on both: what is left are sums of floats in other
/// orders (2e-4 found), where attention is in floats...
const VULKAN_TERNARY: f64 = 1e-3;
/// ...and on GPUs with cooperative matrices attention in halves, after which some activations round to 8 bits the other way
/// (3e-2 found on an H100).
const GPU_TERNARY: f64 = 6e-2;

const SEQ_LEN: usize = 16;
/// Three rows, with padding, of two samples, one and one.
const LENGTHS: [usize; 4] = [9, 5, 12, 16];

fn batch() -> MicroBatch {
    let rows = rows(&samples(21, &LENGTHS), SEQ_LEN);
    assert_eq!(rows.len(), 3);
    micro_batch(&rows)
}

/// A pico model in f32, with a scale for each layer.
fn smooth_model(family: Family, dir: &Path) -> std::path::PathBuf {
    let config = pico(family);
    rewritten(&write_model(&config, dir), true, &scales(config.shape.n_layer))
}

fn training(model: &Path, recompute: Recompute) -> Engine {
    let setup = Setup { recompute: Some(recompute), ..Setup::training(&cpu(), SEQ_LEN, 3) };
    let engine = engine(model, &setup);
    randomize(lora(&engine), 4);
    engine
}

/// The derivative of the loss at `params` along `direction`, by central differences at two steps, whose errors of third
/// order cancel.
fn derivative(engine: &Engine, batch: &MicroBatch, params: &[f32], direction: &[f64], step: f64) -> f64 {
    let at = |h: f64| {
        let moved: Vec<f32> =
            params.iter().zip(direction).map(|(p, d)| (f64::from(*p) + h * d) as f32).collect();
        lora(engine).params.upload(&moved).unwrap();
        loss(engine, batch)
    };
    let central = |h: f64| (at(h) - at(-h)) / (2.0 * h);
    (4.0 * central(step / 2.0) - central(step)) / 3.0
}

fn against_differences(family: Family) {
    let dir = tempfile::tempdir().unwrap();
    let engine = training(&smooth_model(family, dir.path()), Recompute::On);
    let batch = batch();
    let grad: Vec<f64> = gradients(&engine, &batch, 1.0).into_iter().map(f64::from).collect();
    let lora = lora(&engine);
    let params: Vec<f32> = lora.params.download().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    assert_eq!(lora.slots.len(), 3 * 7 * 2, "A and B of each target of each block");
    let mut worst = 0.0f64;
    for slot in &lora.slots {
        let own = &grad[slot.range()];
        let size = norm(own.iter().copied());
        assert!(size > 1e-2, "`{}` has hardly a gradient: {size:e}", slot.tensor_name());
        for n in 0..=DIRECTIONS {
            let mut direction = vec![0.0; params.len()];
            for (d, g) in direction[slot.range()].iter_mut().zip(own) {
                // Of length 1; and of values of about 1, whose product with the gradient is about its length too.
                *d = match n {
                    0 => g / size,
                    _ => f64::from(rng.random_range(0..2u8)) * 2.0 - 1.0,
                };
            }
            let found = derivative(&engine, &batch, &params, &direction, CHANGE / size);
            let expected: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let error = (found - expected).abs() / size;
            worst = worst.max(error);
            assert!(
                error <= DIFFERENCES,
                "`{}`, direction {n}: the gradient says {expected}, differences say {found}: {error:.1e}",
                slot.tensor_name()
            );
        }
    }
    lora.params.upload(&params).unwrap();
    eprintln!("{}: {worst:.1e}", family.architecture());
}

#[test]
fn llama_against_finite_differences() {
    against_differences(Family::Llama);
}

#[test]
fn bitnet_against_finite_differences() {
    against_differences(Family::Bitnet);
}

#[test]
fn bitnet_b158_against_finite_differences() {
    against_differences(Family::BitnetB158);
}

#[test]
fn keeping_blocks_gives_what_recomputing_them_gives() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let model = smooth_model(family, dir.path());
        let grad = |recompute| gradients(&training(&model, recompute), &batch(), 0.25);
        let error = distance(&grad(Recompute::Off), &grad(Recompute::On));
        assert!(error <= RECOMPUTE, "{family:?}: {error:e}");
    }
}

#[test]
fn gradients_add_up_and_start_from_zero() {
    let dir = tempfile::tempdir().unwrap();
    let engine = training(&smooth_model(Family::Bitnet, dir.path()), Recompute::On);
    let batch = batch();
    let once = gradients(&engine, &batch, 0.5);
    assert_eq!(gradients(&engine, &batch, 0.5), once, "what came before is forgotten");
    engine.accumulate(&batch, 0.5).unwrap();
    let twice: Vec<f32> = once.iter().map(|g| 2.0 * g).collect();
    assert!(distance(&common::numeric::grad(&engine), &twice) < 1e-6);
}

/// A batch with more targets than one chunk of the head holds gives what its rows give one by one.
#[test]
fn a_head_in_chunks_is_the_same_head() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = pico(Family::Bitnet);
    config.shape = synth::Shape { n_layer: 1, n_vocab: 32000, ..config.shape };
    let model = rewritten(&write_model(&config, dir.path()), true, &[]);
    let seq_len = 288;
    let mut samples = samples(6, &[seq_len, seq_len]);
    samples.iter_mut().for_each(|s| s.train.fill(true));
    let rows = rows(&samples, seq_len);
    let both = micro_batch(&rows);
    // 64 MiB of f32 logits are 524 rows of this vocabulary.
    assert!(both.targets.len() > 524);
    let make = |n_rows| {
        let engine = engine(&model, &Setup::training(&cpu(), seq_len, n_rows));
        randomize(lora(&engine), 4);
        engine
    };
    let at_once = make(2);
    let (losses, grad) = (loss(&at_once, &both), gradients(&at_once, &both, 1.0));
    let one_by_one = make(1);
    one_by_one.zero_grad().unwrap();
    let mut sum = 0.0;
    for row in &rows {
        let batch = micro_batch(std::slice::from_ref(row));
        sum += one_by_one.accumulate(&batch, 1.0).unwrap().iter().map(|&l| f64::from(l)).sum::<f64>();
    }
    // The same f32 numbers, some added in another order.
    assert!((losses - sum).abs() / sum < 1e-6, "{losses} and {sum}");
    let error = distance(&grad, &common::numeric::grad(&one_by_one));
    assert!(error < 1e-5, "{error:e}");
}

/// Adapters that gradients are compared with. Sums of floats in another order bring an activation that lies next to a
/// rounding edge to the other side of it, for one adapter in four, and all gradients of that adapter are then some 5e-3 apart:
/// no kernel's error, which would be there with every adapter. So the median counts.
const ADAPTERS: [u64; 3] = [6, 7, 8];

/// Compares every matrix's gradient between the devices.
fn on_vulkan(model: &Path, case: &str, tolerance: f64) {
    let Some(vulkan) = vulkan() else { return };
    let batch = batch();
    let mut errors = ADAPTERS.map(|adapter| {
        let on = |device| {
            let engine = engine(model, &Setup { threads: 2, ..Setup::training(device, SEQ_LEN, 3) });
            randomize(lora(&engine), adapter);
            let grad = gradients(&engine, &batch, 1.0);
            (engine, grad)
        };
        let (_, found) = on(&vulkan);
        let (engine, expected) = on(&cpu());
        let slots = lora(&engine).slots.iter();
        let errors =
            slots.map(|slot| (distance(&found[slot.range()], &expected[slot.range()]), slot.tensor_name()));
        errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    });
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [_, (error, matrix), _] = &errors;
    eprintln!("{case}: {:?} at worst", errors.each_ref().map(|(error, _)| format!("{error:.1e}")));
    assert!(*error <= tolerance, "{case}, `{matrix}` on {}: {error:.1e}", vulkan.name());
}

#[test]
fn vulkan_against_the_cpu() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        on_vulkan(&smooth_model(family, dir.path()), &format!("{} f32", family.architecture()), VULKAN);
    }
    let floats = [Dtype::F16, Dtype::Q8_0].map(|dtype| nano(Family::Bitnet, dtype));
    for mut config in floats.into_iter().chain(ternary_models()) {
        // Its keys and values are no multiple of 256 long: 640 in 2B-4T, 128 here.
        config.n_head_kv = (config.family == Family::BitnetB158).then_some(2);
        let dir = tempfile::tempdir().unwrap();
        let model = write_model(&config, dir.path());
        let software = vulkan().is_none_or(|device| device.kind() == DeviceKind::Software);
        let tolerance = match (config.dtype.is_ternary(), software) {
            (true, true) => VULKAN_TERNARY,
            (true, false) => GPU_TERNARY,
            (false, _) => VULKAN,
        };
        on_vulkan(&model, &format!("{} {}", config.family.architecture(), config.dtype), tolerance);
    }
}
