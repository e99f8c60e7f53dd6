//! Sums over rows: norms, cross entropy, sums.

use qvac_ft::ggml::Tensor;

use super::{in_place, noise, same, within, Bench};

/// Lengths around the lanes of a sum and what kernels keep of a row.
const LENGTHS: [i64; 12] = [1, 3, 4, 5, 127, 2048, 2051, 2560, 6148, 8192, 14340, 15001];

/// A rounding of each of a sum's steps, of values as large as the sum of their magnitudes.
const ROUNDING: f64 = 6e-8;

fn rows_of(n: i64) -> i64 {
    if n > 5000 {
        3
    } else {
        7
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The middle two dimensions of `[n, 2, 3]` swapped: rows that do not follow each other.
fn permuted(t: &mut Bench, n: i64, values: &[f32]) -> Tensor {
    let x = t.f32(&[n, 2, 3], values);
    t.ops.permute(&x, [0, 2, 1, 3]).unwrap()
}

#[test]
fn rms_norm() {
    for n in LENGTHS {
        let m = rows_of(n);
        let x = noise(1, (n * m) as usize);
        let got = same(&format!("rms_norm {n}"), |mut t| {
            let x = t.f32(&[n, m], &x);
            let y = t.ops.rms_norm(&x, 1e-5).unwrap();
            t.run(&y)
        });
        let want: Vec<f64> = wide(&x)
            .chunks(n as usize)
            .flat_map(|r| {
                let mean = r.iter().map(|x| x * x).sum::<f64>() / n as f64;
                r.iter().map(|x| x / (mean + f64::from(1e-5f32)).sqrt()).collect::<Vec<_>>()
            })
            .collect();
        within(&format!("rms_norm {n}"), &got, &want, |i| 1e-6 * want[i].abs());
    }
}

#[test]
fn rms_norm_of_other_layouts() {
    for n in [5, 64, 2560] {
        let x = noise(2, 6 * n as usize);
        same(&format!("rms_norm {n} permuted"), |mut t| {
            let x = permuted(&mut t, n, &x);
            let y = t.ops.rms_norm(&x, 1e-6).unwrap();
            t.run(&y)
        });
        same(&format!("rms_norm {n} in place"), |mut t| {
            let x = t.f32(&[n, 6], &x);
            let y = in_place(&t, &x, |x| t.ops.rms_norm(x, 1e-6).unwrap());
            t.run(&y)
        });
    }
}

#[test]
fn rms_norm_of_many_rows() {
    let x = noise(3, 8 * 70_001);
    same("rms_norm of 70001 rows", |mut t| {
        let x = t.f32(&[8, 70_001], &x);
        let y = t.ops.rms_norm(&x, 1e-6).unwrap();
        t.run(&y)
    });
}

fn norm_back(x: &[f64], g: &[f64], eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| x * x).sum::<f64>() / n;
    let gx = x.iter().zip(g).map(|(x, g)| x * g).sum::<f64>() / n;
    let r = 1.0 / (mean + eps).sqrt();
    x.iter().zip(g).map(|(x, g)| r * (g - x * r * r * gx)).collect()
}

#[test]
fn rms_norm_mul_back() {
    for n in LENGTHS {
        let m = rows_of(n);
        let len = (n * m) as usize;
        let (dy, x, w, add) = (noise(4, len), noise(5, len), noise(6, n as usize), noise(7, len));
        for with_add in [false, true] {
            let case = format!("rms_norm_mul_back {n} {with_add}");
            let got = same(&case, |mut t| {
                let (dy, x) = (t.f32(&[n, m], &dy), t.f32(&[n, m], &x));
                let (w, add) = (t.f32(&[n], &w), t.f32(&[n, m], &add));
                let add = with_add.then_some(&add);
                let dx = in_place(&t, &dy, |dy| t.ops.rms_norm_mul_back(dy, &x, &w, add, 1e-5).unwrap());
                t.run(&dx)
            });
            let g: Vec<f64> =
                dy.iter().enumerate().map(|(i, &d)| f64::from(d) * f64::from(w[i % n as usize])).collect();
            let eps = f64::from(1e-5f32);
            let want: Vec<f64> = wide(&x)
                .chunks(n as usize)
                .zip(g.chunks(n as usize))
                .flat_map(|(x, g)| norm_back(x, g, eps))
                .zip(&add)
                .map(|(d, &a)| if with_add { d + f64::from(a) } else { d })
                .collect();
            let most = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            // A row of one value: what is left of it is the difference of equals.
            within(&case, &got, &want, |_| if n == 1 { 1e-3 } else { 4e-6 * most });
        }
    }
}

#[test]
fn rms_norm_back() {
    for n in [1, 5, 64, 2560, 6148] {
        let (dy, x) = (noise(8, 3 * n as usize), noise(9, 3 * n as usize));
        same(&format!("rms_norm_back {n}"), |mut t| {
            let (dy, x) = (t.f32(&[n, 3], &dy), t.f32(&[n, 3], &x));
            let dx = t.ops.rms_norm_back(&dy, &x, 1e-5).unwrap();
            t.run(&dx)
        });
    }
}

#[test]
fn sums() {
    for n in LENGTHS {
        let m = rows_of(n);
        let x = noise(10, (n * m) as usize);
        let of_rows: Vec<f64> = wide(&x).chunks(n as usize).map(|r| r.iter().sum()).collect();
        let sizes: Vec<f64> = wide(&x).chunks(n as usize).map(|r| r.iter().map(|x| x.abs()).sum()).collect();
        let got = same(&format!("sum_rows {n}"), |mut t| {
            let x = t.f32(&[n, m], &x);
            let y = t.ops.sum_rows(&x).unwrap();
            t.run(&y)
        });
        within(&format!("sum_rows {n}"), &got, &of_rows, |i| 20.0 * ROUNDING * sizes[i]);
        let got = same(&format!("sum {n}"), |mut t| {
            let x = t.f32(&[n, m], &x);
            let y = t.ops.sum(&x).unwrap();
            t.run(&y)
        });
        within(&format!("sum {n}"), &got, &[of_rows.iter().sum()], |_| {
            20.0 * ROUNDING * sizes.iter().sum::<f64>()
        });
    }
    let x = noise(11, 6 * 130);
    same("sum_rows permuted", |mut t| {
        let x = permuted(&mut t, 130, &x);
        let y = t.ops.sum_rows(&x).unwrap();
        t.run(&y)
    });
}

/// The squares' sum as the optimizer makes it.
#[test]
fn sum_of_squares() {
    let (cols, n) = (1024, 300 * 1024);
    let x = noise(12, n as usize);
    let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let got = same("sum of squares", |mut t| {
        let x = t.f32(&[n], &x);
        let rows = t.ops.reshape(&t.ops.sqr(&x).unwrap(), &[cols, n / cols]).unwrap();
        let sums = t.ops.sum_rows(&rows).unwrap();
        let y = t.ops.sum(&t.ops.reshape(&sums, &[n / cols]).unwrap()).unwrap();
        t.run(&y)
    });
    within("sum of squares", &got, &[want], |_| 1e-6 * want);
}

/// Labels of all kinds: classes, rows that are not trained on, and one that is no class.
fn labels(n_vocab: i64, n_rows: i64) -> Vec<i32> {
    let label = |r: i64| match r % 5 {
        3 => -1,
        4 if r > 5 => n_vocab as i32,
        _ => (r * 7919 % n_vocab) as i32,
    };
    (0..n_rows).map(label).collect()
}

#[test]
fn cross_entropy() {
    for (n, m) in [(1, 3), (5, 10), (127, 12), (512, 7), (2051, 6), (32_000, 3), (262_144, 2)] {
        let mut logits: Vec<f32> = noise(13, (n * m) as usize).iter().map(|x| 6.0 * x).collect();
        let labels = labels(n, m);
        // A masked class, in a row that has others.
        if n > 5 {
            logits[3] = f32::NEG_INFINITY;
        }
        let grads = noise(14, m as usize);
        let losses = same(&format!("cross_entropy {n}"), |mut t| {
            let (x, l) = (t.f32(&[n, m], &logits), t.i32(&labels));
            let y = t.ops.cross_entropy_loss_labels(&x, &l, 0.7).unwrap();
            t.run(&y)
        });
        let mut want = Vec::new();
        let mut dwant = Vec::new();
        for (r, row) in wide(&logits).chunks(n as usize).enumerate() {
            let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            let label = labels[r];
            let (scale, g) = (f64::from(0.7f32), f64::from(grads[r]));
            match usize::try_from(label) {
                Err(_) => want.push(0.0),
                Ok(l) if l >= n as usize => want.push(f64::NAN),
                Ok(l) => want.push(scale * (sum.ln() + max - row[l])),
            }
            dwant.extend(row.iter().enumerate().map(|(i, x)| match usize::try_from(label) {
                Err(_) => 0.0,
                Ok(l) if l >= n as usize => f64::NAN,
                Ok(l) => g * scale * ((x - max).exp() / sum - if i == l { 1.0 } else { 0.0 }),
            }));
        }
        within(&format!("cross_entropy {n}"), &losses, &want, |i| 1e-6 * want[i].abs().max(1.0));
        for one in [false, true] {
            let grads = if one { vec![grads[0]] } else { grads.clone() };
            let got = same(&format!("cross_entropy_back {n} {one}"), |mut t| {
                let (x, l) = (t.f32(&[n, m], &logits), t.i32(&labels));
                let g = t.f32(&[grads.len() as i64], &grads);
                let dx = in_place(&t, &x, |x| t.ops.cross_entropy_loss_labels_back(&g, x, &l, 0.7).unwrap());
                t.run(&dx)
            });
            if !one {
                within(&format!("cross_entropy_back {n}"), &got, &dwant, |i| {
                    1e-6 * f64::from(grads[i / n as usize]).abs()
                });
            }
        }
    }
}
