//! MUL_MAT, OUT_PROD and GET_ROWS: every type and layout against the definition.

use qvac_ft::ggml::{Context, Dtype};

use super::bits::{check, Input, Read};
use super::definition::{all_types, product, values, Layout, Random, LAYOUTS, PLAIN, TRANSPOSED, TYPES};

/// `[M, K]`, `[T, K]` for OUT_PROD, and the other way about for MUL_MAT.
struct Case {
    out_prod: bool,
    dtype: Dtype,
    m: i64,
    t: i64,
    k: i64,
    /// Batches of the first operand, and how many of the second share one.
    batches: i64,
    share: i64,
    layout: Layout,
}

impl Case {
    fn mul_mat(dtype: Dtype, m: i64, t: i64, k: i64) -> Self {
        Self { out_prod: false, dtype, m, t, k, batches: 1, share: 1, layout: PLAIN }
    }

    fn out_prod(dtype: Dtype, m: i64, t: i64, k: i64, layout: Layout) -> Self {
        Self { out_prod: true, layout, ..Self::mul_mat(dtype, m, t, k) }
    }

    fn run(&self) {
        let mut random = Random((self.m * 1000 + self.t * 100 + self.k) as u64);
        let sides = |n: i64| if self.out_prod { [n, self.k] } else { [self.k, n] };
        let nb = self.batches * self.share;
        let a = random.weights(self.dtype, &[&sides(self.m)[..], &[self.batches]].concat());
        let b = random.floats((self.t * self.k * nb) as usize);
        self.run_with(a, &b);
    }

    fn run_with(&self, a: Input, b: &[f32]) {
        let Self { out_prod, m, t, k, batches, share, layout, dtype } = *self;
        let nb = batches * share;
        let av = values(&a);
        // Value (i, k) of batch i2, of n rows or columns.
        let at = |i2: i64, n: i64, i: i64, kk: i64| {
            if out_prod {
                (i2 * k + kk) * n + i
            } else {
                (i2 * n + i) * k + kk
            }
        };
        let mut want = Vec::new();
        for i2 in 0..nb {
            for it in 0..t {
                for im in 0..m {
                    want.push(product(
                        k as usize,
                        |kk| av[at(i2 / share, m, im, kk as i64) as usize],
                        |kk| b[at(i2, t, it, kk as i64) as usize],
                    ));
                }
            }
        }
        let ne = if out_prod { [t, k, nb] } else { [k, t, nb] };
        let name = if out_prod { "out_prod" } else { "mul_mat" };
        let case = format!("{name} {dtype} {m}x{t}x{k} batches {batches}x{share} {layout:?}");
        check(&case, &[a, layout.input(ne, b)], Read::Result, &want, |ops, t| {
            let b = layout.view(ops, &t[1]);
            let make = if out_prod { Context::out_prod } else { Context::mul_mat };
            make(ops, &t[0], &b).unwrap()
        });
    }
}

/// Lengths of a sum: odd ones where the type has no blocks.
fn lengths(dtype: Dtype) -> Vec<i64> {
    match dtype.block_size() as i64 {
        1 => vec![1, 31, 100, 1057],
        32 => vec![32, 96, 1056],
        block => vec![block, 5 * block],
    }
}

#[test]
fn mul_mat_of_few_tokens() {
    for dtype in TYPES {
        for (i, k) in lengths(dtype).into_iter().enumerate() {
            for (m, t) in [(70, 1), (33, 2 + i as i64), (5, 8), (1, 5)] {
                Case::mul_mat(dtype, m, t, k).run();
            }
        }
    }
}

#[test]
fn mul_mat_of_many_tokens() {
    for dtype in TYPES {
        for k in lengths(dtype) {
            // Slim tiles (of short sums, square ones), and those for few rows and for few tokens.
            for (m, t) in [(68, 70), (9, 13), (70, 21)] {
                Case::mul_mat(dtype, m, t, k).run();
            }
        }
    }
}

/// Long sums of which there are enough for square tiles, but not for large ones.
#[test]
fn products_of_square_tiles() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Q6_K] {
        Case::mul_mat(dtype, 258, 421, 256).run();
        Case::out_prod(dtype, 256, 516, 99, TRANSPOSED).run();
    }
}

/// Products of which there is enough for the largest tile, with weights that several batches share.
#[test]
fn mul_mat_of_batches() {
    for (dtype, k) in
        [(Dtype::F32, 36), (Dtype::F16, 33), (Dtype::BF16, 64), (Dtype::Q4_1, 64), (Dtype::Q6_K, 256)]
    {
        Case { batches: 3, share: 3, ..Case::mul_mat(dtype, 130, 65, k) }.run();
        Case { batches: 2, share: 2, ..Case::mul_mat(dtype, 7, 3, k) }.run();
    }
}

#[test]
fn mul_mat_of_views() {
    for layout in LAYOUTS {
        for (m, t) in [(40, 3), (10, 12), (70, 67)] {
            Case { layout, ..Case::mul_mat(Dtype::F16, m, t, 132) }.run();
            Case { layout, ..Case::mul_mat(Dtype::Q8_0, m, t, 96) }.run();
        }
    }
    // The first operand as attention's keys are: its rows in the middle of wider ones, heads between them.
    for dtype in [Dtype::F32, Dtype::F16] {
        let (d, heads, keys, t) = (20, 3, 33, 5);
        let mut random = Random(9);
        let cache = random.weights(dtype, &[d, heads, keys]);
        let q = random.floats((d * t * heads) as usize);
        let kv = values(&cache);
        let mut want = Vec::new();
        for h in 0..heads {
            for it in 0..t {
                for key in 0..keys {
                    want.push(product(
                        d as usize,
                        |i| kv[((key * heads + h) * d) as usize + i],
                        |i| q[((h * t + it) * d) as usize + i],
                    ));
                }
            }
        }
        let inputs = [cache, Input::f32(&[d, t, heads], &q)];
        check(&format!("keys {dtype}"), &inputs, Read::Result, &want, |ops, t| {
            let keys = ops.permute(&t[0], [0, 2, 1, 3]).unwrap();
            ops.mul_mat(&keys, &t[1]).unwrap()
        });
    }
}

/// One block, and more of them than a tile is wide.
fn widths(dtype: Dtype) -> Vec<i64> {
    match dtype.block_size() as i64 {
        1 => vec![1, 8, 33, 132],
        block => vec![block, 3 * block],
    }
}

// A software device compiles each kernel it needs for a second or more: blocks get by with few of them.
#[test]
fn out_prod_of_every_type() {
    for dtype in all_types() {
        let shapes: &[_] = if dtype.is_quantized() {
            &[(9, 36), (17, 100)]
        } else {
            &[(1, 1), (8, 33), (17, 100), (65, 68)]
        };
        for m in widths(dtype) {
            for &(t, k) in shapes {
                Case::out_prod(dtype, m, t, k, TRANSPOSED).run();
            }
        }
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::TQ2_0] {
        Case { batches: 3, share: 4, ..Case::out_prod(dtype, 256, 66, 40, TRANSPOSED) }.run();
    }
}

#[test]
fn out_prod_of_every_layout() {
    for layout in LAYOUTS {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::Q4_0] {
            for (m, t, k) in [(96, 8, 300), (32, 66, 70), (64, 25, 64)] {
                // Only whole tensors have views of several matrices here.
                let batches = if layout.before + layout.after == 0 { 2 } else { 1 };
                Case { batches, share: batches, ..Case::out_prod(dtype, m, t, k, layout) }.run();
            }
        }
    }
}

/// Zeros of both signs, denormals, infinities and NaNs; results that are denormal.
#[test]
fn special_values() {
    const ODD: [f32; 8] = [0.0, -0.0, 1e-40, -3e-45, 1.5e-38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for out_prod in [false, true] {
        for (m, t, k) in [(33, 1, 70), (66, 67, 70), (9, 40, 70), (40, 9, 70)] {
            let mut random = Random(31);
            let case = Case { out_prod, ..Case::mul_mat(Dtype::F32, m, t, k) };
            // Infinities in some rows only; else nothing but NaNs would come out.
            let mut odd = |n: i64, often: u64| -> Vec<f32> {
                let tiny = random.floats((n * k) as usize);
                tiny.iter()
                    .map(|v| match random.next() >> 9 {
                        r if r % often == 0 => ODD[(r / often % 8) as usize],
                        r if r % often < 4 => ODD[(r / often % 5) as usize],
                        _ => v * 1e-20,
                    })
                    .collect()
            };
            let (a, b) = (odd(m, 512), odd(t, 512));
            let ne = if out_prod { [m, k, 1] } else { [k, m, 1] };
            case.run_with(Input::f32(&ne, &a), &b);
        }
    }
}

#[test]
fn rows_of_every_type() {
    for dtype in all_types() {
        for n in widths(dtype) {
            let mut random = Random(n as u64);
            let a = random.weights(dtype, &[n, 19]);
            let ids: Vec<i32> = (0..37).map(|i| i * 7 % 19).collect();
            let all = values(&a);
            let row = |&id: &i32| &all[id as usize * n as usize..][..n as usize];
            let want: Vec<f32> = ids.iter().flat_map(row).copied().collect();
            let inputs = [a, Input::i32(&[37], &ids)];
            check(&format!("get_rows {dtype} {n}"), &inputs, Read::Result, &want, |ops, t| {
                ops.get_rows(&t[0], &t[1]).unwrap()
            });
        }
    }
}
