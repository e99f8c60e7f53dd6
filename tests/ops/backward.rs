//! Backward rules as autodiff makes them: the gradient of `sum(y * dy)` in an input of `y`.
//!
//! What a rule adds of its own (SILU_BACK, SOFT_MAX_BACK, ROPE_BACK, RMS_NORM_BACK, REPEAT_BACK, GET_ROWS_BACK) runs on each
//! device this way, in the layouts in which the training graph has it.

use qvac_ft::ggml::{Dtype, RopeKind};

use super::forward::{rope_params, rotate};
use super::{check, noise, Want};

/// Sums of f32 products and one transcendental function.
const TOLERANCE: f64 = 2e-5;
/// mul_mat's backward keeps f32 on every device; its sums are long.
const SUMS: f64 = 1e-5;

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// More than 512 rows that are no multiple of it: upstream's dispatch grid then has rows to spare.
const SHAPES: [[i64; 3]; 5] = [[1, 1, 1], [32, 5, 1], [33, 7, 3], [128, 600, 1], [96, 4, 513]];

#[test]
fn rms_norm() {
    let eps = 1e-5f32;
    for ne in SHAPES {
        let n = ne.iter().product::<i64>() as usize;
        let (x, dy) = (noise(30, n), noise(31, n));
        let mut want = Want { values: Vec::new(), bound: Vec::new() };
        for (x, dy) in wide(&x).chunks(ne[0] as usize).zip(wide(&dy).chunks(ne[0] as usize)) {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(eps);
            let dot = x.iter().zip(dy).map(|(x, dy)| x * dy).sum::<f64>() / x.len() as f64;
            let terms = |x: f64, dy: f64| (dy / mean.sqrt(), x * dot / mean / mean.sqrt());
            // The two terms may cancel, all of them in a row of one: the error follows their size, not the difference.
            let largest = x
                .iter()
                .zip(dy)
                .map(|(&x, &dy)| terms(x, dy))
                .fold(0.0, |m: f64, (a, b)| m.max(a.abs()).max(b.abs()));
            want.values.extend(x.iter().zip(dy).map(|(&x, &dy)| terms(x, dy).0 - terms(x, dy).1));
            want.bound.extend(x.iter().map(|_| TOLERANCE * largest));
        }
        check(&format!("rms_norm_back {ne:?}"), &want, |mut t| {
            let x = t.f32(&ne, &x);
            x.set_param().unwrap();
            let y = t.ops.rms_norm(&x, eps).unwrap();
            t.grad(&x, &y, &dy)
        });
    }
}

#[test]
fn swiglu() {
    for ne in SHAPES {
        let n = ne.iter().product::<i64>() as usize;
        let (gate, up, dy) = (noise(32, n), noise(33, n), noise(34, n));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let by_gate = |i: usize| {
            let (g, s) = (f64::from(gate[i]), sigmoid(gate[i].into()));
            f64::from(dy[i]) * f64::from(up[i]) * (s + g * s * (1.0 - s))
        };
        let by_up = |i: usize| f64::from(dy[i]) * f64::from(gate[i]) * sigmoid(gate[i].into());
        for (what, values) in
            [("gate", (0..n).map(by_gate).collect()), ("up", (0..n).map(by_up).collect::<Vec<_>>())]
        {
            check(&format!("swiglu_back in {what} {ne:?}"), &Want::within(values, TOLERANCE), |mut t| {
                let (gate, up) = (t.f32(&ne, &gate), t.f32(&ne, &up));
                let x = if what == "gate" { &gate } else { &up };
                x.set_param().unwrap();
                let y = t.ops.swiglu_split(&gate, &up).unwrap();
                t.grad(x, &y, &dy)
            });
        }
    }
}

#[test]
fn soft_max() {
    for [n0, n1, n2] in [[1usize, 1, 1], [33, 7, 3], [70, 33, 4], [64, 513, 3]] {
        let n = n0 * n1 * n2;
        let (x, dy) = (noise(35, n), noise(36, n));
        let mask: Vec<f32> =
            (0..n0 * n1).map(|at| if at % n0 <= at / n0 { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mut values = Vec::new();
        for (row, (x, dy)) in wide(&x).chunks(n0).zip(wide(&dy).chunks(n0)).enumerate() {
            let e: Vec<f64> =
                (0..n0).map(|j| (0.3f32 as f64 * x[j] + f64::from(mask[row % n1 * n0 + j])).exp()).collect();
            let sum: f64 = e.iter().sum();
            let dot: f64 = (0..n0).map(|j| e[j] / sum * dy[j]).sum();
            values.extend((0..n0).map(|j| 0.3f32 as f64 * e[j] / sum * (dy[j] - dot)));
        }
        check(&format!("soft_max_back {n0}x{n1}x{n2}"), &Want::within(values, TOLERANCE), |mut t| {
            let x = t.f32(&[n0 as i64, n1 as i64, n2 as i64], &x);
            let mask = t.f32(&[n0 as i64, n1 as i64], &mask);
            x.set_param().unwrap();
            let y = t.ops.soft_max_ext(&x, &mask, 0.3).unwrap();
            t.grad(&x, &y, &dy)
        });
    }
}

/// Straight, and with the gradient coming back through a permute, as from attention's scores.
#[test]
fn rope() {
    let (n_dims, n_head) = (32usize, 3usize);
    let pos: Vec<i32> = (0..19).map(|i| (i * 5 + 2) % 43).collect();
    let ne = [n_dims as i64, n_head as i64, pos.len() as i64];
    let n = n_dims * n_head * pos.len();
    let (x, dy) = (noise(37, n), noise(38, n));
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        let straight = rotate(&wide(&dy), n_dims, n_head, &pos, kind, -1.0);
        check(&format!("rope_back {kind:?}"), &Want::within(straight, TOLERANCE), |mut t| {
            let (x, pos) = (t.f32(&ne, &x), t.i32(&pos));
            x.set_param().unwrap();
            let y = t.ops.rope_ext(&x, &pos, None, &rope_params(kind, n_dims as i32)).unwrap();
            t.grad(&x, &y, &dy)
        });
        // dy is given in y's permuted shape [n_dims, n_tokens, n_head].
        let mut back = vec![0.0; n];
        for head in 0..n_head {
            for token in 0..pos.len() {
                let from = (head * pos.len() + token) * n_dims;
                let to = (token * n_head + head) * n_dims;
                back[to..to + n_dims].copy_from_slice(&wide(&dy[from..from + n_dims]));
            }
        }
        let permuted = rotate(&back, n_dims, n_head, &pos, kind, -1.0);
        check(&format!("rope_back {kind:?} permuted"), &Want::within(permuted, TOLERANCE), |mut t| {
            let (x, pos) = (t.f32(&ne, &x), t.i32(&pos));
            x.set_param().unwrap();
            let y = t.ops.rope_ext(&x, &pos, None, &rope_params(kind, n_dims as i32)).unwrap();
            let y = t.ops.permute(&y, [0, 2, 1, 3]).unwrap();
            t.grad(&x, &y, &dy)
        });
    }
}

/// Grouped-query attention's product: a `[k, n, n_head_kv]` serves several heads of b `[k, m, n_head]`.
#[test]
fn mul_mat_of_grouped_heads() {
    let (k, n, m, kv, share) = (16usize, 21usize, 37usize, 2usize, 3usize);
    let heads = kv * share;
    let (a, b, dy) = (noise(39, k * n * kv), noise(40, k * m * heads), noise(41, n * m * heads));
    let (a64, b64, dy64) = (wide(&a), wide(&b), wide(&dy));
    let mut da = vec![0.0; a.len()];
    let mut db = vec![0.0; b.len()];
    for h in 0..heads {
        for j in 0..m {
            for i in 0..n {
                let g = dy64[(h * m + j) * n + i];
                for x in 0..k {
                    let (ia, ib) = ((h / share * n + i) * k + x, (h * m + j) * k + x);
                    da[ia] += g * b64[ib];
                    db[ib] += g * a64[ia];
                }
            }
        }
    }
    for (what, values) in [("first", da), ("second", db)] {
        check(&format!("mul_mat back in the {what}"), &Want::within(values, SUMS), |mut t| {
            let a = t.f32(&[k as i64, n as i64, kv as i64], &a);
            let b = t.f32(&[k as i64, m as i64, heads as i64], &b);
            let x = if what == "first" { &a } else { &b };
            x.set_param().unwrap();
            let y = t.ops.mul_mat(&a, &b).unwrap();
            t.grad(x, &y, &dy)
        });
    }
}

/// The gradient in a frozen ternary matrix's input, as the training graph has it.
#[test]
fn mul_mat_of_a_frozen_weight() {
    let (k, n, m) = (256usize, 40usize, 19usize);
    let (a, b, dy) = (noise(42, k * n), noise(43, k * m), noise(44, n * m));
    for dtype in [Dtype::F16, Dtype::Q4_0, Dtype::TQ2_0, Dtype::TQ1_0] {
        let stored = super::stored(dtype, k as i64, &a);
        let mut values = vec![0.0; b.len()];
        for j in 0..m {
            for i in 0..n {
                for x in 0..k {
                    values[j * k + x] += f64::from(dy[j * n + i]) * stored[i * k + x];
                }
            }
        }
        check(&format!("mul_mat back through {dtype}"), &Want::within(values, SUMS), |mut t| {
            let a = t.input(dtype, &[k as i64, n as i64], &a);
            let b = t.f32(&[k as i64, m as i64], &b);
            b.set_param().unwrap();
            let y = t.ops.mul_mat(&a, &b).unwrap();
            t.grad(&b, &y, &dy)
        });
    }
}

/// Rows that several ids name add their gradients up.
#[test]
fn get_rows() {
    let (n0, n1) = (33usize, 11usize);
    let ids: Vec<i32> = (0..40).map(|i| (i * 7 + 3) % 11).collect();
    let (x, dy) = (noise(45, n0 * n1), noise(46, n0 * ids.len()));
    let mut values = vec![0.0; x.len()];
    for (row, &id) in ids.iter().enumerate() {
        for i in 0..n0 {
            values[id as usize * n0 + i] += f64::from(dy[row * n0 + i]);
        }
    }
    check("get_rows_back", &Want::within(values, SUMS), |mut t| {
        let (x, ids) = (t.f32(&[n0 as i64, n1 as i64], &x), t.i32(&ids));
        x.set_param().unwrap();
        let y = t.ops.get_rows(&x, &ids).unwrap();
        t.grad(&x, &y, &dy)
    });
}

/// A norm's weight is repeated over rows, so its gradient sums them.
#[test]
fn mul_and_add_of_a_repeated_row() {
    for [n0, n1] in [[32usize, 5], [33, 600]] {
        let (x, w, dy) = (noise(47, n0 * n1), noise(48, n0), noise(49, n0 * n1));
        let column = |i: usize, f: &dyn Fn(usize) -> f64| (0..n1).map(|r| f(r * n0 + i)).sum::<f64>();
        let by_mul = |at: usize| f64::from(dy[at]) * f64::from(x[at]);
        let by_add = |at: usize| f64::from(dy[at]);
        for (op, f) in [("mul", &by_mul as &dyn Fn(usize) -> f64), ("add", &by_add)] {
            let values = (0..n0).map(|i| column(i, f)).collect();
            check(&format!("{op} back in a row {n0}x{n1}"), &Want::within(values, SUMS), |mut t| {
                let (x, w) = (t.f32(&[n0 as i64, n1 as i64], &x), t.f32(&[n0 as i64], &w));
                w.set_param().unwrap();
                let y = if op == "mul" { t.ops.mul(&x, &w).unwrap() } else { t.ops.add(&x, &w).unwrap() };
                t.grad(&w, &y, &dy)
            });
        }
    }
}
