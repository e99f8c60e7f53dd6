//! The formulas of contract T0 with integers: what products of ternary weights and quantized tokens are held to, and the
//! variants of ggml-vulkan's kernels that they are run in.

use qvac_ft::ggml::{Device, Dtype, Graph, Tensor};

use super::{devices, Bench, ONE_AT_A_TIME};

pub const TYPES: [Dtype; 2] = [Dtype::TQ1_0, Dtype::TQ2_0];

/// Weights per block.
const BLOCK: usize = 256;

/// Bytes behind the limbs of a quantized token.
pub const TAIL: usize = 16;

/// Around the widths of all tiles.
pub const TOKENS: [usize; 8] = [1, 3, 8, 9, 17, 33, 65, 130];

// --- variants ---

/// Overrides ggml-vulkan's choice of kernel and tile.
const VARIABLE: &str = "QVAC_VK_TERNARY";

pub const ALL_VARIANTS: [&str; 10] = [
    "",
    "plain:0",
    "plain:1",
    "plain:2",
    "dot:0",
    "dot:1",
    "dot:2",
    "coopmat:0",
    "coopmat:1",
    "coopmat:2",
];

/// Those that unpack weights before, for at least 64 columns (tokens times limbs), the last one for 128.
pub const UNPACKED_VARIANTS: [&str; 6] = ["", "plain:5", "dot:5", "coopmat:5", "coopmat:4", "coopmat:3"];

/// Those that have a kernel for weights whose blocks differ in scale.
pub const MIXED_VARIANTS: [&str; 5] = ["", "plain:1", "plain:2", "dot:1", "dot:2"];

/// What every device can do, within Vulkan's least limits.
const GUARANTEED: [&str; 3] = ["", "plain:1", "plain:2"];

/// Runs `make` on every device in each of the variants that it has, and hands the bytes of the result to `hold`.
pub fn on_variants(
    case: &str,
    variants: &[&str],
    make: impl Fn(&mut Bench) -> Tensor,
    hold: impl Fn(&str, &[u8]),
) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let chosen = std::env::var(VARIABLE).ok();
    for device in devices() {
        for &variant in variants {
            if variant != variants[0] && (!device.name().starts_with("vulkan") || chosen.is_some()) {
                continue;
            }
            if chosen.is_none() {
                std::env::set_var(VARIABLE, variant);
            }
            let what = format!("{case} on {} {variant}", device.name());
            match run(&device, &make) {
                Some(bytes) => hold(&what, &bytes),
                None if GUARANTEED.contains(&variant) => panic!("{what}: not supported"),
                None => eprintln!("SKIPPED {what}: this device has no such variant"),
            }
        }
    }
    if chosen.is_none() {
        std::env::remove_var(VARIABLE);
    }
}

fn run(device: &Device, make: impl Fn(&mut Bench) -> Tensor) -> Option<Vec<u8>> {
    let mut bench = Bench::new(device);
    let out = make(&mut bench);
    let graph = Graph::in_order(&bench.ops, std::slice::from_ref(&out)).unwrap();
    graph.nodes().iter().all(|node| device.supports(node)).then(|| bench.run_bytes(&out))
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

pub fn assert_same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: element {i} is {g:e}, expected {w:e}");
    }
}

// --- operands ---

/// A small generator, so that a case is the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^ (z >> 27)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 11) as usize % n
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        super::noise(self.bits(), n)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scales {
    None,
    One,
    OneAndZeroBlocks,
    Mixed,
}

/// Weights `[n, m]`: t, and d per block.
pub struct Weights {
    pub dtype: Dtype,
    pub n: usize,
    pub m: usize,
    pub values: Vec<f32>,
    t: Vec<i8>,
    d: Vec<f32>,
}

impl Weights {
    pub fn new(dtype: Dtype, n: usize, m: usize, scales: Scales, random: &mut Random) -> Self {
        let mut values = Vec::with_capacity(n * m);
        for _ in 0..n * m / BLOCK {
            let d = match scales {
                Scales::None => 0.0,
                Scales::One => 0.0625,
                Scales::OneAndZeroBlocks => 0.0625 * random.below(2) as f32,
                Scales::Mixed => 0.03125 * (1 + random.below(7)) as f32, // exact in f16
            };
            let start = values.len();
            values.extend((0..BLOCK).map(|_| (random.below(3) as f32 - 1.0) * d));
            values[start + random.below(BLOCK)] = d;
        }
        let t = values.iter().map(|&v| if v == 0.0 { 0 } else { v.signum() as i8 }).collect();
        let d = values.chunks(BLOCK).map(|b| b.iter().fold(0.0f32, |m, v| m.max(v.abs()))).collect();
        Self { dtype, n, m, values, t, d }
    }

    pub fn tensor(&self, bench: &mut Bench) -> Tensor {
        bench.input(self.dtype, &[self.n as i64, self.m as i64], &self.values)
    }

    /// The one scale, if there is one.
    fn scale(&self) -> Option<f32> {
        let mut seen = self.d.iter().copied().filter(|&d| d != 0.0);
        let Some(d) = seen.next() else { return Some(0.0) };
        seen.all(|other| other == d).then_some(d)
    }
}

/// The least absmax that does not count as zero.
pub const AMAX_MIN: f32 = f32::from_bits((127 - 119) << 23);

/// Tokens as the formulas quantize them.
pub struct Tokens {
    pub n: usize,
    pub limbs: Vec<Vec<i8>>, // per token: all first limbs, then all second ones
    pub scales: Vec<f32>,    // a/127
}

impl Tokens {
    pub fn new(x: &[f32], n: usize, limbs: usize) -> Self {
        let (limbs, scales) = x.chunks(n).map(|token| Self::quantize(token, limbs)).unzip();
        Self { n, limbs, scales }
    }

    fn quantize(x: &[f32], limbs: usize) -> (Vec<i8>, f32) {
        let a = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let mut q = vec![0i8; limbs * x.len()];
        if x.iter().any(|v| !v.is_finite()) {
            return (q, f32::NAN);
        }
        if a < AMAX_MIN {
            return (q, 0.0);
        }
        let s = 127.0 / a;
        let round = |v: f32| (v.round_ties_even() as i32).clamp(-127, 127) as i8;
        for (i, v) in x.iter().enumerate() {
            q[i] = round(v * s);
            if limbs == 2 {
                q[x.len() + i] = round((v * s - f32::from(q[i])) * 254.0);
            }
        }
        (q, a / 127.0)
    }

    /// As TQ_QUANTIZE lays them out.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (q, scale) in self.limbs.iter().zip(&self.scales) {
            bytes.extend(q.iter().map(|&v| v as u8));
            bytes.extend(scale.to_ne_bytes());
            bytes.extend([0; TAIL - 4]);
        }
        bytes
    }

    pub fn tensor(&self, bench: &mut Bench) -> Tensor {
        let bytes = self.bytes();
        let row = bytes.len() / self.limbs.len();
        bench.i8(&[row as i64, self.limbs.len() as i64], &bytes)
    }
}

/// `w x` by the forward formula.
pub fn forward(w: &Weights, x: &Tokens) -> Vec<f32> {
    let mut y = Vec::new();
    for (q, &scale) in x.limbs.iter().zip(&x.scales) {
        for (row, d) in w.t.chunks(w.n).zip(w.d.chunks(w.n / BLOCK)) {
            let blocks = row.chunks(BLOCK).zip(q.chunks(BLOCK));
            let sums =
                blocks.map(|(t, q)| t.iter().zip(q).map(|(&t, &q)| i32::from(t) * i32::from(q)).sum::<i32>());
            y.push(match w.scale() {
                Some(one) => sums.sum::<i32>() as f32 * (scale * one),
                None => sums.zip(d).fold(0.0f32, |y, (s, d)| y + s as f32 * d) * scale,
            });
        }
    }
    y
}

/// `w^T y + add` by the backward formula, for weights of one scale.
pub fn backward(w: &Weights, y: &Tokens, add: Option<&[f32]>) -> Vec<f32> {
    let d = w.scale().expect("one scale");
    let mut dx = Vec::new();
    for (token, (q, &scale)) in y.limbs.iter().zip(&y.scales).enumerate() {
        let mut sums = vec![vec![0i32; w.n]; 2];
        for (limb, q) in q.chunks(y.n).enumerate() {
            for (row, &q) in w.t.chunks(w.n).zip(q) {
                for (sum, &t) in sums[limb].iter_mut().zip(row) {
                    *sum += i32::from(q) * i32::from(t);
                }
            }
        }
        for i in 0..w.n {
            let mut sum = sums[0][i] as f32;
            if q.len() > y.n {
                sum += sums[1][i] as f32 / 254.0;
            }
            let product = sum * (scale * d);
            dx.push(add.map_or(product, |add| product + add[token * w.n + i]));
        }
    }
    dx
}

/// Random tokens of very different sizes, and odd ones among them where there are enough.
pub fn odd_tokens(n: usize, count: usize, random: &mut Random) -> Vec<f32> {
    let mut x = random.values(n * count);
    for (i, token) in x.chunks_mut(n).enumerate() {
        let factor = 10f32.powi(i as i32 % 7 - 3);
        token.iter_mut().for_each(|v| *v *= factor);
        match i % 16 {
            2 => token.fill(0.0),
            4 => token[n / 2] = f32::NAN,
            6 => token.iter_mut().for_each(|v| *v *= 1e-38), // too small to count
            7 => token[n - 1] = f32::NEG_INFINITY,
            9 => token[..n - 1].fill(0.0),
            _ => {}
        }
    }
    x
}
