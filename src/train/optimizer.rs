//! AdamW over the flat adapter buffers, and the global gradient norm that clipping needs.
//!
//! The update runs on the device, one operation per [`CHUNK`] of parameters. The norm comes to the host: one number
//! per chunk, summed in order, so that it does not depend on the device's scheduling.

use serde::{Deserialize, Serialize};

use crate::ggml::{Context, Dtype, Executor, Graph, Plan, Tensor};
use crate::model::Lora;

use super::error::Result;

/// Floats per operation: small enough for every device's binding limit (128 MiB).
const CHUNK: usize = 16 << 20;

/// AdamW's constants (arXiv:1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Gradients whose global norm exceeds this are scaled down to it; 0 means never.
    pub clip: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: 1.0 }
    }
}

/// `base^n` by squaring: the same bits everywhere, which `powi` does not promise.
fn power(base: f64, mut n: u64) -> f64 {
    let (mut square, mut result) = (base, 1.0);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}

/// The graphs of one optimizer step.
pub struct Optimizer {
    config: AdamW,
    /// f32 `[7]`, as `opt_step_adamw` takes them.
    params: Tensor,
    /// f32 `[1]`
    clip: Tensor,
    /// f32 `[1]` per chunk: the sum of squares of its gradients.
    squares: Vec<Tensor>,
    pub device_bytes: usize,
    norm: Plan,
    scale: Plan,
    update: Plan,
}

impl Optimizer {
    /// Builds the graphs for an adapter that is set up for training.
    pub fn new(config: AdamW, lora: &Lora, exec: &Executor) -> Result<Self> {
        let training = lora.training.as_ref().expect("an optimizer is made for an adapter with gradients");
        let n = lora.params.n_elements();
        let n_chunks = n.div_ceil(CHUNK);
        let state = Context::new(n_chunks + 2, 0)?;
        let params = state.new_tensor("adamw.params", Dtype::F32, &[7])?;
        let clip = state.new_tensor("adamw.clip", Dtype::F32, &[1])?;
        let squares = (0..n_chunks)
            .map(|i| state.new_tensor(&format!("adamw.square.{i}"), Dtype::F32, &[1]))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let device_bytes = exec.backend().alloc(&state, "the optimizer")?;

        let ctx = Context::new(16 * n_chunks, 3 * (16 * n_chunks + 64))?;
        let new_graph = || Graph::new(&ctx, 16 * n_chunks + 64, false);
        let (mut norm, mut scale, mut update) = (new_graph()?, new_graph()?, new_graph()?);
        for (i, square) in squares.iter().enumerate() {
            let start = i * CHUNK;
            let len = CHUNK.min(n - start);
            let part = |flat: &Tensor| -> Result<Tensor> {
                let t = ctx.new_tensor(&format!("{}.{i}", flat.name()), Dtype::F32, &[len as i64])?;
                t.place_in(flat, start * size_of::<f32>())?;
                Ok(t)
            };
            let (p, g, m, v) =
                (part(&lora.params)?, part(&training.grad)?, part(&training.m)?, part(&training.v)?);

            let cols = crate::model::FLAT_ALIGN as i64;
            let rows = ctx.reshape(&ctx.sqr(&g)?, &[cols, len as i64 / cols])?;
            let sums = ctx.sum_rows(&rows)?; // [1, len / cols]
            let sums = ctx.reshape(&sums, &[len as i64 / cols])?;
            norm.expand(&ctx.cpy(&ctx.sum(&sums)?, square)?)?;

            scale.expand(&ctx.mul_inplace(&g, &clip)?)?;
            update.expand(&ctx.opt_step_adamw(&p, &g, &m, &v, &params)?)?;
        }
        let mut plans = exec.plan(vec![norm, scale, update])?.into_iter();
        let mut next = || plans.next().expect("one plan per graph");
        let (norm, scale, update) = (next(), next(), next());
        Ok(Self { config, params, clip, squares, device_bytes, norm, scale, update })
    }

    /// The global norm of the gradients.
    pub fn grad_norm(&self, exec: &Executor) -> Result<f64> {
        exec.compute(&self.norm)?;
        let mut sum = 0.0;
        for square in &self.squares {
            sum += f64::from(square.download::<f32>()?[0]);
        }
        Ok(sum.sqrt())
    }

    /// Applies the gradients, whose norm is `grad_norm`, as step `step` (counted from 0) at learning rate `lr`.
    pub fn apply(&self, exec: &Executor, step: u64, lr: f64, grad_norm: f64) -> Result<()> {
        let AdamW { beta1, beta2, eps, weight_decay, clip } = self.config;
        if clip > 0.0 && grad_norm > f64::from(clip) {
            self.clip.upload(&[(f64::from(clip) / grad_norm) as f32])?;
            exec.compute(&self.scale)?;
        }
        let correction = |beta: f32| (1.0 / (1.0 - power(f64::from(beta), step + 1))) as f32;
        self.params.upload(&[
            lr as f32,
            beta1,
            beta2,
            eps,
            weight_decay,
            correction(beta1),
            correction(beta2),
        ])?;
        exec.compute(&self.update)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::power;

    #[test]
    fn powers() {
        for n in [0u64, 1, 2, 3, 10, 100, 12345, 1 << 40] {
            for beta in [0.9f32, 0.999] {
                let (got, want) = (power(beta.into(), n), libm::pow(beta.into(), n as f64));
                assert!((got - want).abs() <= 1e-12 * want, "{beta}^{n}: {got} and {want}");
            }
        }
    }
}
