//! Nodes that go over the same rows and are recorded together on Vulkan: norms, the activation and rotary positions with the
//! quantizations of what they make. Bit for bit what the nodes give one by one, when others stand between them.
//!
//! That they are recorded together is `tests/training_fusion.rs`'s business.

use std::sync::PoisonError;

use qvac_ft::ggml::{Context, Dtype, Graph, RopeKind, Tensor};

use super::forward::rope_params;
use super::ternary_reference::{floats, odd_tokens, Random};
use super::{devices, Bench, ONE_AT_A_TIME};

/// Around what 32 and 256 invocations keep, and rows that nobody keeps.
const WIDTHS: [(usize, usize); 7] =
    [(256, 19), (512, 11), (2048, 12), (2304, 10), (5632, 9), (13824, 9), (14592, 9)];

/// Runs `make` with its nodes side by side and with others between them, and compares the results that it names: bytes, and
/// floats but for the sign of a zero and what a NaN holds.
fn check(case: &str, make: impl Fn(&mut Bench, &mut dyn FnMut(&Context)) -> Vec<Tensor>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let [together, apart] = [false, true].map(|apart| {
            let mut bench = Bench::new(&device);
            let spare = bench.f32(&[64, 16], &[1.0; 1024]);
            let mut between = Vec::new();
            let results = make(&mut bench, &mut |ctx| {
                if apart {
                    between.push(ctx.sqr(&spare).unwrap());
                }
            });
            results.iter().for_each(Tensor::set_output);
            bench.exec.backend().alloc(&bench.inputs, "inputs").unwrap();
            let targets: Vec<Tensor> = results.iter().chain(&between).cloned().collect();
            bench.finish(Graph::in_order(&bench.ops, &targets).unwrap());
            results.iter().map(|t| (t.dtype(), t.download_bytes().unwrap())).collect::<Vec<_>>()
        });
        for (i, ((dtype, together), (_, apart))) in together.iter().zip(&apart).enumerate() {
            let differs = match dtype {
                Dtype::F32 => floats(together)
                    .iter()
                    .zip(floats(apart))
                    .position(|(&a, b)| a != b && !(a.is_nan() && b.is_nan())),
                _ => together.iter().zip(apart).position(|(a, b)| a != b),
            };
            assert!(differs.is_none(), "{case} on {}: element {differs:?} of result {i}", device.name());
        }
    }
}

fn norm(n: usize, rows: usize, gated: bool, limbs: Option<i64>, results: [bool; 2]) {
    let mut random = Random(31);
    let (x, up, w) = (odd_tokens(n, rows, &mut random), random.values(n * rows), random.values(n));
    let case = format!("norm {n}x{rows} gated {gated} limbs {limbs:?} results {results:?}");
    check(&case, |bench, gap| {
        let ne = [n as i64, rows as i64];
        let (x, up, w) = (bench.f32(&ne, &x), bench.f32(&ne, &up), bench.f32(&[n as i64], &w));
        let c = &bench.ops;
        let act = if gated { c.swiglu_split(&x, &up).unwrap() } else { x };
        gap(c);
        let norm = c.rms_norm(&act, 1e-5).unwrap();
        let y = c.mul(&norm, &w).unwrap();
        gap(c);
        let q = limbs.map(|limbs| c.tq_quantize(&y, limbs).unwrap());
        let [with_act, with_y] = results;
        let act = Some(act).filter(|_| with_act && gated);
        q.into_iter().chain(act).chain(Some(y).filter(|_| with_y)).collect()
    });
}

#[test]
fn norms_quantize_what_they_make() {
    for (n, rows) in WIDTHS {
        norm(n, rows, false, Some(1), [false, true]);
        norm(n, rows, true, Some(1), [false, true]);
        norm(n, rows, true, None, [true, true]);
    }
    norm(512, 11, false, Some(2), [false, false]);
    norm(768, 9, true, Some(2), [true, true]);
    norm(1536, 13, true, None, [false, true]);
    norm(512, 8, true, Some(1), [true, true]); // few rows are upstream's
    norm(256, 4101, false, Some(1), [false, true]); // more workgroups than one line of the grid holds
    norm(512, 515, true, Some(1), [false, true]);
}

fn norm_back(n: usize, rows: usize, limbs: i64, residual: bool) {
    let mut random = Random(32);
    let (dy, x) = (odd_tokens(n, rows, &mut random), random.values(n * rows));
    let (w, add) = (random.values(n), random.values(n * rows));
    check(&format!("norm_back {n}x{rows} limbs {limbs} residual {residual}"), |bench, gap| {
        let ne = [n as i64, rows as i64];
        let (dy, x, w) = (bench.f32(&ne, &dy), bench.f32(&ne, &x), bench.f32(&[n as i64], &w));
        let add = residual.then(|| bench.f32(&ne, &add));
        let c = &bench.ops;
        let dx = c.rms_norm_mul_back(&dy, &x, &w, add.as_ref(), 1e-5).unwrap();
        gap(c);
        vec![c.tq_quantize(&dx, limbs).unwrap(), dx]
    });
}

#[test]
fn backwards_of_norms_quantize_what_they_make() {
    for (i, (n, rows)) in WIDTHS.into_iter().enumerate() {
        norm_back(n, rows, 2 - i as i64 % 2, true);
        norm_back(n, rows, 1 + i as i64 % 2, false);
    }
    norm_back(256, 4101, 2, true);
    norm_back(512, 1, 2, true);
}

fn swiglu_back(n: usize, rows: usize, limbs: i64, forward: bool) {
    let mut random = Random(33);
    let (dy, w) = (odd_tokens(n, rows, &mut random), random.values(n));
    let (gate, up) = (random.values(n * rows), random.values(n * rows));
    check(&format!("swiglu_back {n}x{rows} limbs {limbs} forward {forward}"), |bench, gap| {
        let ne = [n as i64, rows as i64];
        let (dy, w) = (bench.f32(&ne, &dy), bench.f32(&[n as i64], &w));
        let (gate, up) = (bench.f32(&ne, &gate), bench.f32(&ne, &up));
        let c = &bench.ops;
        let act = c.swiglu_split(&gate, &up).unwrap();
        // Whoever wants the norm's result stands behind it, as the adapter does.
        let y = forward.then(|| c.mul(&c.rms_norm(&act, 1e-5).unwrap(), &w).unwrap());
        gap(c);
        let dx = c.rms_norm_mul_back(&dy, &act, &w, None, 1e-5).unwrap();
        gap(c);
        let d = c.swiglu_back(&dx, &gate, &up).unwrap();
        let halves = [0, n * rows].map(|at| c.view(&d, &ne, at).unwrap());
        gap(c);
        let [q_gate, q_up] = halves.map(|half| c.tq_quantize(&half, limbs).unwrap());
        [q_gate, q_up, d].into_iter().chain(y).collect()
    });
}

#[test]
fn the_activation_s_backward_quantizes_both_gradients() {
    for (i, (n, rows)) in WIDTHS.into_iter().enumerate() {
        swiglu_back(n, rows, 2 - i as i64 % 2, i % 3 == 0);
        swiglu_back(n, rows, 1 + i as i64 % 2, i % 3 == 1);
    }
    swiglu_back(256, 4101, 2, true);
    swiglu_back(512, 3, 1, true);
}

fn rope_back(ne: [usize; 3], kind: RopeKind, limbs: i64, factors: bool) {
    let [d, heads, tokens] = ne;
    let n = d * heads;
    let mut random = Random(34);
    let x = odd_tokens(n, 3 * tokens, &mut random);
    let factors = factors.then(|| random.values(d / 2).iter().map(|f| 1.5 + f.abs()).collect::<Vec<f32>>());
    let pos: Vec<i32> = (0..tokens as i32).map(|i| (i * 5 + 2) % 43).collect();
    check(&format!("rope_back {ne:?} {kind:?} limbs {limbs}"), |bench, gap| {
        let all = bench.f32(&[(3 * n * tokens) as i64], &x);
        let pos = bench.i32(&pos);
        let factors = factors.as_ref().map(|f| bench.f32(&[d as i64 / 2], f));
        let rope = rope_params(kind, d as i32);
        let c = &bench.ops;
        let part = |i: usize, ne: &[i64]| c.view(&all, ne, i * n * tokens).unwrap();
        let heads = [d as i64, heads as i64, tokens as i64];
        let rows = [n as i64, tokens as i64];
        let turned = [0, 1].map(|i| {
            let dx = c.rope_ext_back(&part(i, &heads), &pos, factors.as_ref(), &rope).unwrap();
            gap(c);
            dx
        });
        let mut dys: Vec<Tensor> = turned.iter().map(|t| c.reshape(t, &rows).unwrap()).collect();
        dys.push(part(2, &rows));
        let mut results: Vec<Tensor> = dys.iter().map(|dy| c.tq_quantize(dy, limbs).unwrap()).collect();
        results.extend(turned);
        results
    });
}

#[test]
fn rotary_positions_are_quantized_when_they_are_taken_back() {
    for (i, kind) in [RopeKind::Norm, RopeKind::Neox].into_iter().enumerate() {
        // Rows of the last are not kept.
        for (j, ne) in [[64, 4, 19], [64, 32, 10], [128, 40, 9], [128, 50, 9]].into_iter().enumerate() {
            rope_back(ne, kind, 1 + (i + j) as i64 % 2, j % 2 == 0);
        }
    }
    rope_back([64, 4, 1030], RopeKind::Neox, 2, false); // more workgroups than one line of the grid holds
}
