//! Attention within samples with its gradients, and over a cache.

use qvac_ft::ggml::{Dtype, Tensor};

use super::bench::{noise, Bench};
use super::{equal, same};

/// What `make` computes, which is the same everywhere.
fn computed(case: &str, make: impl Fn(&mut Bench) -> Tensor) -> Vec<f32> {
    same(case, |mut bench| {
        let out = make(&mut bench);
        bench.run(&out)
    })
}

/// f32 sums of up to 128 products and a few hundred probabilities: some roundings each, of 6e-8.
const TOLERANCE: f64 = 1e-5;

/// Samples that lie one after another.
#[derive(Clone)]
struct Samples {
    d: usize,
    h: usize,
    h_kv: usize,
    lengths: Vec<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dy: Vec<f32>,
}

impl Samples {
    fn new(d: usize, h: usize, h_kv: usize, lengths: &[usize]) -> Self {
        let t: usize = lengths.iter().sum();
        Self {
            d,
            h,
            h_kv,
            lengths: lengths.to_vec(),
            q: noise(1, d * h * t),
            k: noise(2, d * h_kv * t),
            v: noise(3, d * h_kv * t),
            dy: noise(4, d * h * t),
        }
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// The first and the last token of each token's sample.
    fn segments(&self) -> Vec<i32> {
        let mut segments = Vec::new();
        for &n in &self.lengths {
            let first = segments.len() as i32 / 2;
            (0..n).for_each(|_| segments.extend([first, first + n as i32 - 1]));
        }
        segments
    }

    fn name(&self) -> String {
        format!("attention of {} values, {}:{} heads, samples {:?}", self.d, self.h, self.h_kv, self.lengths)
    }

    /// The output with the log-sum-exp, or the gradients.
    fn run(&self, backward: bool) -> Vec<f32> {
        let [d, h, h_kv, t] = [self.d, self.h, self.h_kv, self.tokens()].map(|x| x as i64);
        let name = if backward { format!("gradient of {}", self.name()) } else { self.name() };
        computed(&name, |bench: &mut Bench| {
            let q = bench.f32(&[d, h, t], &self.q);
            let k = bench.f32(&[d, h_kv, t], &self.k);
            let v = bench.f32(&[d, h_kv, t], &self.v);
            let segments = bench.bytes(
                Dtype::I32,
                &[2, t],
                self.segments().iter().flat_map(|v| v.to_ne_bytes()).collect(),
            );
            let fwd = bench.ops.attention(&q, &k, &v, &segments, self.scale()).unwrap();
            if !backward {
                return fwd;
            }
            let dy = bench.f32(&[d, h, t], &self.dy);
            bench.ops.attention_back(&q, &k, &v, &segments, &fwd, &dy, self.scale()).unwrap()
        })
    }

    /// The sample at `index` by itself.
    fn alone(&self, index: usize) -> Self {
        let first: usize = self.lengths[..index].iter().sum();
        let n = self.lengths[index];
        let cut = |x: &[f32], heads: usize| x[first * heads * self.d..][..n * heads * self.d].to_vec();
        Self {
            lengths: vec![n],
            q: cut(&self.q, self.h),
            k: cut(&self.k, self.h_kv),
            v: cut(&self.v, self.h_kv),
            dy: cut(&self.dy, self.h),
            ..*self
        }
    }

    /// Of a result's parts, each with so many values a token, those of the sample at `index`.
    fn part(&self, out: &[f32], values: &[usize], index: usize) -> Vec<f32> {
        let first: usize = self.lengths[..index].iter().sum();
        let mut rest = out;
        let mut found = Vec::new();
        for n in values {
            let (part, others) = rest.split_at(n * self.tokens());
            found.extend_from_slice(&part[first * n..][..self.lengths[index] * n]);
            rest = others;
        }
        assert!(rest.is_empty());
        found
    }

    fn forward_parts(&self) -> [usize; 2] {
        [self.d * self.h, self.h]
    }

    fn backward_parts(&self) -> [usize; 3] {
        [self.d * self.h, self.d * self.h_kv, self.d * self.h_kv]
    }

    /// Forward and backward in f64, each followed by the sizes that errors are relative to.
    fn reference(&self) -> [(Vec<f64>, Vec<f64>); 2] {
        let &Self { d, h, h_kv, .. } = self;
        let (t, segments, scale) = (self.tokens(), self.segments(), f64::from(self.scale()));
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let [mut y, mut dq, mut dq_size] = [(); 3].map(|()| vec![0.0; d * h * t]);
        let [mut dk, mut dk_size, mut dv, mut dv_size] = [(); 4].map(|()| vec![0.0; d * h_kv * t]);
        let mut lse = vec![0.0; h * t];
        for i in 0..t {
            for head in 0..h {
                let row = (i * h + head) * d;
                let key = |j: usize| (j * h_kv + head / (h / h_kv)) * d;
                let keys = segments[2 * i] as usize..=i;
                let scores: Vec<f64> =
                    keys.clone().map(|j| scale * dot(&self.q[row..][..d], &self.k[key(j)..][..d])).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                lse[i * h + head] = log;
                for (j, s) in keys.clone().zip(&scores) {
                    (0..d).for_each(|e| y[row + e] += (s - log).exp() * f64::from(self.v[key(j) + e]));
                }
                let delta: f64 = (0..d).map(|e| f64::from(self.dy[row + e]) * y[row + e]).sum();
                for (j, s) in keys.zip(&scores) {
                    let p = (s - log).exp();
                    let dp = dot(&self.dy[row..][..d], &self.v[key(j)..][..d]);
                    let (ds, size) = (scale * p * (dp - delta), scale * p * (dp.abs() + delta.abs()));
                    for e in 0..d {
                        let (q, k) = (f64::from(self.q[row + e]), f64::from(self.k[key(j) + e]));
                        let dy = f64::from(self.dy[row + e]);
                        dq[row + e] += ds * k;
                        dq_size[row + e] += size * k.abs();
                        dk[key(j) + e] += ds * q;
                        dk_size[key(j) + e] += size * q.abs();
                        dv[key(j) + e] += p * dy;
                        dv_size[key(j) + e] += p * dy.abs();
                    }
                }
            }
        }
        let forward = [y, lse].concat();
        let sizes = forward.iter().map(|x| x.abs().max(1.0)).collect();
        [(forward, sizes), ([dq, dk, dv].concat(), [dq_size, dk_size, dv_size].concat())]
    }

    /// The same bits everywhere, which are near the truth.
    fn check(&self) {
        for (backward, (want, sizes)) in [false, true].into_iter().zip(self.reference()) {
            let got = self.run(backward);
            assert_eq!(got.len(), want.len());
            for (i, (g, (w, size))) in got.iter().zip(want.iter().zip(&sizes)).enumerate() {
                let near = (f64::from(*g) - w).abs() <= TOLERANCE * size.max(1e-3);
                assert!(near, "{}, backward {backward}: element {i} is {g}, expected {w}", self.name());
            }
        }
    }
}

#[test]
fn lengths_around_chunks_and_tiles() {
    for lengths in [&[1][..], &[7], &[32, 33], &[64, 1, 65], &[5, 1, 40, 1, 23], &[131]] {
        Samples::new(32, 2, 2, lengths).check();
    }
}

#[test]
fn head_widths() {
    for d in [4, 40, 80, 96, 128, 256] {
        Samples::new(d, 2, 2, &[13, 70]).check();
    }
}

#[test]
fn shared_key_heads() {
    for (h, h_kv) in [(3, 3), (8, 2), (5, 1)] {
        Samples::new(64, h, h_kv, &[30, 75]).check();
    }
}

/// Exponentials that underflow beside ones that do not.
#[test]
fn large_scores() {
    let mut samples = Samples::new(64, 2, 1, &[70, 20]);
    samples.q.iter_mut().for_each(|x| *x *= 30.0);
    samples.run(false);
    samples.run(true);
}

/// Wherever a sample lies, its bits are those of the sample by itself.
#[test]
fn the_place_of_a_sample() {
    for (d, h, h_kv) in [(64, 4, 2), (128, 2, 2)] {
        let all = Samples::new(d, h, h_kv, &[19, 77, 1, 100]);
        let (forward, backward) = (all.run(false), all.run(true));
        for i in 0..all.lengths.len() {
            let alone = all.alone(i);
            equal("forward", &all.part(&forward, &all.forward_parts(), i), &alone.run(false));
            equal("backward", &all.part(&backward, &all.backward_parts(), i), &alone.run(true));
        }
    }
}

/// What is no number in one sample stays out of the others, and in a token's key out of the tokens before it.
#[test]
fn what_is_not_seen_does_not_enter() {
    let clean = Samples::new(64, 2, 1, &[40, 50, 33]);
    let (forward, backward) = (clean.run(false), clean.run(true));
    let mut dirty = clean.clone();
    let at = (40 + 37) * 64; // token 37 of the second sample
    dirty.k[at..at + 64].fill(f32::NAN);
    dirty.v[at..at + 64].fill(f32::INFINITY);
    let (dirty_forward, dirty_backward) = (dirty.run(false), dirty.run(true));
    for i in [0, 2] {
        let parts = clean.forward_parts();
        equal("forward", &clean.part(&dirty_forward, &parts, i), &clean.part(&forward, &parts, i));
        let parts = clean.backward_parts();
        equal("backward", &clean.part(&dirty_backward, &parts, i), &clean.part(&backward, &parts, i));
    }
    let n = (40 + 37) * 2 * 64;
    equal("forward before it", &dirty_forward[..n], &forward[..n]);
    equal("dq before it", &dirty_backward[..n], &backward[..n]);
    assert!(dirty_forward[n..n + 64].iter().all(|x| x.is_nan()), "a key that is no number is seen");
}

/// Queries over a cache.
struct Cache {
    d: usize,
    h: usize,
    h_kv: usize,
    dtype: Dtype,
    n_keys: usize,
    q: Vec<f32>, // [d, h, t]
    k: Vec<f32>, // [d, h_kv, n_keys]
    v: Vec<f32>,
    mask: Vec<f32>, // [n_keys, t]
}

impl Cache {
    /// `t` queries, the last of which sees all but the last `unused` cells. Unused ones hold what is no number.
    fn new(
        d: usize,
        (h, h_kv): (usize, usize),
        dtype: Dtype,
        t: usize,
        n_keys: usize,
        unused: usize,
    ) -> Self {
        let [mut k, mut v] = [12, 13].map(|seed| noise(seed, d * h_kv * n_keys));
        let used = n_keys - unused;
        k[used * d * h_kv..].fill(f32::NAN);
        v[used * d * h_kv..].fill(f32::INFINITY);
        let mask = (0..t)
            .flat_map(|i| (0..n_keys).map(move |j| if j + t <= used + i { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Self { d, h, h_kv, dtype, n_keys, q: noise(11, d * h * t), k, v, mask }
    }

    fn queries(&self) -> usize {
        self.q.len() / (self.d * self.h)
    }

    fn run(&self) -> Vec<f32> {
        self.run_some(0, self.queries())
    }

    /// `n` queries from `first` on.
    fn run_some(&self, first: usize, n: usize) -> Vec<f32> {
        let [d, h, h_kv, n_keys, t] = [self.d, self.h, self.h_kv, self.n_keys, n].map(|x| x as i64);
        let name = format!("{t} queries of {h}:{h_kv} heads of {d}, {n_keys} {:?} keys", self.dtype);
        computed(&name, |bench: &mut Bench| {
            let tokens_first = |bench: &Bench, t: &Tensor| bench.ops.permute(t, [0, 2, 1, 3]).unwrap();
            let q = bench.f32(&[d, h, t], &self.q[first * self.d * self.h..][..n * self.d * self.h]);
            let k = bench.input(self.dtype, &[d, h_kv, n_keys], &self.k);
            let v = bench.input(self.dtype, &[d, h_kv, n_keys], &self.v);
            let mask =
                bench.input(Dtype::F16, &[n_keys, t], &self.mask[first * self.n_keys..][..n * self.n_keys]);
            let [q, k, v] = [&q, &k, &v].map(|t| tokens_first(bench, t));
            bench.ops.flash_attn_ext(&q, &k, &v, &mask, 1.0 / (self.d as f32).sqrt()).unwrap()
        })
    }

    /// Every query by itself gives the bits of all of them together.
    fn check(&self) {
        let all = self.run();
        let n = self.d * self.h;
        for i in 0..self.queries() {
            equal(&format!("query {i} by itself"), &self.run_some(i, 1), &all[i * n..][..n]);
        }
        self.near_the_truth(&all);
    }

    fn near_the_truth(&self, got: &[f32]) {
        let stored = |x: &[f32]| -> Vec<f32> {
            let mut bytes = Vec::new();
            self.dtype.quantize(x, self.d, &mut bytes).unwrap();
            let mut back = vec![0.0; x.len()];
            self.dtype.dequantize(&bytes, &mut back).unwrap();
            back
        };
        let (k, v) = (stored(&self.k), stored(&self.v));
        let (d, scale) = (self.d, f64::from(1.0 / (self.d as f32).sqrt()));
        for (row, got) in got.chunks(d).enumerate() {
            let (i, head) = (row / self.h, row % self.h);
            let key = |j: usize| (j * self.h_kv + head / (self.h / self.h_kv)) * d;
            let mask = &self.mask[i * self.n_keys..][..self.n_keys];
            let seen: Vec<usize> = (0..self.n_keys).filter(|&j| mask[j] != f32::NEG_INFINITY).collect();
            let q = &self.q[row * d..][..d];
            let product = |j: usize| {
                q.iter().zip(&k[key(j)..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            let p: Vec<f64> = seen.iter().map(|&j| (scale * product(j) + f64::from(mask[j])).exp()).collect();
            let sum: f64 = p.iter().sum();
            for (e, g) in got.iter().enumerate() {
                // A query that sees no key gives 0.
                let w: f64 = seen.iter().zip(&p).map(|(&j, p)| p / sum * f64::from(v[key(j) + e])).sum();
                assert!(
                    (f64::from(*g) - w).abs() <= TOLERANCE,
                    "query {i}, head {head}: value {e} is {g}, expected {w}"
                );
            }
        }
    }
}

/// As few as have a kernel of their own, and more.
#[test]
fn one_query_at_a_time_or_many() {
    for (t, n_keys, unused) in [(1, 1, 0), (3, 40, 5), (8, 256, 100), (9, 64, 0), (70, 130, 11)] {
        Cache::new(64, (4, 2), Dtype::F16, t, n_keys, unused).check();
    }
}

#[test]
fn head_widths_and_types_of_a_cache() {
    let halves = [32, 80, 96, 128, 256].map(|d| (d, Dtype::F16));
    for (d, dtype) in halves.into_iter().chain([(80, Dtype::F32)]) {
        for t in [2, 35] {
            let cache = Cache::new(d, (2, 1), dtype, t, 100, 3);
            cache.near_the_truth(&cache.run());
        }
    }
}

#[test]
fn long_caches() {
    for (t, n_keys) in [(1, 4352), (5, 4100), (33, 2048)] {
        let cache = Cache::new(64, (2, 2), Dtype::F16, t, n_keys, 77);
        cache.near_the_truth(&cache.run());
    }
}

/// Masks of any form: cells that some queries do not see, whole chunks of them, values that are added, and queries that see none.
#[test]
fn masks() {
    for t in [4, 40] {
        let n_keys = 161;
        let mut cache = Cache::new(64, (2, 2), Dtype::F16, t, n_keys, 0);
        let holes = noise(17, cache.mask.len());
        for (i, (m, hole)) in cache.mask.iter_mut().zip(&holes).enumerate() {
            let (query, key) = (i / n_keys, i % n_keys);
            let none = query == 3 || (query % 2 == 0 && key / 32 == 1) || key / 32 == 3;
            *m = if none || *hole > 0.8 { f32::NEG_INFINITY } else { (hole * 4.0).round() / 4.0 };
        }
        let at = 100 * 2 * 64; // the fourth chunk, which nobody sees
        cache.v[at..at + 128].fill(f32::NAN);
        let out = cache.run();
        assert!(out[3 * 2 * 64..4 * 2 * 64].iter().all(|&x| x == 0.0), "a query that sees no key gives 0");
        cache.check();
    }
}
