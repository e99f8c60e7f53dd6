//! OUT_PROD, the backward of mul_mat, for every weight type and layout that the training graph makes.

use qvac_ft::ggml::Dtype;

use super::{check, noise, stored, Want};
use qvac_ft::model::WEIGHT_TYPES;

/// f32 sums of `k` products err by at most k + 1 roundings of the sum of absolute products. The slack of 8 is for the
/// roundings of unpacking a weight (two), and for sums made in pieces.
fn sum_bound(k: i64, magnitude: f64) -> f64 {
    (k + 8) as f64 * f64::from(f32::EPSILON) * magnitude
}

/// How the second operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// `[N, K]`, as for the gradient of a weight.
    Plain,
    /// A transposed `[K, N]`, as for the gradient of an input.
    Transposed,
    /// A transposed `[K, batch, N]` with the last two swapped, as attention's heads.
    Permuted,
}

struct Case {
    dtype: Dtype,
    m: i64,
    n: i64,
    k: i64,
    /// Batches of the first operand, and how many of the second share one.
    batch: i64,
    share: i64,
    layout: Layout,
}

impl Case {
    fn b(&self, values: &[f32], n: i64, k: i64, i2: i64) -> f64 {
        let nb = self.batch * self.share;
        let at = match self.layout {
            Layout::Plain => (i2 * self.k + k) * self.n + n,
            Layout::Transposed => (i2 * self.n + n) * self.k + k,
            Layout::Permuted => (n * nb + i2) * self.k + k,
        };
        f64::from(values[at as usize])
    }

    fn run(&self) {
        let Self { dtype, m, n, k, batch, share, layout } = *self;
        let nb = batch * share;
        let a = noise(1, (m * k * batch) as usize);
        let b = noise(2, (n * k * nb) as usize);
        let a_stored = stored(dtype, m, &a);

        let mut want = Want { values: Vec::new(), bound: Vec::new() };
        for i2 in 0..nb {
            for i1 in 0..n {
                for i0 in 0..m {
                    let product =
                        |kk| a_stored[((i2 / share * k + kk) * m + i0) as usize] * self.b(&b, i1, kk, i2);
                    want.values.push((0..k).map(product).sum());
                    want.bound.push(sum_bound(k, (0..k).map(|kk| product(kk).abs()).sum()));
                }
            }
        }
        let name = format!("out_prod {dtype} {m}x{n}x{k} batch {batch}x{share} {layout:?}");
        check(&name, &want, |mut t| {
            let a = t.input(dtype, &[m, k, batch], &a);
            let b = match layout {
                Layout::Plain => t.f32(&[n, k, nb], &b),
                Layout::Transposed => {
                    let b = t.f32(&[k, n, nb], &b);
                    t.ops.transpose(&b).unwrap()
                }
                Layout::Permuted => {
                    let b = t.f32(&[k, nb, n], &b);
                    let b = t.ops.permute(&b, [0, 2, 1, 3]).unwrap(); // [k, n, nb]
                    t.ops.transpose(&b).unwrap()
                }
            };
            let out = t.ops.out_prod(&a, &b).unwrap();
            t.run(&out)
        });
    }
}

/// One block, and more of them than a tile is wide.
fn widths(dtype: Dtype) -> Vec<i64> {
    match dtype.block_size() as i64 {
        1 => vec![1, 8, 33, 65],
        block => vec![block, 3 * block],
    }
}

#[test]
fn every_type_and_odd_shape() {
    for &dtype in WEIGHT_TYPES {
        for m in widths(dtype) {
            for (n, k) in [(1, 1), (8, 33), (13, 64), (17, 15), (65, 19)] {
                Case { dtype, m, n, k, batch: 1, share: 1, layout: Layout::Transposed }.run();
            }
        }
    }
}

#[test]
fn gradient_of_a_lora_weight() {
    for (m, n, k) in [(96, 8, 70), (8, 96, 70), (16, 16, 130), (1, 1, 3)] {
        Case { dtype: Dtype::F32, m, n, k, batch: 1, share: 1, layout: Layout::Plain }.run();
    }
}

#[test]
fn attention_batches() {
    for layout in [Layout::Plain, Layout::Transposed, Layout::Permuted] {
        for (batch, share) in [(4, 1), (2, 3), (1, 5)] {
            Case { dtype: Dtype::F32, m: 20, n: 37, k: 21, batch, share, layout }.run();
        }
    }
}

/// Products of which there is enough for the largest tile.
#[test]
fn large_tiles() {
    Case { dtype: Dtype::F32, m: 130, n: 70, k: 21, batch: 64, share: 1, layout: Layout::Plain }.run();
    Case { dtype: Dtype::Q4_0, m: 160, n: 65, k: 19, batch: 32, share: 2, layout: Layout::Transposed }.run();
}
