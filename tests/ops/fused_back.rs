//! Backward rules that are one kernel each: of a weighted RMS norm, of SwiGLU and of its like with a squared ReLU.

use super::{check, noise, Want};

const EPS: f64 = f32::EPSILON as f64;

fn rms_norm(n: usize, rows: usize, residual: bool) {
    let eps = 1e-5f32;
    let (dy, x) = (noise(1, n * rows), noise(2, n * rows));
    let (w, add) = (noise(3, n), noise(4, n * rows));
    let mean = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;

    // Roundings of a sum point up as often as down: its error grows with the root of n. What is left over is for the
    // dozen operations per value.
    let tolerance = (8.0 * (n as f64).sqrt() + 32.0) * EPS;
    let mut want = Want { values: Vec::new(), bound: Vec::new() };
    for row in 0..rows {
        let x = |i: usize| f64::from(x[row * n + i]);
        let g = |i: usize| f64::from(dy[row * n + i]) * f64::from(w[i]);
        let r = 1.0 / (mean(&|i| x(i) * x(i)) + f64::from(eps)).sqrt();
        let gx = mean(&|i| g(i) * x(i));
        let gx_size = mean(&|i| (g(i) * x(i)).abs());
        for i in 0..n {
            let add = if residual { f64::from(add[row * n + i]) } else { 0.0 };
            want.values.push(r * (g(i) - x(i) * r * r * gx) + add);
            want.bound.push(tolerance * (r * (g(i).abs() + x(i).abs() * r * r * gx_size) + add.abs()));
        }
    }
    let case = format!("rms_norm_mul_back {n}x{rows} residual {residual}");
    check(&case, &want, |mut b| {
        let ne = [n as i64, rows as i64];
        let (dy, x, w) = (b.f32(&ne, &dy), b.f32(&ne, &x), b.f32(&[n as i64], &w));
        let add = residual.then(|| b.f32(&ne, &add));
        let dx = b.ops.rms_norm_mul_back(&dy, &x, &w, add.as_ref(), eps).unwrap();
        b.run(&dx)
    });
}

#[test]
fn weighted_rms_norm() {
    for n in [1, 5, 255, 256, 2048, 2049, 5632, 6145, 13824] {
        for residual in [false, true] {
            rms_norm(n, 3, residual);
        }
    }
    rms_norm(9, 1027, true); // more rows than one line of the grid holds
}

fn swiglu(n: usize, rows: usize) {
    let (dy, up) = (noise(1, n * rows), noise(2, n * rows));
    let mut gate: Vec<f32> = noise(3, n * rows).iter().map(|v| 4.0 * v).collect();
    for (gate, extreme) in gate.iter_mut().zip([0.0, 100.0, -100.0, 20.0, -20.0]) {
        *gate = extreme;
    }

    // Vulkan allows exp(x) an error of 3 + 2|x| units in the last place; what is left over is for the dozen operations
    // per value. The absolute part is for results that are denormal, which a device may flush.
    let bound = |gate: f64, size: f64| (16.0 + 4.0 * gate.abs()) * EPS * size.abs() + 1e-36;
    let (mut of_gate, mut of_up) = (Vec::new(), Vec::new());
    for i in 0..n * rows {
        let (dy, gate, up) = (f64::from(dy[i]), f64::from(gate[i]), f64::from(up[i]));
        let s = 1.0 / (1.0 + (-gate).exp());
        let d_gate = dy * up * s * (1.0 + gate * (1.0 - s));
        of_gate.push((d_gate, bound(gate, dy * up * s * (1.0 + gate.abs() * (1.0 - s)))));
        of_up.push((dy * gate * s, bound(gate, dy * gate * s)));
    }
    let (values, bound) = of_gate.into_iter().chain(of_up).unzip();
    check(&format!("swiglu_back {n}x{rows}"), &Want { values, bound }, |mut b| {
        let ne = [n as i64, rows as i64];
        let (dy, gate, up) = (b.f32(&ne, &dy), b.f32(&ne, &gate), b.f32(&ne, &up));
        let d = b.ops.swiglu_back(&dy, &gate, &up).unwrap();
        b.run(&d)
    });
}

fn relu_sqr_glu(n: usize, rows: usize) {
    let (dy, mut gate, up) = (noise(1, n * rows), noise(2, n * rows), noise(3, n * rows));
    for (gate, extreme) in gate.iter_mut().zip([0.0, -0.0, 1e3, -1e3]) {
        *gate = extreme;
    }
    // Two products each.
    let bound = |size: f64| 2.0 * EPS * size.abs();
    let (mut of_gate, mut of_up) = (Vec::new(), Vec::new());
    for i in 0..n * rows {
        let (dy, r, up) = (f64::from(dy[i]), f64::from(gate[i].max(0.0)), f64::from(up[i]));
        of_gate.push((2.0 * dy * r * up, bound(2.0 * dy * r * up)));
        of_up.push((dy * r * r, bound(dy * r * r)));
    }
    let (values, bound) = of_gate.into_iter().chain(of_up).unzip();
    check(&format!("relu_sqr_glu_back {n}x{rows}"), &Want { values, bound }, |mut b| {
        let ne = [n as i64, rows as i64];
        let (dy, gate, up) = (b.f32(&ne, &dy), b.f32(&ne, &gate), b.f32(&ne, &up));
        let d = b.ops.relu_sqr_glu_back(&dy, &gate, &up).unwrap();
        b.run(&d)
    });
}

#[test]
fn gradients_of_gated_activations() {
    for activation in [swiglu, relu_sqr_glu] {
        for (n, rows) in [(1, 1), (3, 5), (4, 2), (255, 2), (260, 3)] {
            activation(n, rows);
        }
        // More blocks than one line of the grid holds, one value at a time and four.
        activation(513, 259);
        activation(1024, 517);
    }
}
