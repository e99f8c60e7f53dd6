//! The linear layers of a block with their adapters, forward and backward, by group: the layers that read one activation
//! share its quantization, and their adapters' As are one matrix.
//!
//! Ternary weights are multiplied in integers (`tq_*`), others by upstream's `mul_mat` and by `out_prod`.
//! Operations that do not depend on each other are made next to each other, for the device to run them side by side.

use crate::ggml::{Context, Tensor, TERNARY_SUM_STEP};

use super::block::Net;
use super::error::Result;
use super::lora::{Group, Param};
use super::spec::Target;
use super::weights::Linear;

/// What a group's backward needs of its forward.
pub(super) struct Saved {
    il: usize,
    group: usize,
    /// What the layers read, `[n_in, n_tokens]`.
    x: Tensor,
    /// `A x` of all adapters of the group, `[n_adapters * rank, n_tokens]`.
    ax: Option<Tensor>,
}

impl Net<'_> {
    /// The results of the layers of group `group` of block `il` for `x` `[n_in, n_tokens]`: `[n_out, n_tokens]` each.
    /// `residual` is added to each of them.
    pub(super) fn linears(
        &self,
        ctx: &Context,
        il: usize,
        group: usize,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Vec<Tensor>, Saved)> {
        let lora = self.lora.and_then(|l| Some((l.group(il, group)?, l.scale())));
        let layers = self.layers_of(il, group);
        let ax = match lora {
            Some((adapters, _)) => Some(ctx.low_rank_project(&adapters.a.value, x, 1.0)?), // [n_adapters * rank, n_tokens]
            None => None,
        };
        let xq = match layers.iter().any(|(_, l)| l.weight.dtype().is_ternary()) {
            true => Some(ctx.tq_quantize(x, 1)?), // [n_in + 16, n_tokens]
            false => None,
        };
        let products = layers.iter().map(|(target, layer)| {
            let y = match &xq {
                Some(xq) if layer.weight.dtype().is_ternary() => ctx.tq_mul_mat(&layer.weight, xq)?,
                _ => ctx.mul_mat(&layer.weight, x)?,
            };
            Ok(y.named(&format!("{}-{il}", target.name()))) // [n_out, n_tokens]
        });
        let mut ys = products.collect::<Result<Vec<_>>>()?;
        for ((target, layer), y) in layers.iter().zip(&mut ys) {
            let late = self.arch.scale_covers_adapter(*target);
            if let Some(scale) = layer.scale.as_ref().filter(|_| !late) {
                *y = ctx.mul(y, scale)?; // [n_out, n_tokens]
            }
            let plain = layer.bias.is_none() && !(late && layer.scale.is_some());
            let mut rest = residual;
            if let (Some((adapters, scale)), Some(ax)) = (lora, &ax) {
                if let Some((i, b)) = member(adapters, *target) {
                    let bt = ctx.transpose(&b.value)?; // [n_out, rank]
                    let z = rows_of(ctx, ax, i, b.value.ne()[0])?; // [rank, n_tokens]
                    *y = ctx.low_rank_add(y, &bt, &z, rest.filter(|_| plain), scale)?; // [n_out, n_tokens]
                    rest = rest.filter(|_| !plain);
                }
            }
            if let Some(bias) = &layer.bias {
                *y = ctx.add(y, bias)?; // [n_out, n_tokens]
            }
            // A scale that covers the adapter covers the bias too.
            if let Some(scale) = layer.scale.as_ref().filter(|_| late) {
                *y = ctx.mul(y, scale)?; // [n_out, n_tokens]
            }
            if let Some(rest) = rest {
                *y = ctx.add(y, rest)?; // [n_out, n_tokens]
            }
        }
        Ok((ys, Saved { il, group, x: x.clone(), ax }))
    }

    /// The gradient in what the layers of a group read, from those of their results; adds to the adapters' gradients, and
    /// appends what computes those to `gradients`. Without `needs_dx` there is no need of the first.
    pub(super) fn linears_back(
        &self,
        ctx: &Context,
        saved: &Saved,
        dys: &[&Tensor],
        needs_dx: bool,
        gradients: &mut Vec<Tensor>,
    ) -> Result<Option<Tensor>> {
        let &Saved { il, group, .. } = saved;
        let layers = self.layers_of(il, group);
        let scaled = |dy: &Tensor, layer: &Linear, when: bool| -> Result<Tensor> {
            match layer.scale.as_ref().filter(|_| when) {
                Some(scale) => Ok(ctx.mul(dy, scale)?), // as dy
                None => Ok(dy.clone()),
            }
        };
        // The gradients of `W x * scale + B A x` or of `(W x + B A x) * scale`, and of `W x` alone.
        let mut dys: Vec<Tensor> = dys.iter().map(|&dy| dy.clone()).collect();
        for ((target, layer), dy) in layers.iter().zip(&mut dys) {
            *dy = scaled(dy, layer, self.arch.scale_covers_adapter(*target))?;
        }
        let lora = self.lora.and_then(|l| Some((l.group(il, group)?, l.scale())));
        let dzs = match lora {
            Some((adapters, scale)) => self.projected(ctx, adapters, scale, &layers, &dys)?, // [rank, n_tokens] each
            None => Vec::new(),
        };
        let mut dx = match needs_dx {
            true => {
                let own = layers
                    .iter()
                    .zip(&dys)
                    .map(|((target, layer), dy)| scaled(dy, layer, !self.arch.scale_covers_adapter(*target)));
                let own = own.collect::<Result<Vec<_>>>()?;
                Some(self.products_back(ctx, &layers, &own)?) // [n_in, n_tokens]
            }
            false => None,
        };
        let (Some((adapters, scale)), Some(ax)) = (lora, &saved.ax) else { return Ok(dx) };
        let (first, others) = dzs.split_first().expect("a group has an adapter at least");
        let dz = others.iter().try_fold(first.clone(), |dz, other| ctx.concat_rows(&dz, other))?; // as ax
        if let Some(dx) = &mut dx {
            *dx = ctx.low_rank_add(dx, &adapters.a.value, &dz, None, 1.0)?; // [n_in, n_tokens]
        }
        if let Some(grad) = &adapters.a.grad {
            gradients.push(ctx.low_rank_grad(grad, &saved.x, &dz, 1.0)?); // [n_in, n_adapters * rank]
        }
        for ((target, _), dy) in layers.iter().zip(&dys) {
            let Some((i, b)) = member(adapters, *target) else { continue };
            let Some(grad) = &b.grad else { continue };
            let z = rows_of(ctx, ax, i, grad.ne()[0])?; // [rank, n_tokens]
            let db = ctx.low_rank_grad(&ctx.transpose(grad)?, dy, &z, scale)?; // [n_out, rank]
            gradients.push(db);
        }
        Ok(dx)
    }

    fn layers_of(&self, il: usize, group: usize) -> Vec<(Target, &Linear)> {
        Target::GROUPS[group].iter().map(|&t| (t, self.weights.layers[il].linear(t))).collect()
    }

    /// `scale * B^T dy` of each adapted layer of a group.
    fn projected(
        &self,
        ctx: &Context,
        adapters: &Group,
        scale: f32,
        layers: &[(Target, &Linear)],
        dys: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let adapted = layers.iter().zip(dys).filter_map(|((t, _), dy)| Some((member(adapters, *t)?.1, dy)));
        adapted.map(|(b, dy)| Ok(ctx.low_rank_project(&ctx.transpose(&b.value)?, dy, scale)?)).collect()
    }

    /// The sum of `W^T dy` over layers that read the same.
    fn products_back(&self, ctx: &Context, layers: &[(Target, &Linear)], dys: &[Tensor]) -> Result<Tensor> {
        let exact = |layer: &Linear| {
            let [_, n_out, ..] = layer.weight.ne();
            layer.weight.dtype().is_ternary() && n_out % TERNARY_SUM_STEP == 0
        };
        let quantized = layers.iter().zip(dys).map(|((_, layer), dy)| match exact(layer) {
            true => Ok(Some(ctx.tq_quantize(dy, self.backward_limbs)?)), // [limbs * n_out + 16, n_tokens]
            false => Ok(None),
        });
        let quantized = quantized.collect::<Result<Vec<_>>>()?;
        let products = layers.iter().zip(dys).zip(&quantized).map(|(((_, layer), dy), q)| match q {
            Some(q) => Ok(ctx.tq_mul_mat_back(&layer.weight, q, None)?), // [n_in, n_tokens]
            None => Ok(ctx.out_prod(&layer.weight, &ctx.transpose(dy)?)?), // [n_in, n_tokens]
        });
        let products = products.collect::<Result<Vec<_>>>()?;
        let (first, others) = products.split_first().expect("a group has a layer at least");
        others.iter().try_fold(first.clone(), |sum, p| Ok(ctx.add(&sum, p)?)) // [n_in, n_tokens]
    }
}

/// The place of a layer among a group's adapters, and its B.
fn member(adapters: &Group, target: Target) -> Option<(usize, &Param)> {
    let found = adapters.b.iter().enumerate().find(|(_, (t, _))| *t == target);
    found.map(|(i, (_, b))| (i, b))
}

/// The part of `A x` that belongs to the `i`th adapter of a group.
fn rows_of(ctx: &Context, ax: &Tensor, i: usize, rank: i64) -> Result<Tensor> {
    Ok(ctx.view_rows(ax, i as i64 * rank, rank)?)
}
