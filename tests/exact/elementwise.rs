//! Value by value: arithmetic, gated units and their gradients, AdamW, conversions.

use qvac_ft::ggml::{Context, Dtype, Function, Gated, Result, Tensor};

use super::{in_place, noise, odd, same, same_bytes, within, Bench};

const SHAPES: [[i64; 3]; 5] = [[1, 1, 1], [32, 5, 1], [33, 7, 3], [128, 600, 1], [96, 4, 513]];

/// A few roundings of a value.
const ROUNDINGS: f64 = 4e-7;

fn n_of(ne: [i64; 3]) -> usize {
    ne.iter().product::<i64>() as usize
}

/// `[ne0, ne2, ne1]` with its upper dimensions swapped, or as it is.
fn layout(t: &mut Bench, ne: [i64; 3], values: &[f32], permuted: bool) -> Tensor {
    if !permuted {
        return t.f32(&ne, values);
    }
    let x = t.f32(&[ne[0], ne[2], ne[1]], values);
    t.ops.permute(&x, [0, 2, 1, 3]).unwrap()
}

type Unary = fn(&Context, &Tensor) -> Result<Tensor>;
type Binary = fn(&Context, &Tensor, &Tensor) -> Result<Tensor>;
type Reference = fn(f64, f64) -> f64;

#[test]
fn arithmetic() {
    let ops: [(&str, Binary, Reference); 4] = [
        ("add", Context::add, |a, b| a + b),
        ("sub", Context::sub, |a, b| a - b),
        ("mul", Context::mul, |a, b| a * b),
        ("div", Context::div, |a, b| a / b),
    ];
    for (name, op, f) in ops {
        for ne in SHAPES {
            for other in [ne, [ne[0], 1, 1], [1, ne[1], 1], [1, 1, 1], [ne[0], 1, ne[2]]] {
                let (x, y) = (noise(21, n_of(ne)), noise(22, n_of(other)));
                for permuted in [false, true] {
                    let case = format!("{name} {ne:?} {other:?} {permuted}");
                    let run = |x: &[f32], y: &[f32]| {
                        same(&case, |mut t| {
                            let (x, y) = (layout(&mut t, ne, x, permuted), t.f32(&other, y));
                            let z = op(&t.ops, &x, &y).unwrap();
                            t.run(&z)
                        })
                    };
                    let got = run(&x, &y);
                    if !permuted && (other == ne || other == [1, 1, 1]) {
                        let at = |i: usize| f64::from(y[i % y.len()]);
                        let want: Vec<f64> =
                            x.iter().enumerate().map(|(i, &x)| f(f64::from(x), at(i))).collect();
                        within(&case, &got, &want, |i| ROUNDINGS * want[i].abs());
                    }
                    if ne[2] == 3 {
                        run(&odd(23, n_of(ne)), &odd(24, n_of(other)));
                    }
                }
            }
        }
    }
}

#[test]
fn arithmetic_in_place() {
    for n in [31, 4096] {
        let (x, y) = (noise(25, n), noise(26, n));
        let got = same(&format!("in place {n}"), |mut t| {
            let ne = [n as i64];
            let (x, y) = (t.f32(&ne, &x), t.f32(&ne, &y));
            let z = in_place(&t, &x, |x| {
                let z = t.ops.add(x, &y).unwrap();
                let z = t.ops.mul(&z, &y).unwrap();
                t.ops.sqr(&t.ops.mul_inplace(&z, &y).unwrap()).unwrap()
            });
            t.run(&z)
        });
        let want: Vec<f64> = x
            .iter()
            .zip(&y)
            .map(|(&x, &y)| ((f64::from(x) + f64::from(y)) * f64::from(y * y)).powi(2))
            .collect();
        within("in place", &got, &want, |i| 1e-5 * want[i].abs() + 1e-6);
    }
}

#[test]
fn of_one_operand() {
    for ne in SHAPES {
        let x = odd(27, n_of(ne));
        let ops: [(&str, Unary); 12] = [
            ("sqr", |c, x| c.sqr(x)),
            ("scale", |c, x| c.scale(x, 0.7)),
            ("scale_bias", |c, x| c.scale_bias(x, 0.7, -0.3)),
            ("relu", |c, x| c.relu(x)),
            ("exp", |c, x| c.function(Function::Exp, x)),
            ("log", |c, x| c.function(Function::Log, x)),
            ("sqrt", |c, x| c.function(Function::Sqrt, x)),
            ("sin", |c, x| c.function(Function::Sin, x)),
            ("cos", |c, x| c.function(Function::Cos, x)),
            ("silu", |c, x| c.function(Function::Silu, x)),
            ("sigmoid", |c, x| c.function(Function::Sigmoid, x)),
            ("neg", |c, x| c.function(Function::Neg, x)),
        ];
        for (name, op) in ops {
            same(&format!("{name} {ne:?}"), |mut t| {
                let x = t.f32(&ne, &x);
                let y = op(&t.ops, &x).unwrap();
                t.run(&y)
            });
        }
    }
}

#[test]
fn gated_units() {
    for (unit, f) in [
        (Gated::Swiglu, (|g: f64| g / (1.0 + (-g).exp())) as fn(f64) -> f64),
        (Gated::Reglu, |g: f64| g.max(0.0)),
    ] {
        for ne in SHAPES {
            let (gate, up) = (noise(28, n_of(ne)), noise(29, n_of(ne)));
            let case = format!("{unit:?} {ne:?}");
            let got = same(&case, |mut t| {
                let (gate, up) = (t.f32(&ne, &gate), t.f32(&ne, &up));
                let y = in_place(&t, &gate, |gate| t.ops.glu_split(unit, gate, &up).unwrap());
                t.run(&y)
            });
            let want: Vec<f64> =
                gate.iter().zip(&up).map(|(&g, &u)| f(f64::from(g)) * f64::from(u)).collect();
            within(&case, &got, &want, |i| 2.0 * ROUNDINGS * want[i].abs());

            let rows: Vec<f32> = gate
                .chunks(ne[0] as usize)
                .zip(up.chunks(ne[0] as usize))
                .flat_map(|(g, u)| g.iter().chain(u).copied().collect::<Vec<_>>())
                .collect();
            for swapped in [false, true] {
                let both = same(&format!("{case} in one"), |mut t| {
                    let x = t.f32(&[2 * ne[0], ne[1], ne[2]], &rows);
                    let y = t.ops.glu(unit, &x, swapped).unwrap();
                    t.run(&y)
                });
                if !swapped {
                    assert_eq!(both, got, "{case}: halves of rows give what two tensors give");
                }
            }
            let special = (odd(30, n_of(ne)), odd(31, n_of(ne)));
            same(&case, |mut t| {
                let (gate, up) = (t.f32(&ne, &special.0), t.f32(&ne, &special.1));
                let y = t.ops.glu_split(unit, &gate, &up).unwrap();
                t.run(&y)
            });
        }
    }
}

#[test]
fn relu_sqr_glu() {
    let ne = [96, 37];
    let (gate, up) = (noise(32, 96 * 37), noise(33, 96 * 37));
    same("relu_sqr_glu", |mut t| {
        let (gate, up) = (t.f32(&ne, &gate), t.f32(&ne, &up));
        let y = t.ops.relu_sqr_glu(&gate, &up).unwrap();
        t.run(&y)
    });
}

#[test]
fn gradients_of_gated_units() {
    for ne in [[1, 1], [33, 7], [128, 300]] {
        let n = (ne[0] * ne[1]) as usize;
        let (dy, gate, up) = (noise(34, n), noise(35, n), noise(36, n));
        let of = |case: &str, silu: bool, dy: &[f32], gate: &[f32], up: &[f32]| {
            same(case, |mut t| {
                let (dy, gate, up) = (t.f32(&ne, dy), t.f32(&ne, gate), t.f32(&ne, up));
                let d = match silu {
                    true => t.ops.swiglu_back(&dy, &gate, &up).unwrap(),
                    false => t.ops.relu_sqr_glu_back(&dy, &gate, &up).unwrap(),
                };
                t.run(&d)
            })
        };
        for silu in [true, false] {
            let case = format!("glu_back {ne:?} {silu}");
            let got = of(&case, silu, &dy, &gate, &up);
            let at = |i: usize| (f64::from(dy[i]), f64::from(gate[i]), f64::from(up[i]));
            let s = |g: f64| 1.0 / (1.0 + (-g).exp());
            let dgate = (0..n).map(at).map(|(d, g, u)| match silu {
                true => d * u * s(g) * (1.0 + g * (1.0 - s(g))),
                false => d * u * 2.0 * g.max(0.0),
            });
            let dup = (0..n).map(at).map(|(d, g, _)| match silu {
                true => d * g * s(g),
                false => d * g.max(0.0).powi(2),
            });
            let want: Vec<f64> = dgate.chain(dup).collect();
            let most = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            within(&case, &got, &want, |_| ROUNDINGS * most);
            of(&case, silu, &odd(37, n), &odd(38, n), &odd(39, n));
        }
    }
}

#[test]
fn adamw() {
    for n in [1, 255, 256 * 513 + 1] {
        let (w, g) = (noise(40, n), noise(41, n));
        let m: Vec<f32> = noise(42, n).iter().map(|m| 0.1 * m).collect();
        let v: Vec<f32> = noise(43, n).iter().map(|v| 0.01 * v * v).collect();
        let step = [1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0 / (1.0 - 0.9), 1.0 / (1.0 - 0.999)];
        let all = same(&format!("adamw {n}"), |mut t| {
            let ne = [n as i64];
            let state = [&w, &g, &m, &v].map(|x| t.f32(&ne, x));
            let step = t.f32(&[7], &step);
            let [w, g, m, v] = &state;
            let op = t.ops.opt_step_adamw(w, g, m, v, &step).unwrap();
            let m = m.clone();
            let v = v.clone();
            let mut all = t.run_then_read(&op, w);
            all.extend(m.download::<f32>().unwrap());
            all.extend(v.download::<f32>().unwrap());
            all
        });
        let [lr, beta1, beta2, eps, decay, c1, c2] = step.map(f64::from);
        let at = |x: &[f32], i: usize| f64::from(x[i]);
        let mut want = vec![0.0; 3 * n];
        for i in 0..n {
            let m = at(&m, i) * beta1 + at(&g, i) * (1.0 - beta1);
            let v = at(&v, i) * beta2 + at(&g, i).powi(2) * (1.0 - beta2);
            want[i] = at(&w, i) * (1.0 - lr * decay) - lr * m * c1 / ((v * c2).sqrt() + eps);
            want[n + i] = m;
            want[2 * n + i] = v;
        }
        // 1 - beta2 is the difference of neighbours of 1.
        within("adamw", &all, &want, |i| {
            1e-4 * lr + 1e-5 * want[i].abs() * f64::from(u8::from(i >= n)) + 1e-6
        });
    }
}

#[test]
fn copies_between_types() {
    for ne in SHAPES {
        let n = n_of(ne);
        let x = odd(44, n);
        let halves: Vec<u8> = (0..n).flat_map(|i| ((i * 40503) as u16).to_ne_bytes()).collect();
        for permuted in [false, true] {
            let got = same_bytes(&format!("to f16 {ne:?} {permuted}"), |mut t| {
                let to = t.bytes(Dtype::F16, &[n as i64], vec![0; 2 * n]);
                let x = layout(&mut t, ne, &x, permuted);
                let y = t.ops.cpy(&x, &to).unwrap();
                t.run_then_read_bytes(&y, &to)
            });
            if !permuted {
                for (i, (h, &x)) in got.chunks(2).zip(&x).enumerate() {
                    let h = half::f16::from_bits(u16::from_ne_bytes(h.try_into().unwrap()));
                    let want = half::f16::from_f32(x);
                    assert!(
                        h.to_bits() == want.to_bits() || (h.is_nan() && want.is_nan()),
                        "{i}: {x} became {h}"
                    );
                }
            }
            let got = same(&format!("from f16 {ne:?} {permuted}"), |mut t| {
                let to = t.f32(&[n as i64], &vec![0.0; n]);
                let x = match permuted {
                    false => t.bytes(Dtype::F16, &ne, halves.clone()),
                    true => {
                        let x = t.bytes(Dtype::F16, &[ne[0], ne[2], ne[1]], halves.clone());
                        t.ops.permute(&x, [0, 2, 1, 3]).unwrap()
                    }
                };
                let y = t.ops.cpy(&x, &to).unwrap();
                t.run_then_read(&y, &to)
            });
            if !permuted {
                for (h, y) in halves.chunks(2).zip(got) {
                    let h = half::f16::from_bits(u16::from_ne_bytes(h.try_into().unwrap()));
                    assert!(h.to_f32().to_bits() == y.to_bits() || (h.is_nan() && y.is_nan()));
                }
            }
        }
    }
}

#[test]
fn set_rows() {
    let (n, n_rows) = (70, 9);
    let x = odd(45, 4 * n as usize);
    let ids = [7i32, 0, 8, 3];
    for dtype in [Dtype::F32, Dtype::F16] {
        for wide in [false, true] {
            same_bytes(&format!("set_rows {dtype:?} {wide}"), |mut t| {
                let to = t.bytes(
                    dtype,
                    &[n, n_rows],
                    vec![0x11; n as usize * n_rows as usize * dtype.type_size()],
                );
                let x = t.f32(&[n, 4], &x);
                let ids = match wide {
                    false => t.i32(&ids),
                    true => t.bytes(
                        Dtype::I64,
                        &[4],
                        ids.iter().flat_map(|&i| i64::from(i).to_ne_bytes()).collect(),
                    ),
                };
                let y = t.ops.set_rows(&to, &x, &ids).unwrap();
                let mut bytes = t.run_then_read_bytes(&y, &to);
                // A NaN's bits are anybody's.
                for value in bytes.chunks_mut(dtype.type_size()) {
                    let nan = match dtype {
                        Dtype::F32 => f32::from_ne_bytes(value.try_into().unwrap()).is_nan(),
                        _ => half::f16::from_ne_bytes(value.try_into().unwrap()).is_nan(),
                    };
                    if nan {
                        value.fill(0xff);
                    }
                }
                bytes
            });
        }
    }
}

/// Moves of values are any kernel's.
#[test]
fn moves() {
    let (x, y) = (odd(46, 33 * 7), noise(47, 5 * 7));
    let bits = |case: &str, make: &dyn Fn(Bench, Tensor, Tensor) -> Vec<f32>| {
        same(case, |mut t| {
            let (x, y) = (t.f32(&[33, 7], &x), t.f32(&[5, 7], &y));
            make(t, x, y)
        });
    };
    bits("cont", &|t, x, _| {
        let z = t.ops.cont(&t.ops.transpose(&x).unwrap()).unwrap();
        t.run(&z)
    });
    bits("concat", &|t, x, y| {
        let z = t.ops.concat_rows(&x, &y).unwrap();
        t.run(&z)
    });
    bits("repeat", &|t, x, _| {
        let z = t.ops.repeat(&x, [66, 7, 3, 1]).unwrap();
        t.run(&z)
    });
}
