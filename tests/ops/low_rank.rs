//! LoRA's products with few columns: a projection, an update in place and a gradient in place, in every layout that the
//! training graph makes of A and B, and in some it does not.

use qvac_ft::ggml::Tensor;

use super::{check, noise, Bench, Want, PATTERN};

/// An f32 sum of `n` products, in any order, errs by at most n + 1 roundings of the sum of absolute products. The slack
/// of 8 is for the scale, the addends and the roundings of each.
fn sum_bound(n: i64, magnitude: f64) -> f64 {
    (n + 8) as f64 * f64::from(f32::EPSILON) * magnitude
}

/// A matrix `[n0, n1]` inside a tensor of more: rows with `before` words ahead of them and `after` behind, transposed or
/// not. The words between are a pattern that spoils whatever sum reads it, and that no kernel may overwrite.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    transposed: bool,
    before: i64,
    after: i64,
}

impl Layout {
    pub const PLAIN: Self = Self { transposed: false, before: 0, after: 0 };
    /// What a transposed B is.
    pub const TRANSPOSED: Self = Self { transposed: true, before: 0, after: 0 };
    /// Rows that begin at no multiple of 16 bytes.
    pub const GAPS: Self = Self { transposed: false, before: 1, after: 2 };
    pub const TRANSPOSED_GAPS: Self = Self { transposed: true, before: 2, after: 1 };
    /// The middle one of three matrices that were computed as one.
    pub fn middle(rank: i64) -> Self {
        Self { transposed: false, before: rank, after: rank }
    }

    pub const ALL: [Self; 4] = [Self::PLAIN, Self::TRANSPOSED, Self::GAPS, Self::TRANSPOSED_GAPS];

    fn root(&self, [n0, n1]: [i64; 2]) -> [i64; 2] {
        let [row, rows] = if self.transposed { [n1, n0] } else { [n0, n1] };
        [self.before + row + self.after, rows]
    }

    /// Where element `(i0, i1)` lies in the root tensor.
    fn at(&self, ne: [i64; 2], i0: i64, i1: i64) -> usize {
        let [i, row] = if self.transposed { [i1, i0] } else { [i0, i1] };
        (row * self.root(ne)[0] + self.before + i) as usize
    }

    /// The root tensor's words from those of the matrix, the first dimension fastest.
    fn spread<T: Copy>(&self, ne: [i64; 2], values: &[T], gap: T) -> Vec<T> {
        let mut root = vec![gap; self.root(ne).iter().product::<i64>() as usize];
        for i1 in 0..ne[1] {
            for i0 in 0..ne[0] {
                root[self.at(ne, i0, i1)] = values[(i1 * ne[0] + i0) as usize];
            }
        }
        root
    }

    /// The root tensor and the matrix in it.
    pub fn input(&self, t: &mut Bench, ne: [i64; 2], values: &[f32]) -> (Tensor, Tensor) {
        let root = t.f32(&self.root(ne), &self.spread(ne, values, PATTERN));
        let row = ne[usize::from(self.transposed)];
        let view = t.ops.view_rows(&root, self.before, row).unwrap();
        let view = if self.transposed { t.ops.transpose(&view).unwrap() } else { view };
        (root, view)
    }
}

/// Matrices with the first dimension fastest.
fn at(values: &[f32], n0: i64, i0: i64, i1: i64) -> f64 {
    f64::from(values[(i1 * n0 + i0) as usize])
}

fn project(n: i64, r: i64, tokens: i64, p_layout: Layout, v_layout: Layout) {
    let scale = 0.75;
    let (p, v) = (noise(1, (n * r) as usize), noise(2, (n * tokens) as usize));
    let mut want = Want { values: Vec::new(), bound: Vec::new() };
    for t in 0..tokens {
        for k in 0..r {
            let product = |i| f64::from(scale) * at(&p, n, i, k) * at(&v, n, i, t);
            want.values.push((0..n).map(product).sum());
            want.bound.push(sum_bound(n, (0..n).map(|i| product(i).abs()).sum()));
        }
    }
    let case = format!("low_rank_project {n}x{r}x{tokens} p {p_layout:?} v {v_layout:?}");
    check(&case, &want, |mut b| {
        let (_, p) = p_layout.input(&mut b, [n, r], &p);
        let (_, v) = v_layout.input(&mut b, [n, tokens], &v);
        let z = b.ops.low_rank_project(&p, &v, scale).unwrap();
        b.run(&z)
    });
}

#[test]
fn projection() {
    for p in Layout::ALL {
        for (n, r, tokens) in [(1, 1, 1), (7, 3, 5), (64, 8, 4), (260, 9, 9), (1028, 24, 6), (1281, 8, 3)] {
            project(n, r, tokens, p, Layout::PLAIN);
        }
        project(1030, 16, 5, p, Layout::GAPS);
        project(1028, 64, 2, p, Layout::middle(1028));
        project(12, 11, 1539, p, Layout::PLAIN);
    }
}

/// Tokens enough for the kernels that are for many of them, in numbers that their workgroups and shares do not divide.
const MANY: i64 = 1541;

#[test]
fn projection_of_many_tokens() {
    // Ranks up to, at and beyond what a workgroup makes, and n beside the 128 or 256 that it takes at a time.
    for (n, r) in [(4, 1), (132, 8), (260, 7), (516, 8), (136, 16), (252, 24), (12, 40), (20, 64)] {
        project(n, r, MANY, Layout::PLAIN, Layout::PLAIN);
    }
    for (n, r) in [(4, 4), (132, 8), (516, 8), (136, 16), (252, 24), (12, 12), (20, 64)] {
        project(n, r, MANY, Layout::TRANSPOSED, Layout::PLAIN);
    }
    project(20, 8, MANY, Layout::middle(20), Layout::middle(4));
    project(10, 8, MANY, Layout::PLAIN, Layout::PLAIN);
    project(20, 8, MANY, Layout::PLAIN, Layout::GAPS);
    project(20, 9, MANY, Layout::TRANSPOSED_GAPS, Layout::PLAIN);
}

/// `B^T dy` of a group's layers, below each other: `CONCAT`s of projections, which are one dispatch on Vulkan.
fn projections(sizes: &[i64], r: i64, tokens: i64, layout: Layout) {
    let scale = -0.5;
    let operands: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, n)| (noise(40 + i as u64, (n * r) as usize), noise(50 + i as u64, (n * tokens) as usize)))
        .collect();
    let mut want = Want { values: Vec::new(), bound: Vec::new() };
    for t in 0..tokens {
        for (&n, (p, v)) in sizes.iter().zip(&operands) {
            for k in 0..r {
                let product = |i| f64::from(scale) * at(p, n, i, k) * at(v, n, i, t);
                want.values.push((0..n).map(product).sum());
                want.bound.push(sum_bound(n, (0..n).map(|i| product(i).abs()).sum()));
            }
        }
    }
    let case = format!("projections {sizes:?} x{r}x{tokens} p {layout:?}");
    check(&case, &want, |mut b| {
        let operands: Vec<_> = sizes
            .iter()
            .zip(&operands)
            .map(|(&n, (p, v))| (layout.input(&mut b, [n, r], p).1, b.f32(&[n, tokens], v)))
            .collect();
        let zs: Vec<_> = operands.iter().map(|(p, v)| b.ops.low_rank_project(p, v, scale).unwrap()).collect();
        let all = zs[1..].iter().fold(zs[0].clone(), |z, other| b.ops.concat_rows(&z, other).unwrap());
        b.run_in_order(&all)
    });
}

#[test]
fn projections_below_each_other() {
    for layout in [Layout::TRANSPOSED, Layout::TRANSPOSED_GAPS, Layout::PLAIN] {
        projections(&[260, 260], 8, 9, layout);
        projections(&[1028, 12, 301], 8, 5, layout);
        projections(&[40, 16, 4], 40, 3, layout);
    }
    projections(&[12, 20, 8, 4], 3, 6, Layout::TRANSPOSED);
    projections(&[64, 20], 16, MANY, Layout::TRANSPOSED);
}

/// What an update in place starts from, and where in its tensor: at no multiple of 16 bytes, or at one, with words around
/// it.
const BEFORE: i64 = 61;
const BEFORE_ALIGNED: i64 = 64;
const AFTER: i64 = 67;

fn add(n: i64, r: i64, tokens: i64, p_layout: Layout, z_layout: Layout, residual: bool) {
    add_at(BEFORE, n, r, tokens, p_layout, z_layout, residual);
}

fn add_at(before: i64, n: i64, r: i64, tokens: i64, p_layout: Layout, z_layout: Layout, residual: bool) {
    let scale = -1.5;
    let all = noise(3, (before + n * tokens + AFTER) as usize);
    let y = &all[before as usize..];
    let (p, z) = (noise(4, (n * r) as usize), noise(5, (r * tokens) as usize));
    let more = noise(6, (n * tokens) as usize);

    let mut want = Want::exactly(all.iter().map(|&v| f64::from(v)).collect());
    for t in 0..tokens {
        for i in 0..n {
            let product = |k| f64::from(scale) * at(&p, n, i, k) * at(&z, r, k, t);
            let more = if residual { at(&more, n, i, t) } else { 0.0 };
            let y = at(y, n, i, t);
            let o = (before + t * n + i) as usize;
            want.values[o] = y + (0..r).map(product).sum::<f64>() + more;
            want.bound[o] =
                sum_bound(r, y.abs() + (0..r).map(|k| product(k).abs()).sum::<f64>() + more.abs());
        }
    }
    let case = format!("low_rank_add {n}x{r}x{tokens} p {p_layout:?} z {z_layout:?} residual {residual}");
    check(&case, &want, |mut b| {
        let flat = b.f32(&[all.len() as i64], &all);
        let y = b.ops.view(&flat, &[n, tokens], before as usize).unwrap();
        let (_, p) = p_layout.input(&mut b, [n, r], &p);
        let (_, z) = z_layout.input(&mut b, [r, tokens], &z);
        let more = residual.then(|| b.f32(&[n, tokens], &more));
        let out = b.ops.low_rank_add(&y, &p, &z, more.as_ref(), scale).unwrap();
        b.run_then_read(&out, &flat)
    });
}

#[test]
fn update_in_place() {
    for p in Layout::ALL {
        for (n, r, tokens) in [(1, 1, 1), (5, 3, 7), (257, 8, 9), (300, 24, 17), (513, 70, 3)] {
            for residual in [false, true] {
                add(n, r, tokens, p, Layout::PLAIN, residual);
            }
        }
        add(256, 8, 19, p, Layout::middle(8), true);
        add(30, 6, 5, p, Layout::GAPS, false);
        add(9, 8, MANY, p, Layout::PLAIN, true);
    }
}

#[test]
fn update_in_place_of_many_tokens() {
    for residual in [false, true] {
        for (n, r) in [(4, 1), (20, 8), (516, 11), (12, 24), (12, 70)] {
            add_at(BEFORE_ALIGNED, n, r, MANY, Layout::PLAIN, Layout::PLAIN, residual);
        }
        for (n, r) in [(4, 4), (20, 8), (516, 12), (12, 24), (12, 72)] {
            add_at(BEFORE_ALIGNED, n, r, MANY, Layout::TRANSPOSED, Layout::PLAIN, residual);
        }
        add_at(BEFORE_ALIGNED, 16, 8, MANY, Layout::middle(16), Layout::middle(8), residual);
        add_at(BEFORE_ALIGNED, 10, 8, MANY, Layout::PLAIN, Layout::PLAIN, residual);
        add_at(BEFORE_ALIGNED, 8, 6, MANY, Layout::TRANSPOSED, Layout::GAPS, residual);
        add(12, 8, MANY, Layout::PLAIN, Layout::PLAIN, residual);
    }
}

fn grad(n: i64, r: i64, tokens: i64, g_layout: Layout, v_layout: Layout, z_layout: Layout) {
    let scale = 0.5;
    let old = noise(7, (n * r) as usize);
    let (v, z) = (noise(8, (n * tokens) as usize), noise(9, (r * tokens) as usize));

    let mut values = Vec::new();
    let mut bound = Vec::new();
    for k in 0..r {
        for i in 0..n {
            let product = |t| f64::from(scale) * at(&v, n, i, t) * at(&z, r, k, t);
            let old = at(&old, n, i, k);
            values.push(old + (0..tokens).map(product).sum::<f64>());
            bound.push(sum_bound(tokens, old.abs() + (0..tokens).map(|t| product(t).abs()).sum::<f64>()));
        }
    }
    let want = Want {
        values: g_layout.spread([n, r], &values, f64::from(PATTERN)),
        bound: g_layout.spread([n, r], &bound, 0.0),
    };
    let case = format!("low_rank_grad {n}x{r}x{tokens} grad {g_layout:?} v {v_layout:?} z {z_layout:?}");
    check(&case, &want, |mut b| {
        let (root, g) = g_layout.input(&mut b, [n, r], &old);
        let (_, v) = v_layout.input(&mut b, [n, tokens], &v);
        let (_, z) = z_layout.input(&mut b, [r, tokens], &z);
        let out = b.ops.low_rank_grad(&g, &v, &z, scale).unwrap();
        b.run_then_read(&out, &root)
    });
}

#[test]
fn gradient_in_place() {
    for g in Layout::ALL {
        for (n, r, tokens) in [(1, 1, 1), (5, 3, 7), (33, 8, 255), (70, 11, 300), (16, 24, 513)] {
            grad(n, r, tokens, g, Layout::PLAIN, Layout::PLAIN);
        }
        grad(20, 8, 65, g, Layout::GAPS, Layout::middle(8));
        grad(20, 9, 65, g, Layout::middle(20), Layout::GAPS);
    }
}

#[test]
fn gradient_in_place_of_many_tokens() {
    for g in Layout::ALL {
        for (n, r) in [(4, 1), (132, 8), (20, 11), (16, 16), (140, 24), (8, 40)] {
            grad(n, r, MANY, g, Layout::PLAIN, Layout::PLAIN);
        }
        grad(20, 8, MANY, g, Layout::middle(20), Layout::middle(8));
        grad(18, 8, MANY, g, Layout::PLAIN, Layout::PLAIN);
    }
    grad(20, 8, 2048, Layout::PLAIN, Layout::GAPS, Layout::GAPS);
    grad(256, 8, 4096, Layout::PLAIN, Layout::PLAIN, Layout::PLAIN);
}
