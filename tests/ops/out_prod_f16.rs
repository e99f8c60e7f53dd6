//! OUT_PROD on half-precision operands, which Vulkan takes for big products on cooperative matrices.
//!
//! A process of its own runs the cases with `QVAC_VK_OUT_PROD=coopmat`: then every size goes that way, and devices without cooperative matrices run the variant of the same shader that sums by itself.

use std::process::Command;

use qvac_ft::ggml::Dtype;

use super::{check, noise, stored, Want};

const MODE: (&str, &str) = ("QVAC_VK_OUT_PROD", "coopmat");

/// A half keeps 11 bits; rounding is not said to be to nearest. Two operands, so twice 2^-10.
const HALF_ROUNDINGS: f64 = 2.0 / 1024.0;

/// Scaled columns reach 2^10 and halves end at 2^-24: what is lost below that, relative to a column's largest value.
const HALF_FLOOR: f64 = 1.0 / (1u64 << 34) as f64;

/// Every type that has a shader.
const TYPES: [Dtype; 10] = [
    Dtype::F16,
    Dtype::BF16,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q8_0,
    Dtype::Q4_K,
    Dtype::Q6_K,
    Dtype::TQ1_0,
    Dtype::TQ2_0,
];

/// Sizes of gradients, one a token in turn: those of real ones, none at all, and what no half could hold.
const TOKEN_SCALES: [f32; 6] = [1.0, 1e-8, 1e-3, 0.0, 1e20, 1e-30];

/// `columns` is [k, n]; `weight` says where the weight of an output and a step lies.
fn want(weights: &[f64], m: i64, k: i64, columns: &[f32], weight: impl Fn(usize, usize) -> usize) -> Want {
    let mut want = Want { values: Vec::new(), bound: Vec::new() };
    for column in columns.chunks(k as usize) {
        let floor = HALF_FLOOR * column.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
        for i in 0..m as usize {
            let (mut sum, mut size, mut lost) = (0.0, 0.0, 0.0);
            for (kk, v) in column.iter().enumerate() {
                let w = weights[weight(i, kk)];
                let product = w * f64::from(*v);
                sum += product;
                size += product.abs();
                lost += w.abs() * floor;
            }
            want.values.push(sum);
            want.bound.push(size * (HALF_ROUNDINGS + (k + 8) as f64 * f64::from(f32::EPSILON)) + lost);
        }
    }
    want
}

fn columns(n: i64, k: i64) -> Vec<f32> {
    let mut columns = noise(2, (n * k) as usize);
    for (i, column) in columns.chunks_mut(k as usize).enumerate() {
        column.iter_mut().for_each(|v| *v *= TOKEN_SCALES[i % TOKEN_SCALES.len()]);
    }
    columns
}

fn case(dtype: Dtype, m: i64, n: i64, k: i64, transposed: bool) {
    let a = noise(1, (m * k) as usize); // [m, k]
    let columns = columns(n, k);
    let want = want(&stored(dtype, m, &a), m, k, &columns, |i, kk| kk * m as usize + i);
    check(&format!("out_prod in halves {dtype} {m}x{n}x{k} transposed {transposed}"), &want, |mut t| {
        let a = t.input(dtype, &[m, k], &a);
        let b = if transposed {
            let b = t.f32(&[k, n], &columns);
            t.ops.transpose(&b).unwrap()
        } else {
            let by_k: Vec<f32> = (0..k)
                .flat_map(|kk| (0..n).map(move |i| (i, kk)))
                .map(|(i, kk)| columns[(i * k + kk) as usize])
                .collect();
            t.f32(&[n, k], &by_k)
        };
        let out = t.ops.out_prod(&a, &b).unwrap();
        t.run(&out)
    });
}

#[test]
#[ignore = "run by `in_halves`, with the environment it needs"]
fn in_halves_here() {
    assert_eq!(std::env::var(MODE.0).as_deref(), Ok(MODE.1));
    // On lavapipe each type takes seconds to compile, and few cases little beside that.
    for dtype in TYPES {
        let block = dtype.block_size() as i64;
        // Rows that can be read eight values at a time, and others.
        for m in if block == 1 { vec![1, 65, 72] } else { vec![block * if block == 32 { 3 } else { 1 }] } {
            for (n, k) in [(1, 1), (33, 40)] {
                case(dtype, m, n, k, true);
            }
        }
    }
    case(Dtype::F16, 70, 41, 35, false);
    // Workgroups share K.
    case(Dtype::Q8_0, 96, 34, 1100, true);
    // Tiles of 128 on a small device.
    case(Dtype::F16, 1056, 389, 33, true);
    // More columns than are made at a time.
    case(Dtype::F16, 3, 130, 131_104, true);
}

#[test]
fn in_halves() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "out_prod_f16::in_halves_here", "--ignored", "--nocapture"])
        .env(MODE.0, MODE.1)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let ran = stdout.contains("1 passed");
    assert!(output.status.success() && ran, "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
}
