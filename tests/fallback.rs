//! An operation that the device lacks: an error that names the tensor, or, when allowed, computed on the CPU.

mod common;

use common::device::{cpu, vulkan};
use qvac_ft::ggml::{Backend, Context, Dtype, Error, Executor, Graph, Tensor};

/// A type that the CPU's `out_prod` takes and the Vulkan kernels do not.
const DTYPE: Dtype = Dtype::Q5_1;
const N: usize = 64;
const K: usize = 4;
const M: usize = 3;

struct Case {
    weight: Tensor,
    b: Tensor,
    out: Tensor,
    graph: Graph,
}

/// `2 * out_prod(W, b)`: the product for the CPU, the doubling for the device.
fn case(backend: &Backend) -> Case {
    let inputs = Context::new(3, 0).unwrap();
    let weight = inputs.new_tensor("weight", DTYPE, &[N as i64, K as i64]).unwrap();
    let b = inputs.new_tensor("b", Dtype::F32, &[M as i64, K as i64]).unwrap();
    let out = inputs.new_tensor("out", Dtype::F32, &[N as i64, M as i64]).unwrap();
    backend.alloc(&inputs, "the inputs").unwrap();
    let ctx = Context::new(8, 64).unwrap();
    let product = ctx.out_prod(&weight, &b).unwrap().named("product");
    let doubled = ctx.scale(&product, 2.0).unwrap();
    let mut graph = Graph::new(&ctx, 16, false).unwrap();
    graph.expand(&ctx.cpy(&doubled, &out).unwrap()).unwrap();
    Case { weight, b, out, graph }
}

#[test]
fn an_operation_the_device_lacks_is_named() {
    let Some(device) = vulkan() else { return };
    let backend = Backend::new(&device, 1).unwrap();
    let error = Executor::new(&backend, None).plan(vec![case(&backend).graph]).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { tensor, .. } if tensor == "product"), "{error}");
}

#[test]
fn or_runs_on_the_cpu_when_that_is_allowed() {
    let Some(device) = vulkan() else { return };
    let backend = Backend::new(&device, 1).unwrap();
    let host = Backend::new(&cpu(), 1).unwrap();
    let Case { weight, b, out, graph } = case(&backend);
    let values = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
    let mut bytes = Vec::new();
    DTYPE.quantize(&values(N * K, 0.7), N, &mut bytes).unwrap();
    weight.upload_bytes(0, &bytes).unwrap();
    let b_values = values(M * K, 0.3);
    b.upload(&b_values).unwrap();
    let mut w = vec![0.0; N * K];
    DTYPE.dequantize(&bytes, &mut w).unwrap();

    let exec = Executor::new(&backend, Some(&host));
    let plan = exec.plan(vec![graph]).unwrap().remove(0);
    // Twice: the plan is used again and again.
    for _ in 0..2 {
        exec.compute(&plan).unwrap();
        for (i, found) in out.download::<f32>().unwrap().into_iter().enumerate() {
            let expected: f32 = (0..K).map(|k| w[k * N + i % N] * b_values[k * M + i / N]).sum::<f32>() * 2.0;
            assert!((found - expected).abs() < 1e-5, "{found} and {expected}");
        }
    }
}
