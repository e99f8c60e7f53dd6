//! The CPU kernels of `patches/overlay/ggml/src/ggml-cpu/qvac/` against plain loops.
//!
//! OUT_PROD and MUL_MAT in floats: against sums in f64, within the bound that rounding allows. Products with ternary
//! weights: bit for bit against the formulas of `ternary.h`, written here with integers. Everything: the same bits for
//! 1, 2 and 3 threads.

use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, Graph, Tensor};
use qvac_ft::model::WEIGHT_TYPES;

const THREADS: [usize; 3] = [1, 2, 3];

/// A chain of k fused multiply-adds in f32 errs by at most k half-ulps of the sum of magnitudes; a target without
/// them rounds twice a step.
const ROUNDINGS_PER_STEP: f64 = 2.0;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn uniform(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32) - 1.0).collect()
    }
}

/// A `[ne..]` operand: its type and its values row by row, as the type holds them.
struct Operand {
    dtype: Dtype,
    ne: Vec<i64>,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Operand {
    fn new(dtype: Dtype, ne: &[i64], values: &[f32]) -> Self {
        let mut bytes = Vec::new();
        dtype.quantize(values, ne[0] as usize, &mut bytes).unwrap();
        let mut held = vec![0.0; values.len()];
        dtype.dequantize(&bytes, &mut held).unwrap();
        Self { dtype, ne: ne.to_vec(), bytes, values: held }
    }

    fn random(dtype: Dtype, ne: &[i64], rng: &mut Rng) -> Self {
        let n = ne.iter().product::<i64>() as usize;
        Self::new(dtype, ne, &rng.uniform(n))
    }
}

/// What `op` makes of the two operands; checks that the number of threads does not show.
fn compute(a: &Operand, b: &Operand, op: impl Fn(&Context, &Tensor, &Tensor) -> Tensor) -> Vec<f32> {
    let results = THREADS.map(|n_threads| {
        let backend = Backend::new(&Device::by_name("cpu").unwrap(), n_threads).unwrap();
        let exec = Executor::new(&backend, None);
        let inputs = Context::new(2, 0).unwrap();
        let [ta, tb] = [a, b].map(|o| inputs.new_tensor("operand", o.dtype, &o.ne).unwrap());
        backend.alloc(&inputs, "operands").unwrap();
        ta.upload_bytes(0, &a.bytes).unwrap();
        tb.upload_bytes(0, &b.bytes).unwrap();

        let ops = Context::new(16, 64).unwrap();
        let y = op(&ops, &ta, &tb);
        y.set_output();
        let mut graph = Graph::new(&ops, 16, false).unwrap();
        graph.expand(&y).unwrap();
        let plan = exec.plan(vec![graph]).unwrap().remove(0);
        exec.compute(&plan).unwrap();
        y.download::<f32>().unwrap()
    });
    let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for y in &results[1..] {
        assert!(bits(y) == bits(&results[0]), "{} {:?}: the number of threads shows", a.dtype.name(), a.ne);
    }
    results.into_iter().next().unwrap()
}

/// Holds `got` against `sum_i products(index)[i]` in f64.
fn assert_sums(what: &str, got: &[f32], products: impl Fn(usize) -> Vec<f64>) {
    assert!(!got.is_empty());
    for (i, &y) in got.iter().enumerate() {
        let p = products(i);
        let want: f64 = p.iter().sum();
        let magnitude: f64 = p.iter().map(|v| v.abs()).sum();
        let bound = ROUNDINGS_PER_STEP * p.len() as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
        assert!(
            (f64::from(y) - want).abs() <= bound,
            "{what}: element {i}: {y} instead of {want}, bound {bound:e}"
        );
    }
}

/// OUT_PROD: a `[n, k, b0]`, b `[m, k, batch]`, in place or as the transposed view of `[k, m, batch]`.
fn check_out_prod(dtype: Dtype, [n, k, m]: [usize; 3], [b0, batch]: [usize; 2], transposed: bool) {
    let mut rng = Rng((n * 31 + k * 7 + m) as u64);
    let a = Operand::random(dtype, &[n as i64, k as i64, b0 as i64], &mut rng);
    let ne_b = if transposed { [k, m, batch] } else { [m, k, batch] };
    let b = Operand::random(Dtype::F32, &ne_b.map(|v| v as i64), &mut rng);
    let y = compute(&a, &b, |ctx, a, b| {
        let b = if transposed { ctx.transpose(b).unwrap() } else { b.clone() };
        ctx.out_prod(a, &b).unwrap() // [n, m, batch]
    });
    assert_eq!(y.len(), n * m * batch);
    let what =
        format!("out_prod {} n={n} k={k} m={m} batch={batch}/{b0} transposed={transposed}", dtype.name());
    assert_sums(&what, &y, |i| {
        let (i0, i1, i2) = (i % n, i / n % m, i / n / m);
        let b_at = |kk: usize| if transposed { (i2 * m + i1) * k + kk } else { (i2 * k + kk) * m + i1 };
        (0..k)
            .map(|kk| {
                f64::from(a.values[(i2 / (batch / b0) * k + kk) * n + i0]) * f64::from(b.values[b_at(kk)])
            })
            .collect()
    });
}

#[test]
fn out_prod_of_every_type_is_the_sum_of_products() {
    for &dtype in WEIGHT_TYPES {
        let block = dtype.block_size();
        // one element or block, one more than a register tile, one more than a cache tile
        let ns = if block == 1 { [1, 33, 257] } else { [block, 3 * block, 256 + block] };
        for n in ns {
            for (k, m) in [(1, 1), (7, 13), (256, 2), (300, 31)] {
                for transposed in [true, false] {
                    check_out_prod(dtype, [n, k, m], [1, 1], transposed);
                }
            }
        }
        check_out_prod(dtype, [3 * block, 17, 5], [2, 2], true);
        check_out_prod(dtype, [3 * block, 17, 5], [2, 6], true);
    }
}

#[test]
fn out_prod_of_lora_gradients() {
    check_out_prod(Dtype::F32, [96, 70, 8], [1, 1], false); // dA [n_in, rank]
    check_out_prod(Dtype::F32, [8, 70, 96], [1, 1], false); // dB [rank, n_out], the transposed way
    check_out_prod(Dtype::F32, [8, 300, 70], [1, 1], true); // d(A x) [rank, n_tokens]
    check_out_prod(Dtype::F32, [1, 33, 20], [1, 1], false); // rank 1
}

/// MUL_MAT: a `[k, n, b0]`, b `[k, m, batch]`, in place or as a view with the last two dimensions exchanged.
fn check_mul_mat(dtype: Dtype, [k, n, m]: [usize; 3], [b0, batch]: [usize; 2], permuted: bool) {
    let mut rng = Rng((n * 31 + k * 7 + m) as u64);
    let a = Operand::random(dtype, &[k as i64, n as i64, b0 as i64], &mut rng);
    let ne_b = if permuted { [k, batch, m] } else { [k, m, batch] };
    let b = Operand::random(Dtype::F32, &ne_b.map(|v| v as i64), &mut rng);
    let y = compute(&a, &b, |ctx, a, b| {
        let b = if permuted { ctx.permute(b, [0, 2, 1, 3]).unwrap() } else { b.clone() };
        ctx.mul_mat(a, &b).unwrap() // [n, m, batch]
    });
    let what = format!("mul_mat {} k={k} n={n} m={m} batch={batch}/{b0} permuted={permuted}", dtype.name());
    assert_sums(&what, &y, |i| {
        let (i0, i1, i2) = (i % n, i / n % m, i / n / m);
        let row = if permuted { i1 * batch + i2 } else { i2 * m + i1 };
        let a_row = i2 / (batch / b0) * n + i0;
        (0..k).map(|kk| f64::from(a.values[a_row * k + kk]) * f64::from(b.values[row * k + kk])).collect()
    });
}

#[test]
fn mul_mat_from_16_tokens_keeps_activations_in_f32() {
    for dtype in &WEIGHT_TYPES[..7] {
        let ks = if dtype.block_size() == 1 { [8, 64, 257] } else { [32, 64, 288] };
        for k in ks {
            for (n, m) in [(32, 16), (33, 17), (300, 50)] {
                check_mul_mat(*dtype, [k, n, m], [1, 1], false);
                check_mul_mat(*dtype, [k, n, m], [2, 4], true);
            }
        }
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

/// One token by the forward formula: q and a/127; no q where the token is zero, NaN where it is not finite.
fn quantize(x: &[f32]) -> (Vec<i32>, f32) {
    let a = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if x.iter().any(|v| !v.is_finite()) {
        return (vec![0; x.len()], f32::NAN);
    }
    if a < AMAX_MIN {
        return (vec![0; x.len()], 0.0);
    }
    let s = 127.0 / a;
    let q = x.iter().map(|v| ((v * s).round_ties_even() as i32).clamp(-127, 127)).collect();
    (q, a / 127.0)
}

fn ternary_reference(w: &Ternary, k: usize, n: usize, x: &[f32]) -> Vec<f32> {
    let d = w.d.iter().copied().find(|&d| d != 0.0).unwrap_or(0.0);
    // one block alone is never mixed
    let mixed = w.d.iter().any(|&other| other != 0.0 && other != d);
    let mut y = Vec::new();
    for token in x.chunks(k) {
        let (q, scale) = quantize(token);
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

#[test]
fn ternary_mul_mat_is_exact() {
    let mut rng = Rng(3);
    for dtype in [Dtype::TQ1_0, Dtype::TQ2_0] {
        for scales in [Scales::One, Scales::OneAndZeroBlocks, Scales::Mixed] {
            for (k, n) in [(256, 1), (512, 31), (512, 33), (768, 70)] {
                let w = ternary(dtype, k, n, scales, &mut rng);
                for m in [1, 2, 3, 4, 12, 13, 30] {
                    let x = Operand::random(Dtype::F32, &[k as i64, m as i64], &mut rng);
                    let y = compute(&w.operand, &x, |ctx, w, x| ctx.mul_mat(w, x).unwrap()); // [n, m]
                    let want = ternary_reference(&w, k, n, &x.values);
                    assert_same_floats(&format!("{} {scales:?} k={k} n={n} m={m}", dtype.name()), &y, &want);
                }
            }
        }
    }
}

#[test]
fn ternary_mul_mat_of_odd_tokens() {
    let (k, n) = (512, 33);
    let mut rng = Rng(4);
    for dtype in [Dtype::TQ1_0, Dtype::TQ2_0] {
        let w = ternary(dtype, k, n, Scales::One, &mut rng);
        let mut x = rng.uniform(k * 6);
        x[k..2 * k].fill(0.0);
        x[2 * k + 7] = f32::NAN;
        x[3 * k + 100] = f32::NEG_INFINITY;
        x[4 * k..5 * k].iter_mut().for_each(|v| *v *= 1e-38);
        x[5 * k..].fill(0.0);
        x[6 * k - 1] = -3.0; // q = -127 at the end of the row
        let x = Operand::new(Dtype::F32, &[k as i64, 6], &x);
        let y = compute(&w.operand, &x, |ctx, w, x| ctx.mul_mat(w, x).unwrap()); // [n, 6]
        assert_same_floats(dtype.name(), &y, &ternary_reference(&w, k, n, &x.values));
        assert!(y[n..2 * n].iter().all(|v| *v == 0.0) && y[4 * n..5 * n].iter().all(|v| *v == 0.0));
        assert!(y[2 * n..4 * n].iter().all(|v| v.is_nan()));
        assert!(y[5 * n..].iter().any(|v| *v != 0.0));
    }
}
