//! The products with an adapter's matrices.

use qvac_ft::ggml::{Context, Tensor};

use super::{assert_within, f32_of, f32s, noise, run, sum, Input, Read, Want};

/// How a `[n, r]` matrix lies.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Plain,
    /// The transposed view of `[r, n]`.
    Transposed,
    /// A view of every row's first n values, in a wider matrix.
    Wide,
    /// Neither values nor rows side by side: every row's first r values of a wider `[r + 3, n]`, transposed.
    WideTransposed,
}

const LAYOUTS: [Layout; 4] = [Layout::Plain, Layout::Transposed, Layout::Wide, Layout::WideTransposed];

impl Layout {
    /// The tensor that holds it, of random numbers.
    fn input(self, n: usize, r: usize, seed: u64) -> Input {
        let [ne0, ne1] = match self {
            Self::Plain => [n, r],
            Self::Transposed => [r, n],
            Self::Wide => [n + 5, r],
            Self::WideTransposed => [r + 3, n],
        };
        f32s(&[ne0 as i64, ne1 as i64], &noise(seed, ne0 * ne1))
    }

    fn view(self, ctx: &Context, t: &Tensor, n: usize, r: usize) -> Tensor {
        match self {
            Self::Plain => t.clone(),
            Self::Transposed => ctx.transpose(t).unwrap(),
            Self::Wide => ctx.view_rows(t, 0, n as i64).unwrap(),
            Self::WideTransposed => ctx.transpose(&ctx.view_rows(t, 0, r as i64).unwrap()).unwrap(),
        }
    }

    /// Where element (i, k) lies.
    fn at(self, n: usize, r: usize, i: usize, k: usize) -> usize {
        match self {
            Self::Plain => k * n + i,
            Self::Transposed => i * r + k,
            Self::Wide => k * (n + 5) + i,
            Self::WideTransposed => i * (r + 3) + k,
        }
    }
}

/// [n, r, T]: one of everything, around vectors and register tiles, around tiles of 256 values and 32 tokens, as trained.
const LOW_RANK: [[usize; 3]; 7] =
    [[1, 1, 1], [3, 4, 2], [17, 5, 9], [70, 8, 33], [257, 16, 65], [600, 3, 34], [768, 64, 70]];

#[test]
fn low_rank_project_of_any_layout() {
    for [n, r, t] in LOW_RANK {
        for layout in LAYOUTS {
            let what = format!("project n={n} r={r} T={t} {layout:?}");
            let p = layout.input(n, r, 1);
            let v = f32s(&[n as i64 + 3, t as i64], &noise(2, (n + 3) * t)); // rows of a wider matrix
            let y = run(&what, &[p.clone(), v.clone()], Read::Result, |ctx, i| {
                let v = ctx.view_rows(&i[1], 0, n as i64).unwrap();
                ctx.low_rank_project(&layout.view(ctx, &i[0], n, r), &v, 0.5).unwrap()
            });
            let (p, v) = (f32_of(&p), f32_of(&v));
            let want: Vec<Want> = (0..r * t)
                .map(|i| {
                    let (k, t) = (i % r, i / r);
                    sum((0..n).map(|j| (p[layout.at(n, r, j, k)], v[t * (n + 3) + j]))).onto(0.5, 0.0, 0.0)
                })
                .collect();
            assert_within(&what, &y, &want);
        }
    }
}

#[test]
fn low_rank_add_is_written_over_y() {
    for [n, r, t] in LOW_RANK {
        for layout in LAYOUTS {
            for residual in [false, true] {
                let what = format!("add n={n} r={r} T={t} {layout:?} residual={residual}");
                let y = f32s(&[n as i64, t as i64], &noise(1, n * t));
                let p = layout.input(n, r, 2);
                let z = f32s(&[r as i64 + 2, t as i64], &noise(3, (r + 2) * t)); // rows of a wider matrix
                let res = f32s(&[n as i64, t as i64], &noise(4, n * t));
                let inputs = [y.clone(), p.clone(), z.clone(), res.clone()];
                let got = run(&what, &inputs, Read::Input(0), |ctx, i| {
                    let p = layout.view(ctx, &i[1], n, r);
                    let z = ctx.view_rows(&i[2], 2, r as i64).unwrap();
                    ctx.low_rank_add(&i[0], &p, &z, residual.then_some(&i[3]), -2.0).unwrap()
                });
                let [y, p, z, res] = [y, p, z, res].map(|i| f32_of(&i));
                let want: Vec<Want> = (0..n * t)
                    .map(|i| {
                        let (j, t) = (i % n, i / n);
                        let add = if residual { res[i] } else { 0.0 };
                        sum((0..r).map(|k| (p[layout.at(n, r, j, k)], z[t * (r + 2) + 2 + k])))
                            .onto(-2.0, y[i], add)
                    })
                    .collect();
                assert_within(&what, &got, &want);
            }
        }
    }
}

#[test]
fn low_rank_grad_is_written_over_grad() {
    for [n, r, t] in LOW_RANK {
        for layout in LAYOUTS {
            let what = format!("grad n={n} r={r} T={t} {layout:?}");
            let grad = layout.input(n, r, 1);
            let v = f32s(&[n as i64 + 3, t as i64], &noise(2, (n + 3) * t));
            let z = f32s(&[r as i64 + 2, t as i64], &noise(3, (r + 2) * t));
            let got = run(&what, &[grad.clone(), v.clone(), z.clone()], Read::Input(0), |ctx, i| {
                let v = ctx.view_rows(&i[1], 3, n as i64).unwrap();
                let z = ctx.view_rows(&i[2], 0, r as i64).unwrap();
                ctx.low_rank_grad(&layout.view(ctx, &i[0], n, r), &v, &z, 0.25).unwrap()
            });
            let [grad, v, z] = [grad, v, z].map(|i| f32_of(&i));
            let mut want: Vec<Want> = grad.iter().map(|&g| Want { value: g.into(), bound: 0.0 }).collect();
            for (i, k) in (0..n * r).map(|i| (i % n, i / n)) {
                let at = layout.at(n, r, i, k);
                want[at] = sum((0..t).map(|t| (v[t * (n + 3) + 3 + i], z[t * (r + 2) + k])))
                    .onto(0.25, grad[at], 0.0);
            }
            assert_within(&what, &got, &want);
        }
    }
}
