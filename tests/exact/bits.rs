//! One op in exact arithmetic on every device, between guard words; results as bits.

use std::sync::PoisonError;

use qvac_ft::ggml::{self, Backend, Context, Device, Dtype, Executor, Graph, Tensor};

use super::{device, ONE_AT_A_TIME};

/// An operand: a whole tensor, of which an op may take a view.
pub struct Input {
    pub dtype: Dtype,
    pub ne: Vec<i64>,
    pub bytes: Vec<u8>,
}

impl Input {
    pub fn f32(ne: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { dtype: Dtype::F32, ne: ne.to_vec(), bytes }
    }

    pub fn i32(ne: &[i64], values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { dtype: Dtype::I32, ne: ne.to_vec(), bytes }
    }
}

/// What is compared: the op's result, or an operand that it writes over, with all that lies around.
#[derive(Clone, Copy)]
pub enum Read {
    Result,
    Input(usize),
}

/// Words of pattern before and behind each result. Their bytes are a multiple of any device's buffer alignment.
const GUARD: usize = 1024;
const PATTERN: f32 = -12345.5;

fn words(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap()))
}

fn run(
    backend: &Backend,
    inputs: &[Input],
    read: Read,
    op: &dyn Fn(&Context, &[Tensor]) -> Tensor,
) -> Vec<f32> {
    let exec = Executor::new(backend, None);
    let memory = Context::new(inputs.len() + 1, 0).unwrap();
    let tensors: Vec<Tensor> =
        inputs.iter().map(|i| memory.new_tensor("input", i.dtype, &i.ne).unwrap()).collect();
    let ops = Context::new(64, 64).unwrap();
    let out = op(&ops, &tensors);
    let mut graph = Graph::new(&ops, 64, false).unwrap();
    graph.expand(&out).unwrap();

    let n = out.nbytes() / size_of::<f32>();
    let guarded = memory.new_tensor("guarded", Dtype::F32, &[(n + 2 * GUARD) as i64]).unwrap();
    backend.alloc(&memory, "inputs").unwrap();
    guarded.upload(&vec![PATTERN; n + 2 * GUARD]).unwrap();
    if matches!(read, Read::Result) {
        out.place_in(&guarded, GUARD * size_of::<f32>()).unwrap();
    }
    for (tensor, input) in tensors.iter().zip(inputs) {
        tensor.upload_bytes(0, &input.bytes).unwrap();
    }
    let plans = exec.plan(vec![graph]).unwrap();
    exec.compute(&plans[0]).unwrap();
    match read {
        Read::Input(i) => tensors[i].download().unwrap(),
        Read::Result => {
            let all = guarded.download_bytes().unwrap();
            let all: Vec<f32> = words(&all).collect();
            let around = all[..GUARD].iter().chain(&all[GUARD + n..]);
            assert!(around.clone().all(|&v| v == PATTERN), "a guard word was overwritten");
            all[GUARD..GUARD + n].to_vec()
        }
    }
}

/// A NaN is a NaN, whatever its bits.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Holds every device and number of threads to `want`, bit for bit.
pub fn check(
    case: &str,
    inputs: &[Input],
    read: Read,
    want: &[f32],
    op: impl Fn(&Context, &[Tensor]) -> Tensor,
) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ggml::set_exact(true);
    let cpu = device::cpu();
    let runs: Vec<(Device, usize)> = [(cpu.clone(), 1), (cpu, 2)]
        .into_iter()
        .chain(device::vulkan().into_iter().map(|device| (device, 1)))
        .collect();
    for (device, threads) in runs {
        let got = run(&Backend::new(&device, threads).unwrap(), inputs, read, &op);
        assert_eq!(got.len(), want.len(), "{case} on {}", device.name());
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            assert!(
                same(g, w),
                "{case} on {}, {threads} threads: element {i} is {g:e} ({:08x}), not {w:e} ({:08x})",
                device.name(),
                g.to_bits(),
                w.to_bits()
            );
        }
    }
}
