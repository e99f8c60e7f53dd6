//! One op on one device, its output between guard words.

// Each test program uses its part of this.
#![allow(dead_code)]

use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, Graph, Tensor};

/// Words of pattern before and behind each output. Their bytes are a multiple of any device's buffer alignment.
const GUARD: usize = 1024;
pub const PATTERN: f32 = -12345.5;

/// One op on one device: inputs, the op's context, and the run.
pub struct Bench {
    pub inputs: Context,
    pub ops: Context,
    pub exec: Executor,
    uploads: Vec<(Tensor, Vec<u8>)>,
}

impl Bench {
    pub fn new(device: &Device) -> Self {
        Self::with_threads(device, 2)
    }

    pub fn with_threads(device: &Device, n_threads: usize) -> Self {
        Self {
            inputs: Context::new(16, 0).unwrap(),
            ops: Context::new(512, 256).unwrap(),
            exec: Executor::new(&Backend::new(device, n_threads).unwrap(), None),
            uploads: Vec::new(),
        }
    }

    /// An input of any type, converted from `values`.
    pub fn input(&mut self, dtype: Dtype, ne: &[i64], values: &[f32]) -> Tensor {
        let t = self.inputs.new_tensor(&format!("in{}", self.uploads.len()), dtype, ne).unwrap();
        let mut bytes = Vec::new();
        dtype.quantize(values, ne[0] as usize, &mut bytes).unwrap();
        self.uploads.push((t.clone(), bytes));
        t
    }

    pub fn f32(&mut self, ne: &[i64], values: &[f32]) -> Tensor {
        self.input(Dtype::F32, ne, values)
    }

    pub fn i8(&mut self, ne: &[i64], bytes: &[u8]) -> Tensor {
        let t = self.inputs.new_tensor(&format!("in{}", self.uploads.len()), Dtype::I8, ne).unwrap();
        self.uploads.push((t.clone(), bytes.to_vec()));
        t
    }

    /// An input of any type as its bytes.
    pub fn bytes(&mut self, dtype: Dtype, ne: &[i64], bytes: Vec<u8>) -> Tensor {
        let t = self.inputs.new_tensor(&format!("in{}", self.uploads.len()), dtype, ne).unwrap();
        self.uploads.push((t.clone(), bytes));
        t
    }

    pub fn i32(&mut self, values: &[i32]) -> Tensor {
        let t = self
            .inputs
            .new_tensor(&format!("in{}", self.uploads.len()), Dtype::I32, &[values.len() as i64])
            .unwrap();
        self.uploads.push((t.clone(), values.iter().flat_map(|v| v.to_ne_bytes()).collect()));
        t
    }

    /// Computes `out` between guard words.
    pub fn run(self, out: &Tensor) -> Vec<f32> {
        let mut graph = Graph::new(&self.ops, 128, false).unwrap();
        graph.expand(out).unwrap();
        self.compute(graph, out)
    }

    /// Computes `out` with its operations in the order in which they were made, as the training graph has them.
    pub fn run_in_order(self, out: &Tensor) -> Vec<f32> {
        let graph = Graph::in_order(&self.ops, std::slice::from_ref(out)).unwrap();
        self.compute(graph, out)
    }

    /// As [`Self::run`], for results of any type.
    pub fn run_bytes(self, out: &Tensor) -> Vec<u8> {
        let mut graph = Graph::new(&self.ops, 128, false).unwrap();
        graph.expand(out).unwrap();
        self.compute_bytes(graph, out)
    }

    /// Computes `op`, which writes over its inputs, and reads one of them.
    pub fn run_then_read(self, op: &Tensor, input: &Tensor) -> Vec<f32> {
        self.run_only(op);
        input.download().unwrap()
    }

    /// As [`Self::run_then_read`], for inputs of any type.
    pub fn run_then_read_bytes(self, op: &Tensor, input: &Tensor) -> Vec<u8> {
        self.run_only(op);
        input.download_bytes().unwrap()
    }

    fn run_only(&self, op: &Tensor) {
        let mut graph = Graph::new(&self.ops, 128, false).unwrap();
        graph.expand(op).unwrap();
        self.exec.backend().alloc(&self.inputs, "inputs").unwrap();
        self.finish(graph);
    }

    /// The gradient of `sum(y * dy)` in `x`, a parameter, as autodiff derives it.
    pub fn grad(mut self, x: &Tensor, y: &Tensor, dy: &[f32]) -> Vec<f32> {
        let dy = self.f32(&y.ne(), dy);
        let seed = self.f32(&[1], &[1.0]);
        let loss = self.ops.sum(&self.ops.mul(y, &dy).unwrap()).unwrap();
        loss.set_loss().unwrap();
        let mut graph = Graph::new(&self.ops, 128, true).unwrap();
        graph.expand(&loss).unwrap();
        graph.backward_expand(&[(&loss, &seed)]).unwrap();
        let dx = self.ops.cont(&graph.grad(x).expect("x has a gradient")).unwrap();
        let graph = graph.pruned(std::slice::from_ref(&dx)).unwrap();
        self.compute(graph, &dx)
    }

    fn compute(self, graph: Graph, out: &Tensor) -> Vec<f32> {
        let bytes = self.compute_bytes(graph, out);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }

    fn compute_bytes(self, graph: Graph, out: &Tensor) -> Vec<u8> {
        const WORD: usize = size_of::<f32>();
        let n = out.nbytes().div_ceil(WORD);
        let flat = self.inputs.new_tensor("guarded", Dtype::F32, &[(n + 2 * GUARD) as i64]).unwrap();
        self.exec.backend().alloc(&self.inputs, "inputs").unwrap();
        flat.upload(&vec![PATTERN; n + 2 * GUARD]).unwrap();
        out.place_in(&flat, GUARD * WORD).unwrap();
        self.finish(graph);
        let all: Vec<u8> = flat.download_bytes().unwrap();
        let (before, rest) = all.split_at(GUARD * WORD);
        let (result, after) = rest.split_at(out.nbytes());
        let pattern = PATTERN.to_ne_bytes();
        for (i, word) in before.chunks(WORD).chain(after.rchunks(WORD)).enumerate() {
            assert!(pattern.ends_with(word), "guard word {i} was overwritten");
        }
        result.to_vec()
    }

    pub fn finish(&self, graph: Graph) {
        for (tensor, bytes) in &self.uploads {
            tensor.upload_bytes(0, bytes).unwrap();
        }
        let plans = self.exec.plan(vec![graph]).unwrap();
        self.exec.compute(&plans[0]).unwrap();
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
