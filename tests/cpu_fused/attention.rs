//! Causal attention within samples, forward and backward.

use super::{assert_within, f32s, i32s, noise, run, Input, Read, Want, EPS, FEW};

/// A problem of attention; tokens are cut into samples of these lengths.
struct Attention {
    d: usize,
    h: usize,
    h_kv: usize,
    samples: Vec<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dy: Vec<f32>,
    scale: f32,
    /// Whether scores are sums that f32 holds exactly.
    exact_scores: bool,
}

impl Attention {
    fn random(d: usize, h: usize, h_kv: usize, samples: &[usize]) -> Self {
        let t: usize = samples.iter().sum();
        Self {
            d,
            h,
            h_kv,
            samples: samples.to_vec(),
            q: noise(1, d * h * t),
            k: noise(2, d * h_kv * t),
            v: noise(3, d * h_kv * t),
            dy: noise(4, d * h * t),
            scale: 1.0 / (d as f32).sqrt(),
            exact_scores: false,
        }
    }

    fn name(&self) -> String {
        format!("attention D={} H={}/{} samples {:?}", self.d, self.h, self.h_kv, self.samples)
    }

    fn n_tokens(&self) -> usize {
        self.samples.iter().sum()
    }

    fn inputs(&self) -> Vec<Input> {
        let t = self.n_tokens() as i64;
        let (d, h, h_kv) = (self.d as i64, self.h as i64, self.h_kv as i64);
        let mut segments = Vec::new();
        let mut first = 0;
        for &n in &self.samples {
            for _ in 0..n {
                segments.extend([first, first + n as i32 - 1]);
            }
            first += n as i32;
        }
        vec![
            f32s(&[d, h, t], &self.q),
            f32s(&[d, h_kv, t], &self.k),
            f32s(&[d, h_kv, t], &self.v),
            i32s(&[2, t], &segments),
        ]
    }

    /// Calls `visit` with the head, the token, the tokens it looks at, and for each its probability and the relative
    /// error that rounded scores and a rounded log-sum-exp give it; also that log-sum-exp.
    fn each_query(&self, mut visit: impl FnMut(usize, usize, std::ops::Range<usize>, &[(f64, f64)], f64)) {
        let dot = |a: &[f32], b: &[f32]| -> (f64, f64) {
            let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
            products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()))
        };
        let scale = f64::from(self.scale);
        let per_score = if self.exact_scores { 0.0 } else { 2.0 * (self.d as f64 + 2.0) * EPS };
        let mut first = 0;
        for &n in &self.samples {
            for (head, t) in (0..self.h).flat_map(|h| (first..first + n).map(move |t| (h, t))) {
                let kv = head / (self.h / self.h_kv);
                let q = &self.q[(t * self.h + head) * self.d..][..self.d];
                let scores: Vec<(f64, f64)> = (first..=t)
                    .map(|j| dot(q, &self.k[(j * self.h_kv + kv) * self.d..][..self.d]))
                    .map(|(s, m)| (s * scale, m * scale))
                    .collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
                let size = scores.iter().fold(0.0f64, |m, s| m.max(s.1));
                let total: f64 = scores.iter().map(|s| (s.0 - max).exp()).sum();
                let lse = max + total.ln();
                let error = 2.0 * per_score * size + (n as f64 + FEW + 2.0 * lse.abs()) * EPS;
                let p: Vec<(f64, f64)> = scores.iter().map(|s| ((s.0 - lse).exp(), error)).collect();
                visit(head, t, first..t + 1, &p, lse);
            }
            first += n;
        }
    }

    /// The output, then the log-sum-exp.
    fn forward(&self) -> Vec<Want> {
        let (d, h, t) = (self.d, self.h, self.n_tokens());
        let mut want = vec![Want::default(); (d + 1) * h * t];
        self.each_query(|head, at, keys, p, lse| {
            let row = at * h + head;
            let kv = head / (h / self.h_kv);
            for e in 0..d {
                let w = &mut want[row * d + e];
                for (j, (p, error)) in keys.clone().zip(p) {
                    let v = f64::from(self.v[(j * self.h_kv + kv) * d + e]);
                    w.value += p * v;
                    w.bound += p * v.abs() * (error + 2.0 * (t as f64 + FEW) * EPS);
                }
                w.bound += f64::from(f32::MIN_POSITIVE); // e^-87.3 is 0
            }
            want[d * h * t + row] = Want { value: lse, bound: p[0].1 + FEW * EPS * (1.0 + lse.abs()) };
        });
        want
    }

    /// The gradients of q, of k and of v, from `fwd`.
    fn backward(&self, fwd: &[f32]) -> Vec<Want> {
        let (d, h, h_kv, t) = (self.d, self.h, self.h_kv, self.n_tokens());
        let (n_q, n_k) = (d * h * t, d * h_kv * t);
        let mut want = vec![Want::default(); n_q + 2 * n_k];
        let long = 2.0 * ((t * h / h_kv) as f64 + FEW) * EPS; // the longest sum
        let scale = f64::from(self.scale);
        self.each_query(|head, at, keys, p, _| {
            let row = (at * h + head) * d;
            let kv = head / (h / h_kv);
            let f = |x: &[f32], i: usize| f64::from(x[i]);
            let terms = |i: usize, x: &[f32], o: usize| -> Vec<f64> {
                (0..d).map(|e| f(&self.dy, i + e) * f(x, o + e)).collect()
            };
            let of_output = terms(row, fwd, row);
            let dot: f64 = of_output.iter().sum();
            let dot_size: f64 = of_output.iter().map(|v| v.abs()).sum();
            for (j, (p, error)) in keys.zip(p) {
                let col = (j * h_kv + kv) * d;
                let of_value = terms(row, &self.v, col);
                let dp: f64 = of_value.iter().sum();
                let size = dot_size + of_value.iter().map(|v| v.abs()).sum::<f64>();
                let ds = scale * p * (dp - dot);
                let ds_error = scale * p * ((dp - dot).abs() * error + 2.0 * (d as f64 + FEW) * EPS * size);
                for e in 0..d {
                    let mut add = |i: usize, coefficient: f64, error: f64, x: f64| {
                        want[i].value += coefficient * x;
                        want[i].bound +=
                            (error + coefficient.abs() * long) * x.abs() + f64::from(f32::MIN_POSITIVE);
                    };
                    add(row + e, ds, ds_error, f(&self.k, col + e));
                    add(n_q + col + e, ds, ds_error, f(&self.q, row + e));
                    add(n_q + n_k + col + e, *p, p * error, f(&self.dy, row + e));
                }
            }
        });
        want
    }

    fn check(&self) {
        let what = self.name();
        let inputs = self.inputs();
        let want = self.forward();
        let y = run(&what, &inputs, Read::Result, |ctx, i| {
            ctx.attention(&i[0], &i[1], &i[2], &i[3], self.scale).unwrap()
        });
        assert_within(&what, &y, &want);

        // from the reference's forward, so that one error cannot hide another
        let (d, h, t) = (self.d as i64, self.h as i64, self.n_tokens() as i64);
        let fwd: Vec<f32> = want.iter().map(|w| w.value as f32).collect();
        let mut inputs = inputs;
        inputs.push(f32s(&[(d + 1) * h * t], &fwd));
        inputs.push(f32s(&[d, h, t], &self.dy));
        let what = format!("{what}, backward");
        let y = run(&what, &inputs, Read::Result, |ctx, i| {
            ctx.attention_back(&i[0], &i[1], &i[2], &i[3], &i[4], &i[5], self.scale).unwrap()
        });
        assert_within(&what, &y, &self.backward(&fwd));
    }
}

#[test]
fn attention_within_samples() {
    // one token; heads that are no whole vector; one more and one less than the tiles of 48 queries and 96 keys
    for (d, h, h_kv, samples) in [
        (1, 1, 1, vec![1]),
        (5, 3, 1, vec![7, 1, 50]),
        (64, 2, 2, vec![130]),
        (33, 4, 2, vec![49, 1, 1, 95]),
        (16, 8, 2, vec![47, 48, 96, 97]),
        (80, 1, 1, vec![210]),
        (8, 6, 3, vec![1; 20]),
    ] {
        Attention::random(d, h, h_kv, &samples).check();
    }
}

#[test]
fn attention_of_huge_scores() {
    let mut a = Attention::random(16, 2, 1, &[120, 30]);
    // whole numbers, so that scores up to some 10^5 are exact, ties included
    let whole = |x: &mut Vec<f32>, by: f32| x.iter_mut().for_each(|v| *v = (*v * 2.0).round() * by);
    whole(&mut a.q, 64.0);
    whole(&mut a.k, 32.0);
    a.exact_scores = true;
    a.scale = 0.25;
    a.check();
}

#[test]
fn attention_of_a_sample_does_not_depend_on_its_place() {
    let (d, h, h_kv, n) = (24, 4, 2, 100);
    let one = Attention::random(d, h, h_kv, &[n]);
    let mut two = Attention::random(d, h, h_kv, &[31, n]);
    let tail = |all: &mut Vec<f32>, x: &[f32]| {
        let start = all.len() - x.len();
        all[start..].copy_from_slice(x);
    };
    tail(&mut two.q, &one.q);
    tail(&mut two.k, &one.k);
    tail(&mut two.v, &one.v);
    let [alone, beside] = [&one, &two].map(|a| {
        run(&a.name(), &a.inputs(), Read::Result, |ctx, i| {
            ctx.attention(&i[0], &i[1], &i[2], &i[3], a.scale).unwrap()
        })
    });
    let rows = n * h;
    let end = beside.len() - (31 + n) * h; // of the outputs
    assert!(alone[..rows * d] == beside[end - rows * d..end], "the outputs differ");
    assert!(alone[rows * d..] == beside[beside.len() - rows..], "the log-sum-exps differ");
}
