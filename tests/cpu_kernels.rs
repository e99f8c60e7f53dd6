//! The CPU's float kernels of `patches/overlay/ggml/src/ggml-cpu/qvac/` against plain loops: OUT_PROD and MUL_MAT against
//! sums in f64, within the bound that rounding allows. Everything: the same bits for 1, 2 and 3 threads.

#[path = "common/cpu.rs"]
mod cpu;

use cpu::{assert_sums, Operand, Rng};
use qvac_ft::ggml::{Context, Dtype, Tensor};
use qvac_ft::model::WEIGHT_TYPES;

/// What `op` makes of the two operands.
fn compute(a: &Operand, b: &Operand, op: impl Fn(&Context, &Tensor, &Tensor) -> Tensor) -> Vec<f32> {
    cpu::compute(&[a, b], |ctx, t| op(ctx, &t[0], &t[1]))
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
