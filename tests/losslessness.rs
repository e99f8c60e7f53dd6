//! The ternary kernels against BitLinear as PyTorch computes it (`scripts/losslessness.py`), on a real model's weights and
//! activations: the same integers, and the same results.

mod common;

use common::device::{cpu, vulkan};
use common::real::root;
use qvac_ft::ggml::{Backend, Context, Dtype, Executor, GgufFile, Graph};
use serde_json::Value;

/// Three roundings from the true value: half a unit each, of a product that may be just above a power of two.
const ULPS: u32 = 2;

fn numbers<T>(layer: &Value, key: &str, of: fn(&Value) -> Option<T>) -> Vec<T> {
    let values = layer[key].as_array().unwrap_or_else(|| panic!("no `{key}`"));
    values.iter().map(|v| of(v).expect("a number")).collect()
}

#[test]
fn kernels_compute_bitlinear() {
    let fixture = std::fs::read(root().join("tests/fixtures/exact/bitlinear.json")).unwrap();
    let fixture: Value = serde_json::from_slice(&fixture).unwrap();
    let file = GgufFile::open(root().join("models/tiny-bitnet/tiny-bitnet-tq1_0.gguf")).unwrap();
    let n_tokens = fixture["tokens"].as_i64().unwrap();
    let layers = fixture["layers"].as_object().unwrap();
    assert_eq!(layers.len(), 2);
    for device in [cpu()].into_iter().chain(vulkan()) {
        for (name, layer) in layers {
            let case = format!("{name} on {}", device.name());
            let floats =
                |key| numbers(layer, key, |v| Some(f32::from_bits(u32::try_from(v.as_u64()?).ok()?)));
            let info = file.tensor(name).unwrap();
            let [n_in, n_out, ..] = info.ne;

            let backend = Backend::new(&device, 2).unwrap();
            let inputs = Context::new(4, 0).unwrap();
            let w = inputs.new_tensor("w", info.dtype, &[n_in, n_out]).unwrap();
            let x = inputs.new_tensor("x", Dtype::F32, &[n_in, n_tokens]).unwrap();
            backend.alloc(&inputs, "the operands").unwrap();
            w.upload_bytes(0, file.bytes(info)).unwrap();
            x.upload(&floats("x")).unwrap();
            let ctx = Context::new(8, 64).unwrap();
            let xq = ctx.tq_quantize(&x, 1).unwrap();
            let y = ctx.tq_mul_mat(&w, &xq).unwrap();
            xq.set_output();
            y.set_output();
            let mut graph = Graph::new(&ctx, 8, false).unwrap();
            graph.expand(&y).unwrap();
            let exec = Executor::new(&backend, None);
            let plan = exec.plan(vec![graph]).unwrap().remove(0);
            exec.compute(&plan).unwrap();

            let integers = numbers(layer, "integers", |v| i8::try_from(v.as_i64()?).ok());
            let found = xq.download_bytes().unwrap();
            let rows = found.chunks(found.len() / n_tokens as usize);
            let found: Vec<i8> = rows.flat_map(|row| &row[..n_in as usize]).map(|&b| b as i8).collect();
            assert!(found == integers, "{case}: integers of the activations");

            let results = y.download::<f32>().unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&results) == bits(&floats("results")), "{case}: results");
            for (found, truth) in bits(&results).into_iter().zip(bits(&floats("true"))) {
                assert!(found.abs_diff(truth) <= ULPS, "{case}: {found:#x} and {truth:#x}");
            }
            // The sums themselves: what a result is the product of.
            let sums = numbers(layer, "sums", Value::as_i64);
            for (token, results) in results.chunks(n_out as usize).enumerate() {
                let of_token = &sums[token * n_out as usize..][..n_out as usize];
                let (largest, &most) = of_token.iter().enumerate().max_by_key(|(_, s)| s.abs()).unwrap();
                let unit = f64::from(results[largest]) / most as f64;
                for (&y, &sum) in results.iter().zip(of_token) {
                    assert!((f64::from(y) / unit - sum as f64).abs() < 0.01, "{case}: {y} of {sum}");
                }
            }
        }
    }
}
