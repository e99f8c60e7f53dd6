//! The quantizer, TQ_MUL_MAT and its backward, and MUL_MAT with ternary weights, bit for bit (`ternary_reference.rs`).

use std::sync::PoisonError;

use qvac_ft::ggml::{Backend, Context, Dtype, Executor, Graph, Tensor};

use super::ternary_reference::{
    assert_same, backward, floats, forward, odd_tokens, on_variants, Random, Scales, Tokens, Weights,
    ALL_VARIANTS, AMAX_MIN, MIXED_VARIANTS, TAIL, TOKENS, TYPES, UNPACKED_VARIANTS,
};
use super::{devices, Bench, ONE_AT_A_TIME};

/// A float sum of `k` products, each of a dequantized weight and a token of two limbs: `k` roundings, and a few more for
/// the operands, relative to the sum of magnitudes.
fn float_bound(k: usize, magnitude: f64) -> f64 {
    (k + 8) as f64 * f64::from(f32::EPSILON) * magnitude
}

// --- the quantizer ---

fn check_quantizer(case: &str, x: &[f32], n: usize) {
    for limbs in [1, 2] {
        let want = Tokens::new(x, n, limbs);
        let make = |bench: &mut Bench| {
            let x = bench.f32(&[n as i64, (x.len() / n) as i64], x);
            bench.ops.tq_quantize(&x, limbs as i64).unwrap()
        };
        on_variants(&format!("{case}, {limbs} limbs"), &[""], make, |what, got| {
            hold_tokens(what, got, &want)
        });
    }
}

fn hold_tokens(what: &str, got: &[u8], want: &Tokens) {
    let row = got.len() / want.limbs.len();
    for (i, (got, want)) in got.chunks(row).zip(want.bytes().chunks(row)).enumerate() {
        let at = row - TAIL;
        assert_same(
            &format!("{what}: scale of token {i}"),
            &floats(&got[at..at + 4]),
            &floats(&want[at..at + 4]),
        );
        let differs = (0..row).find(|j| got[*j] != want[*j] && !(at..at + 4).contains(j));
        assert!(differs.is_none(), "{what}: byte {differs:?} of token {i}");
    }
}

#[test]
fn quantizes_odd_tokens() {
    let mut random = Random(1);
    for (n, count) in [(256, 1), (768, 3), (13824, 2), (512, 40), (128, 5), (640, 9)] {
        check_quantizer(&format!("{n}x{count}"), &odd_tokens(n, count, &mut random), n);
    }
}

#[test]
fn divides_correctly_rounded() {
    // One large value a token, of any size; the others around it.
    let mut random = Random(2);
    let (n, count) = (256, 2000);
    let mut x = Vec::new();
    for i in 0..count {
        let exponent = match i % 4 {
            0 => 8 + random.below(8),    // at the least that counts
            1 => 240 + random.below(15), // at the largest
            _ => 8 + random.below(247),
        };
        let a = f32::from_bits((exponent as u32) << 23 | random.bits() as u32 & 0x7f_ffff);
        x.push(if i % 2 == 0 { a } else { -a });
        x.extend(random.values(n - 1).into_iter().map(|v| (v * 0.25).clamp(-1.0, 1.0) * a));
    }
    check_quantizer("random absmax", &x, n);
}

#[test]
fn rounds_half_to_even() {
    let n = 256;
    let mut x: Vec<f32> = (0..n).map(|i| i as f32 - 127.5).collect(); // a = 127.5
    x.extend((0..n).map(|i| (i as f32 - 128.0) / 2.0).map(|v| if v == -64.0 { 127.0 } else { v })); // s = 1, ties
    x.extend((0..n).map(|i| if i == 0 { -127.0 } else { 3.0 + (i as f32 - 128.0) / 508.0 })); // ties of the second limb
    check_quantizer("ties", &x, n);
}

#[test]
fn quantizes_tokens_with_denormal_values() {
    let n = 256;
    let mut random = Random(3);
    let mut x = Vec::new();
    for a in
        [AMAX_MIN, AMAX_MIN.next_up(), AMAX_MIN * 1.9, AMAX_MIN * 1000.0, 1e-20, AMAX_MIN.next_down(), 1e-39]
    {
        x.push(a);
        x.extend((1..n).map(|i| {
            let tiny = f32::from_bits(random.bits() as u32 & 0xff_ffff).min(a); // denormal, or just above
            if i % 2 == 0 {
                tiny
            } else {
                -tiny
            }
        }));
    }
    check_quantizer("denormals", &x, n);
}

#[test]
fn quantizes_rows_of_a_view() {
    let (n, count) = (512, 5);
    let x = Random(4).values((n + 3) * count);
    let rows: Vec<f32> = x.chunks(n + 3).flat_map(|row| &row[1..=n]).copied().collect();
    let want = Tokens::new(&rows, n, 2);
    let make = |bench: &mut Bench| {
        let x = bench.f32(&[n as i64 + 3, count as i64], &x);
        let rows = bench.ops.view_rows(&x, 1, n as i64).unwrap();
        bench.ops.tq_quantize(&rows, 2).unwrap()
    };
    on_variants("a view", &[""], make, |what, got| hold_tokens(what, got, &want));
}

// --- products ---

fn check_forward(w: &Weights, tokens: usize, variants: &[&str], random: &mut Random) {
    let x = Tokens::new(&odd_tokens(w.n, tokens, random), w.n, 1);
    let want = forward(w, &x);
    let make = |bench: &mut Bench| {
        let (w, x) = (w.tensor(bench), x.tensor(bench));
        bench.ops.tq_mul_mat(&w, &x).unwrap()
    };
    let case = format!("tq_mul_mat {} [{}, {}] x {tokens}", w.dtype, w.n, w.m);
    on_variants(&case, variants, make, |what, got| assert_same(what, &floats(got), &want));
}

fn check_backward(
    w: &Weights,
    tokens: usize,
    limbs: usize,
    with_add: bool,
    variants: &[&str],
    random: &mut Random,
) {
    let y = Tokens::new(&odd_tokens(w.m, tokens, random), w.m, limbs);
    let add = with_add.then(|| random.values(w.n * tokens));
    let want = backward(w, &y, add.as_deref());
    let make = |bench: &mut Bench| {
        let (tw, y) = (w.tensor(bench), y.tensor(bench));
        let add = add.as_ref().map(|add| bench.f32(&[w.n as i64, tokens as i64], add));
        bench.ops.tq_mul_mat_back(&tw, &y, add.as_ref()).unwrap()
    };
    let case = format!("tq_mul_mat_back {} [{}, {}] x {tokens}, {limbs} limbs", w.dtype, w.n, w.m);
    on_variants(&case, variants, make, |what, got| assert_same(what, &floats(got), &want));
}

#[test]
fn forward_is_exact() {
    let mut random = Random(5);
    for dtype in TYPES {
        for scales in [Scales::None, Scales::One, Scales::OneAndZeroBlocks, Scales::Mixed] {
            for (i, tokens) in TOKENS.into_iter().enumerate() {
                let (n, m) = [(256, 1), (512, 31), (768, 33), (256, 130), (1280, 7)][i % 5];
                check_forward(&Weights::new(dtype, n, m, scales, &mut random), tokens, &[""], &mut random);
            }
        }
    }
}

#[test]
fn forward_is_exact_in_every_variant() {
    let mut random = Random(6);
    for dtype in TYPES {
        for (n, m, tokens) in [(512, 65, 40), (1024, 130, 129)] {
            let w = Weights::new(dtype, n, m, Scales::One, &mut random);
            check_forward(&w, tokens, &ALL_VARIANTS, &mut random);
        }
        let w = Weights::new(dtype, 512, 70, Scales::Mixed, &mut random);
        check_forward(&w, 35, &MIXED_VARIANTS, &mut random);
    }
}

#[test]
fn backward_is_exact() {
    let mut random = Random(7);
    for dtype in TYPES {
        for scales in [Scales::None, Scales::One, Scales::OneAndZeroBlocks] {
            for (i, tokens) in TOKENS.into_iter().enumerate() {
                let (n, m) = [(256, 256), (512, 640), (256, 768), (512, 256), (256, 128)][i % 5];
                let w = Weights::new(dtype, n, m, scales, &mut random);
                check_backward(&w, tokens, 1 + i % 2, i % 3 == 0, &[""], &mut random);
                check_backward(&w, tokens, 2 - i % 2, i % 3 == 1, &[""], &mut random);
            }
        }
    }
}

#[test]
fn backward_is_exact_in_every_variant() {
    let mut random = Random(8);
    for dtype in TYPES {
        for limbs in [1, 2] {
            let w = Weights::new(dtype, 512, 256, Scales::One, &mut random);
            check_backward(&w, 35, limbs, true, &ALL_VARIANTS, &mut random);
            check_backward(&w, 129, limbs, false, &ALL_VARIANTS, &mut random);
            // Keys and values of bitnet-b1.58-2B-4T: no multiple of 256.
            let w = Weights::new(dtype, 512, 640, Scales::One, &mut random);
            check_backward(&w, 35, limbs, false, &ALL_VARIANTS, &mut random);
        }
    }
}

#[test]
fn weights_unpacked_before_are_exact() {
    let mut random = Random(14);
    for dtype in TYPES {
        for (n, m, tokens) in [(512, 65, 64), (256, 130, 130), (1280, 7, 129)] {
            let w = Weights::new(dtype, n, m, Scales::OneAndZeroBlocks, &mut random);
            check_forward(&w, tokens, &UNPACKED_VARIANTS, &mut random);
        }
        for (n, m, tokens, limbs) in [(512, 256, 64, 2), (256, 768, 131, 2), (256, 512, 133, 1)] {
            let w = Weights::new(dtype, n, m, Scales::One, &mut random);
            check_backward(&w, tokens, limbs, tokens % 2 != 0, &UNPACKED_VARIANTS, &mut random);
        }
    }
}

#[test]
fn backward_of_mixed_scales_is_a_float_product() {
    let mut random = Random(9);
    for dtype in TYPES {
        for (limbs, tokens, m) in [(1, 3, 256), (2, 37, 256), (2, 5, 640)] {
            let n = 512;
            let w = Weights::new(dtype, n, m, Scales::Mixed, &mut random);
            let y = Tokens::new(&random.values(m * tokens), m, limbs);
            let add = random.values(n * tokens);
            let (mut want, mut bound) = (Vec::new(), Vec::new());
            for (token, (q, &scale)) in y.limbs.iter().zip(&y.scales).enumerate() {
                for i in 0..n {
                    let products = (0..m).map(|row| {
                        let low = if limbs == 2 { f64::from(q[m + row]) / 254.0 } else { 0.0 };
                        (f64::from(q[row]) + low) * f64::from(scale) * f64::from(w.values[row * n + i])
                    });
                    let add = f64::from(add[token * n + i]);
                    want.push(products.clone().sum::<f64>() + add);
                    bound.push(float_bound(m, products.map(f64::abs).sum::<f64>() + add.abs()));
                }
            }
            let make = |bench: &mut Bench| {
                let (w, y) = (w.tensor(bench), y.tensor(bench));
                let add = bench.f32(&[n as i64, tokens as i64], &add);
                bench.ops.tq_mul_mat_back(&w, &y, Some(&add)).unwrap()
            };
            on_variants(
                &format!("mixed backward {dtype}, {limbs} limbs"),
                &MIXED_VARIANTS,
                make,
                |what, got| {
                    for (i, (&got, (&want, &bound))) in
                        floats(got).iter().zip(want.iter().zip(&bound)).enumerate()
                    {
                        assert!(
                            (f64::from(got) - want).abs() <= bound,
                            "{what}: element {i} is {got}, expected {want}"
                        );
                    }
                },
            );
        }
    }
}

#[test]
fn a_training_step_quantizes_and_multiplies() {
    let mut random = Random(10);
    for dtype in TYPES {
        let (n, m, tokens) = (512, 256, 19);
        let w = Weights::new(dtype, n, m, Scales::One, &mut random);
        let y = random.values(m * tokens);
        let want = backward(&w, &Tokens::new(&y, m, 2), None);
        let make = |bench: &mut Bench| {
            let (w, y) = (w.tensor(bench), bench.f32(&[m as i64, tokens as i64], &y));
            let yq = bench.ops.tq_quantize(&y, 2).unwrap();
            bench.ops.tq_mul_mat_back(&w, &yq, None).unwrap()
        };
        on_variants(&format!("quantize and multiply {dtype}"), &[""], make, |what, got| {
            assert_same(what, &floats(got), &want);
        });
    }
}

// --- MUL_MAT ---

#[test]
fn mul_mat_is_exact() {
    let mut random = Random(11);
    for dtype in TYPES {
        for scales in [Scales::One, Scales::Mixed] {
            for tokens in TOKENS {
                let (n, m) = (512, 70);
                let w = Weights::new(dtype, n, m, scales, &mut random);
                let x = odd_tokens(n, tokens, &mut random);
                let want = forward(&w, &Tokens::new(&x, n, 1));
                let make = |bench: &mut Bench| {
                    let (w, x) = (w.tensor(bench), bench.f32(&[n as i64, tokens as i64], &x));
                    bench.ops.mul_mat(&w, &x).unwrap()
                };
                on_variants(&format!("mul_mat {dtype} {scales:?} x {tokens}"), &[""], make, |what, got| {
                    assert_same(what, &floats(got), &want);
                });
            }
        }
    }
}

#[test]
fn mul_mat_of_batches_and_permuted_tokens() {
    let mut random = Random(12);
    let (n, m, tokens, batch) = (256, 33, 5, 3);
    let w = Weights::new(Dtype::TQ2_0, n, m, Scales::One, &mut random);
    let x = random.values(n * tokens * batch);
    let y = forward(&w, &Tokens::new(&x, n, 1));
    let make = |bench: &mut Bench| {
        let (w, x) = (w.tensor(bench), bench.f32(&[n as i64, tokens as i64, batch as i64], &x));
        bench.ops.mul_mat(&w, &x).unwrap()
    };
    on_variants("mul_mat of batches", &[""], make, |what, got| assert_same(what, &floats(got), &y));

    let swapped: Vec<f32> = (0..tokens)
        .flat_map(|t| (0..batch).map(move |b| b * tokens + t))
        .flat_map(|row| &y[row * m..(row + 1) * m])
        .copied()
        .collect();
    let make = |bench: &mut Bench| {
        let (w, x) = (w.tensor(bench), bench.f32(&[n as i64, tokens as i64, batch as i64], &x));
        let x = bench.ops.permute(&x, [0, 2, 1, 3]).unwrap(); // [n, batch, tokens]
        bench.ops.mul_mat(&w, &x).unwrap()
    };
    on_variants("mul_mat of permuted tokens", &[""], make, |what, got| {
        assert_same(what, &floats(got), &swapped)
    });
}

/// The tokens of several products lie in the same scratch memory, by turns, and so do weights that were unpacked before.
#[test]
fn many_products_in_one_graph() {
    let mut random = Random(13);
    let (n, m) = (256, 64);
    let weights: Vec<Weights> =
        (0..3).map(|_| Weights::new(Dtype::TQ2_0, n, m, Scales::One, &mut random)).collect();
    let tokens = 70;
    let inputs: Vec<Vec<f32>> = (0..4).map(|_| random.values(n * tokens)).collect();
    let order = [(0, 0), (1, 0), (0, 1), (2, 2), (1, 2), (1, 3), (2, 0), (0, 3)];

    let mut want = vec![0.0f32; m * tokens];
    for (i, (w, x)) in order.into_iter().enumerate() {
        for (sum, y) in want.iter_mut().zip(forward(&weights[w], &Tokens::new(&inputs[x], n, 1))) {
            *sum = if i == 0 { y } else { *sum + y };
        }
    }
    let make = |bench: &mut Bench| {
        let w: Vec<Tensor> = weights.iter().map(|w| w.tensor(bench)).collect();
        let x: Vec<Tensor> = inputs.iter().map(|x| bench.f32(&[n as i64, tokens as i64], x)).collect();
        let products = order.map(|(i, j)| bench.ops.mul_mat(&w[i], &x[j]).unwrap());
        products.into_iter().reduce(|sum, y| bench.ops.add(&sum, &y).unwrap()).unwrap()
    };
    on_variants("many products", &UNPACKED_VARIANTS[..5], make, |what, got| {
        assert_same(what, &floats(got), &want)
    });
}

/// Scales are looked at once and kept: until somebody writes the weight again.
#[test]
fn a_weight_written_again_has_its_new_scale() {
    // Others choose variants through the environment.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let backend = Backend::new(&device, 1).unwrap();
        let inputs = Context::new(2, 0).unwrap();
        let w = inputs.new_tensor("w", Dtype::TQ2_0, &[256, 40]).unwrap();
        let x = inputs.new_tensor("x", Dtype::F32, &[256, 9]).unwrap();
        backend.alloc(&inputs, "the operands").unwrap();
        x.upload(&Random(5).values(256 * 9)).unwrap();
        let ctx = Context::new(4, 64).unwrap();
        let y = ctx.tq_mul_mat(&w, &ctx.tq_quantize(&x, 1).unwrap()).unwrap();
        y.set_output();
        let exec = Executor::new(&backend, None);
        let graph = Graph::in_order(&ctx, std::slice::from_ref(&y)).unwrap();
        let plan = exec.plan(vec![graph]).unwrap().remove(0);
        let product = |scale: f32| {
            let mut bytes = vec![0b01_10_00_10u8; w.nbytes()];
            let d = half::f16::from_f32(scale).to_le_bytes();
            bytes.chunks_exact_mut(66).for_each(|block| block[64..].copy_from_slice(&d));
            w.upload_bytes(0, &bytes).unwrap();
            exec.compute(&plan).unwrap();
            y.download::<f32>().unwrap()
        };
        let (once, twice) = (product(1.0), product(2.0));
        assert!(once.iter().any(|&v| v != 0.0), "on {}", device.name());
        assert_same(
            &format!("on {}", device.name()),
            &twice,
            &once.iter().map(|v| 2.0 * v).collect::<Vec<_>>(),
        );
    }
}
