//! The ops of the forward pass and of the optimizer, with inputs as the training graph lays them out.

use qvac_ft::ggml::{Dtype, Rope, RopeKind, Tensor};

use super::{check, noise, stored, Bench, Want};
use qvac_ft::model::WEIGHT_TYPES;

/// A few roundings of values of the size of the result.
const FEW_ROUNDINGS: f64 = 1e-6;
/// exp, sin, cos and inverse square root on a GPU (Vulkan allows exp 3 + 2|x| ulp, sin and cos 2^-11 absolutely beyond
/// small angles; drivers do better, and angles here stay below 100).
const TRANSCENDENTAL: f64 = 2e-5;
/// A GPU may bring weights or activations to half precision in mul_mat, upstream's CPU kernels to 8 bits.
const MUL_MAT: f64 = 2e-2;

/// Layouts of a `[ne0, ne1, ne2]` operand: as it is, and as the middle dimensions come out of a permute.
fn layouts(t: &mut Bench, ne: [i64; 3], values: &[f32], permuted: bool) -> Tensor {
    if !permuted {
        return t.f32(&ne, values);
    }
    // Stored [ne0, ne2, ne1]: move the rows accordingly.
    let (n0, n1, n2) = (ne[0] as usize, ne[1] as usize, ne[2] as usize);
    let mut moved = Vec::new();
    for i1 in 0..n1 {
        for i2 in 0..n2 {
            moved.extend_from_slice(&values[(i2 * n1 + i1) * n0..][..n0]);
        }
    }
    let x = t.f32(&[ne[0], ne[2], ne[1]], &moved);
    t.ops.permute(&x, [0, 2, 1, 3]).unwrap()
}

const SHAPES: [[i64; 3]; 5] = [[1, 1, 1], [32, 5, 1], [33, 7, 3], [128, 600, 1], [96, 4, 513]];

/// Runs `op` on every shape and layout against `reference`, which sees rows.
fn per_row(
    name: &str,
    tolerance: f64,
    op: impl Fn(&Bench, &Tensor) -> Tensor,
    reference: impl Fn(&[f64]) -> Vec<f64>,
    permuted: &[bool],
) {
    for ne in SHAPES {
        let x = noise(10, ne.iter().product::<i64>() as usize);
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let values: Vec<f64> = wide.chunks(ne[0] as usize).flat_map(&reference).collect();
        for &permuted in permuted {
            check(
                &format!("{name} {ne:?} permuted {permuted}"),
                &Want::within(values.clone(), tolerance),
                |mut t| {
                    let x = layouts(&mut t, ne, &x, permuted);
                    let out = op(&t, &x);
                    t.run(&out)
                },
            );
        }
    }
}

#[test]
fn rows_and_elements() {
    let both = [false, true];
    per_row("cont", 0.0, |t, x| t.ops.cont(x).unwrap(), |r| r.to_vec(), &both);
    per_row("sqr", FEW_ROUNDINGS, |t, x| t.ops.sqr(x).unwrap(), |r| r.iter().map(|x| x * x).collect(), &both);
    per_row("sum_rows", 1e-5, |t, x| t.ops.sum_rows(x).unwrap(), |r| vec![r.iter().sum()], &both);
    per_row(
        "scale",
        FEW_ROUNDINGS,
        |t, x| t.ops.scale(x, 0.7).unwrap(),
        |r| r.iter().map(|x| x * 0.7f32 as f64).collect(),
        &[false],
    );
    per_row("relu", 0.0, |t, x| t.ops.relu(x).unwrap(), |r| r.iter().map(|x| x.max(0.0)).collect(), &[false]);
    per_row(
        "rms_norm",
        TRANSCENDENTAL,
        |t, x| t.ops.rms_norm(x, 1e-5).unwrap(),
        |r| {
            let mean = r.iter().map(|x| x * x).sum::<f64>() / r.len() as f64;
            r.iter().map(|x| x / (mean + f64::from(1e-5f32)).sqrt()).collect()
        },
        &both,
    );
}

#[test]
fn sum_of_all() {
    for ne in SHAPES {
        let x = noise(11, ne.iter().product::<i64>() as usize);
        let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
        // Roundings follow the sum of magnitudes, not the sum.
        let bound = x.iter().map(|x| f64::from(x.abs())).sum::<f64>() * 1e-6;
        check(&format!("sum {ne:?}"), &Want { values: vec![sum], bound: vec![bound] }, |mut t| {
            let x = t.f32(&ne, &x);
            let out = t.ops.sum(&x).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn add_and_mul_repeat_their_second_operand() {
    for ne in SHAPES {
        let n = ne.iter().product::<i64>() as usize;
        for other in [ne, [ne[0], 1, 1], [1, 1, 1]] {
            let m = other.iter().product::<i64>() as usize;
            let (x, y) = (noise(12, n), noise(13, m));
            let at = |i: usize| f64::from(y[if m == 1 { 0 } else { i % m }]);
            for permuted in [false, true] {
                let sums = x.iter().enumerate().map(|(i, &x)| f64::from(x) + at(i)).collect();
                check(&format!("add {ne:?} {other:?}"), &Want::within(sums, FEW_ROUNDINGS), |mut t| {
                    let (x, y) = (layouts(&mut t, ne, &x, permuted), t.f32(&other, &y));
                    let out = t.ops.add(&x, &y).unwrap();
                    t.run(&out)
                });
                let products = x.iter().enumerate().map(|(i, &x)| f64::from(x) * at(i)).collect();
                check(&format!("mul {ne:?} {other:?}"), &Want::within(products, FEW_ROUNDINGS), |mut t| {
                    let (x, y) = (layouts(&mut t, ne, &x, permuted), t.f32(&other, &y));
                    let out = t.ops.mul(&x, &y).unwrap();
                    t.run(&out)
                });
            }
        }
    }
}

#[test]
fn swiglu() {
    for ne in SHAPES {
        let n = ne.iter().product::<i64>() as usize;
        let (gate, up) = (noise(14, n), noise(15, n));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let values = gate.iter().zip(&up).map(|(&g, &u)| silu(g.into()) * f64::from(u)).collect();
        check(&format!("swiglu {ne:?}"), &Want::within(values, TRANSCENDENTAL), |mut t| {
            let (gate, up) = (t.f32(&ne, &gate), t.f32(&ne, &up));
            let out = t.ops.swiglu_split(&gate, &up).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn relu_sqr_glu() {
    for ne in SHAPES {
        let n = ne.iter().product::<i64>() as usize;
        let (gate, up) = (noise(17, n), noise(18, n));
        let values =
            gate.iter().zip(&up).map(|(&g, &u)| f64::from(g.max(0.0)).powi(2) * f64::from(u)).collect();
        check(&format!("relu_sqr_glu {ne:?}"), &Want::within(values, FEW_ROUNDINGS), |mut t| {
            let (gate, up) = (t.f32(&ne, &gate), t.f32(&ne, &up));
            let out = t.ops.relu_sqr_glu(&gate, &up).unwrap();
            t.run(&out)
        });
    }
}

/// Rows `ids` of a matrix, of every type an embedding may have.
#[test]
fn get_rows_of_every_type() {
    let ids: Vec<i32> = (0..77).map(|i| (i * 7 + 3) % 40).collect();
    let a = noise(16, 256 * 40);
    for &dtype in WEIGHT_TYPES {
        let a_stored = stored(dtype, 256, &a);
        let values: Vec<f64> =
            ids.iter().flat_map(|&i| a_stored[i as usize * 256..][..256].to_vec()).collect();
        check(&format!("get_rows {dtype}"), &Want::within(values, FEW_ROUNDINGS), |mut t| {
            let (a, ids) = (t.input(dtype, &[256, 40], &a), t.i32(&ids));
            let out = t.ops.get_rows(&a, &ids).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn set_rows_writes_only_its_rows() {
    for (n0, n1, m) in [(1, 3, 2), (33, 20, 7), (128, 700, 600)] {
        let (dst, src) = (noise(17, n0 * n1), noise(18, n0 * m));
        let ids: Vec<i32> = (0..m).map(|i| (n1 - 1 - i) as i32).collect();
        let mut values: Vec<f64> = dst.iter().map(|&x| x.into()).collect();
        for (row, &id) in ids.iter().enumerate() {
            for i in 0..n0 {
                values[id as usize * n0 + i] = src[row * n0 + i].into();
            }
        }
        check(&format!("set_rows {n0}x{n1} {m}"), &Want::exactly(values), |mut t| {
            let (dst, src) = (t.f32(&[n0 as i64, n1 as i64], &dst), t.f32(&[n0 as i64, m as i64], &src));
            let ids = t.i32(&ids);
            let set = t.ops.set_rows(&dst, &src, &ids).unwrap();
            let out = t.ops.cont(&set).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn soft_max_with_a_block_diagonal_mask() {
    let (n0, n1, n2) = (70usize, 33usize, 4usize);
    let x = noise(19, n0 * n1 * n2);
    let open = |i: usize, j: usize| j / 14 == i / 7 && j % 14 <= i + 5 || j == 0;
    let mask: Vec<f32> =
        (0..n1 * n0).map(|at| if open(at / n0, at % n0) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mut values = Vec::new();
    for row in 0..n1 * n2 {
        let x = |j: usize| 0.3f32 as f64 * f64::from(x[row * n0 + j]) + f64::from(mask[row % n1 * n0 + j]);
        let sum: f64 = (0..n0).map(|j| x(j).exp()).sum();
        values.extend((0..n0).map(|j| x(j).exp() / sum));
    }
    for dtype in [Dtype::F32, Dtype::F16] {
        check(&format!("soft_max {dtype}"), &Want::within(values.clone(), TRANSCENDENTAL), |mut t| {
            let x = t.f32(&[n0 as i64, n1 as i64, n2 as i64], &x);
            let mask = t.input(dtype, &[n0 as i64, n1 as i64], &mask);
            let out = t.ops.soft_max_ext(&x, &mask, 0.3).unwrap();
            t.run(&out)
        });
    }
}

pub fn rope_params(kind: RopeKind, n_dims: i32) -> Rope {
    Rope {
        kind,
        n_dims,
        n_ctx_orig: 2048,
        freq_base: 10000.0,
        freq_scale: 1.0,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    }
}

/// Rotates each head of `x` `[n_dims, n_head, n_tokens]` by its position times `sign`.
pub fn rotate(x: &[f64], n_dims: usize, n_head: usize, pos: &[i32], kind: RopeKind, sign: f64) -> Vec<f64> {
    let mut out = x.to_vec();
    for (token, &p) in pos.iter().enumerate() {
        for head in 0..n_head {
            let base = (token * n_head + head) * n_dims;
            for pair in 0..n_dims / 2 {
                let (i, j) = match kind {
                    RopeKind::Norm => (2 * pair, 2 * pair + 1),
                    RopeKind::Neox => (pair, pair + n_dims / 2),
                };
                let angle = sign * f64::from(p) * 10000f64.powf(-2.0 * pair as f64 / n_dims as f64);
                let (a, b) = (x[base + i], x[base + j]);
                out[base + i] = a * angle.cos() - b * angle.sin();
                out[base + j] = a * angle.sin() + b * angle.cos();
            }
        }
    }
    out
}

#[test]
fn rope_of_both_kinds() {
    let (n_dims, n_head) = (32usize, 3usize);
    let pos: Vec<i32> = (0..19).map(|i| (i * 5 + 2) % 43).collect(); // restarts, as packed samples do
    let x = noise(20, n_dims * n_head * pos.len());
    let wide: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        let values = rotate(&wide, n_dims, n_head, &pos, kind, 1.0);
        check(&format!("rope {kind:?}"), &Want::within(values, TRANSCENDENTAL), |mut t| {
            let x = t.f32(&[n_dims as i64, n_head as i64, pos.len() as i64], &x);
            let pos = t.i32(&pos);
            let out = t.ops.rope_ext(&x, &pos, None, &rope_params(kind, n_dims as i32)).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn mul_mat() {
    let (k, n) = (256usize, 40usize);
    let a = noise(21, k * n);
    // Upstream's own op: the parity tests hold every type to libllama, and lavapipe takes seconds to compile each.
    for dtype in [Dtype::F32, Dtype::Q8_0, Dtype::TQ2_0] {
        let a_stored = stored(dtype, k as i64, &a);
        for m in [1, 77] {
            let b = noise(22, k * m);
            let dot = |i: usize, j: usize| {
                (0..k).map(|x| a_stored[i * k + x] * f64::from(b[j * k + x])).sum::<f64>()
            };
            let values = (0..m * n).map(|at| dot(at % n, at / n)).collect();
            check(&format!("mul_mat {dtype} {m}"), &Want::within(values, MUL_MAT), |mut t| {
                let (a, b) = (t.input(dtype, &[k as i64, n as i64], &a), t.f32(&[k as i64, m as i64], &b));
                let out = t.ops.mul_mat(&a, &b).unwrap();
                t.run(&out)
            });
        }
    }
}

/// The step and both moments, after upstream's formula: weight decay is applied to the weight, not to the gradient.
#[test]
fn adamw() {
    let params = [1e-2f32, 0.9, 0.999, 1e-8, 0.01, 1.5, 1.2];
    let [alpha, beta1, beta2, eps, decay, beta1h, beta2h] = params.map(f64::from);
    for n in [1usize, 31, 513, 70_000] {
        let (w, g, m) = (noise(23, n), noise(24, n), noise(25, n));
        let v: Vec<f32> = noise(26, n).into_iter().map(|x| x * x).collect();
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
        let (w64, g64, m64, v64) = (wide(&w), wide(&g), wide(&m), wide(&v));
        let m_new: Vec<f64> = m64.iter().zip(&g64).map(|(m, g)| m * beta1 + g * (1.0 - beta1)).collect();
        let v_new: Vec<f64> = v64.iter().zip(&g64).map(|(v, g)| v * beta2 + g * g * (1.0 - beta2)).collect();
        let step = |i: usize| alpha * m_new[i] * beta1h / ((v_new[i] * beta2h).sqrt() + eps);
        let w_new: Vec<f64> = (0..n).map(|i| w64[i] * (1.0 - alpha * decay) - step(i)).collect();
        for (what, values) in
            [("weight", w_new), ("first moment", m_new.clone()), ("second moment", v_new.clone())]
        {
            check(&format!("adamw {what} {n}"), &Want::within(values, 2.0 * FEW_ROUNDINGS), |mut t| {
                let ne = [n as i64];
                let (w, g) = (t.f32(&ne, &w), t.f32(&ne, &g));
                let (m, v) = (t.f32(&ne, &m), t.f32(&ne, &v));
                let params = t.f32(&[7], &params);
                let out = t.ops.opt_step_adamw(&w, &g, &m, &v, &params).unwrap();
                t.run_then_read(
                    &out,
                    match what {
                        "weight" => &w,
                        "first moment" => &m,
                        _ => &v,
                    },
                )
            });
        }
    }
}
