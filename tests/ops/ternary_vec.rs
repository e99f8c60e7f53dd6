//! Products of few tokens with ternary weights on Vulkan, and those that one dispatch makes with what stands around
//! them: bit for bit (`ternary_reference.rs`) but for the activation's exponential.

use qvac_ft::ggml::{Dtype, Tensor};

use super::ternary_reference::{
    assert_same, floats, forward, odd_tokens, on_variants, Random, Scales, Tokens, Weights, TYPES,
};
use super::Bench;

/// Without a tile, so that few tokens are not the tiles' business.
const VARIANTS: [&str; 3] = ["", "plain", "dot"];

/// Rows of a whole and of a half number of words; more than a workgroup makes at a time, and an odd number.
const SHAPES: [[usize; 2]; 6] = [[256, 1], [256, 71], [512, 33], [768, 130], [2048, 19], [13824, 3]];

fn check_tokens(w: &Weights, tokens: usize, random: &mut Random) {
    let x = Tokens::new(&odd_tokens(w.n, tokens, random), w.n, 1);
    let want = forward(w, &x);
    let make = |bench: &mut Bench| {
        let (w, x) = (w.tensor(bench), x.tensor(bench));
        bench.ops.tq_mul_mat(&w, &x).unwrap()
    };
    let case = format!("{:?} [{}, {}] x {tokens}", w.dtype, w.n, w.m);
    on_variants(&case, &VARIANTS, make, |what, got| assert_same(what, &floats(got), &want));
}

#[test]
fn few_tokens_are_exact() {
    let mut random = Random(20);
    for dtype in TYPES {
        for (i, [n, m]) in SHAPES.into_iter().enumerate() {
            let w = Weights::new(dtype, n, m, Scales::One, &mut random);
            for tokens in if n > 2048 { vec![1, 8] } else { vec![1, 2 + i % 3, 5 + i % 4] } {
                check_tokens(&w, tokens, &mut random);
            }
        }
    }
}

/// More rows than all workgroups make at a time, on a device that does not say how many cores it has.
#[test]
fn workgroups_go_on_to_further_rows() {
    let mut random = Random(27);
    for (dtype, n) in TYPES.into_iter().zip([256, 512]) {
        let w = Weights::new(dtype, n, 8459, Scales::One, &mut random);
        check_tokens(&w, 1, &mut random);
        check_tokens(&w, 3, &mut random);
    }
}

#[test]
fn few_tokens_of_other_scales_are_exact() {
    let mut random = Random(21);
    for dtype in TYPES {
        for scales in [Scales::None, Scales::OneAndZeroBlocks, Scales::Mixed] {
            for [n, m] in [[256, 3], [768, 41], [2560, 7]] {
                let w = Weights::new(dtype, n, m, scales, &mut random);
                for tokens in [1, 5] {
                    check_tokens(&w, tokens, &mut random);
                }
            }
        }
    }
}

/// A token of floats, quantized where it is multiplied; tokens of every kind, one after another.
#[test]
fn one_token_of_floats_is_exact() {
    let mut random = Random(22);
    for dtype in TYPES {
        for [n, m] in [[256, 9], [768, 70], [2048, 17]] {
            let w = Weights::new(dtype, n, m, Scales::One, &mut random);
            for x in odd_tokens(n, 10, &mut random).chunks(n) {
                let want = forward(&w, &Tokens::new(x, n, 1));
                let make = |bench: &mut Bench| {
                    let (w, x) = (w.tensor(bench), bench.f32(&[n as i64, 1], x));
                    bench.ops.mul_mat(&w, &x).unwrap()
                };
                let case = format!("{dtype:?} [{n}, {m}] x floats");
                on_variants(&case, &VARIANTS[..2], make, |what, got| assert_same(what, &floats(got), &want));
            }
        }
    }
}

/// Every absmax that matters to the division, as one token each of a short row.
#[test]
fn a_token_is_divided_correctly_rounded() {
    let mut random = Random(23);
    let n = 256;
    let w = Weights::new(Dtype::TQ2_0, n, 8, Scales::One, &mut random);
    for i in 0..150 {
        let exponent = if i % 3 == 0 { 8 + random.below(4) } else { 8 + random.below(247) };
        let mantissa = [0, 1, 0x7f_ffff, random.bits() as u32 & 0x7f_ffff][i % 4];
        let a = f32::from_bits((exponent as u32) << 23 | mantissa);
        let mut x: Vec<f32> = random.values(n).into_iter().map(|v| (v * 0.3).clamp(-1.0, 1.0) * a).collect();
        x[random.below(n)] = a;
        let want = forward(&w, &Tokens::new(&x, n, 1));
        let make = |bench: &mut Bench| {
            let (w, x) = (w.tensor(bench), bench.f32(&[n as i64, 1], &x));
            bench.ops.mul_mat(&w, &x).unwrap()
        };
        on_variants(&format!("absmax {a:e}"), &[""], make, |what, got| {
            assert_same(what, &floats(got), &want);
        });
    }
}

fn products(w: &[Weights], x: &[f32]) -> Vec<Vec<f32>> {
    w.iter().map(|w| forward(w, &Tokens::new(x, w.n, 1))).collect()
}

/// Values whose mean square is 4 in any order of the sum, so that the norm halves them.
fn twos(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n).map(|_| if random.below(2) == 0 { 2.0 } else { -2.0 }).collect()
}

/// Three products of one normed token, each with a scale of its own, as q, k and v of a layer.
#[test]
fn stacked_products_of_a_normed_token_are_exact() {
    let mut random = Random(24);
    for dtype in TYPES {
        for (n, m) in [(256, 40), (512, 33), (768, 6)] {
            let w: Vec<_> = (0..3).map(|_| Weights::new(dtype, n, m, Scales::One, &mut random)).collect();
            let x = twos(n, &mut random);
            let norm = random.values(n);
            let normed: Vec<f32> = x.iter().zip(&norm).map(|(x, norm)| x / 2.0 * norm).collect();
            let scales = [0.75f32, -1.3, 2.1];
            let y = products(&w, &normed);
            let want: Vec<f32> =
                (0..m).map(|i| (y[0][i] * scales[0] + y[1][i] * scales[1]) + y[2][i] * scales[2]).collect();
            let make = |bench: &mut Bench| {
                let w: Vec<Tensor> = w.iter().map(|w| w.tensor(bench)).collect();
                let scales = scales.map(|s| bench.f32(&[1], &[s]));
                let (x, norm) = (bench.f32(&[n as i64, 1], &x), bench.f32(&[n as i64], &norm));
                let c = &bench.ops;
                let x = c.mul(&c.rms_norm(&x, 0.0).unwrap(), &norm).unwrap();
                let y: Vec<Tensor> = w.iter().map(|w| c.mul_mat(w, &x).unwrap()).collect();
                let y: Vec<Tensor> = y.iter().zip(&scales).map(|(y, s)| c.mul(y, s).unwrap()).collect();
                c.add(&c.add(&y[0], &y[1]).unwrap(), &y[2]).unwrap()
            };
            let case = format!("{dtype:?} 3 x [{n}, {m}]");
            on_variants(&case, &VARIANTS[..2], make, |what, got| assert_same(what, &floats(got), &want));
        }
    }
}

#[test]
fn a_product_and_its_residual_are_exact() {
    let mut random = Random(25);
    for dtype in TYPES {
        for (n, m, with_scale) in [(256, 35, false), (1536, 40, true)] {
            let w = [Weights::new(dtype, n, m, Scales::One, &mut random)];
            let (x, residual) = (random.values(n), random.values(m));
            let scale = if with_scale { 0.3f32 } else { 1.0 };
            let y = &products(&w, &x)[0];
            let want: Vec<f32> = y.iter().zip(&residual).map(|(y, r)| y * scale + r).collect();
            let make = |bench: &mut Bench| {
                let w = w[0].tensor(bench);
                let (x, scale) = (bench.f32(&[n as i64, 1], &x), bench.f32(&[1], &[scale]));
                let residual = bench.f32(&[m as i64, 1], &residual);
                let mut y = bench.ops.mul_mat(&w, &x).unwrap();
                if with_scale {
                    y = bench.ops.mul(&y, &scale).unwrap();
                }
                bench.ops.add(&y, &residual).unwrap()
            };
            let case = format!("{dtype:?} [{n}, {m}] and a residual");
            on_variants(&case, &VARIANTS[..2], make, |what, got| assert_same(what, &floats(got), &want));
        }
    }
}

/// The exponential and the quotient are the driver's: a few units of the last place each.
const SWIGLU_ERROR: f32 = 16.0 * f32::EPSILON;

#[test]
fn gate_and_up_make_one_result() {
    let mut random = Random(26);
    for dtype in TYPES {
        for (n, m) in [(256, 37), (512, 70)] {
            let w: Vec<_> = (0..2).map(|_| Weights::new(dtype, n, m, Scales::One, &mut random)).collect();
            let x = random.values(n);
            let y = products(&w, &x);
            let make = |bench: &mut Bench| {
                let w: Vec<Tensor> = w.iter().map(|w| w.tensor(bench)).collect();
                let x = bench.f32(&[n as i64, 1], &x);
                let up = bench.ops.mul_mat(&w[1], &x).unwrap();
                let gate = bench.ops.mul_mat(&w[0], &x).unwrap();
                bench.ops.swiglu_split(&gate, &up).unwrap()
            };
            let case = format!("{dtype:?} 2 x [{n}, {m}]");
            on_variants(&case, &VARIANTS[..2], make, |what, got| {
                let got = floats(got);
                assert_eq!(got.len(), m);
                for (i, got) in got.iter().enumerate() {
                    let want = y[0][i] / (1.0 + (-y[0][i]).exp()) * y[1][i];
                    let close = (got - want).abs() <= SWIGLU_ERROR * want.abs();
                    assert!(close, "{what}: element {i} is {got:e}, expected {want:e}");
                }
            });
        }
    }
}
