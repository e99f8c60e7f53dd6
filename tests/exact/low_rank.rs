//! LOW_RANK_*: in every layout, with every kind of tile, against the definition.

use super::bits::{check, Input, Read};
use super::definition::{product, segments, Layout, Random, GAPS, LAYOUTS, MIDDLE, PLAIN};

fn project(n: i64, r: i64, tokens: i64, p_layout: Layout, v_layout: Layout) {
    let scale = 0.7;
    let mut random = Random((n * r * tokens) as u64);
    let (p, v) = (random.floats((n * r) as usize), random.floats((n * tokens) as usize));
    let mut want = Vec::new();
    for t in 0..tokens {
        for k in 0..r {
            want.push(scale * product(n as usize, |i| p[(k * n) as usize + i], |i| v[(t * n) as usize + i]));
        }
    }
    let inputs = [p_layout.input([n, r, 1], &p), v_layout.input([n, tokens, 1], &v)];
    let case = format!("low_rank_project {n}x{r}x{tokens} {p_layout:?} {v_layout:?}");
    check(&case, &inputs, Read::Result, &want, |ops, t| {
        ops.low_rank_project(&p_layout.view(ops, &t[0]), &v_layout.view(ops, &t[1]), scale).unwrap()
    });
}

#[test]
fn projections() {
    for p in LAYOUTS {
        for (n, r, tokens) in [(1, 1, 1), (7, 3, 5), (64, 8, 4), (301, 9, 19), (1028, 24, 6), (260, 8, 70)] {
            project(n, r, tokens, p, PLAIN);
        }
        project(100, 40, 70, p, GAPS);
        project(128, 8, 9, p, MIDDLE);
    }
}

fn update(n: i64, r: i64, tokens: i64, p_layout: Layout, z_layout: Layout, before: i64, residual: bool) {
    let scale = -1.3;
    let mut random = Random((n * r * tokens) as u64);
    let all = random.floats((before + n * tokens + 67) as usize);
    let (p, z) = (random.floats((n * r) as usize), random.floats((r * tokens) as usize));
    let more = random.floats((n * tokens) as usize);
    let mut want = all.clone();
    for t in 0..tokens {
        for i in 0..n {
            let sum = product(r as usize, |k| p[k * n as usize + i as usize], |k| z[(t * r) as usize + k]);
            let y = &mut want[(before + t * n + i) as usize];
            *y += scale * sum;
            if residual {
                *y += more[(t * n + i) as usize];
            }
        }
    }
    let inputs = [
        Input::f32(&[all.len() as i64], &all),
        p_layout.input([n, r, 1], &p),
        z_layout.input([r, tokens, 1], &z),
        Input::f32(&[n, tokens], &more),
    ];
    let case = format!("low_rank_add {n}x{r}x{tokens} {p_layout:?} {z_layout:?} {before} {residual}");
    check(&case, &inputs, Read::Input(0), &want, |ops, t| {
        let y = ops.view(&t[0], &[n, tokens], before as usize).unwrap();
        let (p, z) = (p_layout.view(ops, &t[1]), z_layout.view(ops, &t[2]));
        ops.low_rank_add(&y, &p, &z, residual.then_some(&t[3]), scale).unwrap()
    });
}

#[test]
fn updates_in_place() {
    for p in LAYOUTS {
        for residual in [false, true] {
            for (n, r, tokens) in [(1, 1, 1), (5, 3, 7), (257, 8, 9), (300, 24, 17), (68, 70, 65)] {
                update(n, r, tokens, p, PLAIN, 61, residual);
            }
            update(128, 8, 19, p, MIDDLE, 64, residual);
            update(30, 6, 5, p, GAPS, 64, residual);
        }
    }
}

fn gradient(n: i64, r: i64, tokens: i64, g_layout: Layout, v_layout: Layout, z_layout: Layout) {
    let scale = 0.3;
    let mut random = Random((n * r * tokens) as u64);
    let old = random.floats((n * r) as usize);
    let (v, z) = (random.floats((n * tokens) as usize), random.floats((r * tokens) as usize));
    let ne = [n, r, 1];
    let root = g_layout.input(ne, &old);
    let mut want: Vec<f32> =
        root.bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
    for k in 0..r {
        for i in 0..n {
            let g = &mut want[g_layout.at(ne, k * n + i)];
            let (row, column) = (n as usize, r as usize);
            for p in segments(tokens as usize, |t| v[t * row + i as usize], |t| z[t * column + k as usize]) {
                *g += scale * p;
            }
        }
    }
    let inputs = [root, v_layout.input([n, tokens, 1], &v), z_layout.input([r, tokens, 1], &z)];
    let case = format!("low_rank_grad {n}x{r}x{tokens} {g_layout:?} {v_layout:?} {z_layout:?}");
    check(&case, &inputs, Read::Input(0), &want, |ops, t| {
        let g = g_layout.view(ops, &t[0]);
        ops.low_rank_grad(&g, &v_layout.view(ops, &t[1]), &z_layout.view(ops, &t[2]), scale).unwrap()
    });
}

#[test]
fn gradients_in_place() {
    for g in LAYOUTS {
        for (n, r, tokens) in [(1, 1, 1), (5, 3, 7), (33, 8, 255), (70, 11, 300), (16, 24, 513), (66, 30, 70)]
        {
            gradient(n, r, tokens, g, PLAIN, PLAIN);
        }
        gradient(20, 8, 65, g, GAPS, MIDDLE);
        gradient(20, 9, 65, g, MIDDLE, GAPS);
    }
}

/// The same gradient from all tokens at once and from parts of whole segments, one after another.
#[test]
fn gradients_from_parts() {
    let (n, r, tokens, part) = (36, 8, 224, 96);
    let mut random = Random(77);
    let (v, z) = (random.floats((n * tokens) as usize), random.floats((r * tokens) as usize));
    let mut want = vec![0.0f32; (n * r) as usize];
    for (o, g) in want.iter_mut().enumerate() {
        let (i, k) = (o % n as usize, o / n as usize);
        for p in segments(tokens as usize, |t| v[t * n as usize + i], |t| z[t * r as usize + k]) {
            *g += 0.9 * p;
        }
    }
    let inputs = [
        Input::f32(&[n, r], &vec![0.0; want.len()]),
        Input::f32(&[n, tokens], &v),
        Input::f32(&[r, tokens], &z),
    ];
    check("low_rank_grad in parts", &inputs, Read::Input(0), &want, |ops, t| {
        let mut g = t[0].clone();
        for t0 in (0..tokens).step_by(part as usize) {
            let count = part.min(tokens - t0);
            let v = ops.view(&t[1], &[n, count], (t0 * n) as usize).unwrap();
            let z = ops.view(&t[2], &[r, count], (t0 * r) as usize).unwrap();
            g = ops.low_rank_grad(&g, &v, &z, 0.9).unwrap();
        }
        g
    });
}
