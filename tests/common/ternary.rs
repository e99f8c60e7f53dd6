//! The cases of the CPU's products with ternary weights, bit for bit against the formulas of `ternary.h`, written here with
//! integers: MUL_MAT and the ops of `ggml-train.h` on quantized tokens.
//!
//! What computes is a `Machine`: this machine's backend (`tests/cpu_ternary.rs`), or programs for other targets
//! (`tests/cpu_targets`). A new case is one function and one line in `for_each_case`.

use qvac_ft::ggml::Dtype;

use crate::cpu::{assert_sums, floats, Operand, Rng};

#[derive(Clone, Copy, Debug)]
pub enum Op {
    MulMat,
    Quantize {
        limbs: i64,
    },
    /// Of a view of the second half of each row.
    QuantizeHalf {
        limbs: i64,
    },
    TqMulMat,
    /// With a third operand to add, or without.
    TqMulMatBack,
}

/// The bytes of a result, and who made them.
pub type Made = (String, Vec<u8>);

pub trait Machine {
    /// By the kernels; the number of threads must not show.
    fn kernels(&self, op: Op, inputs: &[&Operand]) -> Vec<Made>;
    /// By the plain references beside them; empty where others have tested these.
    fn references(&self, op: Op, inputs: &[&Operand]) -> Vec<Made>;
}

/// Makes a test of every case, on the machine that an expression gives.
macro_rules! for_each_case {
    ($machine:expr) => {
        for_each_case!($machine;
            ternary_mul_mat_is_exact,
            ternary_mul_mat_in_several_chunks_is_exact,
            ternary_mul_mat_of_odd_tokens,
            tokens_are_quantized_as_the_formula_says,
            rows_of_a_view_are_quantized,
            products_of_quantized_tokens_are_exact,
            backward_of_one_scale_is_exact,
            backward_in_several_passes_is_exact,
            backward_of_zero_weights_is_zero,
            backward_of_mixed_scales_is_the_sum_of_products,
        );
    };
    ($machine:expr; $($case:ident,)*) => {
        $(
            #[test]
            fn $case() {
                $crate::ternary::$case(&$machine);
            }
        )*
    };
}
pub(crate) use for_each_case;

const TYPES: [Dtype; 2] = [Dtype::TQ1_0, Dtype::TQ2_0];

/// Bytes behind the limbs of a quantized token.
const TAIL: usize = 16;

/// Around the register tiles of every target, and a whole unit of the forward's.
const TOKENS: [usize; 9] = [1, 3, 4, 8, 9, 12, 17, 33, 130];

/// Holds the kernels to `want`.
fn check_kernels(on: &dyn Machine, what: &str, op: Op, inputs: &[&Operand], want: &[f32]) {
    for (who, bytes) in on.kernels(op, inputs) {
        assert_same_floats(&format!("{who}: {what}"), &floats(&bytes), want);
    }
}

/// Holds the kernels and the plain references to `want`.
fn check(on: &dyn Machine, what: &str, op: Op, inputs: &[&Operand], want: &[f32]) {
    check_kernels(on, what, op, inputs, want);
    for (who, bytes) in on.references(op, inputs) {
        assert_same_floats(&format!("{who}: {what}"), &floats(&bytes), want);
    }
}

/// How the blocks of a ternary tensor are scaled.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Scales {
    One,
    OneAndZeroBlocks,
    Mixed,
}

/// Ternary weights `[k, n]` as t and, per block, d.
struct Ternary {
    operand: Operand,
    t: Vec<i32>,
    d: Vec<f32>,
}

impl Ternary {
    /// The scale of the first block that has one, and whether another block has a different one.
    fn scale(&self) -> (f32, bool) {
        let d = self.d.iter().copied().find(|&d| d != 0.0).unwrap_or(0.0);
        (d, self.d.iter().any(|&other| other != 0.0 && other != d))
    }
}

fn ternary(dtype: Dtype, k: usize, n: usize, scales: Scales, rng: &mut Rng) -> Ternary {
    let mut values = Vec::with_capacity(k * n);
    for _ in 0..k * n / 256 {
        let scale = match scales {
            Scales::One => 0.05,
            Scales::OneAndZeroBlocks => 0.05 * rng.below(2) as f32,
            Scales::Mixed => 0.01 * (1 + rng.below(7)) as f32,
        };
        let start = values.len();
        values.extend((0..256).map(|_| (rng.below(3) as f32 - 1.0) * scale));
        values[start + rng.below(256) as usize] = scale;
    }
    let operand = Operand::new(dtype, &[k as i64, n as i64], &values);
    let t = operand.values.iter().map(|&v| if v == 0.0 { 0 } else { v.signum() as i32 }).collect();
    let d = operand.values.chunks(256).map(|b| b.iter().fold(0.0f32, |m, v| m.max(v.abs()))).collect();
    Ternary { operand, t, d }
}

/// The least absmax that is not counted as zero (`amax_min` of `ternary.h`).
const AMAX_MIN: f32 = f32::from_bits((127 - 119) << 23);

/// One token by the formulas: q of one or two limbs and a/127; no q where the token is zero, NaN where it is not finite.
fn quantize(x: &[f32], limbs: usize) -> (Vec<Vec<i32>>, f32) {
    let a = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let none = vec![vec![0; x.len()]; limbs];
    if x.iter().any(|v| !v.is_finite()) {
        return (none, f32::NAN);
    }
    if a < AMAX_MIN {
        return (none, 0.0);
    }
    let s = 127.0 / a;
    let round = |v: f32| (v.round_ties_even() as i32).clamp(-127, 127);
    let high: Vec<i32> = x.iter().map(|v| round(v * s)).collect();
    let low = x.iter().zip(&high).map(|(v, q)| round((v * s - *q as f32) * 254.0)).collect();
    ([high, low].into_iter().take(limbs).collect(), a / 127.0)
}

fn ternary_reference(w: &Ternary, k: usize, n: usize, x: &[f32]) -> Vec<f32> {
    let (d, mixed) = w.scale();
    let mut y = Vec::new();
    for token in x.chunks(k) {
        let (limbs, scale) = quantize(token, 1);
        let q = &limbs[0];
        for row in 0..n {
            let sums: Vec<i32> = (0..k / 256)
                .map(|b| (b * 256..(b + 1) * 256).map(|i| q[i] * w.t[row * k + i]).sum())
                .collect();
            y.push(if mixed {
                sums.iter().zip(&w.d[row * k / 256..]).fold(0.0f32, |acc, (&s, d)| acc + s as f32 * d) * scale
            } else {
                sums.iter().sum::<i32>() as f32 * (scale * d)
            });
        }
    }
    y
}

fn assert_same_floats(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()),
            "{what}: element {i}: {g} instead of {w}"
        );
    }
}

pub fn ternary_mul_mat_is_exact(on: &dyn Machine) {
    let mut rng = Rng(3);
    for dtype in TYPES {
        for scales in [Scales::One, Scales::OneAndZeroBlocks, Scales::Mixed] {
            // odd rows by few numbers of tokens, and one shape by all that row by row products have a case for
            for (k, n) in [(256, 1), (512, 31), (512, 33), (768, 70)] {
                let w = ternary(dtype, k, n, scales, &mut rng);
                let tokens: &[usize] =
                    if n == 33 { &[2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 30] } else { &[1, 8, 13] };
                for &m in tokens {
                    let x = Operand::random(Dtype::F32, &[k as i64, m as i64], &mut rng);
                    let want = ternary_reference(&w, k, n, &x.values);
                    let what = format!("{} {scales:?} k={k} n={n} m={m}", dtype.name());
                    check(on, &what, Op::MulMat, &[&w.operand, &x], &want);
                }
            }
        }
    }
}

/// More tokens than a chunk of them has, by more rows than a slot's panels.
pub fn ternary_mul_mat_in_several_chunks_is_exact(on: &dyn Machine) {
    let (k, n, m) = (4096, 300, 270);
    let mut rng = Rng(12);
    for scales in [Scales::One, Scales::Mixed] {
        let w = ternary(Dtype::TQ2_0, k, n, scales, &mut rng);
        let x = Operand::random(Dtype::F32, &[k as i64, m as i64], &mut rng);
        let want = ternary_reference(&w, k, n, &x.values);
        check_kernels(on, &format!("{scales:?}"), Op::MulMat, &[&w.operand, &x], &want);
    }
}

pub fn ternary_mul_mat_of_odd_tokens(on: &dyn Machine) {
    let (k, n) = (512, 33);
    let mut rng = Rng(4);
    for dtype in TYPES {
        let w = ternary(dtype, k, n, Scales::One, &mut rng);
        let mut x = rng.uniform(k * 6);
        x[k..2 * k].fill(0.0);
        x[2 * k + 7] = f32::NAN;
        x[3 * k + 100] = f32::NEG_INFINITY;
        x[4 * k..5 * k].iter_mut().for_each(|v| *v *= 1e-38);
        x[5 * k..].fill(0.0);
        x[6 * k - 1] = -3.0; // q = -127 at the end of the row
        let x = Operand::new(Dtype::F32, &[k as i64, 6], &x);
        let y = ternary_reference(&w, k, n, &x.values); // [n, 6]
        check(on, dtype.name(), Op::MulMat, &[&w.operand, &x], &y);
        assert!(y[n..2 * n].iter().all(|v| *v == 0.0) && y[4 * n..5 * n].iter().all(|v| *v == 0.0));
        assert!(y[2 * n..4 * n].iter().all(|v| v.is_nan()));
        assert!(y[5 * n..].iter().any(|v| *v != 0.0));
    }
}

/// Tokens as TQ_QUANTIZE lays them out.
fn quantized(x: &[f32], n: usize, limbs: usize) -> Operand {
    let mut bytes = Vec::new();
    for token in x.chunks(n) {
        let (q, scale) = quantize(token, limbs);
        bytes.extend(q.iter().flatten().map(|&v| v as i8 as u8));
        bytes.extend(scale.to_ne_bytes());
        bytes.extend([0; TAIL - 4]);
    }
    Operand::of_bytes(Dtype::I8, &[(limbs * n + TAIL) as i64, (x.len() / n) as i64], bytes)
}

/// Tokens among which are a zero one, one too small to count, one of NaN and one of infinity, where there are as many.
fn odd_tokens(n: usize, m: usize, rng: &mut Rng) -> Vec<f32> {
    let mut x = rng.uniform(n * m);
    for (i, token) in x.chunks_mut(n).enumerate() {
        match i % 9 {
            2 => token.fill(0.0),
            4 => token[n / 2] = f32::NAN,
            5 => token.iter_mut().for_each(|v| *v *= 1e-38),
            7 => token[n - 1] = f32::NEG_INFINITY,
            8 => token[..n - 1].fill(0.0),
            i => token.iter_mut().for_each(|v| *v *= 10f32.powi(6 * i as i32 - 12)),
        }
    }
    x
}

pub fn tokens_are_quantized_as_the_formula_says(on: &dyn Machine) {
    let mut rng = Rng(5);
    for limbs in [1, 2] {
        for (n, m) in [(256, 1), (768, 3), (2048, 20), (640, 2)] {
            let x = Operand::new(Dtype::F32, &[n as i64, m as i64], &odd_tokens(n, m, &mut rng));
            let want = quantized(&x.values, n, limbs as usize).bytes;
            for (who, got) in on.kernels(Op::Quantize { limbs }, &[&x]) {
                assert_same_tokens(&format!("{who}: limbs={limbs} n={n}"), &got, &want, limbs as usize * n);
            }
        }
    }
}

/// Tokens of `n_bytes` of limbs each.
fn assert_same_tokens(what: &str, got: &[u8], want: &[u8], n_bytes: usize) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.chunks(n_bytes + TAIL).zip(want.chunks(n_bytes + TAIL)).enumerate() {
        let scale = |row: &[u8]| f32::from_ne_bytes(row[n_bytes..n_bytes + 4].try_into().unwrap());
        let rest = |row: &[u8]| row[n_bytes + 4..].to_vec();
        assert!(g[..n_bytes] == w[..n_bytes] && rest(g) == rest(w), "{what} token {i}");
        assert_same_floats(&format!("{what} token {i}"), &[scale(g)], &[scale(w)]);
    }
}

pub fn rows_of_a_view_are_quantized(on: &dyn Machine) {
    let (n, m) = (512, 5);
    let x = Operand::new(Dtype::F32, &[2 * n as i64, m as i64], &Rng(6).uniform(2 * n * m));
    let half: Vec<f32> = x.values.chunks(2 * n).flat_map(|row| row[n..].to_vec()).collect();
    for (who, got) in on.kernels(Op::QuantizeHalf { limbs: 2 }, &[&x]) {
        assert!(got == quantized(&half, n, 2).bytes, "{who}");
    }
}

pub fn products_of_quantized_tokens_are_exact(on: &dyn Machine) {
    let mut rng = Rng(7);
    for dtype in TYPES {
        for scales in [Scales::One, Scales::OneAndZeroBlocks, Scales::Mixed] {
            let (k, n) = (512, 33);
            let w = ternary(dtype, k, n, scales, &mut rng);
            for m in TOKENS {
                let x = odd_tokens(k, m, &mut rng);
                let want = ternary_reference(&w, k, n, &x);
                let what = format!("{} {scales:?} m={m}", dtype.name());
                check(on, &what, Op::TqMulMat, &[&w.operand, &quantized(&x, k, 1)], &want);
            }
        }
    }
}

/// `add + W^T y` of weights `[n, m]` that have one scale.
fn back_reference(w: &Ternary, [n, m]: [usize; 2], y: &[f32], limbs: usize, add: Option<&[f32]>) -> Vec<f32> {
    let (d, mixed) = w.scale();
    assert!(!mixed);
    let mut dx = Vec::new();
    for token in y.chunks(m) {
        let (q, scale) = quantize(token, limbs);
        let mut sums = vec![vec![0i32; n]; limbs];
        for (sums, q) in sums.iter_mut().zip(&q) {
            for (q, row) in q.iter().zip(w.t.chunks(n)) {
                sums.iter_mut().zip(row).for_each(|(s, t)| *s += q * t);
            }
        }
        for c in 0..n {
            let low = sums.get(1).map_or(0.0, |s| s[c] as f32 / 254.0);
            let v = (sums[0][c] as f32 + low) * (scale * d);
            dx.push(add.map_or(v, |add| v + add[dx.len()]));
        }
    }
    dx
}

pub fn backward_of_one_scale_is_exact(on: &dyn Machine) {
    let mut rng = Rng(8);
    for dtype in TYPES {
        for scales in [Scales::One, Scales::OneAndZeroBlocks] {
            for [n, m] in [[256, 256], [768, 640]] {
                let w = ternary(dtype, n, m, scales, &mut rng);
                for (i, tokens) in TOKENS.into_iter().enumerate() {
                    let y = odd_tokens(m, tokens, &mut rng);
                    let add = Operand::random(Dtype::F32, &[n as i64, tokens as i64], &mut rng);
                    for limbs in [1, 2] {
                        let yq = quantized(&y, m, limbs);
                        let with_add = (i + limbs) % 2 == 0;
                        let inputs = [&w.operand, &yq, &add];
                        let want = back_reference(&w, [n, m], &y, limbs, with_add.then_some(&add.values));
                        let what =
                            format!("{} {scales:?} {n}x{m} tokens={tokens} limbs={limbs}", dtype.name());
                        check(on, &what, Op::TqMulMatBack, &inputs[..2 + usize::from(with_add)], &want);
                    }
                }
            }
        }
    }
}

/// More rows than a unit of work takes, and more blocks than are decoded at a time.
pub fn backward_in_several_passes_is_exact(on: &dyn Machine) {
    let [n, m, tokens] = [512, 8192, 70];
    let mut rng = Rng(9);
    let w = ternary(Dtype::TQ2_0, n, m, Scales::One, &mut rng);
    let y = rng.uniform(m * tokens);
    let want = back_reference(&w, [n, m], &y, 2, None);
    check_kernels(on, "several passes", Op::TqMulMatBack, &[&w.operand, &quantized(&y, m, 2)], &want);
}

pub fn backward_of_zero_weights_is_zero(on: &dyn Machine) {
    let w = Operand::new(Dtype::TQ1_0, &[256, 256], &[0.0; 256 * 256]);
    let yq = quantized(&Rng(10).uniform(256 * 5), 256, 2);
    let inputs = [&w, &yq];
    for (who, dx) in
        on.kernels(Op::TqMulMatBack, &inputs).into_iter().chain(on.references(Op::TqMulMatBack, &inputs))
    {
        assert!(floats(&dx).iter().all(|v| *v == 0.0), "{who}");
    }
}

/// Floats there: within the rounding of the sum, and as `ternary.h` says where a token is not finite.
pub fn backward_of_mixed_scales_is_the_sum_of_products(on: &dyn Machine) {
    let [n, m, tokens] = [512, 256, 17];
    let mut rng = Rng(11);
    for dtype in TYPES {
        let w = ternary(dtype, n, m, Scales::Mixed, &mut rng);
        assert!(w.scale().1);
        for limbs in [1, 2] {
            let y = odd_tokens(m, tokens, &mut rng);
            let add = Operand::random(Dtype::F32, &[n as i64, tokens as i64], &mut rng);
            let yq = quantized(&y, m, limbs);
            let inputs = [&w.operand, &yq, &add];
            let made = on.kernels(Op::TqMulMatBack, &inputs);
            for (who, got) in made.into_iter().chain(on.references(Op::TqMulMatBack, &inputs)) {
                let got = floats(&got);
                let who = format!("{who}: {} limbs={limbs}", dtype.name());
                for (token, y) in y.chunks(m).enumerate() {
                    let (q, scale) = quantize(y, limbs);
                    let got = &got[token * n..(token + 1) * n];
                    if scale.is_nan() {
                        assert!(got.iter().all(|v| v.is_nan()), "{who} token {token}");
                        continue;
                    }
                    assert_sums(&format!("{who} token {token}"), got, |c| {
                        let dy = |r: usize| {
                            let low = q.get(1).map_or(0.0, |q| f64::from(q[r]) / 254.0);
                            (f64::from(q[0][r]) + low) * f64::from(scale)
                        };
                        let product = |r| dy(r) * f64::from(w.operand.values[r * n + c]);
                        std::iter::once(f64::from(add.values[token * n + c]))
                            .chain((0..m).map(product))
                            .collect()
                    });
                }
            }
        }
    }
}
