//! Fused causal attention within samples, forward and backward, against loops in f64.
//!
//! `QVAC_VK_ATTENTION` chooses the kernels of a Vulkan device for the whole process (`attention.cpp`); two tests at the end
//! run others of this module again in processes of their own, for kernels that this machine may not choose. On a GPU with
//! cooperative matrices run the module with `QVAC_VK_ATTENTION=plain` too.

use std::process::Command;

use qvac_ft::ggml::{Device, DeviceKind};

use super::{devices, noise, Bench, ONE_AT_A_TIME};

/// f32 sums of up to 128 products, weighted by softmax: a few roundings each, of 6e-8, and exp is good to a few ulp.
const TOLERANCE_F32: f64 = 1e-5;
/// Operands of cooperative matrices are f16, which rounds by up to 4.9e-4.
const TOLERANCE_F16: f64 = 2e-3;
/// An error of a score is a relative error of its probability, and scores err in proportion to their size: beyond this
/// many a tolerance grows with the largest of them.
const SCORES_FREE: f64 = 8.0;

const VARIABLE: &str = "QVAC_VK_ATTENTION";

fn tolerance(device: &Device) -> f64 {
    let kernels = std::env::var(VARIABLE).unwrap_or_default();
    match (device.kind(), kernels.as_str()) {
        (DeviceKind::Cpu, _) | (_, "plain" | "small") => TOLERANCE_F32,
        (DeviceKind::Software, "") => TOLERANCE_F32, // has no cooperative matrices
        _ => TOLERANCE_F16,
    }
}

struct Case {
    d: usize,
    h: usize,
    h_kv: usize,
    /// Tokens of each sample.
    samples: &'static [usize],
    /// What the queries are multiplied by.
    query: f32,
    /// What the gradient of the output is multiplied by.
    gradient: f32,
    /// What a token's is multiplied by beyond the one before.
    growth: f32,
}

const PLAIN: Case = Case { d: 32, h: 2, h_kv: 2, samples: &[70], query: 1.0, gradient: 1.0, growth: 1.0 };

/// A case's inputs and what attention makes of them.
struct Reference {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dy: Vec<f32>,
    segments: Vec<i32>,
    scale: f32,
    forward: [Part; 2],  // the output, the log-sum-exp
    backward: [Part; 3], // of q, of k, of v
    largest_score: f64,
}

/// What errors are relative to: the largest sum of the absolute values of what an element is made of. A score's gradient
/// is a difference, which for a token that sees only itself is nothing but rounding errors.
struct Part {
    values: Vec<f64>,
    size: f64,
}

impl Part {
    fn new(values: Vec<f64>) -> Self {
        let size = largest(&values);
        Self { values, size }
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn add(to: &mut [f64], factor: f64, v: &[f32]) {
    for (to, &v) in to.iter_mut().zip(v) {
        *to += factor * f64::from(v);
    }
}

fn add_size(to: &mut [f64], factor: f64, v: &[f32]) {
    for (to, &v) in to.iter_mut().zip(v) {
        *to += factor * f64::from(v).abs();
    }
}

impl Case {
    fn tokens(&self) -> usize {
        self.samples.iter().sum()
    }

    fn reference(&self) -> Reference {
        let &Self { d, h, h_kv, .. } = self;
        let t = self.tokens();
        let times = |f: f32, v: Vec<f32>| -> Vec<f32> { v.into_iter().map(|x| f * x).collect() };
        let q = times(self.query, noise(1, d * h * t));
        let k = noise(2, d * h_kv * t);
        let v = noise(3, d * h_kv * t);
        let mut dy = times(self.gradient, noise(4, d * h * t));
        for (i, token) in dy.chunks_mut(d * h).enumerate() {
            token.iter_mut().for_each(|x| *x *= self.growth.powi(i as i32));
        }
        let scale = 1.0 / (d as f32).sqrt();

        let mut segments = Vec::new();
        for &n in self.samples {
            let first = segments.len() as i32 / 2;
            for _ in 0..n {
                segments.extend([first, first + n as i32 - 1]);
            }
        }

        let [mut out, mut dq, mut dq_size] = [(); 3].map(|()| vec![0.0; d * h * t]);
        let [mut dk, mut dk_size, mut dv] = [(); 3].map(|()| vec![0.0; d * h_kv * t]);
        let mut lse = vec![0.0; h * t];
        let mut largest_score = 0.0f64;
        for i in 0..t {
            let first = segments[2 * i] as usize;
            for head in 0..h {
                let row = (i * h + head) * d;
                let key = |j: usize| (j * h_kv + head / (h / h_kv)) * d;
                let score: Vec<f64> =
                    (first..=i).map(|j| f64::from(scale) * dot(&q[row..][..d], &k[key(j)..][..d])).collect();
                let max = score.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log = max + score.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                largest_score = score.iter().fold(largest_score, |m, s| m.max(s.abs()));
                lse[i * h + head] = log;
                for (j, s) in (first..).zip(&score) {
                    add(&mut out[row..][..d], (s - log).exp(), &v[key(j)..][..d]);
                }
                let dy = &dy[row..][..d];
                let delta: f64 = dy.iter().zip(&out[row..]).map(|(&a, b)| f64::from(a) * b).sum();
                for (j, s) in (first..).zip(&score) {
                    let p = (s - log).exp();
                    let dp = dot(dy, &v[key(j)..][..d]);
                    let ds = f64::from(scale) * p * (dp - delta);
                    let size = f64::from(scale) * p * (dp.abs() + delta.abs());
                    add(&mut dq[row..][..d], ds, &k[key(j)..][..d]);
                    add_size(&mut dq_size[row..][..d], size, &k[key(j)..][..d]);
                    add(&mut dk[key(j)..][..d], ds, &q[row..][..d]);
                    add_size(&mut dk_size[key(j)..][..d], size, &q[row..][..d]);
                    add(&mut dv[key(j)..][..d], p, dy);
                }
            }
        }
        let dq = Part { size: largest(&dq_size), values: dq };
        let dk = Part { size: largest(&dk_size), values: dk };
        let forward = [out, lse].map(Part::new);
        let backward = [dq, dk, Part::new(dv)];
        Reference { q, k, v, dy, segments, scale, forward, backward, largest_score }
    }

    /// Forward and backward on every device, twice: the same bits come back.
    fn run(&self) {
        self.run_where(|_| true);
    }

    fn run_where(&self, wanted: impl Fn(&Device) -> bool) {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let want = self.reference();
        for device in devices().into_iter().filter(wanted) {
            let name = format!(
                "attention of {} values, {}:{} heads, samples {:?} on {}",
                self.d,
                self.h,
                self.h_kv,
                self.samples,
                device.name()
            );
            let tolerance = tolerance(&device) * (want.largest_score / SCORES_FREE).max(1.0);
            let out = self.compute(&want, Bench::new(&device), false);
            compare(&name, &out, &want.forward, tolerance);
            let gradients = self.compute(&want, Bench::new(&device), true);
            compare(&format!("gradient of {name}"), &gradients, &want.backward, tolerance);

            let again = self.compute(&want, Bench::new(&device), true);
            let same = again.iter().zip(&gradients).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "gradient of {name}: differs from run to run");
        }
    }

    fn compute(&self, want: &Reference, mut t: Bench, backward: bool) -> Vec<f32> {
        let n = self.tokens() as i64;
        let [d, h, h_kv] = [self.d, self.h, self.h_kv].map(|x| x as i64);
        let q = t.f32(&[d, h, n], &want.q);
        let k = t.f32(&[d, h_kv, n], &want.k);
        let v = t.f32(&[d, h_kv, n], &want.v);
        let segments = t.i32(&want.segments);
        let segments = t.ops.reshape(&segments, &[2, n]).unwrap();
        let fwd = t.ops.attention(&q, &k, &v, &segments, want.scale).unwrap();
        if !backward {
            return t.run(&fwd);
        }
        let dy = t.f32(&[d, h, n], &want.dy);
        let back = t.ops.attention_back(&q, &k, &v, &segments, &fwd, &dy, want.scale).unwrap();
        t.run(&back)
    }
}

/// Each part of `got` within `tolerance` of that part's size.
fn compare<const N: usize>(name: &str, got: &[f32], want: &[Part; N], tolerance: f64) {
    assert_eq!(got.len(), want.iter().map(|part| part.values.len()).sum::<usize>(), "{name}");
    let mut rest = got;
    for (n, part) in want.iter().enumerate() {
        let (got, others) = rest.split_at(part.values.len());
        rest = others;
        for (i, (&g, w)) in got.iter().zip(&part.values).enumerate() {
            // Not `error > bound`: a NaN is to fail.
            assert!(
                (f64::from(g) - w).abs() <= tolerance * part.size,
                "{name}: part {n}, element {i} is {g}, expected {w} within {tolerance:e} of {}",
                part.size
            );
        }
    }
}

#[test]
fn lengths_around_a_tile() {
    for samples in [&[1][..], &[7], &[33], &[64], &[70], &[130]] {
        Case { samples, ..PLAIN }.run();
    }
}

#[test]
fn samples_do_not_see_each_other() {
    for samples in [&[1, 1, 1][..], &[5, 1, 40, 1, 23], &[64, 64], &[31, 33, 66], &[1, 129]] {
        Case { samples, ..PLAIN }.run();
    }
}

/// 20 leaves a part of a block empty, 80 shares out unevenly among subgroups.
#[test]
fn head_widths() {
    for d in [20, 80] {
        Case { d, samples: &[13, 37], ..PLAIN }.run();
    }
}

/// lavapipe has too little shared memory for this with the tiles of cooperative matrices.
#[test]
fn wide_heads() {
    Case { d: 256, samples: &[13, 37], ..PLAIN }.run();
}

/// Each is three kernels more, which lavapipe compiles for 15 seconds and another device in no time.
#[test]
fn head_widths_where_compiling_is_fast() {
    for d in [4, 48, 64, 96, 100, 128, 160] {
        Case { d, samples: &[13, 70], ..PLAIN }.run_where(|device| device.kind() != DeviceKind::Software);
    }
}

#[test]
fn shared_key_heads() {
    for (h, h_kv) in [(1, 1), (3, 3), (8, 2), (5, 1)] {
        Case { h, h_kv, samples: &[30, 9], ..PLAIN }.run();
    }
}

/// exp of a score would overflow (it does beyond 88), and of its negative underflow.
#[test]
fn large_scores() {
    Case { query: 100.0, samples: &[70, 20], ..PLAIN }.run();
}

/// f16 ends at 6e-8: gradients are scaled into its range. They may differ much between tokens, too.
#[test]
fn tiny_gradients() {
    for gradient in [1e-5, 1e-9, 1e-25, 0.0] {
        Case { gradient, samples: &[70, 20], ..PLAIN }.run();
    }
}

/// Where tiles are scaled differently their sums are brought together, whichever comes first; the last is small beyond
/// what f32 brings together.
#[test]
fn gradients_of_all_sizes() {
    for (gradient, growth) in [(1.0, 0.9), (1e-18, 1.4), (1.0, 0.55)] {
        Case { gradient, growth, samples: &[130], ..PLAIN }.run();
    }
}

/// Runs tests of this module with the kernels named.
fn again_with(kernels: &str, tests: &[&str]) {
    let result = Command::new(std::env::current_exe().unwrap())
        .args(["--test-threads", "1", "--exact"])
        .args(tests.iter().map(|test| format!("attention::{test}")))
        .env(VARIABLE, kernels)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&result.stdout);
    let problems = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "with {VARIABLE}={kernels}: {said}{problems}");
    let all = format!(" {} passed", tests.len());
    assert!(said.contains(&all), "with {VARIABLE}={kernels} not every test ran: {said}");
}

/// What devices with 16 KiB of shared memory use.
#[test]
fn kernels_for_little_shared_memory() {
    again_with("small", &["lengths_around_a_tile"]);
}

/// The logic of the cooperative matrices' kernels, without them.
#[test]
fn kernels_for_cooperative_matrices() {
    again_with(
        "imitation",
        &[
            "gradients_of_all_sizes",
            "head_widths",
            "large_scores",
            "lengths_around_a_tile",
            "samples_do_not_see_each_other",
            "shared_key_heads",
            "tiny_gradients",
        ],
    );
}
