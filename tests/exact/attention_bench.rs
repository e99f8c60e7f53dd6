//! One op on one device and its bits, for attention's tests.

use std::sync::{MutexGuard, PoisonError};

use super::{device, ONE_AT_A_TIME};
use qvac_ft::ggml::{self, Backend, Context, Device, Dtype, Executor, Graph, Tensor};

/// Exact arithmetic from here on; tests take turns.
pub fn exact() -> MutexGuard<'static, ()> {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ggml::set_exact(true);
    turn
}

/// Words of pattern before and behind each output. Their bytes are a multiple of any device's buffer alignment.
const GUARD: usize = 1024;
const PATTERN: f32 = -12345.5;
const WORD: usize = size_of::<f32>();

/// One op on one device: inputs, the op's context, and the run.
pub struct Bench {
    inputs: Context,
    pub ops: Context,
    exec: Executor,
    uploads: Vec<(Tensor, Vec<u8>)>,
}

impl Bench {
    fn new(device: &Device, n_threads: usize) -> Self {
        Self {
            inputs: Context::new(32, 0).unwrap(),
            ops: Context::new(512, 256).unwrap(),
            exec: Executor::new(&Backend::new(device, n_threads).unwrap(), None),
            uploads: Vec::new(),
        }
    }

    /// An input of any type, converted from `values`.
    pub fn input(&mut self, dtype: Dtype, ne: &[i64], values: &[f32]) -> Tensor {
        let mut bytes = Vec::new();
        dtype.quantize(values, ne[0] as usize, &mut bytes).unwrap();
        self.bytes(dtype, ne, bytes)
    }

    pub fn f32(&mut self, ne: &[i64], values: &[f32]) -> Tensor {
        self.bytes(Dtype::F32, ne, values.iter().flat_map(|v| v.to_ne_bytes()).collect())
    }

    pub fn i32(&mut self, ne: &[i64], values: &[i32]) -> Tensor {
        self.bytes(Dtype::I32, ne, values.iter().flat_map(|v| v.to_ne_bytes()).collect())
    }

    pub fn bytes(&mut self, dtype: Dtype, ne: &[i64], bytes: Vec<u8>) -> Tensor {
        let t = self.inputs.new_tensor(&format!("in{}", self.uploads.len()), dtype, ne).unwrap();
        self.uploads.push((t.clone(), bytes));
        t
    }

    /// Computes `out` between guard words.
    fn run(self, out: &Tensor) -> Vec<u8> {
        let mut graph = Graph::new(&self.ops, 128, false).unwrap();
        graph.expand(out).unwrap();
        let n = out.nbytes().div_ceil(WORD);
        let flat = self.inputs.new_tensor("guarded", Dtype::F32, &[(n + 2 * GUARD) as i64]).unwrap();
        self.exec.backend().alloc(&self.inputs, "inputs").unwrap();
        flat.upload(&vec![PATTERN; n + 2 * GUARD]).unwrap();
        out.place_in(&flat, GUARD * WORD).unwrap();
        for (tensor, bytes) in &self.uploads {
            tensor.upload_bytes(0, bytes).unwrap();
        }
        let plans = self.exec.plan(vec![graph]).unwrap();
        self.exec.compute(&plans[0]).unwrap();
        let all: Vec<u8> = flat.download_bytes().unwrap();
        let (before, rest) = all.split_at(GUARD * WORD);
        let (result, after) = rest.split_at(out.nbytes());
        let pattern = PATTERN.to_ne_bytes();
        for (i, word) in before.chunks(WORD).chain(after.rchunks(WORD)).enumerate() {
            assert!(pattern.ends_with(word), "guard word {i} was overwritten");
        }
        result.to_vec()
    }
}

/// What `make` computes: f32 values with the same bits on the CPU, with one thread and with two, and on Vulkan. A NaN is a NaN.
pub fn same_bits(case: &str, make: impl Fn(&mut Bench) -> Tensor) -> Vec<f32> {
    let run = |device: &Device, n_threads| -> Vec<f32> {
        let mut bench = Bench::new(device, n_threads);
        let out = make(&mut bench);
        bench.run(&out).chunks_exact(WORD).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    };
    let cpu = device::cpu();
    let want = run(&cpu, 1);
    compare(&format!("{case} with two threads"), &run(&cpu, 2), &want);
    if let Some(vulkan) = device::vulkan() {
        compare(&format!("{case} on {}", vulkan.name()), &run(&vulkan, 1), &want);
    }
    want
}

/// Bit for bit, but for NaNs.
pub fn compare(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(
            same,
            "{what}: element {i} is {g:e} ({:08x}), expected {w:e} ({:08x})",
            g.to_bits(),
            w.to_bits()
        );
    }
}

/// Seeded values, roughly normal with deviation 1, so that a case is the same everywhere.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 1.73 * (uniform() + uniform() + uniform() + uniform())).collect()
}
