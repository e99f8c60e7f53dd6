//! Whether a model can be computed in exact arithmetic. Of libllama this is asked first, because its scheduler ends the process
//! over an operation that no device supports, and gives one that its device lacks to the CPU without a word.

use std::collections::BTreeSet;

use super::error::{Error, Result};
use super::hparams::Hparams;
use super::{arch, survey, ARCHITECTURES};
use crate::ggml::{self, Context, Device, Dtype, GgufFile, Tensor};
use crate::parallel;

/// Refuses a model that the CPU has no exact kernels for. What is left for the CPU to compute because `device` has none is
/// the result, in words: the bits are the same.
pub fn check_exact_inference(file: &GgufFile, device: &Device) -> Result<Vec<String>> {
    let name = file.require_str("general.architecture")?;
    if arch::find(name).is_none() {
        return Err(Error::ExactArchitecture {
            path: file.path().into(),
            found: name.into(),
            supported: ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
        });
    }
    let cpu = Device::by_name("cpu")?;
    let hp = Hparams::from_gguf(file)?;
    let ctx = Context::new(4 * file.tensors().len() + 8, 0)?;
    let mut on_cpu = BTreeSet::new();
    for op in operations(&ctx, file, &hp)? {
        let operands = op.sources().iter().map(|s| s.dtype().name()).collect::<Vec<_>>().join(" x ");
        if !cpu.supports(&op) {
            return Err(ggml::Error::Unsupported {
                tensor: op.sources()[0].name(),
                op: op.op_name(),
                operands,
                device: cpu.name().into(),
                exact: true,
            }
            .into());
        }
        if !device.supports(&op) {
            on_cpu.insert(format!("{} of {operands}", op.op_name()));
        }
    }
    Ok(on_cpu.into_iter().collect())
}

/// Refuses a model whose backward is not one of integers: a ternary tensor whose blocks differ in scale is multiplied as floats
/// there, in an order of each device's own.
pub fn check_exact_training(file: &GgufFile) -> Result<()> {
    let ternary = survey::ternary(file, parallel::available(), &mut |_, _| {})?;
    match ternary.and_then(|t| t.mixed_scales.into_iter().next()) {
        Some(tensor) => Err(Error::ExactMixedScales { path: file.path().into(), tensor }),
        None => Ok(()),
    }
}

/// A product with each matrix, and attention over a cache: the operations whose kernels depend on the model.
fn operations(ctx: &Context, file: &GgufFile, hp: &Hparams) -> Result<Vec<Tensor>> {
    let mut ops = Vec::new();
    for info in file.tensors().iter().filter(|t| t.n_dims == 2) {
        let weight = ctx.new_tensor(&info.name, info.dtype, &info.ne[..2])?;
        let x = ctx.new_tensor("x", Dtype::F32, &[info.ne[0], 1])?;
        ops.push(ctx.mul_mat(&weight, &x)?);
    }
    let (n_embd_head, n_head, n_head_kv) = (hp.n_embd_head as i64, hp.n_head as i64, hp.n_head_kv as i64);
    const N_KV: i64 = 256;
    let q = ctx.new_tensor("q", Dtype::F32, &[n_embd_head, 1, n_head])?;
    let cache = |name| ctx.new_tensor(name, Dtype::F16, &[n_embd_head, N_KV, n_head_kv]);
    let mask = ctx.new_tensor("mask", Dtype::F16, &[N_KV, 1])?;
    ops.push(ctx.flash_attn_ext(&q, &cache("k")?, &cache("v")?, &mask, 1.0)?);
    Ok(ops)
}
