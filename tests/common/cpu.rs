//! One op on the CPU backend, over and over: any number of threads gives the same bits.

// Each test program uses its part of this.
#![allow(dead_code)]

use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, Graph, Tensor};

const THREADS: [usize; 3] = [1, 2, 3];

/// A chain of k fused multiply-adds in f32 errs by at most k half-ulps of the sum of magnitudes; a target without
/// them rounds twice a step.
const ROUNDINGS_PER_STEP: f64 = 2.0;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn uniform(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32) - 1.0).collect()
    }
}

/// A `[ne..]` operand: its type and its values row by row, as the type holds them.
pub struct Operand {
    pub dtype: Dtype,
    pub ne: Vec<i64>,
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
}

impl Operand {
    pub fn new(dtype: Dtype, ne: &[i64], values: &[f32]) -> Self {
        let mut bytes = Vec::new();
        dtype.quantize(values, ne[0] as usize, &mut bytes).unwrap();
        let mut held = vec![0.0; values.len()];
        dtype.dequantize(&bytes, &mut held).unwrap();
        Self { dtype, ne: ne.to_vec(), bytes, values: held }
    }

    /// Values that are all in the bytes.
    pub fn of_bytes(dtype: Dtype, ne: &[i64], bytes: Vec<u8>) -> Self {
        Self { dtype, ne: ne.to_vec(), bytes, values: Vec::new() }
    }

    pub fn random(dtype: Dtype, ne: &[i64], rng: &mut Rng) -> Self {
        let n = ne.iter().product::<i64>() as usize;
        Self::new(dtype, ne, &rng.uniform(n))
    }
}

/// The bytes of what `op` makes of the operands on that backend.
pub fn run(backend: &Backend, inputs: &[&Operand], op: impl Fn(&Context, &[Tensor]) -> Tensor) -> Vec<u8> {
    let exec = Executor::new(backend, None);
    let context = Context::new(inputs.len(), 0).unwrap();
    let tensors: Vec<Tensor> =
        inputs.iter().map(|o| context.new_tensor("operand", o.dtype, &o.ne).unwrap()).collect();
    backend.alloc(&context, "operands").unwrap();
    for (tensor, operand) in tensors.iter().zip(inputs) {
        tensor.upload_bytes(0, &operand.bytes).unwrap();
    }

    let ops = Context::new(16, 64).unwrap();
    let y = op(&ops, &tensors);
    y.set_output();
    let mut graph = Graph::new(&ops, 16, false).unwrap();
    graph.expand(&y).unwrap();
    let plan = exec.plan(vec![graph]).unwrap().remove(0);
    exec.compute(&plan).unwrap();
    y.download_bytes().unwrap()
}

pub fn backend(n_threads: usize) -> Backend {
    Backend::new(&Device::by_name("cpu").unwrap(), n_threads).unwrap()
}

/// The bytes of what `op` makes of the operands; checks that the number of threads does not show.
pub fn compute_bytes(inputs: &[&Operand], op: impl Fn(&Context, &[Tensor]) -> Tensor) -> Vec<u8> {
    let mut results = THREADS.map(|n| run(&backend(n), inputs, &op)).into_iter();
    let first = results.next().unwrap();
    for other in results {
        let [dtype, ne] = [inputs[0].dtype.name().to_string(), format!("{:?}", inputs[0].ne)];
        assert!(other == first, "{dtype} {ne}: the number of threads shows");
    }
    first
}

pub fn compute(inputs: &[&Operand], op: impl Fn(&Context, &[Tensor]) -> Tensor) -> Vec<f32> {
    floats(&compute_bytes(inputs, op))
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// Holds `got` against `sum_i products(index)[i]` in f64.
pub fn assert_sums(what: &str, got: &[f32], products: impl Fn(usize) -> Vec<f64>) {
    assert!(!got.is_empty());
    for (i, &y) in got.iter().enumerate() {
        let p = products(i);
        let want: f64 = p.iter().sum();
        let magnitude: f64 = p.iter().map(|v| v.abs()).sum();
        let bound = ROUNDINGS_PER_STEP * p.len() as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
        assert!(
            (f64::from(y) - want).abs() <= bound,
            "{what}: element {i}: {y} instead of {want}, bound {bound:e}"
        );
    }
}
